"""VSR Conditioning and Reference Set: the low-resolution clip, its noise level, text and references for the sampler.

Reference Set: every picture of a batch is a reference, every video one; both are reduced to a long edge, their latent
cells are counted (sampling attends over all of them at once), and the VAE encodes each as a clip of its own.

VSR Conditioning:

1. The LATENT of Cascade Input says whose LR clip it is; that system checks it, noises it and says what sampling starts
   from (`System.condition`). Without a system it is a latent, mixed with noise at the noise level.
2. Copies of positive and negative get the LR clip, the level and the references.
3. What a model must not ignore (references, a noise level) gets an error beside it that only such a model meets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sd
import torch
from comfy_api.latest import io

from ..models.layout.noise import LR_STREAM
from ..models.layout.sizes import ClipSize, latent_frames, pad_clip, padded_size, resize_clip, target_size
from ..models.unimmvsr.references import AFTER, IMAGE, MANUAL, MODEL, PAPER, POLICIES, VIDEO, Reference, References
from .host import seedvr2, services
from .host.keys import ALPHAS_KEY, DEVIATION_KEY, FIRST_KEY, LEVEL_KEY, LR_KEY, LR_NOISE_KEY, REFERENCES_KEY, SYSTEM_KEY
from .host.model import unanswered_level, unanswered_references
from .host.progress import Progress
from .sampling import AddressedNoise
from .systems.base import LRClip

ReferencesType = io.Custom("VSR_REFERENCES")  # a models.unimmvsr.references.References
_TITLE, _SET = "VSR Conditioning", services.REFERENCE_SET
_EMPTY = (
    f"{_SET}: at least one picture or video must be linked; got none. Link a Load Image with a picture of who or what "
    "the clip shows, or turn off stop if empty."
)
# Latent cells of all references; 81 frames of 1280x720 are 302 400 with a VAE of 8 px and 4 frames a cell
_MOST_CELLS = 400_000
_LR_ENTRIES = (SYSTEM_KEY, ALPHAS_KEY, DEVIATION_KEY)  # of a LATENT; what is sampled is no LR clip any more


class VSRConditioning(io.ComfyNode):
    """Joins the low-resolution clip and references to the prompts."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRConditioning",
            display_name=_TITLE,
            category=services.CATEGORY,
            description="Gives the sampler the low-resolution clip, how far to trust it, and references. Prompts are "
            "optional; the built-in restorer was trained without text and ignores them.",
            search_aliases=[
                "super resolution conditioning",
                "upscale conditioning",
                "lr conditioning",
                "unimmvsr",
                "cascade vsr",
            ],
            inputs=[
                io.Latent.Input("lr_latent", tooltip="The upscaled and encoded clip from Cascade Input."),
                noise_level_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip=(
                        "Seed of this noise. No effect at noise level 0, except with MGLD-VSR's reference preset, "
                        "which draws the latent at random from the encoder's distribution."
                    ),
                ),
                io.Conditioning.Input("positive", optional=True, tooltip="Prompt; leave unlinked for none."),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt; used only when cfg is not 1."
                ),
                ReferencesType.Input(
                    "references", optional=True, tooltip="Pictures and videos from Reference Set to take detail from."
                ),
                io.Noise.Input(
                    "noise", optional=True, tooltip="Noise for the low-resolution clip, instead of noise from the seed."
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler."),
                io.Latent.Output(
                    display_name="samples",
                    tooltip=(
                        "Latent of the right size for the sampler: empty; for MGLD-VSR the "
                        "encoded clip, which sampling starts from."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        lr_latent: dict,
        noise_level: float,
        seed: int,
        positive: list | None = None,
        negative: list | None = None,
        references: References | None = None,
        noise: Any = None,
    ):
        """Noise the LR clip by its address and attach everything to copies of the conditionings."""
        source = AddressedNoise(seed ^ LR_STREAM) if noise is None else noise
        clip = ClipConditions.of(_TITLE, lr_latent, noise_level, references, source)
        positive, negative = (
            [[text, clip.joined(extra)] for text, extra in given or [[None, {}]]] for given in (positive, negative)
        )
        return io.NodeOutput(positive, negative, clip.start)


def noise_level_input() -> io.Float.Input:
    """Describe how much noise is mixed into the LR clip."""
    return io.Float.Input(
        "noise_level",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.001,
        tooltip=(
            "Noise mixed into the low-resolution clip: 0 is the most faithful, 0.2 to 0.6 lets the model invent more "
            "detail. Upscale-A-Video: 0.12 as published, usually 0 to 0.2, at most 0.35. MGLD-VSR: 0."
        ),
    )


@dataclass(frozen=True)
class ClipConditions:
    """What an LR clip adds to a conditioning, and the LATENT that sampling starts from.

    `unanswered`: conditions that a model has to answer, see `Unanswered`.
    """

    values: dict[str, Any]
    unanswered: dict[str, Any]
    start: dict[str, Any]

    @staticmethod
    def of(
        title: str, lr_latent: dict, noise_level: float, references: References | None, noise: Any
    ) -> ClipConditions:
        """Noise the clip of Cascade Input at its place in the film, by a NOISE, and collect what belongs to it."""
        lr = services.check_latent(title, "lr_latent", lr_latent)
        values: dict[str, Any] = {LEVEL_KEY: noise_level}
        unanswered: dict[str, Any] = {}
        count = 0 if references is None else len(references.items)
        system = lr_latent.get(SYSTEM_KEY)
        if system is not None and system.condition is not None:
            with services.titled(title):
                clip = LRClip(lr_latent, noise_level, count, lambda like: _draw(title, noise, like, lr_latent))
                conditioned = system.condition(clip)
            lr, start = conditioned.lr, conditioned.start
        else:
            start = torch.zeros_like(lr)
            if count:
                _check_references(title, references, lr)
                unanswered["references"] = unanswered_references(count)
                values[REFERENCES_KEY] = references
            if noise_level > 0:
                unanswered["noise_level"] = unanswered_level(noise_level)
                values[LR_NOISE_KEY] = _draw(title, noise, lr, lr_latent)
                lr = (1 - noise_level) * lr + noise_level * values[LR_NOISE_KEY]
            values.update(seedvr2.clip_values(lr))
        values[LR_KEY] = lr
        if FIRST_KEY in lr_latent:  # samplers that draw noise look for it here
            values[FIRST_KEY] = lr_latent[FIRST_KEY]
        kept = {key: value for key, value in lr_latent.items() if key not in _LR_ENTRIES}
        return ClipConditions(values, unanswered, {**kept, "samples": start})

    def joined(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of a conditioning with those of the clip."""
        model_conds = {**extra.get("model_conds", {}), **self.unanswered}
        return {**extra, **self.values, **({"model_conds": model_conds} if model_conds else {})}


def _draw(title: str, source: Any, like: torch.Tensor, lr_latent: dict) -> torch.Tensor:
    """Draw noise from a NOISE for the LR clip, at its place in the film."""
    drawn = source.generate_noise({"samples": like, FIRST_KEY: lr_latent.get(FIRST_KEY, 0)})
    if drawn.shape != like.shape:
        raise ValueError(
            f"{title}: noise must have the shape of the low-resolution clip {tuple(like.shape)}; got "
            f"{tuple(drawn.shape)}. Unlink it, or use Seeded Noise."
        )
    return drawn.to(like)


def _check_references(title: str, references: References, lr: torch.Tensor) -> None:
    for number, reference in enumerate(references.latents, 1):
        if reference.shape[1] != lr.shape[1]:
            raise ValueError(
                f"{title}: reference {number} must have the channels of lr_latent ({lr.shape[1]}); got "
                f"{reference.shape[1]}. Give Reference Set and Cascade Input the same VAE."
            )


class ReferenceSet(io.ComfyNode):
    """Encodes identity images and reference videos."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        image = io.Autogrow.TemplatePrefix(io.Image.Input("image", optional=True), prefix="image_", min=0, max=16)
        video = io.Autogrow.TemplatePrefix(io.Image.Input("video", optional=True), prefix="video_", min=0, max=4)
        starts = io.String.Input(
            "starts",
            default="",
            tooltip="First time index of every reference, in latent frames, separated by commas, for "
            "example 20, 22, 40.",
        )
        return io.Schema(
            node_id="VSRReferenceSet",
            display_name=_SET,
            category=services.CATEGORY,
            description=(
                "Encodes pictures and videos that the restorer may take detail from: identity pictures of a person or "
                "thing, or the unedited high-resolution video of an edit."
            ),
            search_aliases=["reference image", "identity", "id image", "reference video", "multi-modal", "cascade vsr"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the restorer that will see the references."),
                io.Autogrow.Input(
                    "images",
                    template=image,
                    tooltip="Identity pictures; every picture of a batch is a reference of its own.",
                ),
                io.Autogrow.Input("videos", template=video, tooltip="Reference videos; each input is one clip."),
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
                    tooltip=(
                        "First time index of the references. model: as the weights were trained; paper: from latent "
                        "frame 20 on; after video: directly after the clip; manual: the numbers in starts."
                    ),
                ),
                io.Boolean.Input(
                    "stop_if_empty",
                    default=False,
                    optional=True,
                    tooltip="On: nothing runs while no picture and no video is linked. Off: nothing is taken then.",
                ),
            ],
            outputs=[ReferencesType.Output(display_name="references", tooltip="For VSR Conditioning.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        stop_if_empty: bool = False,
        input_types: dict[str, str] | None = None,
        images: dict | None = None,
        videos: dict | None = None,
        start_policy: dict | None = None,
    ):
        """Try whether a picture is there before anything runs.

        The host leaves the kinds of the links to us then. It gives the last three whether asked for or not, and empty.
        """
        links = input_types or {}
        for name, kind in links.items():
            wanted = "VAE" if name == "vae" else "IMAGE"
            if wanted not in kind.split(",") and kind != "*":
                return f"{_SET}: {name} must be linked to {wanted}; got {kind}. Link another output."
        return _EMPTY if stop_if_empty and not set(links) - {"vae"} else True

    @classmethod
    def execute(
        cls,
        vae: comfy.sd.VAE | None,
        images: dict,
        videos: dict,
        long_edge: int,
        start_policy: dict | None = None,
        stop_if_empty: bool = False,
    ):
        """Encode every picture as a clip of one frame and every video as a clip."""
        if stop_if_empty and not (_in_order(images) or _in_order(videos)):
            raise ValueError(_EMPTY)
        _check_video_vae(vae)
        clips = []
        for name, frames in _in_order(images):
            clips += [(IMAGE, picture) for picture in services.check_frames(_SET, name, frames).split(1)]
        clips += [(VIDEO, services.check_frames(_SET, name, frames)) for name, frames in _in_order(videos)]
        policy, manual = _read_policy(start_policy, len(clips))
        sizes = [_reference_size(frames, long_edge) for _, frames in clips]
        _check_size(vae, sizes)
        show, items = Progress(_SET, len(clips), "reference"), []
        for (kind, frames), size in zip(clips, sizes, strict=True):
            items.append(Reference(_encode_reference(vae, frames, size), kind))
            show(len(items), len(clips))
        return io.NodeOutput(References(tuple(items), policy, manual))


def _in_order(inputs: dict | None) -> list[tuple[str, torch.Tensor]]:
    """Sort growing inputs by number: a plain sort would put 10 before 2."""
    linked = [(name, value) for name, value in (inputs or {}).items() if value is not None]
    return sorted(linked, key=lambda item: int(item[0].rsplit("_", 1)[-1]))


def _read_policy(start_policy: dict | None, count: int) -> tuple[str, tuple[int, ...]]:
    """Read the start policy and the starts of the manual one."""
    policy = (start_policy or {}).get("start_policy", MODEL)
    services.check_choice(_SET, "start_policy", policy, POLICIES)
    if policy != MANUAL:
        return policy, ()
    text = start_policy["starts"].strip()
    if not re.fullmatch(r"(\d+\s*(,\s*\d+\s*)*)?", text):
        raise ValueError(
            f"{_SET}: starts must be whole numbers separated by commas; got {text!r}. Write them as 20, 22, 40."
        )
    manual = tuple(int(number) for number in text.split(",") if number)
    if len(manual) != count:
        raise ValueError(
            f"{_SET}: starts must name one time index for each of the {count} references; got {len(manual)}. Write "
            "them separated by commas, pictures first, then videos."
        )
    return policy, manual


def _check_video_vae(vae: comfy.sd.VAE | None) -> None:
    if getattr(vae, "latent_dim", None) != 3 or getattr(vae, "not_video", False):
        got = "none" if vae is None else f"one of pictures ({type(vae.first_stage_model).__name__})"
        raise ValueError(f"{_SET}: the VAE must be a video VAE; got {got}. Use the VAE of the sampled video model.")


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
            f"{_SET}: references must not be larger than {_MOST_CELLS} latent cells together; got {sum(cells)}, the "
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
            f"{_SET}: the VAE must be a video VAE; got one that makes latents {tuple(latent.shape)} of "
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
