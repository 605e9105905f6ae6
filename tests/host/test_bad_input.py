"""Bad input ends at the border of a node, in a sentence with rule, value and remedy."""

import pickle

import pytest
import torch

SCALE = {"target": "scale", "scale": 4.0}


def _cascade(vae, target=SCALE, mode="bilinear", **links):
    from cascadevsr.nodes.frames import CascadeInput

    return CascadeInput.execute(vae, target, mode, **links)


def _broken(noise, value):
    frames = noise(3, 8, 8).clone()
    frames[1, 2, 2, 0] = value
    return frames


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_frames(core, vae, noise, value):
    bad = _broken(noise, value)
    with pytest.raises(ValueError, match=r"Cascade Input: frames must be finite numbers; got NaN .* frame 1"):
        _cascade(vae, frames=bad)
    with pytest.raises(ValueError, match="VAE Encode: pixels must be finite"):
        core.nodes.VAEEncode().encode(vae, bad)


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((0, 8, 8, 3), "at least one frame; got 0"),
        ((2, 1, 8, 3), "at least 2 px a side; got 8x1"),
        ((2, 8, 1, 3), "at least 2 px a side; got 1x8"),
        ((2, 8, 8, 1), "must have 3 channels"),
        ((8, 8, 3), "must be an IMAGE"),
    ],
)
def test_frames_of_a_wrong_shape(core, vae, shape, rule):
    from cascadevsr.nodes.colour import ColourMatch
    from cascadevsr.nodes.conditioning import ReferenceSet
    from cascadevsr.nodes.degrade import DegradeVideo

    bad = torch.zeros(shape)
    good = torch.zeros(2, 8, 8, 3)
    for title, call in (
        ("Cascade Input", lambda: _cascade(vae, frames=bad)),
        ("Reference Set", lambda: ReferenceSet.execute(vae, {"image_0": bad}, {}, 64)),
        ("Degrade Video", lambda: DegradeVideo.execute(bad, "real", 4, 0)),
        ("Colour Match", lambda: ColourMatch.execute(good, bad, "wavelet", 1.0)),
    ):
        with pytest.raises(ValueError, match=f"{title}: .*{rule}"):
            call()


def test_cascade_input_sources_and_targets(core, vae, noise):
    frames, latent = noise(1, 8, 8), {"samples": vae.encode(noise(1, 8, 8))}
    with pytest.raises(ValueError, match="exactly one of frames and samples; got neither"):
        _cascade(vae)
    with pytest.raises(ValueError, match="exactly one of frames and samples; got both"):
        _cascade(vae, frames=frames, samples=latent, base_vae=vae)
    with pytest.raises(ValueError, match="samples need the VAE of their model"):
        _cascade(vae, samples=latent)
    with pytest.raises(ValueError, match=r"base_vae must fit samples \(16 channels expected\)"):
        _cascade(vae, samples={"samples": torch.zeros(1, 4, 8, 8)}, base_vae=vae)
    with pytest.raises(
        ValueError, match="target must be one of scale, short side, largest edge, exact size; got 'double'"
    ):
        _cascade(vae, {"target": "double"}, frames=frames)
    with pytest.raises(ValueError, match="filter must be one of"):
        _cascade(vae, mode="nearest", frames=frames)
    with pytest.raises(ValueError, match="output must be at least 2 px a side; got 1x1"):
        _cascade(vae, {"target": "scale", "scale": 0.1}, frames=frames)


def test_references_of_another_model(core, vae, clip, picture):
    from cascadevsr.nodes.conditioning import VSRConditioning

    with pytest.raises(ValueError, match=r"reference 1 must have the channels of lr_latent \(16\); got 4"):
        VSRConditioning.execute(clip.latent, 0.0, 0, references=picture(4))
    with pytest.raises(ValueError, match="VSR Conditioning: lr_latent must be a video latent"):
        VSRConditioning.execute({"samples": torch.zeros(1, 4, 8, 8)}, 0.0, 0)


def test_a_conditioning_without_the_clip(model, clip, ksample):
    clip.positive = clip.negative = [[None, {}]]
    with pytest.raises(ValueError, match="a restorer needs the low-resolution clip in positive and negative"):
        ksample(model, clip)


def test_a_latent_of_another_size(core, model, vae, clip, prepare, ksample):
    from cascadevsr.nodes.frames import TemporalDecode

    clip.samples = prepare(9, 8, 8, (32, 32)).samples
    with pytest.raises(ValueError, match="must have the grid of the low-resolution latent"):
        ksample(model, clip)
    cut = {**clip.latent, "samples": clip.latent["samples"][:, :, :2]}
    with pytest.raises(ValueError, match="Temporal Decode: the latent must have the grid of its target size"):
        TemporalDecode.execute(cut, vae, 1.0, 16, 0)


def test_decode_with_a_wrong_vae_or_wrong_frames(core, vae, clip, noise):
    from cascadevsr.nodes.frames import TemporalDecode

    foreign = {"samples": torch.zeros(1, 4, 2, 4, 4)}
    with pytest.raises(ValueError, match="Temporal Decode: samples must have 16 channels; got 4"):
        TemporalDecode.execute(foreign, vae, 1.0, 16, 0)
    with pytest.raises(ValueError, match="VAE Decode: samples must have 16 channels; got 4"):
        core.nodes.VAEDecode().decode(vae, foreign)
    with pytest.raises(ValueError, match=r"lr_frames must have as many frames as the clip \(9\); got 8"):
        TemporalDecode.execute(clip.latent, vae, 1.0, 16, 0, noise(8, 12, 20))
    nan = {"samples": torch.full((1, 16, 1, 2, 2), float("nan"))}
    with pytest.raises(ValueError, match="VAE Decode: samples must be finite"):
        core.nodes.VAEDecode().decode(vae, nan)


def test_measure_and_colour_match_need_clips_that_fit(core, noise):
    from cascadevsr.nodes.colour import ColourMatch
    from cascadevsr.nodes.measure import CompareMeasure

    with pytest.raises(ValueError, match="Compare & Measure: both clips must have the same frames and size"):
        CompareMeasure.execute(noise(2, 16, 16), noise(2, 16, 24))
    with pytest.raises(ValueError, match="Compare & Measure: other or lr_frames must be linked; got neither"):
        CompareMeasure.execute(noise(2, 16, 16))
    with pytest.raises(ValueError, match="lr_frames must have as many frames"):
        CompareMeasure.execute(noise(2, 16, 16), noise(2, 16, 16), noise(3, 4, 4))
    with pytest.raises(ValueError, match="Colour Match: the reference needs one frame, or one for each"):
        ColourMatch.execute(noise(3, 8, 8), noise(2, 8, 8), "wavelet", 1.0)


# Weight files


class _Malicious:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def _load(path):
    from cascadevsr.nodes.loaders import load_restorer

    return load_restorer(path, "auto")


def test_weight_files_that_are_none(core, tmp_path, tiny_file, capsys):
    from cascadevsr.models.checkpoints import load_state, save_state

    state, metadata = load_state(tiny_file)
    save_state(tmp_path / "other.safetensors", {"a.weight": torch.zeros(2)}, {})
    save_state(tmp_path / "part.safetensors", {k: v for k, v in state.items() if "space_up" not in k}, metadata)
    shapes = {k: (v[:3] if k == "dit.time_in.bias" else v) for k, v in state.items()}
    save_state(tmp_path / "shapes.safetensors", shapes, metadata)
    (tmp_path / "cut.safetensors").write_bytes(tiny_file.read_bytes()[:5000])
    (tmp_path / "text.ckpt").write_text("not a checkpoint at all")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"state_dict": _Malicious()}, protocol=2))
    torch.save({"state_dict": _Malicious()}, tmp_path / "zipped.pt")
    for name, rule in {
        "missing.safetensors": "must exist",
        "other.safetensors": r"must hold a video restorer .*a\.weight",
        "part.safetensors": "must fit the UniMMVSR architecture",
        "shapes.safetensors": "must fit the UniMMVSR architecture",
        "cut.safetensors": "must be complete and readable",
        "text.ckpt": "must be a safetensors or torch weight file",
        "empty.pt": "must be a safetensors or torch weight file",
        "code.pt": "carries pickled code",
        "zipped.pt": "carries pickled code",
    }.items():
        with pytest.raises(ValueError, match=f"Load Video Restorer: .*{rule}"):
            _load(tmp_path / name)
    assert "never be printed" not in capsys.readouterr().out


def test_a_name_outside_the_list_is_refused(core):
    from cascadevsr.nodes.loaders import LoadVideoRestorer

    for name in ("../../../etc/passwd", "nothing.safetensors"):
        with pytest.raises(ValueError, match="Load Video Restorer: the restorer must be one of the list"):
            LoadVideoRestorer.execute(name, "auto")


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16", "bf16"])
def test_every_precision_runs_on_the_cpu(core, tiny_file, prepare, ksample, precision):
    from cascadevsr.nodes.loaders import load_restorer

    model, vae, _ = load_restorer(tiny_file, precision)
    exact = load_restorer(tiny_file, "fp32")[0]
    clip = prepare(5, 8, 8, (32, 32))
    result = ksample(model, clip)["samples"]
    assert torch.allclose(result, ksample(exact, clip)["samples"], atol=0.2)
    assert vae.vae_dtype == torch.float32
    with pytest.raises(ValueError, match="precision must be one of auto, fp32"):
        load_restorer(tiny_file, "fp8")
