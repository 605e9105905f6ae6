"""Upscale Film in the host: films by segments, resumed, without joints, with every patch of a model."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cascadevsr.media.reader import frames, probe
from cascadevsr.media.writer import write_video
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

    def run(source, target=TWICE, **inputs):
        from cascadevsr.nodes.upscale_film import UpscaleFilm
        from comfy_api.latest import InputImpl

        video = InputImpl.VideoFromFile(str(source)) if isinstance(source, Path) else source
        result = UpscaleFilm.execute(video, target=target, **{**SETTINGS, **inputs})
        run.said = result.ui["text"]
        video = result.args[0]
        return Path(video.get_stream_source()) if isinstance(video, InputImpl.VideoFromFile) else video.timeline.path

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


def loaded(path, shortest=None):
    """A release of tiny networks: MODEL, VAE and prompts, as inputs of the node."""
    from cascadevsr.nodes.loaders import load_restorer

    model, vae, clip = load_restorer(path, "auto")
    if shortest:
        vae.shortest = shortest
    texts = {}
    if clip is not None:
        encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("best quality", "blur")]
        texts = dict(zip(("positive", "negative"), encoded, strict=True))
    return {"model": model, "vae": vae, **texts}


@pytest.fixture
def systems(core, restorer, sampling, tmp_path):
    """Inputs for the node by the name of a system, at toy size."""

    def make(name):
        if name == "built-in":
            return {"model": restorer[0], "vae": restorer[1], **sampling(restorer[0])}
        if name == "upscale_a_video":
            from .uav_release import recorded, write_release

            parts = loaded(write_release(recorded("pipeline_short_3d"), tmp_path / name))
            return {**parts, **sampling(parts["model"], 3, "ddim", 0.5), "cfg": 2.0, "noise_level": 0.12}
        if name == "mgld_vsr":
            from .mgld_release import write_checkpoints

            parts = loaded(write_checkpoints(tmp_path / name), 32)
            return {**parts, **sampling(parts["model"], 3, "ddpm"), "filter": "bicubic"}
        from .base_models import make_model, make_prompt, make_vae

        parts = {"model": make_model(name), "vae": make_vae(name), "positive": make_prompt(name)}
        return {**parts, "negative": make_prompt(name, 1), **sampling(parts["model"], 2), "cfg": 2.0}

    return make


def joint_ratio(film, whole, joints):
    """The change from frame to frame at joints over that elsewhere, as a share of the same in an unbroken run."""
    steps, wanted = (np.abs(np.diff(each, axis=0)).mean((1, 2, 3)) for each in (film, whole))
    at = np.isin(np.arange(len(steps)), joints)
    ratio = steps / wanted
    return ratio[at].mean() / ratio[~at].mean()


@pytest.mark.parametrize("name", ["built-in", "upscale_a_video", "mgld_vsr", "wan21"])
def test_no_joint_shows(upscaled, systems, tmp_path, name):
    inputs = systems(name)
    source = film(tmp_path / "in.mkv", pictures(26, 24, 32))
    joined = pixels(upscaled(source, **inputs, segment=9))
    whole = pixels(upscaled(source, **inputs, segment=100))
    assert joint_ratio(joined, whole, (7, 16)) <= 1.05


def scenes():
    """26 frames with a cut before the 14th."""
    draw = np.random.default_rng(0)
    boards = [draw.integers(0, 256, (6, 8, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1) for _ in range(2)]
    return [np.roll(boards[i > 12], i, 1) for i in range(26)]


@pytest.mark.parametrize("name", ["built-in", "upscale_a_video", "mgld_vsr", "wan21"])
def test_a_scene_in_a_film_is_the_scene_alone(upscaled, systems, tmp_path, name):
    from cascadevsr.nodes.host.film import Film

    inputs = systems(name)
    source = film(tmp_path / "in.mkv", scenes(), options={"crf": "4"})
    whole = pixels(upscaled(source, **inputs, segment=100))
    assert "2 of 2 segments" in upscaled.said[1]
    alone = pixels(upscaled(Film(probe(source).part(13, 26)), **inputs, segment=100))
    assert np.array_equal(whole[13:], alone)


def stopped(monkeypatch, at):
    """Let the making of segment `at`, from 0, fail."""
    from cascadevsr.nodes import film_parts

    made, calls = film_parts.Restored.__call__, []

    def stop(self, *arguments, **more):
        calls.append(1)
        if len(calls) == at + 1:
            raise RuntimeError("stopped")
        return made(self, *arguments, **more)

    monkeypatch.setattr(film_parts.Restored, "__call__", stop)
    return calls


def test_what_was_stopped_goes_on(upscaled, restoring, source, output, monkeypatch):
    whole = upscaled(source, **restoring)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        stopped(patch, 2)
        upscaled(source, **restoring)
    calls = stopped(monkeypatch, 99)
    out = upscaled(source, **restoring)
    assert len(calls) == 2 and "2 of 4 segments made now" in upscaled.said[1]
    assert out.read_bytes() == whole.read_bytes() and not [path for path in output.rglob(".*")]


def test_the_built_in_vae_alone_restores_without_sampling(upscaled, restorer, source):
    from cascadevsr.nodes.host.film import images_of
    from cascadevsr.nodes.restore import RestoreFrames

    enough = {"vae": restorer[1], "context": 12}  # half of it, after a segment, holds all neighbours
    joined = pixels(upscaled(source, **enough, segment=9))
    assert np.array_equal(joined, pixels(upscaled(source, **enough, segment=100)))
    wanted = RestoreFrames.execute(restorer[1], images_of(frames(probe(source)), (26, 24, 32)), TWICE).args[0].numpy()
    assert np.abs(joined - 255 * wanted).mean() < 1.5, "colours of the file apart"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crf": 20.0}, "starts anew (crf was 12.0, is 20.0)"),
        ({"noise_level": 0.3}, "starts anew (noise_level was 0.0, is 0.3)"),
        ({"first": 20}, "starts anew (frames was [0, 26], is [0, 20])"),
    ],
)
def test_other_settings_start_anew(upscaled, restoring, source, monkeypatch, change, words):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        stopped(patch, 2)
        upscaled(source, **restoring)
    upscaled(source, **{**restoring, **change})
    assert words in upscaled.said


def test_a_full_disk_is_a_sentence(upscaled, restoring, source, monkeypatch):
    from cascadevsr.media import render

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(render, "write_segment", full)
        with pytest.raises(ValueError, match="^Upscale Film: segment 1 of 4 could not be written .* and Run goes on"):
            upscaled(source, **restoring)
    assert "4 of 4 segments made now" in (upscaled(source, **restoring), upscaled.said)[1][1]


def test_films_do_not_disturb_each_other(upscaled, restoring, source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        stopped(patch, 2)
        upscaled(source, **restoring)
    upscaled(film(tmp_path / "other.mkv", pictures(9, 24, 32)), **restoring)
    calls = stopped(monkeypatch, 99)
    upscaled(source, **restoring)
    assert len(calls) == 2


def test_out_of_memory_is_two_halves(upscaled, restoring, tmp_path, monkeypatch):
    from cascadevsr.nodes import film_parts

    source = film(tmp_path / "in.mkv", pictures(72, 24, 32))
    whole = pixels(upscaled(source, **restoring, segment=100))
    made, counts = film_parts.Restored.__call__, []

    def short(self, frames, *rest, **more):
        counts.append(len(frames))
        if len(frames) > 50:
            raise torch.OutOfMemoryError("none left")
        return made(self, frames, *rest, **more)

    monkeypatch.setattr(film_parts.Restored, "__call__", short)
    halves = pixels(upscaled(source, **restoring, segment=100))
    assert counts == [72, 44, 48] and joint_ratio(halves, whole, (35,)) <= 1.05


def patched(parts):
    """The MODEL with every patch of ours that acts while it is sampled."""
    from cascadevsr.nodes.low_frequency import LowFrequencyTie
    from cascadevsr.nodes.motion import LatentPropagation, LoadFlowModel
    from cascadevsr.nodes.motion_guidance import MotionGuidance
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    flow, steps = LoadFlowModel.execute("built-in").args[0], {"steps": "percent range", "start_percent": 0.0}
    model = LatentPropagation.execute(
        parts["model"], flow, {**steps, "end_percent": 1.0}, "both", 0.3, "nearest", 0.001, 0.05
    ).args[0]
    model = MotionGuidance.execute(model, flow, 0.5, 0.0, 1.0, "both", "default").args[0]
    model = LowFrequencyTie.execute(model, 0.5, 4.0, 0.0, 1.0).args[0]
    model = SpatialTiles.execute(model, {"tiling": "manual", "tile_width": 48, "tile_height": 32, "overlap": 16})
    return TemporalWindows.execute(model.args[0], {"windows": "manual", "window": 17, "overlap": 8}).args[0]


def test_patches_find_motion_and_clip_themselves(upscaled, systems, source, core):
    parts = systems("wan21")
    plain = pixels(upscaled(source, **parts))
    edited = pixels(upscaled(source, **{**parts, "model": patched(parts)}, colour="wavelet"))
    assert np.abs(edited - plain).mean() > 0.5


def test_patches_without_their_own_are_for_films(systems, core, noise):
    from cascadevsr.nodes.frames import CascadeInput
    from cascadevsr.nodes.low_frequency import LowFrequencyTie
    from cascadevsr.nodes.motion import LoadFlowModel
    from cascadevsr.nodes.motion_guidance import MotionGuidance

    parts = systems("wan21")
    latent = CascadeInput.execute(parts["vae"], TWICE, "bilinear", frames=noise(9, 24, 32)).args[0]
    flow = LoadFlowModel.execute("built-in").args[0]
    for model, words in (
        (MotionGuidance.execute(parts["model"], flow, 0.5, 0.0, 1.0, "both", "default"), "Motion Guidance: motion"),
        (LowFrequencyTie.execute(parts["model"], 0.5, 4.0, 0.0, 1.0), "Low-Frequency Tie: lr_latent"),
    ):
        guider = core.custom.BasicGuider.execute(model.args[0], parts["positive"]).args[0]
        sampling = parts["noise"], guider, parts["sampler"], parts["sigmas"], latent
        with pytest.raises(ValueError, match=f"{words} must come from .* only in Upscale Film"):
            core.custom.SamplerCustomAdvanced.execute(*sampling)


def test_a_guider_is_the_same_as_its_parts(upscaled, worded, sampling, source, core):
    from cascadevsr.nodes.guidance import ReferenceCFGGuider

    from .conftest import TEXT_WIDTH

    model, vae = worded
    texts = [[[torch.randn(1, 5, TEXT_WIDTH, generator=torch.Generator().manual_seed(i)), {}]] for i in (1, 2)]
    guider = core.custom.CFGGuider.execute(model, *texts, 3.0).args[0]
    rest = {"vae": vae, **sampling(model, 2)}
    apart = dict(zip(("positive", "negative"), texts, strict=True), model=model, cfg=3.0)
    assert np.array_equal(pixels(upscaled(source, guider=guider, **rest)), pixels(upscaled(source, **apart, **rest)))
    three = ReferenceCFGGuider.execute(model, texts[0], 2.0, 1.0, 2, texts[1]).args[0]
    assert np.array_equal(pixels(upscaled(source, guider=three, **rest)), pixels(upscaled(source, **apart, **rest)))


def test_references_are_seen_by_every_segment(upscaled, restoring, source, noise):
    from cascadevsr.nodes.conditioning import ReferenceSet

    references = ReferenceSet.execute(restoring["vae"], {"image_0": noise(1, 40, 32)}, {}, 40).args[0]
    plain, seeing = (pixels(upscaled(source, **restoring, references=given)) for given in (None, references))
    assert (np.abs(plain - seeing).mean((1, 2, 3)) > 0).all()


@pytest.fixture
def upscale_model(core):
    """An UPSCALE_MODEL that repeats every pixel, and flickers."""
    from cascadevsr.nodes.host import services

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Identity()

        def forward(self, x):
            level = 0.05 * torch.sin(1000 * x.mean())
            return self.layer(torch.nn.functional.interpolate(x, scale_factor=2) + level)

    patcher = services.wrap_network(Network())
    network = patcher.model

    class Descriptor:
        scale = 2

        def __call__(self, x):
            return network(x)

    Descriptor.patcher = patcher
    return Descriptor()


def test_an_image_upscaler_is_steady_over_the_film(upscaled, upscale_model, source):
    joined = pixels(upscaled(source, upscale_model=upscale_model, segment=9))
    whole = pixels(upscaled(source, upscale_model=upscale_model, segment=100))
    assert np.array_equal(joined, whole)
    other = pixels(upscaled(source, {"target": "scale", "scale": 3.0}, upscale_model=upscale_model))
    assert other.shape == (26, 72, 96, 3)


def test_looks_of_a_model(upscaled, restoring, tmp_path, sampling):
    """A draft of one step samples nothing, of four two; best is the mean with the mirror image."""
    source, flipped = tmp_path / "exact.mkv", tmp_path / "flipped.mkv"
    for file, step in ((source, 1), (flipped, -1)):
        write_video(file, [frame[:, ::step] for frame in pictures(26, 24, 32)], Fraction(24), codec="h264-rgb")
    plain, set_so = (pixels(upscaled(source, **restoring, **look)) for look in ({}, {"look": "standard"}))
    assert np.array_equal(plain, set_so)
    best = pixels(upscaled(source, **restoring, look="best"))
    mirrored = pixels(upscaled(flipped, **restoring))[:, :, ::-1]
    assert np.abs(best - (plain + mirrored) / 2).max() <= 1 and np.abs(plain - mirrored).max() > 4

    def never(*_, **__):
        raise AssertionError("sampled")

    sampler = SimpleNamespace(sample=never, sampler_function=never, max_denoise=never)
    draft = pixels(upscaled(source, **{**restoring, "sampler": sampler}, look="draft"))
    assert draft.shape == plain.shape and not np.array_equal(draft, plain)
    four, two = (sampling(restoring["model"], steps)["sigmas"] for steps in (4, 2))
    halved = pixels(upscaled(source, **{**restoring, "sigmas": four}, look="draft"))
    assert np.array_equal(halved, pixels(upscaled(source, **{**restoring, "sigmas": four[::2]})))
    assert len(four[::2]) == len(two)


@pytest.mark.parametrize("name", ["upscale_a_video", "mgld_vsr", "wan21"])
def test_every_model_has_every_look(upscaled, systems, tmp_path, name):
    inputs, source = systems(name), film(tmp_path / "in.mkv", pictures(9, 24, 32))
    inputs["sigmas"] = inputs["sigmas"][[0, -1]]  # one step; Upscale-A-Video has no VAE for none
    results = [pixels(upscaled(source, **inputs, look=look)) for look in ("draft", "standard", "best")]
    assert all(result.shape == (9, 48, 64, 3) for result in results)


def test_looks_of_an_upscale_model(upscaled, upscale_model, source):
    draft, standard, best = (
        pixels(upscaled(source, upscale_model=upscale_model, look=look)) for look in ("draft", "standard", "best")
    )
    small = pixels(source)
    assert np.abs((draft - small.repeat(2, 1).repeat(2, 2)).std((1, 2, 3))).max() < 4, "each frame at its own level"
    flicker = [np.abs(np.diff((x - small.repeat(2, 1).repeat(2, 2)).mean((1, 2, 3)))).mean() for x in (draft, standard)]
    assert flicker[1] < 0.2 * flicker[0] and not np.array_equal(best, standard)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"look": "pretty"}, "look must be one of draft, standard, best"),
        ({"model": None}, "link one of model, guider and upscale_model, or vae alone; got none of them"),
        ({"upscale_model": object()}, "got model, upscale_model"),
        ({"noise": None, "sigmas": None}, "a model needs noise, sampler and sigmas; got no noise and no sigmas"),
        ({"vae": None}, "vae must be a VAE; got none"),
        ({"model": None, "upscale_model": object()}, "must come from Load Upscale Model; got object"),
        ({"model": None, "guider": object()}, "guider must hold conditionings.*got object"),
        ({"flow_model": object()}, "flow_model must come from"),
        ({"colour": "pink"}, "colour must be one of off, wavelet, adain, lab"),
        ({"steadiness": 3.0}, "steadiness must be in 0..1; got 3.0"),
        ({"format": "webm", "codec": "prores"}, "codec: .webm takes vp9, av1; got prores"),
        ({"target": {"target": "scale", "scale": 0.01}}, "Upscale Film: "),
    ],
)
def test_what_does_not_belong_together_is_said(upscaled, restoring, source, change, words):
    with pytest.raises(ValueError, match=f"^Upscale Film: .*{words.removeprefix('Upscale Film: ')}"):
        upscaled(source, **{**restoring, **change})


@pytest.mark.parametrize("kind", ["png frames", "webp", "png", "mp4", "webm"])
def test_every_kind_of_file(upscaled, restoring, source, output, kind):
    import folder_paths

    out = upscaled(source, **restoring, format=kind, lossless=kind in ("png", "webp"), first=14)
    assert probe(out).frames == 14 and pixels(out).shape == (14, 48, 64, 3)
    assert (out.is_dir() == (kind == "png frames")) and not [path for path in output.rglob(".*")]
    assert folder_paths.get_output_directory() in str(out)


def test_save_video_copies_what_is_written(upscaled, restoring, source, tmp_path):
    from comfy_api.latest import InputImpl

    out = upscaled(source, **restoring, format="mp4", lossless=False)
    InputImpl.VideoFromFile(str(out)).save_to(str(tmp_path / "copy.mp4"))
    assert seen(tmp_path / "copy.mp4")[0] == seen(out)[0] and np.array_equal(pixels(tmp_path / "copy.mp4"), pixels(out))


def test_without_a_link_it_is_the_sample_clip(upscaled, restoring):
    out = upscaled(None, **{**restoring, "first": 3})
    assert pixels(out).shape == (3, 180, 320, 3) and "no video is linked: this is the sample clip" in upscaled.said


def test_frames_in_memory_are_refused(upscaled, restoring, noise):
    from comfy_api.latest import InputImpl, Types

    video = InputImpl.VideoFromComponents(
        Types.VideoComponents(images=noise(5, 24, 32), audio=None, frame_rate=Fraction(24))
    )
    with pytest.raises(ValueError, match="^Upscale Film: video must come from a file; got frames in memory"):
        upscaled(video, **restoring)


def test_the_bar_runs_once_over_the_film_and_is_a_place_to_stop(upscaled, restoring, source, signs, monkeypatch):
    from cascadevsr.nodes import film_parts

    lines = []
    monkeypatch.setattr(film_parts, "show_text", lambda node, text: lines.append(text))
    monkeypatch.setattr("cascadevsr.media.pace._SOON", 0.0)  # no time is told in the first second
    upscaled(source, **restoring)
    film_bar = [(done, total) for _, done, total in signs if total == 2600]
    assert film_bar == sorted(film_bar) and film_bar[-1] == (2600, 2600) and len({done for done, _ in film_bar}) > 12
    assert any("frame 6/26, " in line and " fps, " in line and " left, " in line for line in lines)
    assert lines[-1].startswith("frame 26/26") and lines[-1].endswith(" GB")


def test_a_film_that_is_gone_is_made_again(upscaled, restoring, source, monkeypatch):
    from cascadevsr.nodes.upscale_film import UpscaleFilm

    monkeypatch.setattr(UpscaleFilm, "hidden", SimpleNamespace(unique_id="7", prompt=None, extra_pnginfo=None))
    before = UpscaleFilm.fingerprint_inputs()
    out = upscaled(source, **restoring, first=4)
    assert UpscaleFilm.fingerprint_inputs() == before
    out.unlink()
    after = UpscaleFilm.fingerprint_inputs()
    assert after != before and UpscaleFilm.fingerprint_inputs() == after
    upscaled(source, **restoring, first=4)
    assert UpscaleFilm.fingerprint_inputs() == after
    assert UpscaleFilm.fingerprint_inputs(crf=1.0) == before  # another film of the same node


def test_the_graph_before_the_node_decides(core, tmp_path, monkeypatch):
    import folder_paths
    from cascadevsr.nodes.film_work import described

    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    (tmp_path / "face.png").write_bytes(b"one")

    def prompt(seed=1, clip="a.mp4", prefix="x"):
        return {
            "1": {"class_type": "LoadVideo", "inputs": {"file": clip}},
            "2": {"class_type": "LoadImage", "inputs": {"image": "face.png"}},
            "3": {"class_type": "VSRSeededNoise", "inputs": {"seed": seed}},
            "4": {"class_type": "VSRReferenceSet", "inputs": {"images.image_0": ["2", 0]}},
            "9": {
                "class_type": "VSRUpscaleFilm",
                "inputs": {"video": ["1", 0], "noise": ["3", 0], "references": ["4", 0], "filename_prefix": prefix},
            },
        }

    first = described(prompt(), "9")
    assert list(first["files"]) == ["face.png"]
    assert described(prompt(clip="b.mp4", prefix="y"), "9") == first
    assert described(prompt(seed=2), "9")["graph"] != first["graph"]
    (tmp_path / "face.png").write_bytes(b"two")
    assert described(prompt(), "9")["files"] != first["files"]


def test_noise_between_steps_has_its_place_in_the_film(core, restorer, sampling, monkeypatch):
    from cascadevsr.nodes import sampling as module

    model = SimpleNamespace(inner_model=SimpleNamespace(conds={"positive": [{"vsr_first_frame": 2}]}))
    x = torch.zeros(1, 4, 5, 3, 3)
    whole = module._fresh_noise(SimpleNamespace(), x, {"seed": 5}, 1)
    part = module._fresh_noise(model, x[:, :, 2:], {"seed": 5}, 1)
    assert torch.equal(whole[:, :, 2:], part)
