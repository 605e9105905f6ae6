"""Colour: what the numbers of a frame mean, RGB to YUV by hand, and HDR to SDR.

1. `Colour`      the four tags of a film (code points of ITU-T H.273)
2. `resolved`    what an untagged film means; `delivered` what a result is tagged as
3. `planes`      RGB(A) to the planes of an encoder; by hand, because libswscale's result differs from run to run
4. `from_planes` the way back, for sources of more than 8 bits
5. `tone_mapped` PQ or HLG in BT.2020 to BT.709

Frames are (h, w, 3 or 4), uint8 with 255 or uint16 with 65535 as full scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

UNSPECIFIED, BT709, BT601, BT2020 = 2, 1, 6, 9
PQ, HLG = 16, 18
SDR_WHITE = 203.0  # nits of white in SDR, ITU-R BT.2408
_PEAK = 1000.0  # nits, of the display that HDR films are mostly graded on
_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
_WEIGHTS |= {9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}  # red and blue in luma
# as FFmpeg 7 knows them, too; 5 has the numbers of 6
FILTER_NAMES = {1: "bt709", 4: "fcc", 5: "smpte170m", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
# linear light, BT.2020 to BT.709 (ITU-R BT.2087)
_TO_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)


@dataclass(frozen=True)
class Colour:
    """Primaries, transfer and matrix as code points of H.273 (2: not stated); `full`: the range of the code values."""

    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    matrix: int = UNSPECIFIED
    full: bool = False

    @property
    def hdr(self) -> str:
        """Return "PQ", "HLG" or "" for anything else."""
        return {PQ: "PQ", HLG: "HLG"}.get(self.transfer, "")


SDR = Colour(BT709, BT709, BT709)


def resolved(colour: Colour, height: int, width: int) -> Colour:
    """Fill in the matrix of an untagged film as players do: BT.709 from 1280 wide or above 576 lines, else BT.601."""
    if colour.matrix in FILTER_NAMES:
        return colour
    matrix = BT709 if width >= 1280 or height > 576 else BT601
    if colour.hdr or colour.primaries == BT2020:
        matrix = BT2020
    return Colour(colour.primaries, colour.transfer, matrix, colour.full)


def delivered(colour: Colour) -> Colour:
    """Return the tags of a result whose RGB values are those of `colour`: nothing is left unsaid, limited range."""
    primaries, transfer = (BT709 if code in (0, UNSPECIFIED) else code for code in (colour.primaries, colour.transfer))
    return Colour(primaries, transfer, BT2020 if primaries == BT2020 else BT709)


def planes(frame: np.ndarray, bits: int, matrix: int, halved: bool, alpha: bool) -> list[np.ndarray]:
    """Convert RGB(A) to limited-range Y, Cb, Cr (and A, full range) of `bits` bits; `halved`: 4:2:0, left-sited."""
    kr, kb = _WEIGHTS[matrix]
    scale, top = np.float32(1 << (bits - 8)), (1 << bits) - 1
    rgb = frame[..., :3].astype(np.float32) / np.float32(_full(frame))
    y = rgb @ np.array([kr, 1 - kr - kb, kb], np.float32)
    chroma = np.stack([(rgb[..., 2] - y) / np.float32(2 - 2 * kb), (rgb[..., 0] - y) / np.float32(2 - 2 * kr)])
    if halved:
        left = np.concatenate([chroma[..., :1], chroma[..., 1:-1:2]], -1)
        chroma = 0.25 * left + 0.5 * chroma[..., 0::2] + 0.25 * chroma[..., 1::2]
        chroma = (chroma[:, 0::2] + chroma[:, 1::2]) / 2
    found = [scale * (16 + 219 * y), *(scale * (128 + 224 * chroma))]
    if alpha:
        found.append(frame[..., 3].astype(np.float32) * (top / _full(frame)))
    kind = np.uint8 if bits == 8 else np.uint16
    return [np.clip(np.rint(plane), 0, top).astype(kind) for plane in found]


def from_planes(found: list[np.ndarray], colour: Colour) -> np.ndarray:
    """Convert 4:4:4 planes Y, Cb, Cr (and A, full range) of 16 bits to RGB(A) uint16.

    By hand, because libswscale is one code of 10 bits off. Code values are those of 8 bits times 256 in limited range;
    `colour` says which range and matrix.
    """
    kr, kb = (np.float32(weight) for weight in _WEIGHTS[colour.matrix])
    y, cb, cr = (plane.astype(np.float32) for plane in found[:3])
    if colour.full:
        y, cb, cr = y / 65535, (cb - 32768) / 65535, (cr - 32768) / 65535
    else:
        y, cb, cr = (y - 4096) / (219 * 256), (cb - 32768) / (224 * 256), (cr - 32768) / (224 * 256)
    red, blue = y + (2 - 2 * kr) * cr, y + (2 - 2 * kb) * cb
    rgb = np.stack([red, (y - kr * red - kb * blue) / (1 - kr - kb), blue], -1)
    rgb = np.rint(np.clip(rgb, 0, 1) * 65535).astype(np.uint16)
    return np.concatenate([rgb, found[3][..., None]], -1) if len(found) > 3 else rgb


def _full(frame: np.ndarray) -> int:
    return np.iinfo(frame.dtype).max


def to_depth(frame: np.ndarray, depth: int) -> np.ndarray:
    """Convert a frame to uint8 (`depth` 8) or uint16 (16), rounded; exact from 8 to 16 and back."""
    if depth == 8 and frame.dtype == np.uint16:
        return ((frame.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if depth == 16 and frame.dtype == np.uint8:
        return frame.astype(np.uint16) * np.uint16(257)
    return frame


def flattened(frame: np.ndarray) -> np.ndarray:
    """Lay an RGBA frame on black, as a player shows it, and return RGB."""
    if frame.shape[-1] == 3:
        return frame
    full = _full(frame)
    laid = frame[..., :3].astype(np.uint64) * frame[..., 3:] + full // 2
    return (laid // full).astype(frame.dtype)


def tone_mapped(frame: np.ndarray, transfer: int) -> np.ndarray:
    """Convert a PQ or HLG frame in BT.2020 to BT.709, of the same type.

    White of SDR is 203 nits. Light below 0.75 of it is kept; what is brighter, up to 1000 nits, is bent into the rest,
    all three channels by one factor, so that hues stay.
    """
    full = _full(frame)
    light = _linear(transfer, full)[frame[..., :3]]
    if transfer == HLG:  # scene light to the light of a display of 1000 nits: ITU-R BT.2100, gamma 1.2
        luma = light @ np.array([0.2627, 0.678, 0.0593], np.float32)
        light = light * (np.maximum(luma, 1e-6) ** np.float32(0.2))[..., None] * np.float32(_PEAK / SDR_WHITE)
    light = np.maximum(light @ _TO_709.T, 0)
    brightest = light.max(-1, keepdims=True)
    light = light * (_bent(brightest) / np.maximum(brightest, 1e-6))
    signal = np.clip(light, 0, 1) ** np.float32(1 / 2.4)  # ITU-R BT.1886
    return np.rint(signal * full).astype(frame.dtype)


def _bent(light: np.ndarray, knee: float = 0.75) -> np.ndarray:
    """Bend light above the knee so that the peak of the display becomes 1; slope 1 at the knee."""
    room, span = 1 - knee, _PEAK / SDR_WHITE - knee
    over = np.maximum(light - knee, 0)
    bend = (span / room - 1) / span  # over / (1 + bend * over) is `room` where over is `span`
    return np.where(light > knee, np.minimum(knee + over / (1 + bend * over), 1), light).astype(np.float32)


@lru_cache(maxsize=4)
def _linear(transfer: int, full: int) -> np.ndarray:
    """Return light by code value: PQ as multiples of SDR white, HLG as scene light in 0..1."""
    signal = np.arange(full + 1, dtype=np.float64) / full
    if transfer == PQ:  # SMPTE ST 2084
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = signal ** (1 / m2)
        return (10000 / SDR_WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073  # ITU-R BT.2100
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
