"""Turns the sampled latent into frames of exactly the asked size."""

import torch
from comfy_api.latest import io

from ..models.layout.geometry import ClipSize, resize_clip
from . import checks, foreign_vae, host
from .native_vae import NativeVAE
from .video_vae import CHUNK

_TITLE = "Temporal Decode"


class TemporalDecode(io.ComfyNode):
    """Decodes in chunks with memory of what came before."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRTemporalDecode",
            display_name=_TITLE,
            category=host.CATEGORY,
            description="Decodes a video latent in chunks that know their past, with the low-resolution "
            "frames as a "
            "guide. The result has exactly the size and frame count that Cascade Input was asked for.",
            search_aliases=["vae decode", "video decode", "temporal vae", "decode video"],
            inputs=[
                io.Latent.Input("samples", tooltip="The sampled latent."),
                io.Vae.Input("vae", tooltip="The restorer's VAE; any video VAE works without lr_frames."),
                io.Image.Input(
                    "lr_frames", optional=True, tooltip="The low-resolution frames from Cascade Input; "
                    "sharper and more faithful."
                ),
                io.Float.Input(
                    "lr_weight", default=1.0, min=0.0, max=1.0, step=0.05,
                    tooltip="How much the low-resolution frames guide: 1 fully, 0 only the decoder's own "
                    "guess; the dec_w of MGLD-VSR.",
                ),
                io.Int.Input(
                    "chunk", default=CHUNK, min=4, max=1024, step=4, advanced=True,
                    tooltip="Frames decoded together; fewer need less memory. Upscale-A-Video takes 8 at most, "
                    "MGLD-VSR 5, and blends them.",
                ),
                io.Int.Input(
                    "tile", default=0, min=0, max=8192, step=64, advanced=True,
                    tooltip="Tile side in output px; 0 decodes whole frames where they fit.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The clip at its exact size.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples, vae, lr_weight, chunk, tile, lr_frames=None):
        """Decode with the restorer's VAE, or with another one and crop."""
        if vae is None:
            raise ValueError(
                f"{_TITLE}: vae must be a VAE; got none. The chosen restorer file has no VAE: choose the released "
                "folder or a converted file in Load Video Restorer."
            )
        options = {"lr_weight": lr_weight, "chunk": chunk, "tile": tile, "lr_frames": lr_frames}
        return io.NodeOutput(decode_exact(_TITLE, samples, vae, **options))


def decode_exact(title: str, samples: dict, vae, chunk=CHUNK, tile=0, lr_frames=None, lr_weight=1.0):
    """Decode a video LATENT to frames of exactly the size it stands for, the clips of a batch one after the other."""
    latent = checks.check_latent(title, "samples", samples, vae.latent_channels)
    space, time = vae.spacial_compression_decode(), foreign_vae.time_ratio(vae)
    if not foreign_vae.is_regular(vae):
        return foreign_vae.decode(vae, latent)
    size = checks.latent_target(title, samples, space, time)
    work = checks.work_size(samples, size)
    if lr_frames is not None:
        lr_frames = checks.check_frames(title, "lr_frames", lr_frames)
        checks.check_count(title, "lr_frames", lr_frames.shape[0], size.frames)
    if isinstance(vae, NativeVAE):
        options = {"lr": lr_frames, "lr_weight": lr_weight, "size": work, "chunk": chunk, "tile": tile}
        frames = vae.decode(latent, vae_options=options)
        frames = frames[:, : work.frames, : work.height, : work.width].flatten(0, 1)
        return frames if work == size else _reduced(frames, size)
    if lr_frames is not None:
        raise ValueError(
            f"{title}: only a restorer's VAE can use lr_frames; got another VAE ({type(vae).__name__}). "
            "Unlink lr_frames, or use the VAE of Load Video Restorer."
        )
    clips = [foreign_vae.decode(vae, clip, work, tile, chunk) for clip in latent.split(1)]
    return clips[0] if len(clips) == 1 else torch.cat(clips)


def _reduced(frames, size: ClipSize):
    """Bring frames to the asked size, where the model worked on a larger picture."""
    clip = frames.movedim(-1, 0).unsqueeze(0)
    return resize_clip(clip, size.height, size.width, "bicubic").clamp_(0, 1)[0].movedim(0, -1)
