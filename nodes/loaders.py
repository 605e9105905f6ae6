"""Loads restorers as MODEL, VAE and CLIP."""

from comfy_api.latest import io

from ..models.checkpoints import DECODERS
from ..models.mgld_vsr.checkpoint import LICENCE as MGLD_LICENCE
from ..models.upscale_a_video.checkpoint import LICENCE as UPSCALE_A_VIDEO_LICENCE
from . import host
from .keys import DEFAULT, PRESETS
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
            description="Loads a video super-resolution network, its video VAE and its text encoder. The "
            "built-in one needs no download and runs on a CPU. Upscale-A-Video and MGLD-VSR are read from the "
            "folder of their published files, or a file converted from it. "
            f"{UPSCALE_A_VIDEO_LICENCE} {MGLD_LICENCE}",
            search_aliases=[
                "video upscale model",
                "super resolution",
                "unimmvsr",
                "upscale-a-video",
                "mgld",
                "mgld-vsr",
                "load upscaler",
                "vsr",
            ],
            inputs=[
                io.Combo.Input(
                    "restorer",
                    options=host.restorer_names(),
                    default=host.BUILT_IN,
                    tooltip="The built-in model, or a file or released folder from models/video_restorers.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", *host.PRECISIONS],
                    default="auto",
                    advanced=True,
                    tooltip="auto: fp32 on a CPU, what the GPU does best for the network elsewhere. The VAE of "
                    "the built-in model stays in fp32, those of Upscale-A-Video and MGLD-VSR use bf16 where they can.",
                ),
                io.Combo.Input(
                    "decoder",
                    options=list(DECODERS),
                    default=DECODERS[0],
                    optional=True,
                    tooltip="Which VAE of Upscale-A-Video: plain (vae_3d) or lr-conditioned (vae_video), which "
                    "is steadier and suits animation; auto: plain, if it is there. MGLD-VSR: lr-conditioned is its "
                    "sequence decoder, plain that of Stable Diffusion; auto: the sequence decoder.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=DEFAULT,
                    optional=True,
                    advanced=True,
                    tooltip="reference repeats the published programs of Upscale-A-Video and MGLD-VSR number by "
                    "number; default blends windows and decoding chunks smoothly and decodes in bf16 where it can.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The network, for any sampler."),
                io.Vae.Output(tooltip="Its video VAE, for Cascade Input and Temporal Decode."),
                io.Clip.Output(tooltip="Its text encoder, for CLIP Text Encode; nothing where it has none."),
            ],
        )

    @classmethod
    def execute(cls, restorer, precision, decoder=DECODERS[0], preset=DEFAULT):
        """Load the file or folder behind the name."""
        return io.NodeOutput(*load_restorer(host.restorer_path(restorer), precision, decoder, preset))

    @classmethod
    def validate_inputs(cls, restorer):
        """Say before the run where a missing restorer belongs; the host would only say that it is missing."""
        try:
            host.restorer_path(restorer)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, restorer, precision, decoder=DECODERS[0], preset=DEFAULT):
        """Load again when the file changed."""
        path = host.restorer_path(restorer)
        return f"{path}:{host.newest_change(path)}:{precision}:{decoder}:{preset}"
