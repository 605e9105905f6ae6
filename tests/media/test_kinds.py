"""Kinds of files that people have, each with one property that is easily lost: read, written, and checked."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from cascadevsr.media import colour
from cascadevsr.media.errors import MediaError
from cascadevsr.media.plan import TAKES, plan
from cascadevsr.media.reader import Wish, frames, probe
from cascadevsr.media.writer import write
from PIL import Image, ImageCms, features

from .films import assert_times, clip, enlarged, film, seen

TEXTS = pytest.mark.skipif(
    not hasattr(av.CodecContext.create("mov_text", "w"), "encode_subtitle"), reason="this PyAV encodes no subtitles"
)


def first(path, wish=None):
    return next(frames(probe(path), wish))


def fixed(number):
    return struct.pack(">i", number << 16)


# a, b, c, d of the display matrix: a point (x, y) is shown at (ax + cy, bx + dy)
MATRICES = [m for s in (1, -1) for t in (1, -1) for m in ((s, 0, 0, t), (0, s, t, 0))]


@pytest.mark.parametrize("matrix", MATRICES)
def test_turned_and_mirrored_films_are_upright(tmp_path, matrix):
    a, b, c, d = matrix
    data = film(tmp_path / "a.mp4").read_bytes()
    upright = fixed(1) + bytes(12) + fixed(1) + bytes(12) + b"\x40\0\0\0"
    shown = fixed(a) + fixed(b) + bytes(4) + fixed(c) + fixed(d) + bytes(12) + b"\x40\0\0\0"
    place = data.rindex(upright)  # the track's display matrix comes after the film's
    (tmp_path / "b.mp4").write_bytes(data[:place] + shown + data[place + len(upright) :])
    stored = first(tmp_path / "a.mp4")
    y, x = np.mgrid[0 : stored.shape[0], 0 : stored.shape[1]]
    columns, rows = a * x + c * y, b * x + d * y
    expected = np.empty((np.ptp(rows) + 1, np.ptp(columns) + 1, 3), np.uint8)
    expected[rows - rows.min(), columns - columns.min()] = stored
    assert np.array_equal(first(tmp_path / "b.mp4"), expected)


@pytest.mark.parametrize("second", [100, 0])
def test_joined_recordings_follow_each_other(tmp_path, second):
    sounds = [("aac", "stereo", "eng")]
    for name, start in (("1.ts", 50), ("2.ts", second)):
        film(tmp_path / name, clip(24, 48, 64), start=start, sound_start=start, sounds=sounds)
    (tmp_path / "a.ts").write_bytes((tmp_path / "1.ts").read_bytes() + (tmp_path / "2.ts").read_bytes())
    timeline = probe(tmp_path / "a.ts")
    enlarged(tmp_path / "a.ts", tmp_path / "a.mkv")
    with av.open(str(tmp_path / "a.mkv")) as container:
        sound = [float(packet.pts * packet.time_base) for packet in container.demux(audio=0) if packet.size]
    if second:  # a pause in the recording is kept
        assert not timeline.remarks and 50 < timeline.duration < 52 and max(np.diff(sound)) > 45
    else:
        assert "parts follow each other" in timeline.notes()[-1]
        assert_times(tmp_path / "a.mkv", [i / 24 for i in range(48)], 0.003)
        assert max(np.diff(sound)) < 0.05 and min(np.diff(sound)) > 0


def test_data_of_single_scenes_is_named(tmp_path):
    def prepare(container, stream):
        stream.codec_context.color_trc = 16

    path = film(
        tmp_path / "a.hevc",
        codec="libx265",
        layout="yuv420p10le",
        options={"x265-params": "log-level=none"},
        prepare=prepare,
    )
    bits = "01" + f"{400:027b}" + "0" + f"{30000:017b}" * 3 + f"{20000:017b}" + "0000" + f"{5:010b}" + "0" + "0" + "0"
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    scene = bytes.fromhex("b5003c0001" + "0401") + int(bits, 2).to_bytes(len(bits) // 8, "big")  # ST 2094-40
    message = b"\0\0\0\1\x4e\x01\x04" + bytes([len(scene)]) + scene + b"\x80"
    data = path.read_bytes()
    starts = [i for i in range(len(data) - 4) if data[i : i + 3] == b"\0\0\1" and data[i + 3] >> 1 < 32]
    path.write_bytes(data[: starts[0]] + message + data[starts[0] :])
    assert probe(path).notes()[-1] == "what HDR10+ says of single scenes is not kept"


# R, G and B of FFmpeg: zscale to linear light with npl=203, then clipped, in BT.709; by colour, then by nits
NITS = (5, 50, 150, 203, 400, 1000)
COLOURS = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0.2, 0.6, 1]])
PLAIN = [54, 142, 225, 255, 255, 255]
RECORDED = {
    colour.PQ: [
        [(v, v, v) for v in PLAIN],
        [(v, 0, 0) for v in PLAIN],
        [(0, v, 0) for v in PLAIN],
        [(0, 0, v) for v in PLAIN],
        [(v, v, 0) for v in PLAIN],
        [(28, 44, 54), (73, 115, 142), (115, 182, 225), (130, 206, 255), (130, 206, 255), (130, 206, 255)],
    ],
    colour.HLG: [
        [(v, v, v) for v in PLAIN],
        [(v, 0, 0) for v in (60, 157, 248, 255, 255, 255)],
        [(0, v, 0) for v in (56, 146, 230, 255, 255, 255)],
        [(0, 0, v) for v in (67, 176, 255, 255, 255, 255)],
        [(v, v, 0) for v in (55, 143, 225, 255, 255, 255)],
        [(24, 44, 57), (63, 116, 149), (100, 183, 236), (107, 198, 255), (107, 198, 255), (112, 203, 255)],
    ],
}


@pytest.mark.parametrize("transfer", RECORDED)
def test_tone_mapping_is_near_what_others_show(transfer):
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    light = (COLOURS @ to_2020.T)[:, None] * np.array(NITS)[None, :, None]
    if transfer == colour.PQ:
        power = (light / 10000) ** (2610 / 16384)
        signal = ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    else:
        light = light / 1000
        scene = light * (light @ np.array([0.2627, 0.678, 0.0593]))[..., None] ** (1 / 1.2 - 1)
        upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        signal = np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)
    found = colour.tone_mapped(np.rint(np.clip(signal, 0, 1) * 65535).astype(np.uint16), transfer) / 257
    assert np.abs(found - np.array(RECORDED[transfer])).mean() <= 6


def test_missing_numbers_are_named(tmp_path):
    for number in (1, 2, 3, 5, 6, 9, 10):
        Image.fromarray(clip(1)[0]).save(tmp_path / f"frame_{number:04d}.png")
    assert "missing among the pictures: 4, 7, 8 (3)" in probe(tmp_path).notes()[0]
    for number in (4, 7, 8):
        Image.fromarray(clip(1)[0]).save(tmp_path / f"frame_{number:04d}.png")
    assert not probe(tmp_path).notes()
    for number in range(10, 0, -2):
        (tmp_path / f"frame_{number:04d}.png").unlink()
    assert probe(tmp_path).frames == 5 and not probe(tmp_path).notes()  # every second one, on purpose


def profile_of_linear_light():
    """Return a display profile (ICC 2.1) with the primaries of sRGB and a gamma of 1."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    count = int.from_bytes(srgb[128:132], "big")
    tags = {}
    for index in range(count):
        name, place, size = struct.unpack_from(">4sII", srgb, 132 + 12 * index)
        tags[name] = srgb[place : place + size]
    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + b"\x01\x00\0\0"
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    tags = {name: data + bytes(-len(data) % 4) for name, data in tags.items()}
    table, data, place = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, place + len(data), len(value))
        data += value
    header = struct.pack(">I", place + len(data)) + srgb[4:128]
    return header + len(tags).to_bytes(4, "big") + table + data


@pytest.mark.parametrize("ending, mode", [("png", "RGB"), ("png", "RGBA"), ("tif", "RGB"), ("jpg", "RGB")])
def test_colours_of_a_profile_become_those_of_srgb(tmp_path, ending, mode):
    Image.new(mode, (32, 32), (55, 128, 220, 255)[: len(mode)]).save(
        tmp_path / f"a.{ending}", icc_profile=profile_of_linear_light(), quality=100
    )
    linear = np.array([55, 128, 220]) / 255
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(first(tmp_path / f"a.{ending}")[16, 16] - expected).max() <= 3
    Image.new("RGB", (32, 32), (55, 128, 220)).save(tmp_path / "b.png", icc_profile=b"no profile")
    assert first(tmp_path / "b.png")[0, 0].tolist() == [55, 128, 220]


@pytest.mark.parametrize("ending", ["png", "tif", "jpg", "webp", "avif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_orientation_in_every_kind_of_picture(tmp_path, ending, orientation):
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(clip(1)[0]).save(tmp_path / f"a.{ending}", exif=exif, quality=95)
    turned = {1: lambda a: a, 3: lambda a: np.rot90(a, 2), 6: lambda a: np.rot90(a, 3), 7: lambda a: a[::-1, ::-1]}
    expected = turned[orientation](clip(1)[0] if orientation != 7 else clip(1)[0].swapaxes(0, 1))
    timeline = probe(tmp_path / f"a.{ending}")
    assert (timeline.height, timeline.width) == expected.shape[:2]
    assert np.abs(first(tmp_path / f"a.{ending}").astype(int) - expected).mean() < 4


def test_deep_and_large_kinds_of_tiff(tmp_path):
    deep = clip(1, depth=16)[0]
    with av.open(str(tmp_path / "a.tif"), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("tiff", rate=1)
        stream.height, stream.width, stream.pix_fmt = *deep.shape[:2], "rgb48le"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(deep, format="rgb48le")))
        container.mux(stream.encode())
    assert probe(tmp_path / "a.tif").depth == 16 and np.array_equal(first(tmp_path / "a.tif", Wish(16)), deep)
    Image.fromarray(deep[..., 0].astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(MediaError, match="32 bits a channel; at most 16"):
        probe(tmp_path / "b.tif")
    pages = [Image.fromarray(frame) for frame in clip(3)]
    pages[0].save(tmp_path / "c.tif", save_all=True, append_images=pages[1:])
    assert probe(tmp_path / "c.tif").notes() == ["only the first of 3 pages of c.tif is read"]


@pytest.mark.parametrize("out", ["out.webp", "out.png"])
@pytest.mark.parametrize("source, loop, plays", [("gif", None, 1), ("gif", 2, 3), ("webp", 0, 0), ("png", 4, 4)])
def test_animations_play_as_often_as_before(tmp_path, source, loop, plays, out):
    pictures = [Image.fromarray(frame) for frame in clip(3)]
    words = {} if loop is None else {"loop": loop}
    pictures[0].save(tmp_path / f"in.{source}", save_all=True, append_images=pictures[1:], duration=100, **words)
    enlarged(tmp_path / f"in.{source}", tmp_path / out)
    with Image.open(tmp_path / out) as image:
        assert image.info["loop"] == plays


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_animated_avif_is_a_film(tmp_path):
    pictures = [Image.fromarray(frame) for frame in clip(4)]
    pictures[0].save(tmp_path / "a.avif", save_all=True, append_images=pictures[1:], duration=80)
    timeline = probe(tmp_path / "a.avif")
    assert (timeline.kind, timeline.frames) == ("animation", 4) and np.allclose(timeline.times, [0, 0.08, 0.16, 0.24])


def with_subtitles(path, codec):
    from av.subtitles.subtitle import SubtitleSet

    film(bare := path.with_name(f"bare{path.suffix}"), clip(30), options={"bf": "0"}, sounds=[("aac", "mono", "eng")])
    with av.open(str(bare)) as source, av.open(str(path), "w") as container:
        copies = {s.index: container.add_stream_from_template(s) for s in source.streams}
        track = container.add_stream(codec)
        track.codec_context.subtitle_header, track.metadata["language"] = b"", "fra"
        track.time_base = track.codec_context.time_base = Fraction(1, 1000)
        packets = [packet for packet in source.demux() if packet.size]
        for packet in packets:
            packet.stream = copies[packet.stream_index]
        for at, text in ((200, "Bonjour"), (600, "{\\i1}Deux{\\i0}\\Nlignes"), (900, "Fin")):
            line = b"0,0,Default,,0,0,0,," + text.encode()
            packets.append(track.codec_context.encode_subtitle(SubtitleSet.create(line, 0, 250, at)))
            packets[-1].stream, packets[-1].time_base = track, Fraction(1, 1000)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def lines(path):
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        assert stream.language == "fra"
        found = [(packet, stream.codec_context.decode(packet)) for packet in container.demux(stream) if packet.size]
        return [(float(p.pts * p.time_base), text[0].ass.split(b",,")[-1].decode()) for p, text in found if text]


@TEXTS
@pytest.mark.parametrize("source, codec", [("in.mkv", "subrip"), ("in.mkv", "ass"), ("in.mp4", "mov_text")])
@pytest.mark.parametrize("out", ["out.mp4", "out.mov", "out.mkv", "out.webm"])
def test_subtitles_of_text_go_into_every_container(tmp_path, source, codec, out):
    how = enlarged(with_subtitles(tmp_path / source, codec), tmp_path / out)
    assert not [note for note in how.notes if "stay" in note]
    before, after = lines(tmp_path / source), lines(tmp_path / out)
    assert len(after) == 3 and "Bonjour" in after[0][1] and "lignes" in after[1][1]
    picture = [seen(tmp_path / name)[0][0] for name in (source, out)]
    assert all(abs((b[0] - picture[1]) - (a[0] - picture[0])) < 0.025 for a, b in zip(before, after, strict=True))


def with_cover(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width = 48, 64
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt, cover.disposition = 32, 32, "yuvj420p", 0x400
        picture = av.VideoFrame.from_ndarray(clip(1, 32, 32)[0]).reformat(format="yuvj420p")
        container.mux([*cover.encode(picture), *cover.encode()])
        for frame in clip():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame).reformat(format="yuv420p")))
        container.mux(stream.encode())
    return path


ATTACHING = hasattr(av.container.OutputContainer, "add_attachment")


@pytest.mark.parametrize("out, kept", [("out.mp4", True), ("out.mkv", ATTACHING), ("out.webm", False)])
def test_covers(tmp_path, out, kept):
    how = enlarged(with_cover(tmp_path / "in.mp4"), tmp_path / out)
    with av.open(str(tmp_path / out)) as container:
        assert container.streams.video[0].codec_context.name in ("h264", "libvpx-vp9", "vp9")
        assert len(container.streams.video) == 1 + kept
    assert any("cover picture" in note for note in how.notes) != kept
    assert probe(tmp_path / out).frames == 6


@pytest.mark.parametrize("out", ["out.mkv", "out.mp4"])
def test_sound_before_an_edit_is_not_heard(tmp_path, out):
    source = film(tmp_path / "a.mp4", clip(48), options={"bf": "0", "g": "12"}, sounds=[("aac", "mono", "eng")])
    data = bytearray(source.read_bytes())
    place = 0
    while (place := data.find(b"elst", place + 1)) > 0:
        scale = int.from_bytes(data[(at := data.index(b"mdhd", place) + 16) : at + 4], "big")
        length, begin = struct.unpack_from(">Ii", data, place + 12)
        struct.pack_into(">Ii", data, place + 12, max(1, length - 500), begin + scale // 2)
    (tmp_path / "in.mp4").write_bytes(data)
    assert probe(tmp_path / "in.mp4").frames == 36
    enlarged(tmp_path / "in.mp4", tmp_path / out)
    times, starts = seen(tmp_path / out)
    assert len(times) == 36 and abs(starts[0] - times[0]) <= 0.025


@pytest.mark.parametrize("matrix", [1, 4, 5, 6, 7, 9])
def test_every_matrix_is_known(tmp_path, matrix):
    def prepare(container, stream):
        stream.codec_context.colorspace = matrix

    source = film(tmp_path / "a.mkv", [np.full((48, 64, 3), 130, np.uint8)] * 2, codec="ffv1", prepare=prepare)
    assert probe(source).colour.matrix == matrix and np.abs(first(source).astype(int) - 130).max() <= 2
    assert np.abs(first(source, Wish(16)) / 257 - 130).max() <= 2


@pytest.mark.parametrize("layout", ["5.1(side)", "5.0(side)", "3.0", "4.0", "quad", "2.1", "7.1", "mono"])
@pytest.mark.parametrize("ending", ["webm", "mp4"])
def test_surround_keeps_its_channels(tmp_path, ending, layout):
    source = film(tmp_path / "in.mkv", sounds=[("pcm_s16le", layout, "eng")])
    how = enlarged(source, tmp_path / f"out.{ending}")
    assert "is encoded anew as" in how.notes[0]
    with av.open(str(source)) as one, av.open(str(tmp_path / f"out.{ending}")) as two:
        assert one.streams.audio[0].channels == two.streams.audio[0].channels


@pytest.mark.parametrize("ending", TAKES)
@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("depth, alpha", [(8, False), (8, True), (16, False), (16, True)])
def test_every_encoding_works(tmp_path, ending, lossless, depth, alpha):
    pictures = clip(2, 66, 70, depth=depth)
    if alpha:
        pictures = [np.concatenate([frame, frame[..., :1]], -1) for frame in pictures]
    kind = {(8, 0): "rgb24", (8, 1): "rgba", (16, 0): "rgb48be", (16, 1): "rgba64be"}[depth, alpha]
    source = film(tmp_path / "in.mov", pictures, codec="png", layout=kind)
    timeline = probe(source)
    assert timeline.alpha == alpha and timeline.depth == depth
    for codec in TAKES[ending]:
        if (codec, lossless) == ("av1", True):
            with pytest.raises(MediaError, match="av1 is not written without loss"):
                plan(tmp_path / f"a{ending}", timeline, codec=codec, lossless=True)
            continue
        out = tmp_path / f"{codec}{ending}"
        how = plan(out, timeline, codec=codec, lossless=lossless, size=(66, 70))
        assert write(out, frames(timeline, how.wish), how, timeline) == 2
        again = probe(out)
        assert (again.frames, again.alpha) == (2, how.wish.alpha)
        assert np.abs(first(out).astype(int) - first(source)).mean() < (2 if lossless else 8) or alpha


def test_an_encoder_is_tried_before_the_work(tmp_path):
    timeline = probe(film(tmp_path / "in.mp4"))
    with pytest.raises(MediaError, match=r"a\.mp4 cannot be written with libx264 at 32768x32"):
        plan(tmp_path / "a.mp4", timeline, size=(32, 32768))
    with pytest.raises(MediaError, match="libx265 at 4x4"):
        plan(tmp_path / "a.mp4", timeline, codec="hevc", size=(4, 4))
    with pytest.raises(MediaError, match="libwebp_anim at 20000x32"):
        plan(tmp_path / "a.webp", timeline, size=(32, 20000))
    assert plan(tmp_path / "a.mkv", timeline, codec="ffv1", size=(32, 32768)).encoding.encoder == "ffv1"
