"""Sound as samples: what a graph asks for, and what it hands over.

1. `read_sound` decodes the first sound track of a film and moves it to the clock of the pictures
2. `Samples` becomes the one sound track of a result, in the place of its source's `Tracks`
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np

from .timeline import Timeline, opened
from .tracks import sound_encoder

_BLOCK = 1024  # samples that are encoded at once


def read_sound(timeline: Timeline) -> tuple[np.ndarray, int] | None:
    """Return the first sound track as (float32 (channels, samples) in -1..1, rate in Hz), or None where there is none.

    The first sample belongs to the first picture: what is earlier is left out, what is missing is silent. A part of a
    film has the sound of its pictures only.
    """
    if timeline.kind != "film":
        return None
    with opened(timeline.path) as container:
        tracks = [s for s in container.streams.audio if s.codec_context is not None and s.rate and s.channels]
        if not tracks:
            return None
        rate, channels, blocks = tracks[0].rate, tracks[0].channels, []
        resampler = av.AudioResampler("fltp", tracks[0].layout, rate)
        begin, end = None, None if timeline.whole is None else round(timeline.duration * rate)
        for packet in container.demux(tracks[0]):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue  # a damaged piece is silent
            for frame in frames:
                for piece in resampler.resample(frame):
                    time = float(piece.time) if piece.time is not None else timeline.start
                    begin = round((time - timeline.start) * rate) if begin is None else begin
                    blocks.append(piece.to_ndarray())
    if begin is None:
        return None
    values = np.concatenate(blocks, 1)
    values = values[:, -begin:] if begin < 0 else np.pad(values, ((0, 0), (begin, 0)))
    return (values[:, :end].reshape(channels, -1), rate)


class Samples:
    """Sound of float32 (channels, samples) in -1..1 at `rate` Hz, which begins with the first picture."""

    def __init__(self, values: np.ndarray, rate: int, suffix: str) -> None:
        self.values, self.rate, self.suffix, self.delay = np.asarray(values, np.float32), int(rate), suffix, 0.0

    def lead(self) -> float:
        """Return 0: no sound before the first picture."""
        return 0.0

    def add_to(self, out: av.container.OutputContainer, delay: float = 0.0) -> None:
        """Add the track; before the first packet. `delay`: seconds at which the first picture is shown."""
        codec, self.layout, rate = sound_encoder(self.rate, len(self.values), "", self.suffix, "the sound")
        self.stream = out.add_stream(codec, rate=rate, layout=self.layout)
        self.resampler = av.AudioResampler(self.stream.format, self.layout, rate)
        self.delay = delay

    def packets(self) -> Iterator[tuple[float, list]]:
        """Yield (seconds on the result's clock, packets) in the order of time."""
        channels = av.AudioLayout(self.layout).nb_channels
        for start in range(0, self.values.shape[1], _BLOCK):
            block = np.ascontiguousarray(self.values[:channels, start : start + _BLOCK])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=self.layout)
            frame.sample_rate, frame.pts = self.rate, start + round(self.delay * self.rate)
            for piece in self.resampler.resample(frame):
                yield start / self.rate + self.delay, list(self.stream.encode(piece))
        for piece in self.resampler.resample(None):
            yield float("inf"), list(self.stream.encode(piece))
        yield float("inf"), list(self.stream.encode(None))
