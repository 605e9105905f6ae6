"""How Upscale Film makes the frames of a part of a film, and shows how far the film is.

`Restored`: what Cascade Input, VSR Conditioning, SamplerCustomAdvanced, Temporal Decode and Colour Match do.
`Steadied`: what Upscale Image (using Model) and Steady Upscaled Video do.

Both take IMAGE frames (T, h, w, 3) and give the upscaled ones (T, H, W, 3). Where memory runs out, `in_halves` makes a
part in two that share frames.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import comfy.model_management as management
import comfy.samplers
import comfy.sd
import comfy.utils
import psutil
import torch
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel
from PIL import Image

from ..media.pace import Pace, Stages
from ..models.layout.noise import LR_STREAM
from ..models.layout.plan import RunPlan
from ..models.layout.sizes import ClipSize
from ..models.motion.blockflow import BlockFlow
from ..models.motion.estimation import FlowNetwork, Motion
from ..models.pixels.color import SCRATCH, match_colour
from ..models.source import cleanness
from ..models.unimmvsr.references import References
from .conditioning import ClipConditions
from .frames import CASCADE, CascadeInput, decode_exact
from .host import services
from .host.keys import CLIP_KEY, FIRST_KEY
from .host.progress import Progress, show_text
from .host.vae import RestorerVAE
from .looks import BEST, DRAFT, STANDARD, mirrored_too
from .motion import estimated
from .plan import plan_clip
from .prediction import RunClip
from .restore import RESTORE, RestoreFrames
from .sampling import AddressedNoise
from .steady import SteadyUpscaledVideo

TITLE = "Upscale Film"
NO_MATCH = "off"
AUTOMATIC = "automatic"  # of what the source is
JUDGED = 25  # frames at the beginning of a scene that say whether it is clean
_GROUP = 8  # frames: a part begins a multiple of so many after its scene, as segments do
_LEAST = 16  # frames of a part that is not halved any more
_GRAIN = 100  # steps of the progress bar a frame
_EVERY = 1.0  # s between two lines of text on the node


class FilmProgress:
    """Shows how far the film is: while it is on, every bar that starts moves the film's own, and may be interrupted.

    `expected`: seconds that the stages of the first segment will take, as far as known; `measured`: on this machine.
    """

    speaks = True  # bars inside leave the words to this one

    def __init__(
        self, node: str | None, pace: Pace, stages: tuple[str, ...], expected: Mapping[str, float], measured: bool
    ):
        self._node, self._pace, self._stages = node, pace, Stages(stages, expected, measured=measured)
        self._frames, self._part = 0, (0, 1)
        self._last, self._said = 0, 0.0
        self._outer = comfy.utils.PROGRESS_BAR_HOOK

    def __enter__(self) -> FilmProgress:
        comfy.utils.set_progress_bar_global_hook(self)
        return self

    def __exit__(self, *_) -> None:
        comfy.utils.set_progress_bar_global_hook(self._outer)

    def begin(self, frames: int) -> None:
        """Begin with a segment of so many frames."""
        self._stages.begin()
        self._frames, self._part = frames, (0, 1)

    def stage(self, name: str) -> None:
        """Begin with a stage of the segment."""
        self._stages.enter(name)
        self._part = 0, 1

    def part(self, number: int, of: int) -> None:
        """Let the next bar stand for a part of the stage."""
        self._part = number, of

    def end(self, picture: Image.Image) -> dict[str, float]:
        """End the segment, show one of its frames, and return the seconds that its stages took."""
        self._stages.end()
        self._frames = 0
        self._update(0.0, ("JPEG", picture, 512))
        return dict(self._stages.taken)

    def __call__(
        self, value: float, total: float, preview: object = None, prompt_id: object = None, node_id: object = None
    ) -> None:
        number, of = self._part
        share = min(1.0, (number + value / max(1, total)) / of)
        left = self._pace.rest(self._frames, self._stages.left(share))
        self._update(self._frames * self._stages.share(share), preview, left)

    def _update(self, partly: float, preview: object, left: float | None = None) -> None:
        services.check_cancelled()
        self._last = max(self._last, int(_GRAIN * (self._pace.done + partly)))
        if self._outer is not None:
            self._outer(self._last, _GRAIN * self._pace.total, preview, node_id=self._node)
        if time.monotonic() - self._said > _EVERY or not self._frames:
            self._said = time.monotonic()
            memory = psutil.Process().memory_info().rss / 2**30
            certain = self._stages.certain or self._pace.made > 0
            show_text(self._node, f"{self._pace.line(partly, certain, left)}, {memory:.1f} GB")


@dataclass(frozen=True)
class Restored:
    """Frames made by a guider's model. `target`, `filter` and `multiple` as of Cascade Input."""

    guider: comfy.samplers.CFGGuider
    vae: comfy.sd.VAE
    noise: object
    sampler: object
    sigmas: torch.Tensor
    references: References | None
    noise_level: float
    target: dict
    filter: str
    multiple: int
    lr_weight: float
    chunk: int
    tile: int
    colour: str

    @property
    def stages(self) -> tuple[str, ...]:
        """Name the stages of a segment, in order."""
        sampling = ["Sampling"] if len(self.sigmas) > 1 else []
        return ("Encoding", *sampling, "Decoding", *(["Colours"] if self.colour != NO_MATCH else []))

    @property
    def name(self) -> str:
        """Name the model."""
        return type(self.guider.model_patcher.model).__name__

    @property
    def takes_clips(self) -> bool:
        """Tell whether the model samples clips, and not pictures."""
        return self.guider.model_patcher.get_model_object("latent_format").latent_dimensions == 3

    def planned(self, size: ClipSize) -> RunPlan:
        """Plan the sampling of a clip."""
        return plan_clip(self.guider, size, len(self.sigmas) - 1)

    def __call__(self, frames: torch.Tensor, first: int, progress: FilmProgress) -> torch.Tensor:
        """Upscale frames of which the first is number `first` of its film."""
        frames = services.check_frames(TITLE, "video", frames)
        progress.stage("Encoding")
        with _retitled(CASCADE):
            cascade = CascadeInput.execute(self.vae, self.target, self.filter, frames, multiple=self.multiple)
        latent = cascade.args[0]
        latent[FIRST_KEY] = first // (self.vae.temporal_compression_decode() or 1)
        noise = AddressedNoise(self.noise.seed ^ LR_STREAM)
        clip = ClipConditions.of(TITLE, latent, self.noise_level, self.references, noise)
        sampled = {**clip.start, "samples": latent["samples"]}  # in the look *draft*
        if len(self.sigmas) > 1:
            progress.stage("Sampling")
            guider = self._guider(clip, latent, frames)
            sampled = SamplerCustomAdvanced.execute(self.noise, guider, self.sampler, self.sigmas, clip.start).args[0]
        progress.stage("Decoding")
        seen = frames if isinstance(self.vae, RestorerVAE) else None
        images = decode_exact(TITLE, sampled, self.vae, self.chunk, self.tile, seen, self.lr_weight)
        return _coloured(images, frames, self.colour, progress)

    def _guider(self, clip: ClipConditions, latent: Mapping, frames: torch.Tensor) -> comfy.samplers.CFGGuider:
        """Copy the guider for one run: its conditionings with the clip, its model's patches with where to find it."""
        motions: dict[int, Motion] = {}

        def motion(flow_model: ModelPatcher) -> Motion:
            if id(flow_model) not in motions:
                motions[id(flow_model)] = estimated(frames, flow_model, Progress())
            return motions[id(flow_model)]

        guider = copy.copy(self.guider)
        guider.original_conds = {
            name: [clip.joined(cond) for cond in conds] for name, conds in self.guider.original_conds.items()
        }
        guider.model_options = create_model_options_clone(self.guider.model_options)
        guider.model_options.setdefault("transformer_options", {})[CLIP_KEY] = RunClip(latent, motion)
        return guider


@dataclass(frozen=True)
class Alone:
    """Frames restored by the built-in VAE's restorer without a model. `target` and `multiple` as of Restore Frames."""

    vae: comfy.sd.VAE
    target: dict
    multiple: int
    colour: str

    @property
    def stages(self) -> tuple[str, ...]:
        """Name the stages of a segment, in order."""
        return ("Restoring", *(["Colours"] if self.colour != NO_MATCH else []))

    @property
    def name(self) -> str:
        """Name the model."""
        return type(self.vae.first_stage_model).__name__

    def __call__(self, frames: torch.Tensor, first: int, progress: FilmProgress) -> torch.Tensor:
        """Upscale frames of a film."""
        progress.stage("Restoring")
        with _retitled(RESTORE):
            images = RestoreFrames.execute(self.vae, frames, self.target, None, self.multiple).args[0]
        return _coloured(images, frames, self.colour, progress)


def _coloured(images: torch.Tensor, frames: torch.Tensor, method: str, progress: FilmProgress) -> torch.Tensor:
    """Give `images` the colours of the film's `frames`, by a method of Colour Match."""
    if method == NO_MATCH:
        return images
    progress.stage("Colours")
    with services.titled(TITLE):
        return match_colour(images, frames, method, 1.0, Progress(), services.roomy_device(SCRATCH))


@dataclass(frozen=True)
class Steadied:
    """Frames made one by one by an image upscaler, and made steady. `size`: height and width of the result in px.

    `beginning(first)` gives the first frames of the scene that film frame `first` belongs to, and the scene's number.
    """

    upscale_model: object
    flow_model: ModelPatcher | None
    size: tuple[int, int]
    steadiness: float
    fidelity: float
    sharpness: float
    source: str
    beginning: Callable[[int], tuple[int, Callable[[], torch.Tensor]]]
    look: str = STANDARD
    judged: dict[int, str] = field(default_factory=dict)  # by the number of the scene

    @property
    def stages(self) -> tuple[str, ...]:
        """Name the stages of a segment, in order."""
        if self.look == DRAFT:
            return ("Upscaling",)
        return (*(["Judging"] if self.source == AUTOMATIC else []), "Upscaling", "Motion", "Steadying")

    @property
    def name(self) -> str:
        """Name the model."""
        return type(self.upscale_model.patcher.model).__name__

    def __call__(self, frames: torch.Tensor, first: int, progress: FilmProgress) -> torch.Tensor:
        """Upscale frames of which the first is number `first` of its film."""
        frames, source = services.check_frames(TITLE, "video", frames), self.source
        network = self.flow_model or services.wrap_network(FlowNetwork(BlockFlow()))
        if self.look != DRAFT and source == AUTOMATIC:
            progress.stage("Judging")
            source = self._source(first, network, progress)
        progress.stage("Upscaling")
        upscaled = services.output_tensor((len(frames), *self.size, 3))
        for number in range(len(frames)):
            progress.part(number, len(frames))
            frame = frames[number : number + 1]
            picture = mirrored_too(self._picture, frame) if self.look == BEST else self._picture(frame)
            if picture.shape[1:3] != self.size:
                fitted = comfy.utils.common_upscale(picture.movedim(-1, 1), *self.size[::-1], "lanczos", "disabled")
                picture = fitted.movedim(1, -1)
            upscaled[number] = picture[0]
        if self.look == DRAFT:
            return upscaled
        progress.stage("Motion")
        motion = estimated(frames, network, Progress())
        progress.stage("Steadying")
        dials = self.steadiness, self.fidelity, self.sharpness, source
        with _retitled("Steady Upscaled Video"):
            return SteadyUpscaledVideo.execute(frames, *dials, upscaled, motion=motion).args[0]

    def _picture(self, frame: torch.Tensor) -> torch.Tensor:
        return ImageUpscaleWithModel.execute(self.upscale_model, frame).args[0]

    def _source(self, first: int, network: ModelPatcher, progress: FilmProgress) -> str:
        """Say whether the scene is clean or compressed: of all its parts the same."""
        scene, beginning = self.beginning(first)
        if scene not in self.judged:
            if getattr(self.upscale_model, "scale", 0) == 1:  # who restores without enlarging holds no frame for right
                clean = False
            else:
                frames = beginning()
                progress.part(0, 2)
                motion = estimated(frames, network, Progress())
                progress.part(1, 2)
                pictures, tick = frames.movedim(-1, 1).float(), Progress()

                def picture(number: int) -> torch.Tensor:
                    tick.beat()
                    return pictures[number : number + 1]

                clean = cleanness(picture, motion.pairs(pictures.device), len(frames))[0] > 0.5
            self.judged[scene] = "clean" if clean else "compressed"
        return self.judged[scene]


@contextlib.contextmanager
def _retitled(title: str) -> Iterator[None]:
    """Name this node in errors of another, which it stands for."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{TITLE}: {str(error).removeprefix(f'{title}: ')}") from error


def in_halves(
    make: Callable[[torch.Tensor, int], torch.Tensor], frames: torch.Tensor, kept: slice, first: int, context: int
) -> torch.Tensor:
    """Make frames and return the `kept` ones; where memory runs out, as two halves with `context` frames around.

    `first`: the number of the first frame in its film.
    """
    try:
        return make(frames, first)[kept]
    except Exception as error:
        if not management.is_oom(error) or kept.stop - kept.start < 2 * _LEAST:
            raise
    management.soft_empty_cache()  # here, without the error, which holds what has filled the memory
    middle = (kept.start + kept.stop) // 2
    begin = max(0, middle - context) // _GROUP * _GROUP
    left = in_halves(make, frames[: middle + context], slice(kept.start, middle), first, context)
    right = slice(middle - begin, kept.stop - begin)
    return torch.cat((left, in_halves(make, frames[begin:], right, first + begin, context)))
