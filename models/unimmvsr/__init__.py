"""UniMMVSR (arXiv 2510.08143): a cascaded, reference-guided latent video upscaler, and its small causal VAE."""
