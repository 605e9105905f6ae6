"""What nodes and systems share of ComfyUI's insides: checks, keys, our MODELs and VAEs, its own VAEs and Wan."""
