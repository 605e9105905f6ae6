"""Steady Upscaled Video: makes a video upscaler of any image upscaler."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

from ..models.layout.sizes import ClipSize
from ..models.motion.blockflow import BlockFlow
from ..models.motion.estimation import FlowNetwork, Motion
from ..models.original import add_original, match_frames, resolution
from ..models.pictures import add_pictures
from ..models.places import Picture, find_places
from ..models.source import cleanness
from ..models.steady import SOURCES, Controls, check_pair, likeness, steady
from .host import services
from .host.progress import watched_layers
from .host.room import check_room
from .motion import FlowModelType, MotionType, check_flow_model, estimated, loaded_estimator

_TITLE = "Steady Upscaled Video"
_SEEN = 0.002  # share of a frame, below which a picture counts as not used in it
_ALIKE = 0.5  # correlation; of frames with their own LR frames at least 0.9 was measured, of others at most 0.4


class SteadyUpscaledVideo(io.ComfyNode):
    """Makes upscaled frames agree with their neighbours and with the LR frames."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""

        def dial(name: str, tooltip: str) -> io.Float.Input:
            return io.Float.Input(name, default=1.0, min=0.0, max=1.0, step=0.05, tooltip=tooltip)

        return io.Schema(
            node_id="VSRSteadyUpscaledVideo",
            display_name=_TITLE,
            category=services.CATEGORY,
            description=(
                "Makes a video upscaler of any image upscaler: flicker goes, invented faces and letters return to what "
                "the low-resolution frames show. Link an upscale model, or frames that were upscaled elsewhere. Needs "
                "no weights of its own."
            ),
            search_aliases=[
                "temporal consistency",
                "deflicker",
                "flicker",
                "video upscale with model",
                "upscale model video",
                "stabilise upscale",
                "cascade vsr",
            ],
            inputs=[
                io.Image.Input("lr_frames", tooltip="The frames before upscaling: all of the clip, in order."),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="These frames, upscaled 1 to 8 times by anything. Leave empty with an upscale_model. "
                    "Transparency stays as it is.",
                ),
                io.UpscaleModel.Input(
                    "upscale_model",
                    optional=True,
                    tooltip="The image upscaler, from Load Upscale Model: it runs in here, frame by frame.",
                ),
                dial(
                    "steadiness",
                    "How much frames take from their neighbours along the motion. 1: texture stands still on its "
                    "object; 0: every frame for itself.",
                ),
                dial(
                    "fidelity",
                    "How much colours, faces and letters return to the low-resolution frames. 1: all that those show; "
                    "0: what the upscaler made of it.",
                ),
                dial(
                    "sharpness",
                    "How much of the contrast that averaging takes is given back. 1: crisp as the upscaler's own "
                    "frames; 0: softer, calmer.",
                ),
                io.Combo.Input(
                    "source",
                    options=list(SOURCES),
                    default="automatic",
                    tooltip="clean: every pixel of the low-resolution frames shows in the result, its noise too. "
                    "compressed: only their larger shapes and colours do; for frames that are blurred, noisy or "
                    "blocky. automatic decides for every scene.",
                ),
                MotionType.Input(
                    "motion", optional=True, tooltip="The motion of lr_frames, from Estimate Motion, to save its time."
                ),
                FlowModelType.Input(
                    "flow_model",
                    optional=True,
                    tooltip="Estimates the motion where none is linked. Empty: the built-in estimator.",
                ),
                io.Image.Input(
                    "original",
                    optional=True,
                    tooltip="Where the low-resolution clip is an edit: the video it was made from, at full size. What "
                    "the edit left alone gets its true detail back. Any size and frame rate; where it begins is found.",
                ),
                io.Autogrow.Input(
                    "pictures",
                    template=io.Autogrow.TemplatePrefix(
                        io.Image.Input("picture", optional=True), prefix="picture_", min=0, max=16
                    ),
                    optional=True,
                    tooltip="Sharp photographs of who or what the clip shows, of any size, also turned or in front of "
                    "something else. Where one fits a frame its true detail comes in; where none fits nothing changes.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The steady frames."),
                io.Image.Output(
                    display_name="from_original",
                    tooltip="White: taken from the original or from pictures; black: the upscaler's. One picture a "
                    "frame, of the size of lr_frames; black without an original and pictures.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        lr_frames: torch.Tensor,
        steadiness: float,
        fidelity: float,
        sharpness: float,
        source: str,
        images: torch.Tensor | None = None,
        upscale_model: object | None = None,
        motion: Motion | None = None,
        flow_model: ModelPatcher | None = None,
        original: torch.Tensor | None = None,
        pictures: dict | None = None,
    ):
        """Check what belongs together, find the motion, then give one frame after the other."""
        lr = services.check_frames(_TITLE, "lr_frames", lr_frames)
        services.check_choice(_TITLE, "source", source, SOURCES)
        if (images is None) == (upscale_model is None):
            got = "neither" if images is None else "both"
            raise ValueError(f"{_TITLE}: link either images or an upscale_model; got {got}. Unlink or add one of them.")
        if flow_model is not None:
            check_flow_model(_TITLE, flow_model)
        if motion is not None:
            services.check_motion_of(_TITLE, motion, "lr_frames", lr)
        elif flow_model is None:
            flow_model = services.wrap_network(FlowNetwork(BlockFlow()))
        with services.titled(_TITLE):  # what is wrong is said before any work
            upscaler = _given(images, lr) if upscale_model is None else _run(upscale_model)
            original = original if original is None else services.check_frames(_TITLE, "original", original)
            matched = None if original is None else match_frames(lr, original)
            photographs = _photographs(pictures)
        same = upscale_model.scale == 1 if images is None else images.shape[1:3] == lr.shape[1:3]
        if same and source == "automatic":
            source = "compressed"  # who restores without enlarging does not hold the frames for right
        if upscale_model is not None:
            check_room(_TITLE, ClipSize(len(lr), *(int(side * upscale_model.scale) for side in lr.shape[1:3])))
        networks = [part.model for part in (flow_model, getattr(upscale_model, "patcher", None)) if part is not None]
        with services.titled(_TITLE), watched_layers(torch.nn.ModuleList(networks), _TITLE, len(lr)) as show:
            controls = Controls(steadiness, fidelity, sharpness)
            pairs = 0 if motion is not None else len(lr) - 1
            searched = 2 * len(lr) if photographs else 0
            every = pairs + searched + len(lr)
            if motion is None:
                motion = estimated(lr, flow_model, lambda done, _: show(done, every, certain=False))
            clean = _clean(lr, motion, source, show.beat)
            frames = _steady(lr, upscaler, motion, controls, clean)
            if original is not None:
                frames = _with_original(frames, lr, original, matched, flow_model, clean)
            used = [[0.0] * len(lr) for _ in photographs]
            if photographs:
                scale = (images.shape[1] / lr.shape[1]) if upscale_model is None else upscale_model.scale
                frames = _with_pictures(
                    frames,
                    lr,
                    photographs,
                    motion,
                    scale,
                    flow_model,
                    clean,
                    used,
                    lambda done, _: show(pairs + done, every),
                )
            show.anew()
            result, trust = None, services.output_tensor((*lr.shape[:3], 3))
            for number, (frame, share) in enumerate(frames):
                if result is None:
                    channels = 3 if images is None else images.shape[-1]
                    result = services.output_tensor((len(lr), *frame.shape[-2:], channels))
                    result[..., 3:] = 0 if images is None else images[..., 3:]
                result[number, ..., :3] = frame[0].movedim(0, -1)
                trust[number] = share[0].movedim(0, -1)
                show(pairs + searched + number + 1, every, frame)
        lines = [_usage(number, shares) for number, shares in enumerate(used, 1)]
        for line in lines:
            logging.getLogger(__name__).info("%s: %s", _TITLE, line)
        return io.NodeOutput(result, trust, ui={"text": lines} if lines else None)


Upscaler = Callable[[int, torch.Tensor], torch.Tensor]
Results = Iterator[tuple[torch.Tensor, torch.Tensor]]  # a frame (1, 3, H, W), what came from the original (1, 1, h, w)


def _on_device(frames: torch.Tensor, number: int) -> torch.Tensor:
    """Give a frame of IMAGE (T, h, w, 3) as (1, 3, h, w) float32."""
    return frames[number : number + 1, ..., :3].movedim(-1, 1).to(services.main_device(), torch.float32)


def _clean(lr: torch.Tensor, motion: Motion, source: str, beat: Callable[[], None]) -> list[bool]:
    """Tell of every frame whether it is right to the pixel, with a `beat` for each that is looked at."""
    if source != "automatic":
        return [source == "clean"] * len(lr)

    def frame(number: int) -> torch.Tensor:
        beat()
        return _on_device(lr, number)

    shares = cleanness(frame, motion.pairs(services.main_device()), len(lr), motion.cuts)
    return [share > 0.5 for share in shares]


def _steady(lr: torch.Tensor, upscaler: Upscaler, motion: Motion, controls: Controls, clean: list[bool]) -> Results:
    """Give the frames of a clip, lr (T, h, w, 3), one by one."""

    def frames(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _on_device(lr, number), _on_device(upscaler(number, lr[number : number + 1]), 0)

    options = {"clean": clean, "cuts": motion.cuts, "controls": controls, "check_cancelled": services.check_cancelled}
    nothing = torch.zeros(1, 1, *lr.shape[1:3])
    for frame in steady(frames, motion.pairs(services.main_device()), len(lr), **options):
        yield frame, nothing


def _with_original(
    results: Results,
    lr: torch.Tensor,
    original: torch.Tensor,
    matched: list[tuple[int, float]],
    flow_model: ModelPatcher | None,
    clean: list[bool],
) -> Results:
    """Add the detail of the original to every frame; `matched` numbers its frames, and says how far away they are."""
    estimator = BlockFlow() if flow_model is None else loaded_estimator(flow_model, *lr.shape[1:3])
    resolved = resolution(_on_device(original, matched[len(lr) // 2][0]))
    for number, (frame, _) in enumerate(results):
        taken, away = matched[number]
        picture = _on_device(original, taken)
        yield add_original(frame, _on_device(lr, number), picture, estimator, clean[number], resolved, away)


def _photographs(pictures: dict | None) -> list[torch.Tensor]:
    """Give every picture of the growing input, (1, 3, R, C) each, of whatever size, where it lies."""
    linked = [(name, value) for name, value in (pictures or {}).items() if value is not None]
    linked.sort(key=lambda item: int(item[0].rsplit("_", 1)[-1]))
    batches = [services.check_frames(_TITLE, name, value) for name, value in linked]
    return [picture.movedim(-1, 1).float() for batch in batches for picture in batch.split(1)]


def _with_pictures(
    results: Results,
    lr: torch.Tensor,
    photographs: list[torch.Tensor],
    motion: Motion,
    scale: float,
    flow_model: ModelPatcher | None,
    clean: list[bool],
    used: list[list[float]],
    progress: Callable[[int, int], None],
) -> Results:
    """Add the detail of photographs to every frame; `used` gets the share of every frame that each of them gave."""
    pictures = [Picture(pixels) for pixels in photographs]
    places = find_places(
        lambda i: _on_device(lr, i),
        motion.pairs(services.main_device()),
        len(lr),
        pictures,
        scale,
        motion.cuts,
        progress,
    )
    estimator = BlockFlow() if flow_model is None else loaded_estimator(flow_model, *lr.shape[1:3])
    for number, (frame, share) in enumerate(results):
        room = 1 - share.to(frame)
        frame, trust, shares = add_pictures(
            frame, _on_device(lr, number), places[number], pictures, estimator, clean[number], room
        )
        for each, given in zip(used, shares, strict=True):
            each[number] = given
        yield frame, share + trust.to(share)


def _usage(number: int, shares: list[float]) -> str:
    """Say how much of the frames a picture gave."""
    seen = [share for share in shares if share >= _SEEN]
    if not seen:
        return f"picture {number}: not used, nothing in the clip fits it"
    return f"picture {number}: {100 * sum(seen) / len(seen):.0f} % of the frame in {len(seen)} of {len(shares)} frames"


def _given(images: torch.Tensor, lr: torch.Tensor) -> Upscaler:
    """Take frames that are upscaled already."""
    frames = services.check_frames(_TITLE, "images", images)
    services.check_count(_TITLE, "images", len(frames), len(lr))
    check_pair(lr.shape[1:3], frames.shape[1:3])
    for number in {0, len(lr) // 2, len(lr) - 1}:
        alike = likeness(*(_on_device(clip, number) for clip in (lr, frames)))
        if alike < _ALIKE:
            raise ValueError(
                f"images must show what lr_frames show; got a likeness of {alike:.2f} in frame {number}, of at most "
                "1. Link the frames that went into the upscaler, in the same order."
            )
    return lambda number, _: frames[number : number + 1]


def _run(upscale_model: object) -> Upscaler:
    """Upscale frame by frame as the host's own node does, tiles included, under our progress bar."""
    if not isinstance(getattr(upscale_model, "patcher", None), ModelPatcher):
        raise ValueError(
            f"{_TITLE}: upscale_model must come from Load Upscale Model; got {type(upscale_model).__name__}. Link it."
        )

    def upscaled(_: int, frame: torch.Tensor) -> torch.Tensor:
        with _no_bar():
            return ImageUpscaleWithModel.execute(upscale_model, frame).args[0]

    return upscaled


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """Keep the host's code from running the node's bar from nothing to full for every frame."""
    hook = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(None)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(hook)
