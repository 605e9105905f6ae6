"""Reference Set and Reference Tokens: identity pictures and reference videos for the sampler.

Reference Set encodes them and says where the time of each begins; Reference Tokens makes a Wan model take them. In order:

1. Every picture of a batch is a reference, every video one; both are reduced to a long edge.
2. Their latent cells are counted before anything is encoded: sampling attends over all of them at once.
3. Each is padded to what the VAE takes and encoded by it, as a clip of its own.
"""

from __future__ import annotations

import re

import comfy.sd
import torch
from comfy_api.latest import io

from ..models.layout.sizes import ClipSize, latent_frames, pad_clip, padded_size, resize_clip, target_size
from ..models.unimmvsr.references import (
    AFTER,
    IMAGE,
    MANUAL,
    MODEL,
    PAPER,
    POLICIES,
    VIDEO,
    Reference,
    References,
)
from .host import services
from .host.wan import attach
from .systems import system_of

ReferencesType = io.Custom("VSR_REFERENCES")  # a models.unimmvsr.references.References
_TITLE, _TOKENS = "Reference Set", "Reference Tokens"
# Latent cells of all references; 81 frames of 1280x720 are 302 400 with a VAE of 8 px and 4 frames a cell
_MOST_CELLS = 400_000


class ReferenceSet(io.ComfyNode):
    """Encodes identity images and reference videos."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        image = io.Autogrow.TemplatePrefix(
            io.Image.Input("image", optional=True), prefix="image_", min=0, max=16
        )
        video = io.Autogrow.TemplatePrefix(
            io.Image.Input("video", optional=True), prefix="video_", min=0, max=4
        )
        starts = io.String.Input(
            "starts",
            default="",
            tooltip="First time index of every reference in latent frames, separated by commas, as 20, 22, 40.",
        )
        return io.Schema(
            node_id="VSRReferenceSet",
            display_name=_TITLE,
            category=services.CATEGORY,
            description="Encodes pictures and videos the restorer may take detail from: identity images of a person or "
            "thing, or the unedited high-resolution video of an edit.",
            search_aliases=["reference image", "identity", "id image", "reference video", "multi-modal"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the restorer that will see the references."),
                io.Autogrow.Input(
                    "images",
                    template=image,
                    tooltip="Identity images; every picture of a batch counts as one.",
                ),
                io.Autogrow.Input(
                    "videos", template=video, tooltip="Reference videos; each input is one clip."
                ),
                io.Int.Input(
                    "long_edge",
                    default=512,
                    min=16,
                    max=4096,
                    step=8,
                    tooltip="Larger references are reduced to this long edge; cost grows with the square "
                    "of their area.",
                ),
                io.DynamicCombo.Input(
                    "start_policy",
                    options=[
                        io.DynamicCombo.Option(MODEL, []),
                        io.DynamicCombo.Option(PAPER, []),
                        io.DynamicCombo.Option(AFTER, []),
                        io.DynamicCombo.Option(MANUAL, [starts]),
                    ],
                    optional=True,
                    tooltip="Where the time of references begins: model: as the weights were trained; paper: from "
                    "latent frame 20 on; after video: as if they followed the clip; manual: your numbers.",
                ),
            ],
            outputs=[ReferencesType.Output(display_name="references", tooltip="For VSR Conditioning.")],
        )

    @classmethod
    def execute(cls, vae, images, videos, long_edge, start_policy=None):
        """Encode every picture as a clip of one frame and every video as a clip."""
        _check_video_vae(vae)
        clips = []
        for name, frames in _in_order(images):
            clips += [(IMAGE, picture) for picture in services.check_frames(_TITLE, name, frames).split(1)]
        clips += [(VIDEO, services.check_frames(_TITLE, name, frames)) for name, frames in _in_order(videos)]
        policy, manual = _read_policy(start_policy, len(clips))
        sizes = [_reference_size(frames, long_edge) for _, frames in clips]
        _check_size(vae, sizes)
        show, items = services.Progress(), []
        for (kind, frames), size in zip(clips, sizes, strict=True):
            items.append(Reference(_encode_reference(vae, frames, size), kind))
            show(len(items), len(clips))
        return io.NodeOutput(References(tuple(items), policy, manual))


class ReferenceTokens(io.ComfyNode):
    """Makes a host's video model take references."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRReferenceTokens",
            display_name=_TOKENS,
            category=services.CATEGORY,
            description="Lets a plain Wan 2.1 or 2.2 model take the references of VSR Conditioning: as tokens "
            "beside the clip's own, each with a time of its own. Without references it changes nothing. Load VSR "
            "Adapter does the same by itself; the built-in restorer needs neither.",
            search_aliases=[
                "in-context",
                "identity",
                "reference latents",
                "context latents",
                "multi-id",
                "wan",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="A Wan text-to-video or image-to-video model, before the sampler."
                )
            ],
            outputs=[io.Model.Output(tooltip="The model, which takes references.")],
        )

    @classmethod
    def execute(cls, model):
        """Clone the model and patch the clone."""
        patched, system = model.clone(), system_of(model)
        if system is None or not system.takes_references:  # those that take them anyway stay as they are
            attach(patched, _TOKENS)
        return io.NodeOutput(patched)


def _in_order(inputs: dict | None) -> list[tuple[str, torch.Tensor]]:
    """Sort growing inputs by number: a plain sort would put 10 before 2."""
    linked = [(name, value) for name, value in (inputs or {}).items() if value is not None]
    return sorted(linked, key=lambda item: int(item[0].rsplit("_", 1)[-1]))


def _read_policy(start_policy: dict | None, count: int) -> tuple[str, tuple[int, ...]]:
    """Read the start policy and the starts of the manual one."""
    policy = (start_policy or {}).get("start_policy", MODEL)
    services.check_choice(_TITLE, "start_policy", policy, POLICIES)
    if policy != MANUAL:
        return policy, ()
    text = start_policy["starts"].strip()
    if not re.fullmatch(r"(\d+\s*(,\s*\d+\s*)*)?", text):
        raise ValueError(
            f"{_TITLE}: starts must be whole numbers separated by commas; got {text!r}. Write them as 20, 22, 40."
        )
    manual = tuple(int(number) for number in text.split(",") if number)
    if len(manual) != count:
        raise ValueError(
            f"{_TITLE}: starts must name one time index for each of the {count} references; got {len(manual)}. Write "
            "them separated by commas, pictures first, then videos."
        )
    return policy, manual


def _check_video_vae(vae: comfy.sd.VAE | None) -> None:
    if getattr(vae, "latent_dim", None) != 3 or getattr(vae, "not_video", False):
        got = "none" if vae is None else f"one of pictures ({type(vae.first_stage_model).__name__})"
        raise ValueError(
            f"{_TITLE}: the VAE must be a video VAE; got {got}. Use the VAE of the sampled video model."
        )


def _reference_size(frames: torch.Tensor, long_edge: int) -> ClipSize:
    """Give the size of a reference whose long side is at most `long_edge`."""
    count, height, width = frames.shape[:3]
    if max(height, width) > long_edge:
        height, width = target_size(height, width, scale=long_edge / max(height, width))
    return ClipSize(count, height, width)


def _check_size(vae: comfy.sd.VAE, sizes: list[ClipSize]) -> None:
    """Raise before anything is encoded where the references are too large to be sampled with."""
    space, time = vae.spacial_compression_encode(), vae.temporal_compression_decode() or 1
    cells = [latent_frames(s.frames, time) * -(-s.height // space) * -(-s.width // space) for s in sizes]
    if sum(cells) > _MOST_CELLS:
        largest = sizes[cells.index(max(cells))]
        raise ValueError(
            f"{_TITLE}: references must not be larger than {_MOST_CELLS} latent cells together; got {sum(cells)}, the "
            f"largest {largest.frames} frames of {largest.width}x{largest.height}. Lower long_edge, shorten the "
            "videos, or link fewer references."
        )


def _encode_reference(vae: comfy.sd.VAE, frames: torch.Tensor, size: ClipSize) -> torch.Tensor:
    """Resize, pad to what the VAE takes, and encode: (1, c, T, h, w)."""
    clip = frames.movedim(-1, 0).unsqueeze(0)
    clip = resize_clip(clip, size.height, size.width, "bicubic").clamp(0, 1)
    clip = pad_clip(clip, _padded(vae, size))
    latent = vae.encode(clip[0].movedim(0, -1))
    if latent.ndim != 5 or latent.shape[0] != 1:
        raise ValueError(
            f"{_TITLE}: the VAE must be a video VAE; got one that makes latents {tuple(latent.shape)} of "
            f"{size.frames} frames. Use the VAE of the sampled video model."
        )
    return latent


def _padded(vae: comfy.sd.VAE, size: ClipSize) -> ClipSize:
    """Round a size up to what a VAE takes: sides to its cells, frames to the next count that it gives back."""
    space = vae.spacial_compression_encode()
    time = vae.temporal_compression_decode() or 1
    usual = padded_size(size, space, time)
    if time == 1:
        return usual
    for frames in range(size.frames, size.frames + 8 * time):
        if vae.upscale_ratio[0](vae.downscale_ratio[0](frames)) == frames:
            return ClipSize(frames, usual.height, usual.width)
    return usual
