"""Everything of the pack that knows the insides of ComfyUI, so that the nodes need not."""
