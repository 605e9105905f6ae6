"""MGLD-VSR (ECCV 2024): an image diffusion model steered by a structure encoder of the LR clip, guided by motion."""
