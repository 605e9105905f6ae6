"""Sound stays where it was against the picture; every track that OUT takes goes on, and the rest is named."""

from fractions import Fraction

import av
import pytest
from cascadevsr.media.plan import plan
from cascadevsr.media.reader import probe

from .films import enlarged, film, seen


def offset(path, track=0):
    times, starts = seen(path)
    return starts[track] - times[0]


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize("picture, sound", [(0, 0), (0.4, 0), (0, 0.4), (2, 2)])
def test_sound_stays_in_step(tmp_path, ending, picture, sound):
    source = film(tmp_path / "in.mkv", start=picture, sound_start=sound, sounds=[("aac", "stereo", "eng")])
    enlarged(source, tmp_path / f"out.{ending}")
    assert abs(offset(tmp_path / f"out.{ending}") - (sound - picture)) <= 0.025
    assert abs(offset(source) - (sound - picture)) <= 0.025


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_transport_streams_stay_in_step(tmp_path, ending):
    source = film(tmp_path / "in.ts", start=1.4, sound_start=1.4, sounds=[("aac", "stereo", "eng")])
    assert probe(source).start > 0.5
    enlarged(source, tmp_path / f"out.{ending}")
    assert abs(offset(tmp_path / f"out.{ending}") - offset(source)) <= 0.025


def with_everything(path):
    def prepare(container, stream):
        container.metadata["title"] = "My film"
        chapters = [
            {"id": i, "start": i * 100, "end": (i + 1) * 100, "time_base": Fraction(1, 1000), "metadata": {"title": t}}
            for i, t in enumerate(("one", "two"))
        ]
        container.set_chapters(chapters)
        container.add_attachment("font.ttf", "font/ttf", b"a font")

    return film(path, prepare=prepare, sounds=[("aac", "stereo", "eng"), ("flac", "mono", "deu")])


def test_all_tracks_chapters_and_names_go_on(tmp_path):
    source = with_everything(tmp_path / "in.mkv")
    how = enlarged(source, tmp_path / "out.mkv")
    assert not how.notes
    with av.open(str(tmp_path / "out.mkv")) as container:
        tracks = [(s.codec_context.name, s.layout.nb_channels, s.language) for s in container.streams.audio]
        assert tracks == [("aac", 2, "eng"), ("flac", 1, "deu")]  # as they were
        assert container.metadata["title"] == "My film"
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["one", "two"]
        assert len(container.streams.attachments) == 1


def test_what_stays_behind_is_named(tmp_path):
    source = with_everything(tmp_path / "in.mkv")
    assert "attachment track 3" in plan(tmp_path / "a.mp4", probe(source)).notes[0]
    assert "2 sound and subtitle tracks stay behind" in plan(tmp_path / "a.png", probe(source)).notes[0]
    first = enlarged(source, tmp_path / "b.mkv", keep="first")
    assert "sound track 2 (flac, deu)" in first.notes[0]
    enlarged(source, tmp_path / "c.mkv", keep="none")
    with av.open(str(tmp_path / "c.mkv")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.mark.parametrize(
    "ending, codec, expected", [("mp4", "aac", 11025), ("mkv", "pcm_s16le", 11025), ("webm", "opus", 48000)]
)
def test_old_sound_stays_mono(tmp_path, ending, codec, expected):
    source = film(
        tmp_path / "in.avi", base=Fraction(1, 24), codec="mpeg4", sounds=[("pcm_s16le", "mono", "und")], rate=11025
    )
    enlarged(source, tmp_path / f"out.{ending}")
    with av.open(str(tmp_path / f"out.{ending}")) as container:
        track = container.streams.audio[0]
        assert (track.codec_context.name, track.rate, track.layout.nb_channels) == (codec, expected, 1)


@pytest.mark.parametrize("ending, codec, rate", [("mp4", "flac", 192000), ("mov", "aac", 48000)])
def test_rates_that_an_encoder_refuses(tmp_path, ending, codec, rate):
    source = film(tmp_path / "in.mkv", sounds=[("flac", "stereo", "eng")], rate=192000)
    enlarged(source, tmp_path / f"out.{ending}")
    with av.open(str(tmp_path / f"out.{ending}")) as container:
        track = container.streams.audio[0]
        assert (track.codec_context.name, track.rate) == (codec, rate)
    assert abs(offset(tmp_path / f"out.{ending}")) <= 0.025


@pytest.mark.parametrize("codec", ["libmp3lame", "ac3", "alac", "libopus"])
def test_sound_is_copied_where_the_container_takes_it(tmp_path, codec):
    source = film(tmp_path / "in.mkv", sounds=[(codec, "stereo", "eng")])
    enlarged(source, tmp_path / "out.mp4")
    with av.open(str(source)) as one, av.open(str(tmp_path / "out.mp4")) as two:
        sounds = [[bytes(packet) for packet in container.demux(audio=0) if packet.size] for container in (one, two)]
    assert sounds[0] == sounds[1]


def test_channels_that_no_encoder_takes_are_named(tmp_path):
    source = film(tmp_path / "in.mkv", sounds=[("pcm_s16le", "hexadecagonal", "und")])
    assert "aac with stereo of its 16 channels" in plan(tmp_path / "out.mp4", probe(source)).notes[0]
    assert not enlarged(source, tmp_path / "out.mkv").notes
