"""Load Film and Save Film: what a film has besides its frames goes through a graph, from and to any VIDEO."""

import ast
import io
import json
import re
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from cascadevsr.media.colour import Colour
from cascadevsr.media.errors import MediaError
from cascadevsr.media.reader import Wish, frames, probe
from cascadevsr.tests.media.films import assert_times, clip, film, seen
from PIL import Image


@pytest.fixture
def doors(core, tmp_path, monkeypatch):
    """(load, save, folder of inputs): the two nodes over folders of this test."""
    import folder_paths
    from cascadevsr.nodes.film import LoadFilm, SaveFilm

    for name in ("input", "output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))

    class Saver(SaveFilm):
        hidden = SimpleNamespace(prompt={"1": {"inputs": {}, "is_changed": [3]}}, extra_pnginfo=None)

    def load(file, start=0, frames=0, deinterlace=False, tonemap=False, rate=25.0):
        return LoadFilm.execute(file, start, frames, deinterlace, tonemap, rate)

    def save(images=None, source=None, **changes):
        settings = {"filename_prefix": "film", "format": "as source", "codec": "auto", "crf": 12.0, "lossless": False}
        settings |= {"keep_tracks": "all", "fps": 0.0, "images": images, "source": source, **changes}
        result = Saver.execute(**settings)
        return tmp_path / "output" / result.ui["text"][0], result

    return SimpleNamespace(load=load, save=save, input=tmp_path / "input", temp=tmp_path / "temp", saver=Saver)


def larger(images):
    return images.repeat_interleave(2, 1).repeat_interleave(2, 2)


def through(doors, name, **changes):
    """Take a file through both nodes at twice its size; returns (result, its lines)."""
    video, images = doors.load(name).args[:2]
    out, result = doors.save(larger(images), video, **changes)
    return out, result.ui["text"][1:]


def shift(source, out):
    """Give the largest mean shift of a colour between two sources, in levels of 8 bits."""
    means = [np.mean([frame.mean((0, 1)) for frame in frames(probe(file), Wish(16))], 0) for file in (source, out)]
    return np.abs(means[0] - means[1]).max() / 257


def test_times_tracks_and_names_go_through(doors):
    times = [0, 0.04, 0.08, 0.3, 0.5, 0.9]
    sounds = [("aac", "stereo", "eng"), ("flac", "mono", "deu")]
    source = film(doors.input / "a.mkv", times=times, start=0.6, sound_start=0.2, sounds=sounds)
    out, lines = through(doors, "a.mkv")
    assert out.suffix == ".mkv" and not lines
    assert_times(out, times)
    (pictures, starts), (before, began) = seen(out), seen(source)
    for track in range(2):
        assert abs((starts[track] - pictures[0]) - (began[track] - before[0])) <= 0.025
    with av.open(str(out)) as container:
        assert [(s.codec_context.name, s.language) for s in container.streams.audio] == [
            ("aac", "eng"),
            ("flac", "deu"),
        ]
    assert shift(source, out) < 1.5


def test_a_kind_that_is_not_written_becomes_one_that_holds_it(doors):
    film(doors.input / "a.avi", sounds=[("pcm_s16le", "mono", "und")])
    film(doors.input / "b.ts", sounds=[("mp2", "stereo", "und")])
    assert through(doors, "a.avi")[0].suffix == ".mp4" and through(doors, "b.ts")[0].suffix == ".mp4"


def hdr_film(path):
    def tagged(container, stream):
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, 16, 9, 1

    options = {"x265-params": "log-level=none:bframes=0"}
    return film(path, clip(depth=16), codec="libx265", layout="yuv420p10le", options=options, prepare=tagged)


def test_hdr_is_kept_or_mapped_and_shown_in_colour(doors):
    source = hdr_film(doors.input / "a.mp4")
    out, lines = through(doors, "a.mp4")
    assert (
        probe(out).colour.hdr == "PQ"
        and probe(out).depth == 10
        and lines == ["HDR (PQ) is kept: 10 bit, with its tags"]
    )
    assert shift(source, out) < 1.5
    small = probe(next(doors.temp.glob("*preview.mp4")))
    assert (small.depth, small.colour.transfer) == (8, 1)
    mapped = np.stack(list(frames(probe(source), Wish(8, tonemap=True)))).astype(float)
    for video, images in (doors.load("a.mp4").args[:2], doors.load("a.mp4", tonemap=True).args[:2]):
        out, result = doors.save(images, video, format="mp4", codec="h264", crf=1.0)
        assert probe(out).colour.transfer == 1 and "tone-mapped" in result.ui["text"][1]
        assert np.abs((np.stack(list(frames(probe(out), Wish(8)))) - mapped).mean((0, 1, 2))).max() < 1.5


def test_transparency_goes_through_and_a_mask_makes_it(doors):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, 0)
    film(doors.input / "a.mov", [np.dstack([c, ramp]) for c in clip()], codec="png", layout="rgba")
    video, images, mask = doors.load("a.mov").args[:3]
    assert torch.equal(mask[0], 1 - torch.from_numpy(ramp) / 255) and images.shape[-1] == 3
    out, result = doors.save(larger(images), video)
    found = next(frames(probe(out), Wish(alpha=True)))
    assert np.abs(found[::2, ::2, 3].astype(int) - ramp).max() <= 4
    _, result = doors.save(larger(images), video, format="mp4")
    assert "transparency is dropped" in result.ui["text"][1]
    opaque = doors.load(film(doors.input / "b.mp4").name).args
    assert opaque[2].shape == opaque[1].shape[:3] and not opaque[2].any()
    out, _ = doors.save(opaque[1], opaque[0], mask=mask[:1], format="webm", lossless=True)
    assert np.abs(next(frames(probe(out), Wish(alpha=True)))[..., 3].astype(int) - ramp).max() <= 1
    out, _ = doors.save(torch.cat((opaque[1], 1 - mask[..., None]), -1), opaque[0], format="png")
    assert probe(out).kind == "animation" and probe(out).alpha
    with pytest.raises(ValueError, match="Save Film: mask must have as many frames"):
        doors.save(opaque[1], opaque[0], mask=mask[:2])


def test_pictures_of_all_kinds(doors):
    gif = [Image.fromarray(picture) for picture in clip(4)]
    gif[0].save(doors.input / "a.gif", save_all=True, append_images=gif[1:], duration=[50, 100, 400, 50], loop=0)
    out, _ = through(doors, "a.gif")
    assert out.suffix == ".webp" and probe(out).times.tolist() == pytest.approx([0, 0.05, 0.15, 0.55])
    ramp = np.linspace(2000, 60000, 64).astype(np.uint16)[None].repeat(48, 0)
    Image.fromarray(ramp).save(doors.input / "deep.png")
    out, _ = through(doors, "deep.png")
    assert np.array_equal(next(frames(probe(out), Wish(16)))[::2, ::2, 0], ramp)
    (doors.input / "many").mkdir()
    for number, picture in enumerate(clip(3)):
        Image.fromarray(picture).save(doors.input / "many" / f"{number}.png")
    video, images, _, fps, count = doors.load("many", rate=12.0).args
    assert (fps, count) == (12.0, 3) and video.get_frame_rate() == 12
    out, result = doors.save(images, video)
    assert out.is_dir() and sorted(file.name for file in out.iterdir())[0] == "frame_00001.png"
    assert result.ui["images"][0]["filename"] == "frame_00001.png"
    assert np.array_equal(next(frames(probe(out))), clip(3)[0])


def test_a_part_has_its_own_times_and_sound(doors):
    film(doors.input / "a.mkv", clip(24), sounds=[("flac", "mono", "eng")])
    whole = doors.load("a.mkv").args
    video, images, *_, count = doors.load("a.mkv", start=6, frames=12).args
    assert count == 12 and torch.equal(images, whole[1][6:18])
    trimmed = whole[0].as_trimmed(6 / 24, 12 / 24)
    assert torch.equal(trimmed.get_components().images, images)
    out, _ = doors.save(images, video)
    with av.open(str(out)) as container:
        sound = sum(frame.samples for frame in container.decode(audio=0)) / 48000
    times, starts = seen(out)
    assert len(times) == 12 and abs(sound - 0.5) < 0.1 and abs(starts[0] - times[0]) <= 0.1
    with pytest.raises(ValueError, match="Load Film: a part must hold at least one frame; got frames 30"):
        doors.load("a.mkv", start=30)


def test_host_nodes_find_what_they_expect_in_our_video(doors):
    source = film(doors.input / "a.mkv", clip(24), sound_start=0.2, sounds=[("flac", "stereo", "eng")])
    video, images = doors.load("a.mkv").args[:2]
    parts = video.get_components()
    assert torch.equal(parts.images, images) and parts.frame_rate == 24
    wave = parts.audio["waveform"]
    assert wave.shape[:2] == (1, 2) and not wave[..., : int(0.19 * 48000)].any() and wave[..., 9700:].any()
    assert (video.get_dimensions(), video.get_frame_count(), video.get_bit_depth()) == ((64, 48), 24, 8)
    assert video.get_duration() == pytest.approx(1.0, abs=0.002) and video.get_stream_source() == str(source)
    video.save_to(str(doors.temp / "b.mp4"), metadata={"prompt": {"1": 2}})
    buffer = io.BytesIO()
    video.save_to(buffer)
    for saved in (str(doors.temp / "b.mp4"), io.BytesIO(buffer.getvalue())):
        with av.open(saved) as container:
            assert len(list(container.decode(video=0))) == 24 and len(container.streams.audio) == 1
    trimmed = video.as_trimmed(0.5, 0.25)
    assert trimmed.get_frame_count() == 6 and isinstance(trimmed.get_stream_source(), io.BytesIO)
    assert video.as_trimmed(0.5, 1.0) is None and video.as_trimmed(-0.5).get_frame_count() == 12


def test_newer_hosts_find_what_they_expect_in_our_video(doors):
    film(doors.input / "a.mkv", clip(6))
    video = doors.load("a.mkv").args[0]
    video.save_to(
        str(doors.temp / "b.mp4"), format="mp4", codec="av1", crf=20.0, color_space="sRGB", preset="ultrafast"
    )
    assert len(seen(doors.temp / "b.mp4")[0]) == 6
    assert video.get_color_space() == "sRGB"
    video.timeline = replace(video.timeline, colour=Colour(9, 16, 9))
    assert video.get_color_space() == "HDR PQ"
    video.wish = replace(video.wish, tonemap=True)
    assert video.get_color_space() == "sRGB"


def test_a_video_that_a_newer_host_crops_is_not_read_from_its_file(doors):
    from cascadevsr.nodes.host.film import film_of
    from comfy_api.latest import InputImpl

    class Cropped(InputImpl.VideoFromFile):
        def has_pending_frame_edits(self):
            return True

        def get_components(self):
            parts = super().get_components()
            return replace(parts, images=parts.images[:, :16, :32])

    found = film_of(Cropped(str(film(doors.input / "a.mkv", clip(6)))))
    assert (found.timeline.width, found.timeline.height, found.get_components().images.shape[1:3]) == (32, 16, (16, 32))


def test_a_video_of_the_host_is_read_anew(doors):
    from comfy_api.latest import InputImpl, Types

    times = [0, 0.04, 0.08, 0.3, 0.5, 0.9]
    source = film(doors.input / "a.mp4", times=times, sounds=[("aac", "stereo", "eng")])
    images = doors.load("a.mp4").args[1]
    for video in (InputImpl.VideoFromFile(str(source)), InputImpl.VideoFromFile(io.BytesIO(source.read_bytes()))):
        out, result = doors.save(images, video, format="mp4")
        assert_times(out, times)
        assert len(seen(out)[1]) == 1 and len(result.ui["text"]) == 1
    cut = InputImpl.VideoFromFile(str(source), start_time=0.25, duration=0.5)
    out, _ = doors.save(images[3:5], cut, format="mp4")
    assert_times(out, [0, 0.2])
    sound = {"waveform": torch.rand(1, 1, 48000) - 0.5, "sample_rate": 48000}
    parts = Types.VideoComponents(images=images, audio=sound, frame_rate=Fraction(10))
    out, result = doors.save(larger(images), InputImpl.VideoFromComponents(parts))
    assert "no file behind it" in result.ui["text"][1] and out.suffix == ".mp4"
    assert_times(out, [i / 10 for i in range(6)])
    out, _ = doors.save(None, InputImpl.VideoFromComponents(parts), format="mkv", codec="ffv1", lossless=True)
    assert np.array_equal(next(frames(probe(out))), np.rint(images[0].numpy() * 255).astype(np.uint8))


def test_frames_without_a_source_and_sound_of_the_graph(doors):
    images = torch.from_numpy(np.stack(clip(12))) / 255
    with pytest.raises(ValueError, match="Save Film: fps must be set without a source"):
        doors.save(images)
    with pytest.raises(ValueError, match="Save Film: images or source must be linked"):
        doors.save(fps=24.0)
    tone = torch.sin(torch.arange(24000) / 10).expand(1, 2, -1) / 2
    out, _ = doors.save(images, fps=16.0, audio={"waveform": tone, "sample_rate": 44100})
    assert_times(out, [i / 16 for i in range(12)])
    with av.open(str(out)) as container:
        wave = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], 1)
        assert container.streams.audio[0].rate == 44100 and abs(wave.shape[1] - 24000) < 3000
        assert np.abs(wave[0, 5000:20000]).max() == pytest.approx(0.5, abs=0.05)
    deep, _ = doors.save(images, fps=16.0, codec="hevc")
    assert probe(deep).depth == 10


def test_another_number_of_frames(doors):
    film(doors.input / "a.mkv", clip(24), sounds=[("flac", "stereo", "eng")])
    video, images = doors.load("a.mkv").args[:2]
    twice = images.repeat_interleave(2, 0)
    out, result = doors.save(twice, video, fps=48.0)
    assert_times(out, [i / 48 for i in range(48)])
    assert len(seen(out)[1]) == 1 and len(result.ui["text"]) == 1
    out, result = doors.save(twice, video)
    assert_times(out, [i / 24 for i in range(48)])
    assert not seen(out)[1] and "48 frames, and the source has 24" in result.ui["text"][1]
    assert "its sound and tracks stay behind" in result.ui["text"][2]


def test_the_file_carries_the_graph(doors):
    images = torch.from_numpy(np.stack(clip(3))) / 255
    for ending in ("mp4", "mov", "mkv", "webm"):
        with av.open(str(doors.save(images, fps=24.0, format=ending)[0])) as container:
            stated = {name.lower(): value for name, value in container.metadata.items()}
            assert json.loads(stated["prompt"]) == {"1": {"inputs": {}}}
    for out in (
        doors.save(images[:1], fps=24.0, format="png")[0],
        doors.save(images, fps=24.0, format="png frames")[0],
    ):
        file = out / "frame_00001.png" if out.is_dir() else out
        with Image.open(file) as image:
            assert json.loads(image.text["prompt"]) == {"1": {"inputs": {}}}
            assert np.array_equal(np.asarray(image), clip(3)[0])


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"filename_prefix": "x" * 250}, "name is longer"),
        ({"format": "mp4", "codec": "vp9"}, r"codec: \.mp4 takes h264, hevc, av1; got vp9"),
        ({"format": "avi"}, "format must be one of"),
        ({"codec": "divx"}, "codec must be one of"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(doors, settings, words):
    given = {"filename_prefix": "video/film", "format": "mp4", "codec": "auto"}
    assert doors.saver.validate_inputs(**given) is True
    assert doors.saver.validate_inputs(filename_prefix=None, format=None, codec=None) is True
    said = doors.saver.validate_inputs(**{**given, **settings})
    assert isinstance(said, str) and said.startswith("Save Film: ") and re.search(words, said)


def test_films_pictures_and_folders_of_pictures_are_listed(doors):
    from cascadevsr.nodes.film import LoadFilm

    for name in ("a.mp4", "b.MTS", "c.gif", "d.txt", "e.wav"):
        (doors.input / name).touch()
    for folder, file in (("full", "1.png"), ("other", "1.txt"), ("films", "1.mp4")):
        (doors.input / folder).mkdir()
        (doors.input / folder / file).touch()
    assert LoadFilm.define_schema().inputs[0].options == ["a.mp4", "b.MTS", "c.gif", "full"]


def test_load_film_says_what_is_wrong_in_its_own_words(doors):
    from cascadevsr.nodes.film import LoadFilm

    assert "must exist" in LoadFilm.validate_inputs("nothing.mp4")
    (doors.input / "text.mp4").write_text("no film")
    with pytest.raises(ValueError, match=r"^Load Film: .*text\.mp4 cannot be read as a video"):
        doors.load("text.mp4")
    film(doors.input / "a.mp4")
    first = LoadFilm.fingerprint_inputs("a.mp4", start=0)
    film(doors.input / "a.mp4", clip(3))
    assert LoadFilm.fingerprint_inputs("a.mp4", start=0) != first
    Image.fromarray(clip(1)[0]).save(doors.input / "a.png")
    with pytest.raises(ValueError, match="Load Film: deinterlace is for films"):
        doors.load("a.png", deinterlace=True)


def test_no_message_of_media_speaks_of_the_command_in_a_graph(core, repository):
    from cascadevsr.nodes.host.film import in_graph, said_by

    texts = set()
    for file in (repository / "media").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                texts.add(node.value)
    spoken = [text for text in texts if re.search(r"\b(IN|OUT)\b|--[a-z]", text)]
    assert len(spoken) > 20
    for text in spoken:
        told = in_graph(text).partition("ffmpeg ")[0]
        assert not re.search(r"\b(IN|OUT)\b|--[a-z]", told), told
    with pytest.raises(ValueError, match="^Save Film: the result could not be"), said_by("Save Film"):
        raise MediaError("OUT: OUT could not be written.")
