"""What cannot fit into memory is refused at once, with the size that fits; the node shows what it will make."""

import re
import time
from fractions import Fraction

import psutil
import pytest
import torch

HUGE = {"target": "exact size", "width": 16384, "height": 16384}


@pytest.fixture
def refused(monkeypatch):
    """Run what must be refused: within 2 s, with less than 200 MB more of memory; gives the error."""
    from cascadevsr.nodes.host import room

    monkeypatch.setattr(room, "free_memory", lambda swap=False: 64 * 2**30)

    def run(work) -> str:
        process = psutil.Process()
        before, began = process.memory_info().rss, time.process_time()
        with pytest.raises(ValueError, match="the result must fit into memory") as caught:
            work()
        assert time.process_time() - began < 2
        assert process.memory_info().rss - before < 200e6
        assert type(caught.value) is ValueError
        return str(caught.value)

    return run


def test_cascade_input(vae, refused):
    from cascadevsr.nodes.frames import CascadeInput

    frames = torch.zeros(10_000, 16, 16, 3)
    text = refused(lambda: CascadeInput.execute(vae, HUGE, "bilinear", frames=frames))
    assert text.startswith("Cascade Input: ") and "10,000 frames of 16384x16384" in text and "64.0 GiB are free" in text
    width, height, count = map(
        int, re.search(r"What fits: (\d+)x(\d+) for so many frames, or (\d+) frames", text).groups()
    )
    assert width == height and width % 2 == 0
    from cascadevsr.models.layout.sizes import ClipSize
    from cascadevsr.nodes.host.room import needed

    free = 64 * 2**30
    assert needed(ClipSize(10_000, height, width)) <= free < needed(ClipSize(10_000, height + 8, width + 8))
    assert needed(ClipSize(count, 16384, 16384)) <= free < needed(ClipSize(count + 1, 16384, 16384))


def test_a_base_latent_is_not_decoded_first(vae, refused, monkeypatch):
    from cascadevsr.nodes import frames

    monkeypatch.setattr(frames, "_decode_base", lambda *_: pytest.fail("decoded"))
    samples = {"samples": torch.zeros(1, 16, 251, 2, 2)}
    text = refused(lambda: frames.CascadeInput.execute(vae, HUGE, "bilinear", samples=samples, base_vae=vae))
    assert "1,001 frames of 16384x16384" in text


def test_decoding(vae, refused):
    from cascadevsr.nodes.frames import TemporalDecode

    latent = torch.zeros(1, 16, 1, 1, 1).expand(1, 16, 2500, 2048, 2048)  # no memory behind it
    from cascadevsr.nodes.host.services import mark_finite

    samples = {"samples": mark_finite(latent)}
    assert refused(lambda: TemporalDecode.execute(samples, vae, 1.0, 16, 0)).startswith("Temporal Decode: ")
    assert refused(lambda: vae.decode(latent)).startswith("VAE Decode: ")


def test_what_fits_is_shown(vae, noise, monkeypatch):
    from cascadevsr.nodes import frames

    lines = []
    monkeypatch.setattr(frames, "show_text", lambda node, text: lines.append(text))
    frames.CascadeInput.execute(vae, {"target": "scale", "scale": 4.0}, "bilinear", frames=noise(5, 12, 20), multiple=2)
    assert lines == ["5 frames, 20x12 -> 80x48, 0.00 GiB"]


def test_the_words():
    from cascadevsr.models.layout.sizes import ClipSize
    from cascadevsr.nodes.host.room import clip_words

    assert clip_words(ClipSize(25, 72, 128), ClipSize(25, 288, 512)) == "25 frames, 128x72 -> 512x288, 0.04 GiB"


def test_a_film_whose_segments_do_not_fit(core, refused, tmp_path):
    from types import SimpleNamespace

    import numpy as np
    from cascadevsr.media.colour import SDR
    from cascadevsr.media.timeline import Timeline
    from cascadevsr.nodes.film_work import Work

    path, rate = tmp_path / "film.mp4", Fraction(24)
    steps = np.arange(10_000, dtype=np.int64)
    clip = Timeline(path, "film", 90, 160, steps, 1 / rate, rate, last=1 / 24, colour=SDR, depth=8)
    chosen = SimpleNamespace(segment=0, context=16, colour="off", look="standard", upscale_model=None)
    text = refused(Work(clip, None, path, (9216, 16384), chosen).check_room)
    assert text.startswith("Upscale Film: ") and text.endswith("Ask for a smaller size.")
    Work(clip, None, path, (2160, 3840), chosen).check_room()
