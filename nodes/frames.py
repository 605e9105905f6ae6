"""Cascade Input and Temporal Decode: from frames to latents, and back to frames of exactly the asked size.

In: frames, or a base model's latent decoded to frames, are checked, the exact output size is worked out, and the target
VAE encodes them at that size. The LATENT carries the exact size: what is padded to a VAE's grid must be cut off again.
Out: the VAE decodes in pieces, with the low-resolution frames where it takes them, to exactly that size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import comfy.sd
import torch
from comfy_api.latest import io

from ..models.layout.sizes import ClipSize, resize_clip, target_size
from ..models.motion.estimation import Motion
from .host import host_vae, services
from .host.keys import SIZE_KEY, SYSTEM_KEY
from .host.progress import running_node, show_text
from .host.room import check_room, clip_words
from .host.vae import RestorerVAE
from .motion import MotionType

CASCADE, _DECODE = "Cascade Input", services.DECODE
_SIZE_KINDS = ("scale", "short side", "largest edge", "exact size")
_SCALE = "Output size as a multiple of the input's."
_JOINTS = ("shared frames", "carried over")  # of the chunks that are decoded
FILTERS = ("bilinear", "bicubic", "lanczos")


def target_input(optional: bool = False, tooltip: str = "How the size of the result is given."):
    """Describe how the size of a result is given."""
    return size_input("target", _SIZE_KINDS, 4.0, (1920, 1080), 16384, tooltip, optional)


def size_input(
    name: str,
    kinds: Sequence[str],
    scale: float,
    size: tuple[int, int],
    most: int,
    tooltip: str,
    optional: bool = False,
) -> io.DynamicCombo.Input:
    """Describe how a size is given: `kinds` in their order; `scale` and `size` (width, height) at first; `most` px."""

    def px(name: str, default: int, what: str) -> io.Int.Input:
        return io.Int.Input(name, default=default, min=2, max=most, tooltip=what)

    kept = "in px; the aspect ratio is kept."
    low, high, step = (0.1, 16.0, 0.1) if scale >= 1 else (0.01, 4.0, 0.01)
    inputs = {
        "scale": [
            io.Float.Input(
                "scale",
                default=scale,
                min=low,
                max=high,
                step=step,
                tooltip="Output size as a multiple of the input's.",
            )
        ],
        "short side": [px("short_side", min(size), f"Shorter side of the output {kept}")],
        "largest edge": [px("largest_edge", max(size), f"Longer side of the output {kept}")],
        "exact size": [
            px("width", size[0], "Exact output width in px."),
            px("height", size[1], "Exact output height in px."),
        ],
    }
    options = [io.DynamicCombo.Option(kind, inputs[kind]) for kind in kinds]
    return io.DynamicCombo.Input(name, options=options, optional=optional, tooltip=tooltip)


def filter_input() -> io.Combo.Input:
    """Describe the filter that brings the clip to its size."""
    return io.Combo.Input(
        "filter",
        options=list(FILTERS),
        default="bilinear",
        tooltip="Filter that resizes the clip before it is encoded. The built-in restorer was trained with bilinear, "
        "MGLD-VSR with bicubic.",
    )


def multiple_input(
    tooltip: str = "Sides of the result are rounded to multiples of this many px; H.264 needs 2.",
) -> io.Int.Input:
    """Describe `multiple`, the last input: optional, because graphs of 0.1.0 lack it and keep sizes that are not even.

    The editor gives it 1 there (js/cascadevsr.js), `execute` does for programs.
    """
    return io.Int.Input("multiple", default=2, min=1, max=64, optional=True, advanced=True, tooltip=tooltip)


def asked_size(title: str, name: str, asked: dict, height: int, width: int, multiple: int) -> tuple[int, int]:
    """Work out the (height, width) that the size combo `name` asks for, of a clip of height x width px."""
    kind = asked[name]
    with services.titled(title):
        services.check_choice(title, name, kind, _SIZE_KINDS)
        if kind == "exact size":
            rule = {"exact": (asked["height"], asked["width"])}
        elif kind == "largest edge":
            rule = {"long_side": asked["largest_edge"]}
        else:
            rule = {"scale": asked["scale"]} if kind == "scale" else {"short_side": asked["short_side"]}
        return target_size(height, width, multiple=multiple, **rule)


class CascadeInput(io.ComfyNode):
    """Resizes in pixels, never in latents, and encodes."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRCascadeInput",
            display_name=CASCADE,
            category=services.CATEGORY,
            description=(
                "Resizes a low-resolution clip (frames, or the latent of a base video model "
                "with its VAE) to the target size and encodes it for the restorer. The "
                "result has exactly this size and the frame count of the clip."
            ),
            search_aliases=[
                "upscale video",
                "cascade",
                "lr latent",
                "super resolution input",
                "refine input",
                "cascade vsr",
            ],
            inputs=[
                io.Vae.Input(
                    "target_vae",
                    tooltip="The VAE of the model that will be sampled: a restorer's, or any video VAE of the host.",
                ),
                target_input(),
                filter_input(),
                io.Image.Input("frames", optional=True, tooltip="The low-resolution clip; link this or samples."),
                io.Latent.Input(
                    "samples", optional=True, tooltip="The latent of a base video model; link this or frames."
                ),
                io.Vae.Input("base_vae", optional=True, tooltip="The VAE of the base model; needed with samples."),
                multiple_input(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="lr_latent", tooltip="The upscaled and encoded clip, for VSR Conditioning."
                ),
                io.Image.Output(display_name="lr_frames", tooltip="The clip at its own size, for Temporal Decode."),
                io.Int.Output(display_name="width", tooltip="Exact output width."),
                io.Int.Output(display_name="height", tooltip="Exact output height."),
                io.Int.Output(display_name="length", tooltip="Number of frames."),
            ],
        )

    @classmethod
    def execute(
        cls,
        target_vae: comfy.sd.VAE | None,
        target: dict,
        filter: str,
        frames: torch.Tensor | None = None,
        samples: dict | None = None,
        base_vae: comfy.sd.VAE | None = None,
        multiple: int = 1,
    ):
        """Get the frames, work out the exact size and encode; graphs of 0.1.0 have no `multiple`."""
        check_vae(CASCADE, "target_vae", target_vae)
        if (frames is None) == (samples is None):
            got = "neither" if frames is None else "both"
            raise ValueError(f"{CASCADE}: link exactly one of frames and samples; got {got}. Link the clip to enlarge.")
        services.check_choice(CASCADE, "filter", filter, FILTERS)
        if target["target"] == "exact size":  # is right or wrong whatever the clip, which may have to be decoded first
            asked_size(CASCADE, "target", target, 1, 1, multiple)
        if frames is None:  # the base model's clip is decoded only where there is room for what becomes of it
            coded = _base_size(samples, base_vae)
            sides = asked_size(CASCADE, "target", target, coded.height, coded.width, multiple)
            check_room(CASCADE, ClipSize(coded.frames, *sides))
        low = _decode_base(samples, base_vae) if frames is None else frames
        low = services.check_frames(CASCADE, "frames", low)
        size = ClipSize(low.shape[0], *asked_size(CASCADE, "target", target, *low.shape[1:3], multiple))
        check_room(CASCADE, size)
        show_text(running_node(), clip_words(ClipSize(*low.shape[:3]), size))
        if min(size.height, size.width) < 2:
            raise ValueError(
                f"{CASCADE}: the output must be at least 2 px a side; got {size.width}x{size.height}. Ask for "
                "a larger size."
            )
        if size.height % 2 or size.width % 2:
            logging.info(
                f"{CASCADE}: the result has an odd side ({size.width}x{size.height}), which most video encoders "
                "refuse. Set multiple to 2 to save a video."
            )
        if isinstance(target_vae, RestorerVAE):
            latent = {SYSTEM_KEY: target_vae.system, **target_vae.lr_latent(low, size, filter)}
        elif host_vae.is_regular(target_vae):
            latent = host_vae.encode_resized(target_vae, low, size, filter)
        else:
            raise ValueError(
                f"{CASCADE}: target_vae must make one latent frame of the first frame and one of every few after it; "
                f"got {type(target_vae.first_stage_model).__name__}, which counts otherwise. Use the VAE of another "
                "model."
            )
        return io.NodeOutput({**latent, SIZE_KEY: services.size_dict(size)}, low, size.width, size.height, size.frames)


def check_vae(title: str, name: str, vae: comfy.sd.VAE | None) -> None:
    if vae is None:
        raise ValueError(
            f"{title}: {name} must be a VAE; got none. The chosen restorer file has no VAE: choose the released folder "
            "or a converted file in Load Video Restorer."
        )


def _base_size(samples: dict, vae: comfy.sd.VAE | None) -> ClipSize:
    """Give the size of the clip that a base model's latent stands for."""
    if vae is None:
        raise ValueError(f"{CASCADE}: samples need the VAE of their model; got no base_vae. Link the base model's VAE.")
    latent = services.unpacked(CASCADE, "samples", samples)
    if not isinstance(latent, torch.Tensor) or latent.ndim not in (4, 5) or latent.shape[1] != vae.latent_channels:
        raise ValueError(
            f"{CASCADE}: base_vae must fit samples ({vae.latent_channels} channels expected); got a latent of "
            f"{tuple(latent.shape)}. Link the VAE of the model that made the latent."
        )
    if latent.ndim == 5 and latent.shape[0] != 1:
        raise ValueError(
            f"{CASCADE}: samples must hold one clip; got a batch of {latent.shape[0]}. Pick one with Latent From Batch."
        )
    if SIZE_KEY in samples:
        return ClipSize(**samples[SIZE_KEY])
    time = host_vae.time_ratio(vae)
    count = latent.shape[0] if latent.ndim == 4 else 1 + time * (latent.shape[2] - 1)
    space = vae.spacial_compression_decode()
    return ClipSize(count, latent.shape[-2] * space, latent.shape[-1] * space)


def _decode_base(samples: dict, vae: comfy.sd.VAE) -> torch.Tensor:
    """Decode a base model's latent to frames, of the exact size where the latent carries one."""
    latent = services.unpacked(CASCADE, "samples", samples)
    if latent.ndim == 4:
        return host_vae.decode(vae, services.check_finite(CASCADE, "samples", latent))
    return decode_exact(CASCADE, samples, vae)


class TemporalDecode(io.ComfyNode):
    """Decodes in chunks with memory of what came before."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRTemporalDecode",
            display_name=_DECODE,
            category=services.CATEGORY,
            description=(
                "Decodes a video latent in chunks that continue each other, guided by the low-resolution frames. The "
                "result has exactly the size and frame count set in Cascade Input."
            ),
            search_aliases=["vae decode", "video decode", "temporal vae", "decode video", "cascade vsr"],
            inputs=[
                io.Latent.Input("samples", tooltip="The sampled latent."),
                io.Vae.Input("vae", tooltip="The restorer's VAE; any video VAE works without lr_frames."),
                io.Image.Input(
                    "lr_frames",
                    optional=True,
                    tooltip="The low-resolution frames from Cascade Input; with them the result is sharper and more "
                    "faithful.",
                ),
                io.Float.Input(
                    "lr_weight",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Influence of the low-resolution frames on the decoder: 1 full, 0 none (the built-in "
                    "decoder then uses its own estimate of them); it is dec_w of MGLD-VSR.",
                ),
                io.Int.Input(
                    "chunk",
                    default=host_vae.CHUNK,
                    min=4,
                    max=1024,
                    step=4,
                    advanced=True,
                    tooltip="Frames decoded together; fewer need less memory. Upscale-A-Video decodes at most 8 "
                    "together, MGLD-VSR 5, and blends the chunks.",
                ),
                io.Int.Input(
                    "tile",
                    default=0,
                    min=0,
                    max=8192,
                    step=64,
                    advanced=True,
                    tooltip=("Side of a tile in output px; 0 decodes whole frames if they fit into memory."),
                ),
                MotionType.Input(
                    "motion",
                    optional=True,
                    tooltip="The motion of lr_frames, from Estimate Motion. The built-in decoder restores every frame "
                    "from its neighbours along it; empty, it estimates the same itself. Other decoders need none.",
                ),
                io.Float.Input(
                    "detail",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Fidelity or detail, with the built-in decoder and lr_frames. 0: only what the frames and "
                    "their neighbours show. 1: also what the sampled latent adds, from references for example.",
                ),
                io.Combo.Input(
                    "joints",
                    options=list(_JOINTS),
                    default=_JOINTS[0],
                    optional=True,
                    advanced=True,
                    tooltip="shared frames: chunks overlap and fade into each other; carried over: MGLD-VSR's decoder "
                    "keeps what later frames need and decodes each frame once. Other decoders stay as they are.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The clip at its exact size.")],
        )

    @classmethod
    def execute(
        cls,
        samples: dict,
        vae: comfy.sd.VAE | None,
        lr_weight: float,
        chunk: int,
        tile: int,
        lr_frames: torch.Tensor | None = None,
        motion: Motion | None = None,
        detail: float = 1.0,
        joints: str = _JOINTS[0],
    ):
        """Decode with the restorer's VAE, or with another one and crop."""
        check_vae(_DECODE, "vae", vae)
        services.check_choice(_DECODE, "joints", joints, _JOINTS)
        seen = lr_frames, lr_weight, motion, detail
        return io.NodeOutput(decode_exact(_DECODE, samples, vae, chunk, tile, *seen, joints != _JOINTS[0]))


def decode_exact(
    title: str,
    samples: dict,
    vae: comfy.sd.VAE,
    chunk: int = host_vae.CHUNK,
    tile: int = 0,
    lr_frames: torch.Tensor | None = None,
    lr_weight: float = 1.0,
    motion: Motion | None = None,
    detail: float = 1.0,
    carried: bool = False,
) -> torch.Tensor:
    """Decode a video LATENT to frames of exactly the size it stands for, the clips of a batch one after the other."""
    latent = services.check_latent(title, "samples", samples, vae.latent_channels)
    own, space = isinstance(vae, RestorerVAE), vae.spacial_compression_decode()
    if not own and not host_vae.is_regular(vae):
        return host_vae.decode(vae, latent)
    time = vae.law.time if own else host_vae.time_ratio(vae)
    size, work = services.latent_target(title, samples, space, time)
    check_room(title, replace(size, frames=len(latent) * size.frames))
    if lr_frames is not None:
        lr_frames = services.check_frames(title, "lr_frames", lr_frames)
        services.check_count(title, "lr_frames", lr_frames.shape[0], size.frames)
    if motion is not None:
        if lr_frames is None:
            raise ValueError(f"{title}: motion is that of lr_frames; got no lr_frames. Link them, or unlink motion.")
        services.check_motion_of(title, motion, "lr_frames", lr_frames)
    if detail != 1.0 and not (own and vae.law.streamed and lr_frames is not None and lr_weight > 0):
        raise ValueError(
            f"{title}: detail below 1 needs the built-in decoder and lr_frames, whose restored frames it blends with; "
            f"got {detail:g}. Set detail to 1, or link lr_frames and the VAE of the built-in restorer."
        )
    if own:
        options = {"lr": lr_frames, "lr_weight": lr_weight, "size": work, "chunk": chunk}
        options |= {"side": tile // space, "motion": motion, "detail": detail, "carried": carried}
        frames = services.mark_finite(vae.decode(latent, options).flatten(0, 1))
    elif lr_frames is not None:
        raise ValueError(
            f"{title}: only a restorer's VAE can use lr_frames; got another VAE ({type(vae).__name__}). Unlink "
            "lr_frames, or use the VAE of Load Video Restorer."
        )
    else:
        clips = [host_vae.decode(vae, clip, work, tile, chunk) for clip in latent.split(1)]
        frames = clips[0] if len(clips) == 1 else torch.cat(clips)
    if work != size:  # the system works on a larger picture
        clip = frames.movedim(-1, 0).unsqueeze(0)
        clip = resize_clip(clip, size.height, size.width, "bicubic").clamp_(0, 1)
        frames = services.mark_finite(clip[0].movedim(0, -1))
    return frames
