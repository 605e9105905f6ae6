"""Conditions of a restorer: the low-resolution latent, its noise level, text, references."""

import torch
from comfy_api.latest import io

from ..models.layout.geometry import ClipSize, pad_clip, padded_size, resize_clip, target_size
from ..models.upscale_a_video.config import LATENT_CHANNELS, MAX_NOISE_LEVEL
from ..models.upscale_a_video.sampling import add_lr_noise
from . import checks, host
from .keys import (
    ALPHAS_KEY,
    DEVIATION_KEY,
    KIND_KEY,
    LEVEL_KEY,
    LR_FRAMES,
    LR_KEY,
    LR_START,
    REFERENCES_KEY,
)
from .sampling import AddressedNoise

References = io.Custom("VSR_REFERENCES")  # a tuple of latents (1, 16, T, h, w); one frame = an identity image
_TITLE = "VSR Conditioning"
_LR_ENTRIES = (KIND_KEY, ALPHAS_KEY, DEVIATION_KEY)  # of a LATENT; what is sampled is no LR clip any more
_LEVELS = 1000  # steps of the schedule that noises LR frames
_NOISE_STREAM = 0x5A5A_1F2E_9D3C_7B41  # xor with the seed: the LR noise must not repeat the sampler's noise


class VSRConditioning(io.ComfyNode):
    """Joins the low-resolution clip and references to the prompts."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRConditioning",
            display_name="VSR Conditioning",
            category=host.CATEGORY,
            description="Gives the sampler the low-resolution clip, how far to trust it, and references. "
            "Prompts are "
            "optional; the built-in restorer has learned no words and ignores them.",
            search_aliases=[
                "super resolution conditioning",
                "upscale conditioning",
                "lr conditioning",
                "unimmvsr",
            ],
            inputs=[
                io.Latent.Input("lr_latent", tooltip="The upscaled and encoded clip from Cascade Input."),
                io.Float.Input(
                    "noise_level",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Noise mixed into the low-resolution clip: 0 stays faithful, 0.2 to 0.6 invents more "
                    "detail. Upscale-A-Video: 0.12 is the published choice, 0 to 0.2 usual, 0.35 the most. "
                    "MGLD-VSR: 0.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of that noise; without effect at noise level 0, except for MGLD-VSR's reference "
                    "preset, which draws the latent from what the encoder finds.",
                ),
                io.Conditioning.Input("positive", optional=True, tooltip="Prompt; leave open for none."),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt; used only when cfg is not 1."
                ),
                References.Input(
                    "references",
                    optional=True,
                    tooltip="Pictures and videos from Reference Set to take detail from.",
                ),
                io.Noise.Input(
                    "noise",
                    optional=True,
                    tooltip="Noise for the low-resolution clip instead of that of the seed.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler."),
                io.Latent.Output(
                    display_name="samples",
                    tooltip="Latent of the right size for the sampler: empty, or for MGLD-VSR the clip's, which it "
                    "starts from.",
                ),
            ],
        )

    @classmethod
    def execute(cls, lr_latent, noise_level, seed, positive=None, negative=None, references=None, noise=None):
        """Noise the LR clip by its address and attach everything to copies of the conditionings."""
        lr = checks.check_latent(_TITLE, "lr_latent", lr_latent)
        references = tuple(references or ())
        source = AddressedNoise(seed ^ _NOISE_STREAM) if noise is None else noise
        kind, start = lr_latent.get(KIND_KEY), torch.zeros_like(lr)
        if kind == LR_FRAMES:
            lr = _noise_frames(lr, noise_level, source, lr_latent[ALPHAS_KEY], references)
            start = start.new_zeros(lr.shape[0], LATENT_CHANNELS, *lr.shape[2:])
        elif kind == LR_START:
            lr = start = _draw_latent(lr, noise_level, source, lr_latent.get(DEVIATION_KEY), references)
        else:
            _check_references(references, lr)
            if noise_level > 0:
                lr = (1 - noise_level) * lr + noise_level * _draw(source, lr)
        values = {LR_KEY: lr, LEVEL_KEY: noise_level, REFERENCES_KEY: references}
        null = [[None, {}]]
        positive, negative = (
            [[text, {**extra, **values}] for text, extra in given or null] for given in (positive, negative)
        )
        kept = {key: value for key, value in lr_latent.items() if key not in _LR_ENTRIES}
        return io.NodeOutput(positive, negative, {**kept, "samples": start})


def _noise_frames(lr, noise_level: float, source, alphas, references) -> torch.Tensor:
    """Noise LR frames by the model's own schedule; the level counts thousandths of it."""
    _refuse_references("Upscale-A-Video", references)
    if noise_level > MAX_NOISE_LEVEL / _LEVELS:
        raise ValueError(
            f"{_TITLE}: noise_level must be at most {MAX_NOISE_LEVEL / _LEVELS} for Upscale-A-Video; got "
            f"{noise_level:g}. Use 0.12, the published choice."
        )
    return add_lr_noise(lr, _draw(source, lr), round(_LEVELS * noise_level), alphas.to(lr.device))


def _draw_latent(lr, noise_level: float, source, deviation, references) -> torch.Tensor:
    """Draw the LR latent from the encoder's answer where its deviation is given, as MGLD-VSR does."""
    _refuse_references("MGLD-VSR", references)
    if noise_level > 0:
        raise ValueError(
            f"{_TITLE}: MGLD-VSR has no noise level of the low-resolution clip; got {noise_level:g}. Set it to 0; "
            "Temporal Decode's lr_weight says how closely the clip is followed."
        )
    return lr if deviation is None else lr + deviation.to(lr) * _draw(source, lr)


def _refuse_references(model: str, references) -> None:
    if references:
        raise ValueError(
            f"{_TITLE}: {model} takes no references; got {len(references)}. Unlink Reference Set."
        )


def _draw(source, lr: torch.Tensor) -> torch.Tensor:
    """Draw noise from a NOISE for the LR clip."""
    drawn = source.generate_noise({"samples": lr})
    if drawn.shape != lr.shape:
        raise ValueError(
            f"{_TITLE}: noise must have the shape of the low-resolution clip {tuple(lr.shape)}; got "
            f"{tuple(drawn.shape)}. Unlink it, or use Seeded Noise."
        )
    return drawn.to(lr)


def _check_references(references, lr: torch.Tensor) -> None:
    for number, reference in enumerate(references, 1):
        if reference.shape[1] != lr.shape[1]:
            raise ValueError(
                f"{_TITLE}: reference {number} must have the channels of lr_latent ({lr.shape[1]}); got "
                f"{reference.shape[1]}. Give Reference Set and Cascade Input the same VAE."
            )


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
        return io.Schema(
            node_id="VSRReferenceSet",
            display_name="Reference Set",
            category=host.CATEGORY,
            description="Encodes pictures and videos the restorer may take detail from: identity images "
            "of a person or "
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
            ],
            outputs=[References.Output(display_name="references", tooltip="For VSR Conditioning.")],
        )

    @classmethod
    def execute(cls, vae, images, videos, long_edge):
        """Encode every picture as a clip of one frame and every video as a clip."""
        title = "Reference Set"
        clips = []
        for name, frames in _in_order(images):
            clips += checks.check_frames(title, name, frames).split(1)
        clips += [checks.check_frames(title, name, frames) for name, frames in _in_order(videos)]
        show, latents = host.Progress(), []
        for number, frames in enumerate(clips, 1):
            latents.append(_encode_reference(vae, frames, long_edge))
            show(number, len(clips))
        return io.NodeOutput(tuple(latents))


def _in_order(inputs: dict | None) -> list[tuple[str, torch.Tensor]]:
    """Sort growing inputs by number: a plain sort would put 10 before 2."""
    linked = [(name, value) for name, value in (inputs or {}).items() if value is not None]
    return sorted(linked, key=lambda item: int(item[0].rsplit("_", 1)[-1]))


def _encode_reference(vae, frames: torch.Tensor, long_edge: int) -> torch.Tensor:
    count, height, width = frames.shape[:3]
    clip = frames.movedim(-1, 0).unsqueeze(0)
    if max(height, width) > long_edge:
        rows, columns = target_size(height, width, scale=long_edge / max(height, width))
        clip = resize_clip(clip, rows, columns, "bicubic").clamp(0, 1)
    clip = pad_clip(clip, padded_size(ClipSize(count, *clip.shape[-2:])))
    latent = vae.encode(clip[0].movedim(0, -1))
    if latent.ndim != 5:
        raise ValueError(
            f"Reference Set: the VAE must be a video VAE; got one that makes {latent.ndim}-D latents. "
            "Use the VAE of Load Video Restorer."
        )
    return latent
