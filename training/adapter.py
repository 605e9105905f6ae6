"""Train a UniMMVSR adapter for a Wan-family base: `run.py train adapter --base FOLDER --videos FOLDER ...`.

In order:

1. Load the base (a Wan transformer of diffusers, frozen) and its VAE; build the adapter around it.
2. For every sample draw its task from the paper's curriculum, difficult to easy: text-to-video, then identity images,
   then edited videos, then longer clips.
3. Make the sample from a clip or photograph: frames (t, 3, H, W), a low-resolution copy by SDEdit (with the base, in a
   share of the samples) and the synthetic degradation, references; encode all of it to latents.
4. Draw text and reference dropout, the noise level of the LR latent, time and noise; take a step of flow matching.
5. Export the averaged adapter as a file for Load VSR Adapter.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..models.unimmvsr.sdedit import SDEdit
from .augment import Dropout, noise_latent, normal
from .curriculum import DIFFICULT_FIRST, ORDERS, rng_at, stage_at, stages, task_at
from .latents import LatentSample, LatentStore, encode_pair
from .loop import PRECISIONS, Loop, LoopSettings, checkpoint_blocks
from .pairs import PhotoTakes, Recipe, VideoTakes, find_videos, make_pair
from .photos import find_photos, load_photo
from .sdedit import SDEditTransform
from .wan_adapter import AdapterConfig, WanAdapter, flow_matching_loss
from .wan_base import SPACE, Texts, WanBase, WanCodec, load_base, load_vae
from .wan_export import export

log = logging.getLogger(__name__)
_MAKE, _STEP = 1, 2  # streams of random numbers: of samples, of steps


@dataclass(frozen=True)
class Batch:
    """One sample at a step: the arguments of the loss."""

    z: torch.Tensor
    eps: torch.Tensor
    t: torch.Tensor
    lr: torch.Tensor
    level: torch.Tensor
    text: torch.Tensor
    references: tuple[torch.Tensor, ...]


class SampleMaker:
    """Makes the latents of a (task, frames, number); each comes from one of the sources, drawn at random."""

    def __init__(self, sources: Sequence, codec: WanCodec, recipe: Recipe, seed: int):
        self.sources, self.codec, self.recipe, self.seed = list(sources), codec, recipe, seed

    def __call__(self, task: str, frames: int, number: int) -> LatentSample:
        """Make one sample; equal arguments give equal samples."""
        rng = np.random.default_rng([self.seed, _MAKE, number, frames, *task.encode()])
        take = self.sources[int(rng.integers(len(self.sources)))].make(task, frames, rng)
        device = next(self.codec.vae.parameters()).device
        return encode_pair(
            make_pair(take, task, self.recipe, rng), lambda clip: self.codec.encode_frames(clip.to(device))
        )


class AdapterData:
    """Draws the batch of a number: task by the curriculum, sample from the store, fresh noise."""

    def __init__(self, store: LatentStore, texts: Texts, order: str, lengths: tuple[int, int], draws: int, seed: int):
        self.store, self.texts, self.draws, self.seed = store, texts, draws, seed
        self.plan = stages(order, *lengths)
        self.kept = 0  # different samples of each task; 0: every sample is new
        self.dropout = Dropout()
        self.device = torch.device("cpu")

    def draw(self, number: int) -> Batch:
        """Return a batch of one sample, on the device."""
        rng = rng_at(self.seed, number, _STEP)
        task = task_at(number, self.draws, self.plan, self.seed)
        frames = stage_at(number, self.draws, self.plan).frames
        chosen = int(rng.integers(self.kept)) if self.kept else number
        sample = self.store.get(task, frames, chosen).to(self.device)
        no_text, no_references = self.dropout.draw(rng)
        text = self.texts.null() if no_text else self.texts.get(sample.name)
        lr, level = noise_latent(sample.lr, rng)
        t = torch.tensor([1 / (1 + np.exp(-rng.standard_normal()))], dtype=torch.float32)  # logit-normal
        eps = normal(sample.z, rng)
        references = () if no_references else sample.references
        return Batch(sample.z, eps, t.to(self.device), lr, level, text.to(self.device), references)


def adapter_loss(adapter: WanAdapter, batch: Batch) -> torch.Tensor:
    """Flow matching in the base's own sign."""
    return flow_matching_loss(adapter, batch.z, batch.eps, batch.t, batch.lr, batch.level, batch.text, batch.references)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py train adapter", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--base", type=Path, required=True, help="diffusers folder of a Wan text-to-video model")
    add("--vae", type=Path, help="diffusers folder of its VAE (default: that of --base)")
    add("--videos", type=Path, nargs="*", default=[], help="folders of video clips you may use")
    add("--photos", type=Path, nargs="*", default=[], help="folders of photographs you may use, set in motion")
    add("--text", type=Path, help="folder of text embeddings, NAME.safetensors each, and null.safetensors")
    add("--size", type=int, nargs=2, default=(480, 832), metavar=("HEIGHT", "WIDTH"), help="of a training clip, px")
    add("--frames", type=int, nargs=2, default=(21, 77), metavar=("SHORT", "LONG"), help="4n+1 each")
    add("--scale", type=int, default=4, help="how many times smaller the low-resolution clips are")
    add("--sdedit", type=float, default=0.5, help="share of samples that the base draws again first")
    add("--order", choices=ORDERS, default=DIFFICULT_FIRST, help="of the tasks")
    add("--keep", type=int, default=0, metavar="N", help="make N samples of each task and length once, on disk")
    add("--rank", type=int, default=32, help="of the deltas on the blocks; 0: none")
    add("--steps", type=int, default=10000)
    add("--rate", type=float, default=1e-4)
    add("--batch", type=int, default=8, help="samples whose gradients a step adds up")
    add("--precision", choices=PRECISIONS, default="bf16" if torch.cuda.is_available() else "fp32")
    add("--checkpointing", action="store_true", help="compute activations twice: slower, much less memory")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=1)
    add("--every", type=int, default=250, help="steps between checkpoints")
    add("--work", type=Path, default=Path("output/adapter"), help="checkpoints and log; resumes from here")
    add("--licence", default="unknown", help="licence of the adapter file, for the next person")
    add("--out", type=Path, default=Path("output/unimmvsr-adapter.safetensors"), help="the adapter file")
    return parser.parse_args(argv)


def _sources(args: argparse.Namespace) -> list:
    sources = []
    if args.videos:
        sources.append(VideoTakes(find_videos(args.videos), *args.size))
    if args.photos:
        photos = [photo for path in find_photos(args.photos) if (photo := load_photo(path))]
        sources.append(PhotoTakes(photos, min(args.size)))
    if not sources:
        raise ValueError("Training: needs --videos or --photos; got neither. Name a folder of clips you may use.")
    return sources


def _identity(args: argparse.Namespace) -> str:
    """Name all that kept samples depend on."""
    names = ("base", "vae", "videos", "photos", "size", "scale", "sdedit", "seed")
    return repr([(name, str(getattr(args, name))) for name in names])


def make_loop(args: argparse.Namespace) -> tuple[Loop, WanAdapter]:
    """Load the base and put network, data and loop together."""
    if any(side % SPACE for side in args.size):
        raise ValueError(f"Training: --size must be multiples of {SPACE}; got {tuple(args.size)}. Round it.")
    device = torch.device(args.device)
    half = args.precision != "fp32" and device.type == "cuda"
    base = load_base(args.base, PRECISIONS[args.precision] if half else torch.float32).to(device)
    codec = WanCodec(load_vae(args.vae or args.base).to(device))
    texts = Texts(args.text, base.config.text_dim)
    torch.manual_seed(args.seed)
    adapter = WanAdapter(base, AdapterConfig(args.rank)).to(device)
    recipe = Recipe(scale=args.scale, redraw_share=args.sdedit)
    if args.sdedit > 0:
        recipe = replace(recipe, redraw=SDEditTransform(WanBase(adapter, codec, texts.null()), SDEdit()))
    maker = SampleMaker(_sources(args), codec, recipe, args.seed)
    if args.checkpointing:
        checkpoint_blocks(base.blocks)
    store = LatentStore(maker, args.work / "samples" if args.keep else None, _identity(args))
    data = AdapterData(store, texts, args.order, tuple(args.frames), args.steps * args.batch, args.seed)
    data.kept, data.device = args.keep, device
    settings = LoopSettings(
        args.steps, args.rate, precision=args.precision, parts=args.batch, seed=args.seed, save_every=args.every
    )
    return Loop(adapter, data.draw, adapter_loss, args.work, settings), adapter


def main(argv: Sequence[str] | None = None) -> None:
    """Train from the command line and write the averaged adapter."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = _arguments(argv)
    loop, adapter = make_loop(args)
    loop.run()
    with loop.average.applied(adapter):
        export(adapter, args.out, loop.step, args.licence, f"{args.base.name}; {len(loop.parameters)} tensors trained")
    log.info("wrote %s after step %d; curve in %s", args.out, loop.step, args.work / "loss.png")
