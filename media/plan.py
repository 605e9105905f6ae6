"""What a result keeps of its source, decided and said before the work.

1. `plan` looks at the source and at OUT's name: which kind of file, which encoder, how many bits
2. HDR stays HDR in 10 bit where OUT can say so, else it is tone-mapped; transparency stays where OUT holds it
3. what stays behind is a line in `notes`
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av

from .colour import SDR, Colour, delivered
from .errors import MediaError
from .files import ANIMATIONS, CONTAINERS, is_folder
from .reader import Wish
from .timeline import Timeline
from .tracks import is_complete, survey

CODECS = ("auto", "h264", "hevc", "av1", "vp9", "prores", "ffv1")
TAKES = {
    ".mp4": ("h264", "hevc", "av1"),
    ".mov": ("h264", "hevc", "prores"),
    ".mkv": ("h264", "hevc", "av1", "vp9", "ffv1"),
    ".webm": ("vp9", "av1"),
}
_SHORT = 12  # frames; of fewer than it reorders, x265 now and then writes times out of its uninitialised memory
_DEEP = {"hevc", "av1", "prores", "ffv1"}
_SHAPED = {"h264", "hevc"}  # say the shape of their pixels themselves; PyAV cannot write it into Matroska
_ALPHA = {"vp9", "prores", "ffv1"}


@dataclass(frozen=True)
class Encoding:
    """An encoder of FFmpeg: its name, pixel format, bits a channel, options, and the tag that players want in MP4."""

    encoder: str
    layout: str
    bits: int = 8
    options: dict = field(default_factory=dict)
    tag: str | None = None

    @property
    def alpha(self) -> bool:
        """Return whether the pixel format holds transparency."""
        return self.layout.startswith(("yuva", "rgba", "gbrap", "bgra"))


@dataclass(frozen=True)
class Plan:
    """How a result is made: `kind` is "film", "animation", "picture" or "folder"; `wish`: the frames it is made of."""

    kind: str
    wish: Wish
    encoding: Encoding
    colour: Colour = SDR
    notes: tuple[str, ...] = ()


def plan(
    out: Path,
    source: Timeline,
    *,
    codec: str = "auto",
    crf: float = 12.0,
    lossless: bool = False,
    tonemap: bool = False,
    deinterlace: bool = False,
    keep: str = "all",
    size: tuple[int, int] | None = None,
) -> Plan:
    """Decide how OUT is written from `source`; raise MediaError for a codec that OUT's container does not take.

    `crf` is the quality of H.264 (0 is best, 51 worst), carried over to the others. `size`: height and width of the
    result in px, where they are known.
    """
    suffix, notes = out.suffix.lower(), []
    kind = "folder" if is_folder(out) else "film"
    if kind == "film" and suffix in ANIMATIONS:
        kind = "picture" if source.frames == 1 else "animation"
    if kind == "film":
        odd = bool(size) and (size[0] % 2 or size[1] % 2)
        if odd and codec == "av1":
            raise MediaError(
                f"--codec: av1 needs even sides; got {size[1]}x{size[0]}. Leave it away, or choose a size."
            )
        codec = _codec(codec, suffix, source, lossless)
        codec = "vp9" if odd and codec == "av1" else codec
        holds_hdr, deep = codec in _DEEP, codec in _DEEP and (source.depth > 8 or bool(source.colour.hdr))
        alpha = source.alpha and codec in _ALPHA
        if source.sar != 1 and suffix in (".mkv", ".webm") and codec not in _SHAPED:
            notes.append(
                f"pixels of {source.sar.numerator}:{source.sar.denominator} are shown square: {suffix} cannot say it "
                f"of {codec}; .mp4, .mov, and h264 or hevc in .mkv can"
            )
    else:
        holds_hdr, deep, alpha = False, source.depth > 8 and suffix != ".webp", source.alpha
    hdr = source.colour.hdr
    mapped = bool(hdr) and (tonemap or not holds_hdr)
    if mapped:
        why = (
            "as asked" if tonemap else f"OUT ({suffix or 'PNG'}{', ' + codec if kind == 'film' else ''}) cannot hold it"
        )
        notes.append(f"HDR ({hdr}) is tone-mapped to BT.709, white at 203 nits: {why}")
    elif hdr:
        notes.append(f"HDR ({hdr}) is kept: 10 bit, with its tags")
    if tonemap and not hdr:
        notes.append("--tonemap changes nothing: IN is not HDR")
    if source.depth > 8 and not deep and not mapped:
        notes.append(f"{source.depth} bits a channel become 8: OUT is written as {codec if kind == 'film' else suffix}")
    if source.alpha and not alpha:
        notes.append("transparency is dropped (laid on black): .webm, .mov and PNG hold it")
    if kind == "folder" and not source.constant:
        notes.append("the times of frames are not kept: a folder of pictures has none")
    if source.interlaced and not deinterlace:
        notes.append("IN is interlaced, and its combs would be enlarged: --deinterlace makes whole frames of it")
    if deinterlace and source.kind != "film":
        raise MediaError(f"--deinterlace: is for films; {source.path} is a picture. Leave it away.")
    wish = Wish(16 if deep else 8, alpha, mapped, deinterlace)
    colour = SDR if mapped else delivered(source.colour)
    encoding = _encoding(kind, suffix, codec, wish, crf, lossless)
    if encoding.encoder == "libx265":
        more = ["bframes=0"] if source.frames < _SHORT else []
        more += source.light if hdr and not mapped else []
        encoding.options["x265-params"] += "".join(f":{option}" for option in more)
    if size is not None:
        _try_encoder(encoding, out, size)
    notes += survey(source, suffix if kind == "film" else "", keep)
    return Plan(kind, wish, encoding, colour, tuple(notes))


def natural_ending(source: Timeline) -> str:
    """Return the ending of the same kind of file as the source, or of one that holds all of it; "": a folder."""
    suffix = source.path.suffix.lower()
    if source.kind == "pictures":
        return ""
    if source.kind in ("picture", "animation"):
        return ".png" if source.kind == "picture" or suffix in (".png", ".apng") else ".webp"
    if suffix in CONTAINERS:
        return suffix
    return ".mkv" if source.alpha or source.kind == "film" and not is_complete(source, ".mp4") else ".mp4"


def check_codec(codec: str, suffix: str) -> None:
    """Raise MediaError for a codec that a container does not take."""
    if codec != "auto" and codec not in TAKES[suffix]:
        raise MediaError(f"--codec: {suffix} takes {', '.join(TAKES[suffix])}; got {codec}.")


def _try_encoder(encoding: Encoding, out: Path, size: tuple[int, int]) -> None:
    """Raise MediaError where the encoder is not built in, or refuses sides that are unusual."""
    height, width = size
    fits = max(size) <= 16383 if "webp" in encoding.encoder else True
    try:
        context = av.CodecContext.create(encoding.encoder, "w")
        heavy = encoding.encoder in ("libvpx-vp9", "libsvtav1")  # takes gigabytes to open for large sizes
        if min(size) < 64 or max(size) > (16384 if heavy else 8192):
            context.height, context.width, context.pix_fmt = height, width, encoding.layout
            if height % 2 or width % 2:
                context.pix_fmt = encoding.layout.replace("420p", "444p")
            context.time_base, context.options = Fraction(1, 25), dict(encoding.options)
            context.open()
    except (av.FFmpegError, ValueError):
        fits = False
    if not fits:
        raise MediaError(
            f"OUT: {out.name} cannot be written with {encoding.encoder} at {width}x{height}. Choose another --codec "
            "(hevc and ffv1 in .mkv take the largest sizes), a folder for PNGs, or a smaller size."
        )


def _codec(codec: str, suffix: str, source: Timeline, lossless: bool) -> str:
    check_codec(codec, suffix)
    if codec != "auto":
        if lossless and codec == "av1":
            raise MediaError(
                "--lossless: av1 is not written without loss. Choose another --codec, such as vp9 or hevc."
            )
        return codec
    deep = source.depth > 8 or bool(source.colour.hdr)
    if suffix == ".webm":
        return "av1" if deep and not source.alpha and not lossless else "vp9"  # VP9 of 10 bits is seldom built in
    if source.alpha and suffix == ".mov":
        return "prores"
    if lossless and suffix == ".mkv" and (deep or source.alpha):
        return "ffv1"
    if source.alpha and suffix == ".mkv":
        return "vp9"
    return "hevc" if deep else "h264"


def _encoding(kind: str, suffix: str, codec: str, wish: Wish, crf: float, lossless: bool) -> Encoding:
    deep, alpha = wish.depth > 8, wish.alpha
    if kind != "film":
        if suffix == ".webp":
            return Encoding("libwebp_anim", "bgra", 8, {"lossless": "1", "compression_level": "4"})
        layout = {(0, 0): "rgb24", (0, 1): "rgba", (1, 0): "rgb48be", (1, 1): "rgba64be"}[int(deep), int(alpha)]
        name = "apng" if kind == "animation" else "png"
        return Encoding(name, layout, wish.depth, {"pred": "mixed", "compression_level": "3"})
    return encoding(codec, crf, lossless, deep, alpha)


def encoding(
    codec: str, crf: float = 12.0, lossless: bool = False, deep: bool = False, alpha: bool = False
) -> Encoding:
    """Return an encoding; 4:2:0 becomes 4:4:4 in the writer where a side is odd. "png" is for staging, exact."""
    bits, a = 10 if deep else 8, "a" if alpha else ""
    ten = "10le" if deep else ""
    if codec == "png" or (codec == "prores" and lossless):
        layout = f"rgb{a}" + ({"": "48be", "a": "64be"}[a] if deep else {"": "24", "a": ""}[a])
        return Encoding("png", layout, 16 if deep else 8, {"compression_level": "1", "pred": "up"})
    if codec == "h264" and lossless:
        return Encoding("libx264rgb", "rgb24", 8, {"qp": "0", "preset": "veryfast"})
    if codec == "h264":
        return Encoding("libx264", "yuv420p", 8, {"crf": str(crf), "preset": "medium"})
    if codec == "hevc":
        quality = {"x265-params": "log-level=none" + (":lossless=1" if lossless else ""), "preset": "medium"}
        layout = ("gbrp12le" if deep else "gbrp") if lossless else f"yuv420p{ten}"
        bits = 12 if lossless and deep else bits
        return Encoding("libx265", layout, bits, quality | ({} if lossless else {"crf": str(crf)}), "hvc1")
    if codec == "av1":
        options = {"crf": str(round(min(63, 1.4 * crf))), "preset": "6"}
        return Encoding("libsvtav1", f"yuv420p{ten}", bits, options)
    if codec == "vp9":
        # VP9 (and AV1) count quality from 0 to 63; equal looks are about 1.4 times the number of H.264
        quality = {"lossless": "1"} if lossless else {"crf": str(round(min(63, 1.4 * crf))), "b": "0"}
        layout = "gbrp" if lossless and not alpha else f"yuv{a}420p"
        return Encoding("libvpx-vp9", layout, 8, {**quality, "row-mt": "1", "cpu-used": "4"})
    if codec == "prores":
        return Encoding("prores_ks", f"yuv{a}444p10le", 10, {"profile": "4444", "vendor": "apl0"})
    layout = {(0, 0): "bgr0", (0, 1): "bgra", (1, 0): "gbrp16le", (1, 1): "gbrap16le"}[int(deep), int(alpha)]
    return Encoding("ffv1", layout, 16 if deep else 8, {"level": "3"})
