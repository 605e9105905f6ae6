"""Pictures as sources: one picture, a folder of them, or an animated GIF, WebP or PNG, with Pillow.

1. `probe_pictures` opens every file, and checks that all have one size
2. `picture_frames` yields them upright, 16-bit ones with all their bits (Pillow would cut them: PyAV reads those)
3. colours that a profile (ICC) describes become those of sRGB
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageCms

from .colour import SDR
from .errors import MediaError
from .files import PICTURES, locator, picture_files
from .timeline import DEFAULT_RATE, Timeline

_ANIMATED = {"GIF", "WEBP", "PNG", "AVIF"}
_ORIENTATION, _BITS = 274, 258  # tags of EXIF and TIFF
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_TELLING_MODES = {"GRAY": {"L", "LA"}, "RGB ": {"RGB", "RGBA", "P"}, "CMYK": {"CMYK"}}  # by the space of a profile
_MS = Fraction(1, 1000)
# EXIF orientation: quarter-turns anticlockwise after mirroring left to right
_MIRRORED, _TURNS = {2, 4, 5, 7}, {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}


def probe_pictures(source: Path, rate: Fraction | None = None) -> Timeline:
    """Describe a picture or a folder of pictures; `rate` in frames per second is for folders (default 25)."""
    files = picture_files(source) if source.is_dir() else [source]
    if not files:
        raise MediaError(f"IN: a folder must hold images ({' '.join(sorted(PICTURES))}); {source} holds none.")
    sizes, depth, alpha, delays, remarks, plays = {}, 8, False, [], _missing(files), 0
    for file in files:
        with _reading(file):
            with Image.open(file) as image:
                if image.mode in ("F", "I") and image.format != "PNG":
                    raise MediaError(f"IN: {file} has 32 bits a channel; at most 16 are read. Convert it to 16 bits.")
                deep = _is_deep(file, image)
                turned = _load(image) >= 5
                sizes.setdefault(image.size[::-1] if turned else image.size, file)
                if deep and image.info.get("icc_profile") and not remarks:
                    remarks.append("colour profiles of 16-bit pictures are not applied: they are taken for sRGB")
                depth = 16 if deep else depth
                if not source.is_dir() and _is_animation(image):
                    delays, alpha = _animation(image)
                    plays = _plays(image)
                else:
                    if image.format == "TIFF" and image.n_frames > 1:
                        remarks.append(f"only the first of {image.n_frames} pages of {file.name} is read")
                    alpha = alpha or _is_transparent(file, image, deep)
    if len(sizes) > 1:
        found = ", ".join(f"{w}x{h} ({file.name})" for (w, h), file in list(sizes.items())[:3])
        raise MediaError(f"IN: all images of a folder must have one size; got {found}.")
    width, height = next(iter(sizes))
    if delays:
        ends = np.cumsum(delays)
        steady = len(set(delays)) == 1
        mean = Fraction(1000, delays[0]) if steady else Fraction(1000 * len(delays), int(ends[-1]))
        pts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        last = delays[-1] / 1000
        return Timeline(
            source,
            "animation",
            height,
            width,
            pts,
            _MS,
            mean,
            steady,
            last,
            colour=SDR,
            depth=depth,
            alpha=alpha,
            plays=plays,
        )
    rate, kind = Fraction(rate or DEFAULT_RATE), "pictures" if source.is_dir() else "picture"
    pts, base = np.arange(len(files), dtype=np.int64), 1 / rate
    return Timeline(
        source,
        kind,
        height,
        width,
        pts,
        base,
        rate,
        last=float(base),
        colour=SDR,
        depth=depth,
        alpha=alpha,
        remarks=tuple(remarks),
    )


def _missing(files: list[Path]) -> list[str]:
    """Return a line on numbers that are missing between the names of a folder's pictures."""
    found = [re.findall(r"\d+", file.stem)[-1:] for file in files]
    numbers = {int(digits[0]) for digits in found if digits}
    if len(numbers) < len(files) or len(numbers) < 2:  # not numbered, or in another way
        return []
    ordered = sorted(numbers)
    step = math.gcd(*(b - a for a, b in zip(ordered, ordered[1:], strict=False)))
    gap = (ordered[-1] - ordered[0]) // step + 1 - len(ordered)
    if not 0 < gap <= len(ordered):
        return []
    missing = [str(n) for n in range(ordered[0], ordered[-1], step) if n not in numbers]
    more = " ..." if gap > 10 else ""
    return [
        f"numbers are missing among the pictures: {', '.join(missing[:10])}{more} ({gap}); they leave no gap in time"
    ]


def _load(image: Image.Image) -> int:
    """Return the EXIF orientation that is left to be applied to a picture; Pillow turns TIFFs when it loads them."""
    if image.format == "TIFF":
        image.load()
    return image.getexif().get(_ORIENTATION, 1)


def picture_frames(timeline: Timeline, start: int, stop: int) -> Iterator[np.ndarray]:
    """Yield frames `start` to `stop` (not included), upright, (h, w, 3 or 4) uint8 or uint16."""
    source = timeline.path
    if timeline.kind == "animation":
        with _reading(source):
            image = Image.open(source)
        with image:
            skipped = int(_hides_first(image))
            for index in range(start, stop):
                with _reading(source):
                    image.seek(index + skipped)
                    array = _turned(np.asarray(_in_srgb(image, "RGBA")), image)
                yield array
        return
    for file in (picture_files(source) if source.is_dir() else [source])[start:stop]:
        with _reading(file), Image.open(file) as image:
            array = _pixels(file, image, _is_deep(file, image))
        yield array


# what Pillow's parsers let through of a damaged file
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, TypeError, LookupError, ArithmeticError)
_UNREADABLE += (AttributeError, struct.error, Image.DecompressionBombError, av.FFmpegError)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what Pillow and PyAV raise about a file into one sentence, and their warnings into none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MediaError:
        raise
    except _UNREADABLE as error:
        raise MediaError(f"IN: {file} is not a readable image ({error}). Convert it to PNG.") from error


def _pixels(file: Path, image: Image.Image, deep: bool) -> np.ndarray:
    orientation = image.getexif().get(_ORIENTATION, 1)
    if deep:
        with av.open(locator(file)) as container:
            return _turned(_packed(next(container.decode(video=0))), image, orientation)
    _load(image)
    return _turned(np.asarray(_in_srgb(image, "RGBA" if _may_be_transparent(image) else "RGB")), image)


def _turned(array: np.ndarray, image: Image.Image, orientation: int | None = None) -> np.ndarray:
    """Turn pixels as the EXIF orientation says."""
    orientation = image.getexif().get(_ORIENTATION, 1) if orientation is None else orientation
    array = array[:, ::-1] if orientation in _MIRRORED else array
    return np.ascontiguousarray(np.rot90(array, _TURNS.get(orientation, 0)))


def _in_srgb(image: Image.Image, mode: str) -> Image.Image:
    """Convert a picture of up to 8 bits to a mode, from the colours of its profile to those of sRGB."""
    data = image.info.get("icc_profile")
    if not data:
        return image.convert(mode)
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if image.mode not in _TELLING_MODES.get(profile.profile.xcolor_space, ()):
            return image.convert(mode)  # the profile of another picture
        alpha = image.convert("RGBA").getchannel("A") if mode == "RGBA" else None
        plain = image.convert({"P": "RGB", "RGBA": "RGB", "LA": "L"}.get(image.mode, image.mode))
        found = ImageCms.profileToProfile(plain, profile, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a broken profile tells nothing
        return image.convert(mode)
    if alpha is not None:
        found.putalpha(alpha)
    return found


def _packed(frame) -> np.ndarray:
    """Return a packed 16-bit frame (grey, grey with alpha, RGB, RGBA) as RGB or RGBA uint16."""
    channels, kind = len(frame.format.components), ">u2" if frame.format.is_big_endian else "<u2"
    lines = np.frombuffer(frame.planes[0], kind).reshape(frame.height, -1)
    array = lines[:, : frame.width * channels].reshape(frame.height, frame.width, channels).astype(np.uint16)
    return array if channels > 2 else np.concatenate([array[..., :1]] * 3 + [array[..., 1:]], -1)


def _is_deep(file: Path, image: Image.Image) -> bool:
    if image.format == "PNG":
        with open(file, "rb") as opened:
            return opened.read(25)[24:] == b"\x10"  # the bit depth in the header
    return image.format == "TIFF" and set(image.tag_v2.get(_BITS, ())) == {16} and image.mode[0] != "C"


def _may_be_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _is_transparent(file: Path, image: Image.Image, deep: bool) -> bool:
    if deep:
        array = _pixels(file, image, True)
        return array.shape[-1] == 4 and int(array[..., 3].min()) < 65535
    return _may_be_transparent(image) and image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def _is_animation(image: Image.Image) -> bool:
    return image.format in _ANIMATED and getattr(image, "n_frames", 1) - _hides_first(image) > 1


def _hides_first(image: Image.Image) -> bool:
    """Return whether the first picture of a PNG is only for programs that know no animation."""
    return bool(getattr(image, "default_image", False))


def _plays(image: Image.Image) -> int:
    """Return how often an animation is shown, 0 for endlessly."""
    loop = image.info.get("loop")
    if image.format == "GIF":  # counts repetitions
        return 1 if loop is None else loop + 1 if loop else 0
    return loop or 0


def _animation(image: Image.Image) -> tuple[list[int], bool]:
    """Return the delay of every frame in ms, and whether any pixel is transparent."""
    delays, alpha = [], False
    for index in range(int(_hides_first(image)), image.n_frames):
        image.seek(index)
        image.load()  # WebP tells the delay only then
        delay = round(image.info.get("duration", 0))
        # what all browsers do: authors of such files never saw them any faster
        delays.append(100 if delay < (20 if image.format == "GIF" else 1) else delay)
        alpha = alpha or image.convert("RGBA").getchannel("A").getextrema()[0] < 255
    return delays, alpha
