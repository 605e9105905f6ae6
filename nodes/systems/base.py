"""The descriptor of a restoration system: all that loaders, nodes and patches ask of one.

A system is one folder in models/ (its networks, host-free) and one file here with a `SYSTEM`. Loading goes:

1. Load Video Restorer lists the files of its folder; those that make up one release are listed as its `folder`.
2. A file with an entry that is among a system's `marks` is opened by it (`open_state`), a folder by `open_release`.
3. `load_model`, `load_vae` and `load_clip` build the host's MODEL, VAE and CLIP. MODEL and VAE know their system.

Sampling goes: Cascade Input asks the VAE for the LR clip, VSR Conditioning lets the system join it (`condition`),
Spatial Tiles and Temporal Windows read the sizes it works best at (`tiles`, `windows`, `published`).

Another system is a folder in models/ and a file here: docs/design.md, "How to add a system".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...models.checkpoints import DECODERS
from ...models.layout.pieces import Tile, Window

State = Mapping[str, torch.Tensor]
Weights = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Loading:
    """Hold the settings of Load Video Restorer."""

    precision: str = "auto"
    decoder: str = DECODERS[0]
    preset: str = "default"


@dataclass(frozen=True)
class TileSizes:
    """Hold the tiles that Spatial Tiles tries, largest first, as (long, short) px, and their overlap in px."""

    sides: tuple[tuple[int, int], ...] = ((1280, 720), (960, 544), (640, 384), (384, 256), (256, 192))
    overlap: int = 96


@dataclass(frozen=True)
class WindowSize:
    """Hold the window that Temporal Windows takes by itself, in frames, and its overlap."""

    length: int = 33
    overlap: int = 8


@dataclass(frozen=True)
class Published:
    """How the published program cuts what it samples, for the preset that repeats it; None: as everybody does.

    `tiles(height, width, tile_height, tile_width, overlap)` in cells and `windows(frames)` give the parts and the
    weights that fuse them.
    """

    tile: tuple[int, int, int] | None = None  # height, width, overlap in cells where the user names none
    tiles: Callable[[int, int, int, int, int], tuple[tuple[Tile, ...], Weights]] | None = None
    windows: Callable[[int], tuple[tuple[Window, ...], Weights]] | None = None


@dataclass(frozen=True)
class ReleaseFolder:
    """How a folder with one release looks; patterns as of `PurePath.match`, relative to the folder."""

    needs: tuple[str, ...]  # one file at least matches each of these
    hides: tuple[str, ...]  # what matches one of these is not listed by itself


@dataclass(frozen=True)
class FlowFile:
    """Which files of a system hold RAFT, and how its program shows frames to it."""

    pattern: str  # of listed files that do, as of `PurePath.match`
    prefix: str = ""  # of its entries, beside other networks; "": the file is RAFT's own
    iterations: int = 20
    signed: bool = True  # frames in -1..1, for which RAFT was made; else in 0..1


@dataclass(frozen=True)
class LRClip:
    """What a system makes its conditions of: the LATENT of Cascade Input, and what VSR Conditioning adds to it."""

    latent: Mapping[str, Any]  # its "samples" are checked
    noise_level: float  # 0..1
    references: int  # how many there are
    draw: Callable[[torch.Tensor], torch.Tensor]  # draws the LR clip's noise, shaped like a tensor


@dataclass(frozen=True)
class Conditioned:
    """Hold what joins the conditioning as the LR clip, and what sampling starts from."""

    lr: torch.Tensor
    start: torch.Tensor


@dataclass(frozen=True)
class System:
    """Describe one restoration system."""

    key: str
    name: str  # for people
    holds: str  # what its file or folder holds, for the error about a wrong file
    marks: tuple[str, ...]  # a file is looked at by `open_state` where one of its entries contains one of these
    open_state: Callable[[State, Mapping[str, str], Path], Any | None]  # None: entries of something else
    open_release: Callable[[Path], Any]  # opens what is known to be of this system again
    load_model: Callable[[Any, Loading, bool], Any]  # (release, settings, disable_dynamic) -> MODEL
    load_vae: Callable[[Any, Loading, bool], Any | None]
    load_clip: Callable[[Any, Loading, bool], Any | None] | None = None  # None: it has no text encoder
    licence: str = ""
    folder: ReleaseFolder | None = None  # None: it comes as single files only
    flow: FlowFile | None = None
    # How LR frames enter. None: as a latent, mixed with noise at the noise level, beside references (UniMMVSR's way)
    condition: Callable[[LRClip], Conditioned] | None = None
    lr_is_latent: bool = True  # else LR frames themselves
    takes_references: bool = False  # without Reference Tokens
    redraws: bool = False  # can imitate a base model in SDEdit Degradation
    keeps_deep: bool = False  # its network can hand its deep half on to later steps
    tiles: TileSizes = field(default_factory=TileSizes)
    windows: WindowSize = field(default_factory=WindowSize)
    published: Published = field(default_factory=Published)
