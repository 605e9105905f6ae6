"""Loads restorers as MODEL and VAE."""

from comfy_api.latest import io

from . import host
from .restorers import load_restorer


class LoadVideoRestorer(io.ComfyNode):
    """Loads the built-in restorer or one from models/video_restorers."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRLoadVideoRestorer",
            display_name="Load Video Restorer",
            category=host.CATEGORY,
            description="Loads a video super-resolution network and its video VAE. The built-in one needs "
            "no download "
            "and runs on a CPU.",
            search_aliases=["video upscale model", "super resolution", "unimmvsr", "load upscaler", "vsr"],
            inputs=[
                io.Combo.Input(
                    "restorer",
                    options=host.restorer_names(),
                    default=host.BUILT_IN,
                    tooltip="The built-in model, or a file from the folder models/video_restorers.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", *host.PRECISIONS],
                    default="auto",
                    advanced=True,
                    tooltip="auto: fp32 on a CPU, what the GPU does best for the network elsewhere; the "
                    "VAE stays in fp32.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The network, for any sampler."),
                io.Vae.Output(tooltip="Its video VAE, for Cascade Input and Temporal Decode."),
            ],
        )

    @classmethod
    def execute(cls, restorer, precision):
        """Load the file behind the name."""
        model, vae = load_restorer(host.restorer_path(restorer), precision)
        return io.NodeOutput(model, vae)

    @classmethod
    def fingerprint_inputs(cls, restorer, precision):
        """Load again when the file changed."""
        path = host.restorer_path(restorer)
        return f"{path}:{path.stat().st_mtime_ns if path.is_file() else 'missing'}:{precision}"
