"""One of our autoencoders as the host's native VAE, which cuts clips into pieces that fit into memory.

Encoding and decoding are alike:

1. The input is checked, and cuts are listed: tiles x spans, best first (`VAELaw`, models/layout/pieces.py).
2. The weights are loaded; the cuts that need less than the free memory are tried in turn (`_attempts`). Out of memory
   leads to the next one, and the last one's failure to an error that says what to do: nothing is left black.
3. The engine walks through the pieces; the system's own `piece_encoder` or `piece_decoder` computes each.
4. Every layer of the network ticks (`watched_layers`): the bar moves and Stop works inside a long piece, too.
"""

from __future__ import annotations

import contextlib
import logging
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import torch

from ...models.layout.pieces import (
    Cut,
    NotFinite,
    Pieces,
    Span,
    Tile,
    Window,
    cuts_that_fit,
    decode_pieces,
    encode_pieces,
    list_cuts,
    plain_spans,
    plan_tiles,
)
from ...models.layout.sizes import ClipSize, latent_size
from ...models.layout.streams import decode_frames
from ...models.motion.estimation import Motion
from ...models.motion.flow import scene_cuts
from . import services
from .keys import PUBLISHED
from .progress import PieceProgress, Progress, speeds, watched_layers, where
from .room import check_room


@dataclass(frozen=True)
class VAELaw:
    """State what an autoencoder of ours needs and how its clips are cut; sides and overlap in latent cells."""

    space: int  # px per latent cell
    time: int  # frames per latent frame after the first
    decode_bytes: float  # peak per output pixel and frame of a piece
    encode_bytes: float
    sides: tuple[int, ...]  # of tiles, tried in turn where whole frames do not fit
    overlap: int
    lengths: tuple[int, ...]  # latent frames of a span, longest first; shorter ones are tried before tiles
    spans: Callable[[int, int], tuple[Span, ...]]  # (latent frames, length) -> spans that are decoded
    encode_spans: Callable[[int, int], tuple[Span, ...]]
    streamed: bool = False  # the network remembers the spans before
    carried: float = 0.0  # peak per output pixel where frames are decoded one by one, each once


class RestorerVAE(comfy.sd.VAE):
    """A native VAE around one of our networks; `decode` takes LR frames and more through vae_options.

    A system gives `lr_latent`, `piece_encoder` and `piece_decoder`, and `restored` where it `restores`.
    """

    system: Any = None  # the System (nodes/systems/base.py) that loaded it
    restores = False  # whether frames can be restored without a latent

    def __init__(
        self,
        network: torch.nn.Module,
        state: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        law: VAELaw,
        latent_channels: int,
        disable_dynamic: bool = False,
    ):
        with _quiet("WARNING: No VAE weights detected"):  # true for the host's own VAEs, not for ours
            super().__init__(sd={})
        self.law, space, time = law, law.space, law.time
        self.latent_channels, self.latent_dim, self.output_channels = latent_channels, 3, 3
        self.downscale_ratio = (lambda frames: max(0, (frames + 2 * time - 2) // time), space, space)
        self.upscale_ratio = (lambda frames: max(0, frames * time - time + 1), space, space)
        self.downscale_index_formula = self.upscale_index_formula = (time, space, space)
        self.handles_tiling, self.crop_input = True, False  # any size is padded, nothing is cut off
        self.working_dtypes = list(services.PRECISIONS.values())
        self.device, self.output_device = management.vae_device(), management.intermediate_device()
        self.vae_dtype = dtype
        # Spans bound memory: what the host's nodes must make room for does not depend on the number of frames.
        least = 1 + time * law.lengths[-1] if law.streamed else time * law.lengths[-1]
        self.memory_used_decode = lambda shape, _: shape[-2] * shape[-1] * space**2 * law.decode_bytes * least
        self.memory_used_encode = lambda shape, _: shape[-2] * shape[-1] * law.encode_bytes * least
        self.first_stage_model = network.eval().requires_grad_(False).to(dtype)
        management.archive_model_dtypes(network)
        kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        self.patcher = kind(network, load_device=self.device, offload_device=management.vae_offload_device())
        state = {key: value.to(dtype) for key, value in state.items()}
        network.load_state_dict(state, strict=True, assign=self.patcher.is_dynamic())
        self.model_size()

    # What a system gives

    def lr_latent(self, frames: torch.Tensor, size: ClipSize, mode: str) -> dict:
        """Give the LATENT entries that stand for LR frames (B, h, w, 3) at `size`; `mode` is the resizing filter."""
        raise NotImplementedError

    def piece_encoder(self, frames: torch.Tensor, size: ClipSize, mode: str) -> Callable[[Window, Tile], torch.Tensor]:
        """Give what encodes a piece of frames (B, h, w, 3) resized to `size`: see `encode_pieces`."""
        raise NotImplementedError

    def piece_decoder(
        self, latent: torch.Tensor, lr: torch.Tensor | None, size: ClipSize, lr_weight: float
    ) -> Callable[[Window, Tile], torch.Tensor]:
        """Give what decodes a piece of a latent (1, c, T, h, w) to frames: see `decode_pieces`.

        With a `streamed` law and LR frames it also takes `cuts`, the frames that start a new scene, and `motion` of
        the LR frames, None where it must be estimated.
        """
        raise NotImplementedError

    def frame_decoder(
        self, latent: torch.Tensor, lr: torch.Tensor | None, size: ClipSize, lr_weight: float
    ) -> Callable[[Tile], Iterator[torch.Tensor]] | None:
        """Give what decodes a tile frame by frame, nothing twice: see `decode_frames`; None where frames need all."""
        return None

    def frame_layers(self) -> Sequence[torch.nn.Module]:
        """Give those parts of the network that decode frame by frame; none where frames are decoded together."""
        return ()

    # The host's calls

    def encode(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        """Encode frames (B, H, W, C) as one clip, or clips (b, t, H, W, C), into latents (b, c, T, h, w)."""
        return self.encode_clips(pixel_samples)

    def encode_tiled(
        self,
        pixel_samples: torch.Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ):
        """Encode with tiles of the given px; `tile_t` sets the frames of a span, whose overlap is the law's."""
        side = None if tile_x is None else max(1, min(tile_x, tile_y or tile_x) // self.law.space)
        return self.encode_clips(pixel_samples, chunk=tile_t, side=side, overlap=(overlap or 0) // self.law.space)

    def encode_clips(
        self,
        pixels: torch.Tensor,
        size: ClipSize | None = None,
        mode: str = "bicubic",
        chunk: int | None = None,
        side: int | None = None,
        overlap: int | None = None,
        piece_encoder: Callable | None = None,
    ) -> torch.Tensor:
        """Resize clips to `size` (None: as they are), pad and encode them; another `piece_encoder` may be given.

        `chunk` frames a span at most, tiles of `side` cells that share `overlap`; None: what fits.
        """
        law, parts = self.law, []
        for clip in pixels if pixels.ndim == 5 else [pixels]:
            clip = services.check_frames("VAE Encode", "pixels", clip)
            whole = size or ClipSize(*clip.shape[:3])
            grid = latent_size(whole, law.space, law.time)
            tries = self._attempts("Encoding", whole, grid, law.encode_bytes, law.encode_spans, chunk, side, overlap)
            for pieces, running in tries:
                with running as show:
                    encode = (piece_encoder or self.piece_encoder)(clip, whole, mode)
                    parts.append(encode_pieces(encode, grid, pieces, law.time, show, services.check_cancelled))
                    break
        return services.to_output(torch.cat(parts))

    def decode(self, samples_in: torch.Tensor, vae_options: dict | None = None) -> torch.Tensor:
        """Decode latents (b, c, T, h, w) to clips (b, t, H, W, 3).

        vae_options: lr (B, h, w, 3), lr_weight 0..1, size (ClipSize, the exact result), chunk (frames of a span at
        most), side (cells of a tile, 0: what fits), overlap (cells), motion (Motion of lr) and detail (share of what
        the latent adds to restored frames), carried (no frame is decoded twice), for who uses them.
        """
        options, law = {"lr": None, "lr_weight": 1.0, "size": None, **(vae_options or {})}, self.law
        samples = services.check_latent("VAE Decode", "samples", {"samples": samples_in}, self.latent_channels)
        size = options["size"] or services.latent_target("VAE Decode", {"samples": samples}, law.space, law.time)[0]
        check_room("VAE Decode", ClipSize(len(samples) * size.frames, size.height, size.width))
        output = services.output_tensor((len(samples), size.frames, size.height, size.width, 3))
        cuts = (options.get("chunk"), options.get("side") or None, options.get("overlap"))
        told = {}
        # here, before tiles and chunks: they must agree
        if law.streamed and options["lr"] is not None and options["lr_weight"] > 0:
            told |= {"motion": options.get("motion"), "detail": options.get("detail", 1.0)}
            told["cuts"] = _cuts_of(options["lr"], told["motion"])
        for latent, clip in zip(samples.split(1), output, strict=True):
            grid = ClipSize(*latent.shape[2:])
            each = options.get("carried") and self.frame_decoder(latent, options["lr"], size, options["lr_weight"])
            least = min(law.lengths[-1], grid.frames)  # of the frames that a span is thought to have
            need = (law.carried / least, plain_spans, least * law.time, *cuts[1:])
            attempts = self._attempts("Decoding", size, grid, *(need if each else (law.decode_bytes, law.spans, *cuts)))
            for number, (pieces, running) in enumerate(attempts):
                with running as show:
                    if each:
                        place = (clip.zero_() if number else clip, pieces.tiles, law.space)
                        decode_frames(each, *place, show, services.check_cancelled)
                        break
                    decode = self.piece_decoder(latent, options["lr"], size, options["lr_weight"], **told)
                    place = (clip.zero_() if number else clip, pieces, law.space, law.time)
                    decode_pieces(decode, *place, show.shows(clip, pieces, law.time), services.check_cancelled)
                    break
        return services.mark_finite(output)

    def restore(self, lr: torch.Tensor, size: ClipSize, motion: Motion | None = None) -> torch.Tensor:
        """Restore LR frames (t, h, w, 3) to (t, H, W, 3) without a latent, where this VAE `restores`."""
        check_room("Restore Frames", size)
        clip = self.restored(lr, size, _cuts_of(lr, motion), motion)
        output = services.output_tensor((size.frames, size.height, size.width, 3))
        grid = latent_size(size, self.law.space, self.law.time)
        with self._on_device():
            need = size.height * size.width * self.law.decode_bytes
            management.load_models_gpu([self.patcher], memory_required=need)
        with self._running("Restoring", size, Cut(grid.height, grid.width, 1), last=True) as show:
            for number in range(size.frames):
                frame = clip.frame(number)
                output[number] = frame[0].movedim(0, -1)
                show(number + 1, size.frames, frame)
        return services.mark_finite(output)

    def decode_tiled(
        self,
        samples: torch.Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ):
        """Decode with tiles of the given cells; `tile_t` latent frames a span, whose overlap is the law's."""
        side = None if tile_x is None else min(tile_x, tile_y or tile_x)
        return self.decode(samples, {"chunk": tile_t and tile_t * self.law.time, "side": side, "overlap": overlap or 0})

    # Cuts and memory

    def _attempts(
        self,
        what: str,
        size: ClipSize,
        grid: ClipSize,
        pixel_bytes: float,
        spans: Callable[[int, int], tuple[Span, ...]],
        chunk: int | None,
        side: int | None,
        overlap: int | None,
    ) -> Iterator[tuple[Pieces, contextlib.AbstractContextManager]]:
        """Load the weights and yield (pieces, what to run them in) for every cut that may fit, best first.

        What runs is given the progress callback. Running out of memory is swallowed there but for the last cut, and
        the next one follows.
        """
        law = self.law
        longest = law.lengths[0] if chunk is None else max(chunk // law.time, law.lengths[-1])
        if law.streamed:
            lengths = (max(1, chunk // law.time) if chunk else law.lengths[0],)
        else:
            lengths = tuple(dict.fromkeys(min(n, grid.frames) for n in law.lengths if n <= longest))
        full = max(grid.height, grid.width)
        sides = (side,) if side else (full, *(each for each in law.sides if each < full))
        cuts = list_cuts(grid, sides, lengths)
        last = cuts[-1]  # where even that does not fit, tiles are halved once
        cuts += (Cut(-(-last.rows // 2), -(-last.columns // 2), last.length),)

        def need(cut: Cut) -> float:
            frames = law.time * min(cut.length, grid.frames) + law.streamed
            return cut.rows * cut.columns * law.space**2 * pixel_bytes * frames

        with self._on_device():
            management.load_models_gpu([self.patcher], memory_required=need(cuts[0]))
            cuts = cuts_that_fit(cuts, need, services.free_bytes(self.device))
        shared = law.overlap if overlap is None else overlap
        for number, cut in enumerate(cuts, 1):
            tiles = plan_tiles(
                grid.height, grid.width, cut.rows, cut.columns, min(shared, max(cut.rows, cut.columns) // 2)
            )
            pieces = Pieces(spans(grid.frames, cut.length), tiles, law.streamed)
            text = "%s %d frames of %dx%d: tiles %d of %dx%d px, spans %d of %d frames"
            px = (side * law.space for side in (cut.columns, cut.rows))
            cut_to = (len(tiles), *px, len(pieces.spans), law.time * cut.length)
            logging.getLogger(__name__).info(text, what, size.frames, size.width, size.height, *cut_to)
            yield pieces, self._running(what, size, cut, last=number == len(cuts), pieces=pieces)

    @contextlib.contextmanager
    def _running(
        self, what: str, size: ClipSize, cut: Cut, last: bool, pieces: Pieces | None = None
    ) -> Iterator[PieceProgress]:
        """Run pieces on the device with ticking layers; out of memory is an error on the `last` cut only."""
        network, decodes = self.first_stage_model, what != "Encoding"
        part = getattr(network, "decoder" if decodes else "encoder", network)
        each = self.frame_layers() if decodes else ()
        try:
            with self._on_device(), watched_layers(network, what, size.frames, each, part) as show:
                if pieces is not None:
                    show.follow(pieces)
                began = clock.monotonic()
                yield show
                pixels = size.frames * size.height * size.width / 1e6
                name = type(self).__name__ if self.system is None else self.system.name
                speeds().learn(f"{where()}: {what}, {name}", clock.monotonic() - began, pixels)
        except NotFinite as error:
            raise ValueError(
                f"VAE: {error} Set precision to fp32 in Load Video Restorer; if it is fp32, the latent is broken: use "
                "sampler ddim or euler."
            ) from error
        except Exception as error:  # the host tells out-of-memory errors of all devices from others
            if not management.is_oom(error):
                raise
            if last:
                px = (side * self.law.space for side in (cut.columns, cut.rows))
                raise services.out_of_memory("VAE", *px) from error
            logging.getLogger(__name__).warning("VAE: out of memory with %s; trying smaller pieces", cut)
            management.soft_empty_cache()

    def _on_device(self) -> contextlib.AbstractContextManager:
        return getattr(management, "cuda_device_context", contextlib.nullcontext)(self.device)


def _cuts_of(lr: torch.Tensor, motion: Motion | None) -> Sequence[int]:
    """Give the frames that start a scene, and say so in the console."""
    cuts = motion.cuts if motion else scene_cuts(Progress().over(lr))
    if cuts:
        logging.getLogger(__name__).info("Scene cuts before frames %s", ", ".join(map(str, cuts)))
    return cuts


def pick_vae_dtype(precision: str, preset: str, device: torch.device) -> torch.dtype:
    """Choose bf16 where the device is good at it; fp32 on a CPU, in the published preset and where asked for.

    float16 is never used: these autoencoders overflow in it.
    """
    if precision == "fp32" or preset == PUBLISHED:
        return torch.float32
    return management.vae_dtype(device, [torch.bfloat16, torch.float32])


@contextlib.contextmanager
def _quiet(start: str) -> Iterator[None]:
    """Drop log lines of the host that begin with `start` and do not apply to what runs inside."""

    def wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(start)

    logger = logging.getLogger()
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
