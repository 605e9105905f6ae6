"""Upscale-A-Video (CVPR 2024): a x4 latent upscaler with temporal layers, steered by text and LR frames."""
