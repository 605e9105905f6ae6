"""Small films and pictures with one property each, made by PyAV and Pillow."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from cascadevsr.media.plan import plan
from cascadevsr.media.reader import frames, probe
from cascadevsr.media.writer import write

RATE = 24


def clip(count=6, height=48, width=64, seed=0, depth=8):
    """Smooth moving colours: realistic for a codec, different in every frame."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        np.stack([np.sin((x + 2 * i + seed) / 7 + c) + np.cos(y / 5 - c) for c in range(3)], -1) for i in range(count)
    ]
    if depth == 16:
        return [np.rint(32768 + 15000 * wave).astype(np.uint16) for wave in waves]
    return [np.rint(127.5 + 60 * wave).astype(np.uint8) for wave in waves]


def film(
    path: Path,
    pictures=None,
    *,
    times=None,
    base=Fraction(1, 90000),
    start=0.0,
    codec="libx264",
    layout="yuv420p",
    options=None,
    prepare=lambda container, stream: None,
    sounds=(),
    sound_start=0.0,
    rate=48000,
):
    """Write a film whose frames begin at `times` (s, default every 1/24) after `start` on the file's clock.

    `sounds`: (codec, layout, language) of every sound track of one second that begins at `sound_start`.
    """
    pictures = clip() if pictures is None else pictures
    times = [i / RATE for i in range(len(pictures))] if times is None else times
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], layout
        stream.codec_context.time_base = base
        prepare(container, stream)
        tracks = []
        for name, channels, language in sounds:
            tracks.append(container.add_stream(name, rate=rate, layout=channels))
            tracks[-1].metadata["language"] = language
        packets = []
        for picture, time in zip(pictures, times, strict=True):
            kind = {(1, 3): "rgb24", (1, 4): "rgba", (2, 3): "rgb48le", (2, 4): "rgba64le"}
            kind = kind[picture.itemsize, picture.shape[-1]]
            frame = av.VideoFrame.from_ndarray(picture, format=kind).reformat(format=layout)
            frame.pts, frame.time_base = round((time + start) / base), base
            packets += stream.encode(frame)
        packets += stream.encode()
        for track in tracks:
            packets += tone(track, rate, sound_start)
        for packet in sorted(packets, key=lambda p: (p.dts * p.time_base, p.stream_index)):
            container.mux(packet)
    return path


def tone(track, rate: int, start: float, seconds: float = 1.0):
    """Encode a tone for a sound track."""
    channels = track.layout.nb_channels
    wave = (np.sin(np.arange(int(rate * seconds)) / 20) * 12000).astype(np.int16)
    block = av.AudioFrame.from_ndarray(np.repeat(wave, channels).reshape(1, -1), format="s16", layout=track.layout)
    block.sample_rate, block.pts, block.time_base = rate, round(start * rate), Fraction(1, rate)
    for piece in (*av.AudioResampler(track.format, track.layout, rate).resample(block), None):
        yield from track.encode(piece)


def enlarged(source: Path, out: Path, **wishes):
    """Take a source through reader and writer at twice its size, and return the plan."""
    timeline = probe(source)
    how = plan(out, timeline, **wishes)
    doubled = (frame.repeat(2, 0).repeat(2, 1) for frame in frames(timeline, how.wish))
    assert write(out, doubled, how, timeline, wishes.get("keep", "all")) == timeline.frames
    return how


def seen(path: Path):
    """Return (times of pictures, starts of sound tracks), seconds on the file's clock."""
    with av.open(str(path)) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
        tracks = len(container.streams.audio)
    starts = []
    for track in range(tracks):
        with av.open(str(path)) as container:
            first = next(container.decode(audio=track))
            starts.append(float(first.pts * first.time_base))
    return times, starts


def assert_times(path: Path, wanted, within=0.002):
    """Check the times of pictures from the first one on."""
    times = np.array(seen(path)[0])
    assert len(times) == len(wanted)
    assert np.abs((times - times[0]) - (np.array(wanted) - wanted[0])).max() <= within
