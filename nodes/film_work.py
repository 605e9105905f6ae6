"""What Upscale Film does with a film: its settings, the plan of the result, the way from segment to segment."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import comfy.samplers
import comfy.sd
import folder_paths
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image

from ..media.colour import flattened, to_depth, tone_mapped
from ..media.files import CONTAINERS
from ..media.journal import Journal
from ..media.pace import Pace
from ..media.plan import Plan, natural_ending, plan
from ..media.reader import frames
from ..media.render import BYTES, BYTES_PLAIN, automatic_length, decide_borders, render, state
from ..media.segments import Segment
from ..media.timeline import Timeline
from ..models.layout.sizes import ClipSize
from ..models.motion.flow import scene_cuts
from ..models.pixels.color import METHODS
from ..models.steady import SOURCES, Controls, check_pair
from ..models.unimmvsr.references import References
from ..models.unimmvsr.restorer import cpu_convolutions
from .beginning import beginning
from .film_parts import JUDGED, NO_MATCH, TITLE, Alone, FilmProgress, Restored, Steadied, in_halves
from .frames import FILTERS, asked_size, check_vae
from .host import services
from .host.film import (
    ENDINGS,
    Film,
    frames_of,
    images_of,
)
from .host.progress import Progress, speeds, where
from .host.room import check_room
from .host.seedvr2 import texts_of
from .looks import BEST, DRAFT, LOOKS, MIRRORED, STANDARD, Mirrored, draft_sigmas
from .motion import check_flow_model
from .plan import sampling_seconds, usual_seconds
from .restore import check_restorer

# Seconds that stages take for a million pixels of the result, and of the source (motion is found there), where nothing
# is remembered: of the built-in model on a CPU, at x2 and x4, by what it convolves in (bf16: of one thread, an earlier
# restorer; others: mean of one and two threads; colours by adain), and behind an upscale model. Only ratios count.
_USUAL_MODEL = "UniMMVSRModel"
_OF_RESULT, _OF_SOURCE = ("Encoding", "Decoding", "Colours", "Writing"), ("Reading", "Decoding")
_USUAL = {
    torch.bfloat16: ((0.13, 1.38, 0.05, 0.055), (0.11, 14.1)),
    torch.int8: ((0.26, 0.8, 0.17, 0.15), (0.38, 30.0)),
    None: ((0.26, 1.1, 0.17, 0.15), (0.38, 29.0)),
}
_READING, _MOTION, _STEADYING, _WRITING = 0.11, 10.2, 1.05, 0.055


@dataclass(frozen=True)
class Chosen:
    """Hold what the inputs of the node say."""

    target: dict
    filter: str
    cfg: float
    noise_level: float
    colour: str
    first: int
    segment: int
    context: int
    deinterlace: bool
    tonemap: bool
    lr_weight: float
    chunk: int
    tile: int
    steadiness: float
    fidelity: float
    sharpness: float
    source: str
    filename_prefix: str
    format: str
    codec: str
    crf: float
    lossless: bool
    keep_tracks: str
    multiple: int = 1
    first_seconds: float = 0.0
    look: str = STANDARD
    model: ModelPatcher | None = None
    vae: comfy.sd.VAE | None = None
    positive: list | None = None
    negative: list | None = None
    guider: comfy.samplers.CFGGuider | None = None
    noise: object | None = None
    sampler: object | None = None
    sigmas: torch.Tensor | None = None
    references: References | None = None
    upscale_model: object | None = None
    flow_model: ModelPatcher | None = None

    @property
    def alone(self) -> bool:
        """Tell whether a VAE is all there is: its restorer works without a model."""
        sampling = (self.model, self.guider, self.noise, self.sampler, self.sigmas)
        return self.vae is not None and self.upscale_model is None and all(part is None for part in sampling)

    def check(self) -> None:
        """Raise where what is linked does not belong together."""
        ways = {name: getattr(self, name) is not None for name in ("model", "guider", "upscale_model")}
        if sum(ways.values()) != 1 and not self.alone:
            got = ", ".join(name for name, linked in ways.items() if linked) or "none of them"
            raise ValueError(
                f"{TITLE}: link one of model, guider and upscale_model, or vae alone; got {got}. A model with a VAE "
                "restores; an upscale_model needs nothing else; the built-in VAE alone restores without sampling."
            )
        if self.alone:
            check_restorer(TITLE, self.vae)
        elif self.upscale_model is None:
            missing = [name for name in ("noise", "sampler", "sigmas") if getattr(self, name) is None]
            if missing:
                raise ValueError(
                    f"{TITLE}: a model needs noise, sampler and sigmas; got no {' and no '.join(missing)}. Link Seeded "
                    "Noise, Restorer Sampler and Refine Sigmas."
                )
            check_vae(TITLE, "vae", self.vae)
        elif not isinstance(getattr(self.upscale_model, "patcher", None), ModelPatcher):
            got = type(self.upscale_model).__name__
            raise ValueError(f"{TITLE}: upscale_model must come from Load Upscale Model; got {got}. Link it.")
        if self.guider is not None and not hasattr(self.guider, "original_conds"):
            raise ValueError(
                f"{TITLE}: guider must hold conditionings, as Basic Guider and CFG Guider do; got "
                f"{type(self.guider).__name__}. Link model, positive and negative instead."
            )
        if self.flow_model is not None:
            check_flow_model(TITLE, self.flow_model)
        for name, allowed in (
            ("colour", [NO_MATCH, *METHODS]),
            ("source", SOURCES),
            ("filter", FILTERS),
            ("look", LOOKS),
        ):
            services.check_choice(TITLE, name, getattr(self, name), allowed)
        with services.titled(TITLE):
            Controls(self.steadiness, self.fidelity, self.sharpness)

    def deciding(self) -> dict:
        """Return what decides the result, of what is no link and no name."""
        left = (
            "first",
            "first_seconds",
            "filename_prefix",
            "format",
        )  # these show in the source's frames and in the file's ending
        plain = {name: value for name, value in vars(self).items() if isinstance(value, str | int | float | dict)}
        return {name: value for name, value in plain.items() if name not in left}

    def guiding(self) -> comfy.samplers.CFGGuider:
        """Return the guider, or one of model, prompts and cfg."""
        if self.guider is not None:
            return self.guider
        guider = comfy.samplers.CFGGuider(self.model)
        own = texts_of(self.model)
        texts = {"positive": self.positive, "negative": self.negative}
        guider.set_conds(*(text or own.get(name) or [[None, {}]] for name, text in texts.items()))
        guider.set_cfg(self.cfg)
        return guider


@dataclass(frozen=True)
class Work:
    """Hold what is decided before the work.

    `out` names the journal, and by its ending the kind of file; it holds the name of the source, so that films do not
    disturb each other. Under which number the result is saved is decided at the end.
    """

    clip: Timeline
    how: Plan
    out: Path
    size: tuple[int, int]
    chosen: Chosen

    @staticmethod
    def of(film: Film, chosen: Chosen) -> Work:
        """Plan the result of a film."""
        if film.parts is not None:
            raise ValueError(
                f"{TITLE}: video must come from a file; got frames in memory. Link Load Video; short clips go through "
                "Cascade Input."
            )
        clip = beginning(film.timeline.part(0, chosen.first or film.timeline.frames), chosen.first_seconds)
        size = asked_size(TITLE, "target", chosen.target, clip.height, clip.width, chosen.multiple)
        if chosen.upscale_model is not None:
            with services.titled(TITLE):
                check_pair((clip.height, clip.width), size)
        suffix = natural_ending(clip) if ENDINGS[chosen.format] is None else ENDINGS[chosen.format]
        root = folder_paths.get_output_directory()
        folder, name, *_ = folder_paths.get_save_image_path(chosen.filename_prefix, root, *size[::-1])
        out = Path(folder) / f"{name} {clip.path.name.replace('.', ' ')}{suffix}"
        how = plan(
            out,
            clip,
            codec=chosen.codec if suffix in CONTAINERS else "auto",
            crf=chosen.crf,
            lossless=chosen.lossless,
            tonemap=chosen.tonemap or film.wish.tonemap,
            deinterlace=(chosen.deinterlace or film.wish.deinterlace) and clip.kind == "film",
            keep=chosen.keep_tracks,
            size=size,
        )
        return Work(clip, how, out, size, chosen)

    def borders(self) -> tuple[Segment, ...]:
        """Look for scene cuts and cut the film."""

        def cuts(pictures: Iterator[np.ndarray]) -> tuple[int, ...]:
            return scene_cuts(torch.from_numpy(picture) / 255 for picture in pictures)

        length = self.chosen.segment or automatic_length(self.size)
        return decide_borders(self.clip, length, self.chosen.context, cuts, Progress())

    def make(self, journal: Journal, node: str | None) -> int:
        """Make the segments that are missing and return their number."""
        missing = journal.missing()
        if not missing:
            return 0
        first = journal.segments[missing[0]]
        pace = Pace(self.clip.frames, self.clip.frames - sum(journal.segments[index].frames for index in missing))
        maker = plain = self._maker(journal)
        if self.chosen.look == BEST and self.chosen.upscale_model is None:
            maker = Mirrored(plain)
        names = ("Reading", *maker.stages, "Writing")
        expected, measured = self._expected(plain, names, first.end - first.first)
        with FilmProgress(node, pace, names, expected, measured) as progress:

            def made(segment: Segment, pictures: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
                progress.begin(segment.frames)
                shape = segment.end - segment.first, self.clip.height, self.clip.width
                low = images_of(pictures, shape, Progress())
                place = self.clip.first + segment.first
                make = partial(maker, progress=progress)
                return written(segment, in_halves(make, low, segment.kept, place, self.chosen.context))

            def written(segment: Segment, images: torch.Tensor) -> Iterator[np.ndarray]:
                progress.stage("Writing")
                tick = Progress()
                for number, picture in enumerate(frames_of(images, self.how.wish.depth), 1):
                    yield picture
                    tick(number, len(images))
                pace.made += len(images)
                self._learn(plain.name, segment, progress.end(self._shown(picture)))
                number, of = journal.segments.index(segment) + 1, len(journal.segments)
                logging.getLogger(__name__).info("%s: segment %d of %d. %s", TITLE, number, of, pace.line())

            render(journal, missing, self.out, self.clip, self.how, made)
        return len(missing)

    def check_room(self) -> None:
        """Raise where the longest segment, its context included, does not fit into memory."""
        context = self.chosen.context
        longest = (self.chosen.segment or automatic_length(self.size)) + context - (-context // 2)
        length = min(self.clip.frames, longest)
        size = ClipSize(length, *self.size)
        each = BYTES if self.chosen.colour != NO_MATCH else BYTES_PLAIN
        each += 12 if self.chosen.look == BEST and self.chosen.upscale_model is None else 0  # the mirrored frames
        need = each * length * self.size[0] * self.size[1]
        remedy = f" Ask for a smaller size{', or a shorter segment' if self.chosen.segment else ''}."
        check_room(TITLE, size, need, remedy)

    def _expected(
        self, maker: Restored | Steadied, names: tuple[str, ...], frames: int
    ) -> tuple[dict[str, float], bool]:
        """Give the seconds of each stage of a segment of `frames`, as far as known, and whether from this machine."""
        pixels, source = (frames * h * w / 1e6 for h, w in (self.size, (self.clip.height, self.clip.width)))
        found = {name: speeds().known(self._work(name, maker.name)) for name in names}
        expected = {name: seconds * pixels for name, seconds in found.items() if seconds}
        if isinstance(maker, Restored) and maker.takes_clips:
            sampling = {name for name in names if name.removesuffix(MIRRORED) == "Sampling"}
            run = maker.planned(ClipSize(frames, *self.size)) if sampling else None
            if run and (seconds := sampling_seconds(run, maker.guider.model_patcher)):
                expected |= dict.fromkeys(sampling, seconds)
            if len(expected) < len(names) and maker.name == _USUAL_MODEL:
                plain = [(name, name.removesuffix(MIRRORED)) for name in names]
                shares = zip((_OF_RESULT, _OF_SOURCE), _USUAL[cpu_convolutions()], strict=True)
                of_result, of_source = (dict(zip(*pair, strict=True)) for pair in shares)
                usual = {name: of_result.get(k, 0.0) * pixels + of_source.get(k, 0.0) * source for name, k in plain}
                return usual | dict.fromkeys(sampling, usual_seconds(run) if run else 0.0), False
        usual = {"Reading": _READING * source, "Writing": _WRITING * pixels}
        if len(expected) < len(names) and isinstance(maker, Steadied) and self.chosen.flow_model is None:
            motion, judged = _MOTION * source, min(frames, JUDGED) / frames
            usual |= {"Judging": motion * judged, "Motion": motion, "Steadying": _STEADYING * pixels}
            return {name: usual[name] for name in names if name in usual}, False
        return usual | expected, True

    def _learn(self, model: str, segment: Segment, taken: Mapping[str, float]) -> None:
        """Remember what the stages of a segment took, and say it."""
        pixels = (segment.end - segment.first) * self.size[0] * self.size[1] / 1e6
        for name, seconds in taken.items():
            speeds().learn(self._work(name, model), seconds, pixels)
        text = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in taken.items())
        logging.getLogger(__name__).info("%s: %d frames: %s", TITLE, segment.frames, text)

    def _work(self, stage: str, model: str) -> str:
        """Name what a stage takes, for what is remembered of it."""
        look = "" if self.chosen.look == STANDARD else f", {self.chosen.look}"
        return f"{where()}: {stage}, {TITLE} x{self.size[0] / self.clip.height:.2g}, {model}{look}"

    def _shown(self, picture: np.ndarray) -> Image.Image:
        hdr = self.how.colour.hdr
        shown = tone_mapped(picture, self.how.colour.transfer) if hdr else flattened(picture)
        return Image.fromarray(to_depth(shown, 8))

    def _maker(self, journal: Journal) -> Callable:
        chosen = self.chosen
        if chosen.upscale_model is not None:
            dials = chosen.steadiness, chosen.fidelity, chosen.sharpness, chosen.source
            models = chosen.upscale_model, chosen.flow_model
            return Steadied(*models, self.size, *dials, lambda first: self._beginning(journal, first), chosen.look)
        if chosen.alone:
            return Alone(chosen.vae, chosen.target, chosen.multiple, chosen.colour)
        sigmas = chosen.sigmas
        if chosen.look == DRAFT:
            system = getattr(chosen.vae, "system", None)
            sigmas = draft_sigmas(sigmas, 0 if system is None or system.lr_is_latent else 1)
        return Restored(
            chosen.guiding(),
            chosen.vae,
            chosen.noise,
            chosen.sampler,
            sigmas,
            chosen.references,
            chosen.noise_level,
            chosen.target,
            chosen.filter,
            chosen.multiple,
            chosen.lr_weight,
            chosen.chunk,
            chosen.tile,
            chosen.colour,
        )

    def _beginning(self, journal: Journal, first: int) -> tuple[int, Callable[[], torch.Tensor]]:
        """Return the scene of a frame, and what reads its beginning."""
        number = first - self.clip.first
        scene = next(segment.scene for segment in journal.segments if segment.start <= number < segment.stop)
        within = [segment for segment in journal.segments if segment.scene == scene]
        start, stop = within[0].start, min(within[0].start + JUDGED, within[-1].stop)

        def read() -> torch.Tensor:
            pictures = frames(self.clip, replace(self.how.wish, alpha=False), start, stop)
            return images_of(pictures, (stop - start, self.clip.height, self.clip.width))

        return scene, read


# What decides a result besides the node's own inputs


def described(prompt: dict | None, node: str | None) -> dict:
    """Identify the graph before a node, without names of films and of results, and the files that it names."""
    if not prompt or node not in prompt:
        return {"graph": "", "files": {}}
    files: dict[str, dict] = {}

    def told(identifier: str, left: tuple[str, ...] = ()) -> list:
        inputs = prompt[identifier]["inputs"]
        found = []
        for name in sorted(set(inputs) - set(left)):
            value = inputs[name]
            linked = isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt
            if isinstance(value, str) and (file := _file(value)) is not None:
                files[value] = state(file)
            found.append([name, [told(str(value[0])), value[1]] if linked else value])
        return [prompt[identifier]["class_type"], found]

    own = [name for name, value in prompt[node]["inputs"].items() if not isinstance(value, list)]
    graph = json.dumps(told(node, ("video", *own)))
    return {"graph": hashlib.sha256(graph.encode()).hexdigest()[:16], "files": files}


def _file(name: str) -> Path | None:
    """Find the file or folder of weights, or the picture in the input folder, that a name in a graph means."""
    if not name.strip(" .") or len(name) > 1000 or Path(name).is_absolute():
        return None
    for folder in folder_paths.folder_names_and_paths:
        if folder in ("custom_nodes", "configs"):
            continue
        for root in folder_paths.get_folder_paths(folder):
            if (path := Path(root) / name).is_file() or path.is_dir():
                return path
    path = Path(folder_paths.get_input_directory()) / name
    return path if path.is_file() else None
