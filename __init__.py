"""ComfyUI-CascadeVSR: cascaded, temporally consistent video super-resolution as native nodes."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    """Hand the host the extension that lists our nodes (node API V3)."""
    from .nodes.extension import CascadeVSRExtension

    return CascadeVSRExtension()
