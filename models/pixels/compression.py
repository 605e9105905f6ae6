"""Compression as a degradation: JPEG, H.264 and MPEG-4 round trips through Pillow and PyAV, which every host ships.

The only file of the core that touches a codec; both libraries are imported where they are used.
"""

from __future__ import annotations

import io

import numpy as np
import torch

_ALIGN = 32  # encoders want even sides; 32 also keeps the colour conversion bit-reproducible


def _to_bytes(frames: torch.Tensor) -> np.ndarray:
    return (frames.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _from_bytes(frames: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).to(like) / 255


def jpeg_round_trip(frames: torch.Tensor, quality: int) -> torch.Tensor:
    """Compress each frame (t, 3, h, w) in 0..1 as JPEG (4:2:0) of `quality` 1..100 and read it back."""
    from PIL import Image

    out = []
    for frame in _to_bytes(frames):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=int(quality), subsampling=2)
        buffer.seek(0)
        out.append(np.asarray(Image.open(buffer).convert("RGB")))
    return _from_bytes(np.stack(out), frames)


def h264_round_trip(frames: torch.Tensor, crf: int) -> torch.Tensor:
    """Compress the clip (t, 3, h, w) in 0..1 as H.264 (yuv420p) with `crf` 0..51 and read it back."""
    # without cpu-independent the same frames came out otherwise in up to 8 of 1000 calls, by where they lay in memory
    exact = "threads=1:lookahead-threads=1:cpu-independent=1"
    options = {"crf": str(int(crf)), "preset": "fast", "x264-params": exact}
    return _video_round_trip(frames, "libx264", options)


def mpeg4_round_trip(frames: torch.Tensor, quantiser: int) -> torch.Tensor:
    """Compress the clip (t, 3, h, w) in 0..1 as MPEG-4 part 2 with a fixed `quantiser` 1..31 and read it back."""
    step = str(int(quantiser))
    return _video_round_trip(frames, "mpeg4", {"qmin": step, "qmax": step})


def _video_round_trip(frames: torch.Tensor, codec: str, options: dict[str, str]) -> torch.Tensor:
    import av

    height, width = frames.shape[-2:]
    images = _to_bytes(frames)
    pad = ((0, 0), (0, -height % _ALIGN), (0, -width % _ALIGN), (0, 0))
    images = np.pad(images, pad, mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = images.shape[2], images.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        for image in images:
            # converted here: the encoder's own conversion was seen to give other pixels now and then
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return _from_bytes(np.stack(decoded)[:, :height, :width], frames)
