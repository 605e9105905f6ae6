"""Brings a low-resolution clip to the target size in the latent space of the restorer."""

import torch
from comfy_api.latest import io

from ..models.layout.geometry import ClipSize, target_size
from . import checks, foreign_vae, host
from .decode import decode_exact
from .native_vae import NativeVAE

_TITLE = "Cascade Input"
_FILTERS = ("bilinear", "bicubic", "lanczos")


class CascadeInput(io.ComfyNode):
    """Resizes in pixels, never in latents, and encodes."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        scale = io.Float.Input(
            "scale",
            default=4.0,
            min=0.1,
            max=16.0,
            step=0.1,
            tooltip="Output size as a multiple of the input's.",
        )
        short = io.Int.Input(
            "short_side",
            default=1080,
            min=2,
            max=16384,
            tooltip="Output px of the shorter side; the shape is kept.",
        )
        exact = [
            io.Int.Input("width", default=1920, min=2, max=16384, tooltip="Exact output width in px."),
            io.Int.Input("height", default=1080, min=2, max=16384, tooltip="Exact output height in px."),
        ]
        option = io.DynamicCombo.Option
        return io.Schema(
            node_id="VSRCascadeInput",
            display_name=_TITLE,
            category=host.CATEGORY,
            description="Takes a low-resolution clip - frames, or the latent of a base video model with "
            "its VAE - to the "
            "target size and encodes it for the restorer. Frame count and size come out exactly as asked.",
            search_aliases=[
                "upscale video",
                "cascade",
                "lr latent",
                "super resolution input",
                "refine input",
            ],
            inputs=[
                io.Vae.Input(
                    "target_vae",
                    tooltip="The VAE of the model that will be sampled: a restorer's, or any video VAE of the host.",
                ),
                io.DynamicCombo.Input(
                    "target",
                    options=[
                        option("scale", [scale]),
                        option("short side", [short]),
                        option("exact size", exact),
                    ],
                    tooltip="How large the result shall be.",
                ),
                io.Combo.Input(
                    "filter",
                    options=list(_FILTERS),
                    default="bilinear",
                    tooltip="Filter of the upscale that the restorer sees; bilinear is what it was "
                    "trained with.",
                ),
                io.Image.Input(
                    "frames", optional=True, tooltip="The low-resolution clip; link this or samples."
                ),
                io.Latent.Input(
                    "samples", optional=True, tooltip="The latent of a base video model; link this or frames."
                ),
                io.Vae.Input(
                    "base_vae", optional=True, tooltip="The VAE of the base model; needed with samples."
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="lr_latent", tooltip="The upscaled and encoded clip, for VSR Conditioning."
                ),
                io.Image.Output(
                    display_name="lr_frames", tooltip="The clip at its own size, for Temporal Decode."
                ),
                io.Int.Output(display_name="width", tooltip="Exact output width."),
                io.Int.Output(display_name="height", tooltip="Exact output height."),
                io.Int.Output(display_name="length", tooltip="Number of frames."),
            ],
        )

    @classmethod
    def execute(cls, target_vae, target, filter, frames=None, samples=None, base_vae=None):
        """Get the frames, work out the exact size and encode."""
        if target_vae is None:
            raise ValueError(
                f"{_TITLE}: target_vae must be a VAE; got none. The chosen restorer file has no VAE: choose the "
                "released folder or a converted file in Load Video Restorer."
            )
        if (frames is None) == (samples is None):
            got = "neither" if frames is None else "both"
            raise ValueError(
                f"{_TITLE}: link exactly one of frames and samples; got {got}. Link the clip to enlarge."
            )
        if filter not in _FILTERS:
            raise ValueError(
                f"{_TITLE}: filter must be one of {', '.join(_FILTERS)}; got {filter!r}. Choose bilinear."
            )
        low = checks.check_frames(
            _TITLE, "frames", _decode_base(samples, base_vae) if frames is None else frames
        )
        size = ClipSize(low.shape[0], *_target(target, *low.shape[1:3]))
        if min(size.height, size.width) < 2:
            raise ValueError(
                f"{_TITLE}: the output must be at least 2 px a side; got {size.width}x{size.height}. Ask "
                "for a larger size."
            )
        latent = {**_encode(target_vae, low, size, filter), checks.SIZE_KEY: checks.size_dict(size)}
        return io.NodeOutput(latent, low, size.width, size.height, size.frames)


def _target(target: dict, height: int, width: int) -> tuple[int, int]:
    kind = target["target"]
    if kind == "scale":
        return target_size(height, width, scale=target["scale"])
    if kind == "short side":
        return target_size(height, width, short_side=target["short_side"])
    if kind == "exact size":
        return target_size(height, width, exact=(target["height"], target["width"]))
    raise ValueError(f"{_TITLE}: target must be scale, short side or exact size; got {kind!r}. Choose scale.")


def _decode_base(samples: dict, vae) -> torch.Tensor:
    """Decode a base model's latent to frames, of the exact size where the latent carries one."""
    if vae is None:
        raise ValueError(
            f"{_TITLE}: samples need the VAE of their model; got no base_vae. Link the base model's VAE."
        )
    latent = checks.unpacked(_TITLE, "samples", samples)
    if (
        not isinstance(latent, torch.Tensor)
        or latent.ndim not in (4, 5)
        or latent.shape[1] != vae.latent_channels
    ):
        raise ValueError(
            f"{_TITLE}: base_vae must fit samples ({vae.latent_channels} channels expected); got a latent of "
            f"{tuple(latent.shape)}. Link the VAE of the model that made the latent."
        )
    if latent.ndim == 5 and latent.shape[0] != 1:
        raise ValueError(
            f"{_TITLE}: samples must hold one clip; got a batch of {latent.shape[0]}. Pick one with Latent From Batch."
        )
    if latent.ndim == 4:
        return foreign_vae.decode(vae, checks.check_finite(_TITLE, "samples", latent))
    return decode_exact(_TITLE, samples, vae)


def _encode(vae, frames: torch.Tensor, size: ClipSize, mode: str) -> dict:
    """Resize and encode: as one of our VAEs wants it, with the host's own in pieces."""
    if isinstance(vae, NativeVAE):
        return vae.lr_latent(frames, size, mode)
    if not foreign_vae.is_regular(vae):
        raise ValueError(
            f"{_TITLE}: target_vae must make one latent frame of the first frame and one of every few after it; "
            f"got {type(vae.first_stage_model).__name__}, which counts otherwise. Use the VAE of another model."
        )
    return {"samples": foreign_vae.encode_resized(vae, frames, size, mode)}
