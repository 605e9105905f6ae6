"""Upscale Film in the host: films by segments, resumed, without joints, with every patch of a model."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cascadevsr.media.journal import Journal
from cascadevsr.media.reader import frames, probe
from cascadevsr.tests.media.films import clip as pictures
from cascadevsr.tests.media.films import film, seen

SETTINGS = {
    "filter": "bilinear",
    "multiple": 2,
    "cfg": 1.0,
    "noise_level": 0.0,
    "colour": "off",
    "first": 0,
    "segment": 8,
    "context": 8,
    "deinterlace": False,
    "tonemap": False,
    "lr_weight": 1.0,
    "chunk": 16,
    "tile": 0,
    "steadiness": 1.0,
    "fidelity": 1.0,
    "sharpness": 1.0,
    "source": "automatic",
    "filename_prefix": "video/film",
    "format": "mkv",
    "codec": "auto",
    "crf": 12.0,
    "lossless": True,
    "keep_tracks": "all",
}
TWICE = {"target": "scale", "scale": 2.0}


@pytest.fixture
def output(core, tmp_path):
    """The host's output folder, empty."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


@pytest.fixture
def sampling(core):
    """Noise, sampler and sigmas of the template: sampling(steps=1, sampler="euler", eta=0.0)."""

    def make(model, steps=1, sampler="euler", eta=0.0):
        from cascadevsr.nodes.sampling import RefineSigmas, RestorerSampler, SeededNoise

        return {
            "noise": SeededNoise.execute(3).args[0],
            "sampler": RestorerSampler.execute(sampler, eta).args[0],
            "sigmas": RefineSigmas.execute(model, 1.0, steps, 1.0).args[0],
        }

    return make


@pytest.fixture
def upscaled(output):
    """Run the node on a file and return that of the result: upscaled(source, **inputs)."""

    def run(source, **inputs):
        from cascadevsr.nodes.upscale_film import UpscaleFilm
        from comfy_api.latest import InputImpl

        video = InputImpl.VideoFromFile(str(source))
        result = UpscaleFilm.execute(video, TWICE, **{**SETTINGS, **inputs})
        run.said = result.ui["text"]
        return Path(result.args[0].get_stream_source())

    return run


@pytest.fixture
def restoring(restorer, sampling):
    model, vae = restorer
    return {"model": model, "vae": vae, **sampling(model)}


@pytest.fixture
def source(tmp_path):
    return film(tmp_path / "in.mkv", pictures(26, 24, 32), sounds=[("aac", "mono", "eng")])


def pixels(file):
    return np.stack(list(frames(probe(file)))).astype(float)


def test_a_film_is_made_of_segments(upscaled, restoring, source, output):
    out = upscaled(source, **restoring)
    whole = upscaled(source, **restoring, segment=100)
    assert out.name == "film_00001_.mkv" and whole.name == "film_00002_.mkv"
    assert pixels(out).shape == (26, 48, 64, 3) and seen(out) == seen(whole)
    assert not [path for path in output.rglob(".*")]
