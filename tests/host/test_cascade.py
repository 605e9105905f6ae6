"""From frames or a base latent to frames of exactly the asked size and count, through the host's sampler."""

import json
import math
from pathlib import Path

import pytest
import torch

SAVED = sorted((Path(__file__).resolve().parents[1] / "graphs_0_1_0").glob("*.json"))


def _through(core, vae, model, latent, frames, size):
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.frames import TemporalDecode

    positive, negative, samples = VSRConditioning.execute(latent, 0.0, 0).args
    sampled = core.nodes.common_ksampler(model, 0, 1, 1.0, "euler", "simple", positive, negative, samples)[0]
    result = TemporalDecode.execute(sampled, vae, 1.0, 8, 0, frames).args[0]
    assert result.shape == (*size, 3)
    assert torch.isfinite(result).all() and result.min() >= 0 and result.max() <= 1
    return result


@pytest.mark.parametrize(
    ("count", "height", "width", "target", "expected"),
    [
        (1, 5, 5, {"target": "exact size", "width": 17, "height": 17}, (1, 17, 17)),
        (1, 2, 2, {"target": "exact size", "width": 2, "height": 3}, (1, 3, 2)),
        (2, 17, 17, {"target": "scale", "scale": 1.0}, (2, 17, 17)),
        (3, 7, 11, {"target": "exact size", "width": 53, "height": 37}, (3, 37, 53)),
        (4, 13, 8, {"target": "scale", "scale": 4.0}, (4, 52, 32)),
        (5, 10, 20, {"target": "short side", "short_side": 31}, (5, 31, 62)),
        (7, 31, 29, {"target": "scale", "scale": 1.7}, (7, 53, 49)),
        (11, 9, 16, {"target": "exact size", "width": 16, "height": 9}, (11, 9, 16)),
        (17, 40, 40, {"target": "scale", "scale": 0.5}, (17, 20, 20)),
    ],
)
def test_any_size_and_count_comes_out_exactly(core, model, vae, noise, count, height, width, target, expected):
    from cascadevsr.nodes.frames import CascadeInput

    frames = noise(count, height, width)
    latent, low, out_width, out_height, length = CascadeInput.execute(vae, target, "bilinear", frames=frames).args
    assert (length, out_height, out_width) == expected
    assert torch.equal(low, frames)
    assert latent["vsr_size"] == {"frames": expected[0], "height": expected[1], "width": expected[2]}
    _through(core, vae, model, latent, low, expected)


@pytest.mark.parametrize(
    ("target", "multiple", "expected"),
    [
        ({"target": "short side", "short_side": 15}, 1, (15, 27)),
        ({"target": "short side", "short_side": 15}, 2, (14, 26)),
        ({"target": "largest edge", "largest_edge": 36}, 2, (20, 36)),
        ({"target": "scale", "scale": 1.5}, 8, (16, 24)),
        ({"target": "exact size", "width": 32, "height": 16}, 16, (16, 32)),
        ({"target": "exact size", "width": 33, "height": 17}, 1, (17, 33)),
    ],
)
def test_sides_are_rounded_to_a_multiple(vae, noise, caplog, target, multiple, expected):
    from cascadevsr.nodes.frames import CascadeInput

    caplog.set_level("INFO")
    result = CascadeInput.execute(vae, target, "bilinear", frames=noise(1, 10, 18), multiple=multiple).args
    assert (result[3], result[2]) == expected
    odd = [record.message for record in caplog.records if "has an odd side" in record.message]
    assert len(odd) == (expected[0] % 2 or expected[1] % 2)


def test_an_odd_exact_size_is_said_before_any_work(vae):
    from cascadevsr.nodes.frames import CascadeInput

    class NotDecoded:
        def __getattr__(self, name):
            raise AssertionError(f"{name} was asked for")

    target = {"target": "exact size", "width": 853, "height": 481}
    message = "Cascade Input: both sides .* multiples of 2 px; got 853x481. Ask for 852x480, or set multiple to 1"
    with pytest.raises(ValueError, match=message):
        CascadeInput.execute(vae, target, "bilinear", samples={"samples": None}, base_vae=NotDecoded(), multiple=2)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos"])
def test_a_base_latent_is_decoded_resized_and_encoded(core, model, vae, noise, mode):
    from cascadevsr.nodes.frames import CascadeInput

    base = {"samples": vae.encode(noise(9, 16, 24))}
    target = {"target": "scale", "scale": 2.0}
    latent, low, *sizes = CascadeInput.execute(vae, target, mode, samples=base, base_vae=vae).args
    assert low.shape == (9, 16, 24, 3) and sizes == [48, 32, 9]
    same = CascadeInput.execute(vae, target, mode, frames=vae.decode(base["samples"])[0]).args[0]
    assert torch.equal(latent["samples"], same["samples"])
    _through(core, vae, model, latent, low, (9, 32, 48))


def test_the_latent_encodes_the_resized_frames(core, vae, noise):
    from cascadevsr.models.layout.sizes import resize_clip
    from cascadevsr.nodes.frames import CascadeInput

    frames = noise(5, 6, 10)
    latent = CascadeInput.execute(vae, {"target": "scale", "scale": 4.0}, "bicubic", frames=frames).args[0]
    large = resize_clip(frames.movedim(-1, 0)[None], 24, 40, "bicubic")[0].movedim(0, -1)
    assert torch.allclose(latent["samples"], vae.encode(large), atol=1e-5)


class _PictureVAE:
    """What Cascade Input asks of the host's picture VAEs."""

    latent_dim, latent_channels = 2, 4

    def spacial_compression_encode(self):
        return 8

    def temporal_compression_decode(self):
        return None

    def encode(self, pixels):
        return pixels[:, ::8, ::8, :1].movedim(-1, 1).repeat(1, 4, 1, 1)


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
@pytest.mark.parametrize(("height", "width"), [(480, 854), (17, 31)])
def test_a_graph_of_0_1_0_gives_the_size_it_gave(core, noise, path, height, width):
    from cascadevsr.nodes.frames import CascadeInput

    nodes = json.loads(path.read_text(encoding="utf-8")).values()
    (inputs,) = [node["inputs"] for node in nodes if node["class_type"] == "VSRCascadeInput"]
    target = {name.removeprefix("target."): value for name, value in inputs.items() if name.startswith("target")}
    factor = target["scale"] if "scale" in target else target["short_side"] / min(height, width)
    frames, filter = noise(1, height, width), inputs["filter"]
    given = {"multiple": inputs["multiple"]} if "multiple" in inputs else {}
    result = CascadeInput.execute(_PictureVAE(), target, filter, frames=frames, **given).args
    assert result[2:4] == (math.floor(width * factor + 0.5), math.floor(height * factor + 0.5))


@pytest.mark.parametrize(("multiple", "width"), [({}, 1281), ({"multiple": 2}, 1280)], ids=["0.1.0", "new"])
def test_an_ordinary_source_becomes_even(core, noise, multiple, width):
    from cascadevsr.nodes.frames import CascadeInput

    target = {"target": "short side", "short_side": 720}
    result = CascadeInput.execute(_PictureVAE(), target, "bilinear", frames=noise(1, 480, 854), **multiple).args
    assert result[2:4] == (width, 720)


def test_a_picture_vae_encodes_few_frames_at_a_time(core, noise):
    from cascadevsr.nodes.frames import CascadeInput

    latent = CascadeInput.execute(_PictureVAE(), {"target": "scale", "scale": 2.0}, "bilinear", frames=noise(19, 9, 9))
    assert latent.args[0]["samples"].shape == (19, 4, 3, 3)
