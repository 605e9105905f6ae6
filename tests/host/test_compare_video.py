"""Compare Video: the small film is made in the background, in bounds; parts come in full size; the editor finds it."""

import io
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cascadevsr.media.reader import frames, probe
from cascadevsr.tests.media.films import clip, film
from PIL import Image


@pytest.fixture
def door(core, tmp_path, monkeypatch):
    """Run the node over a temporary folder of this test: door(before, after, **inputs) -> the comparison."""
    import folder_paths
    from cascadevsr.nodes.compare_video import CompareVideo
    from cascadevsr.nodes.host import comparisons

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    monkeypatch.setattr(comparisons, "_known", {})
    monkeypatch.setattr(comparisons, "_places", {})

    class Node(CompareVideo):
        hidden = SimpleNamespace(unique_id="5", extra_pnginfo={"workflow": {"id": "g"}})

    def run(before, after, wait=True, **inputs):
        settings = {"fps": 0.0, "start": 0, "frames": 0, "size": 1280, **inputs}
        (key,) = Node.execute(before, after, **settings).ui["cascadevsr_comparison"]
        comparison = comparisons.looked_at(key)
        end = time.monotonic() + 60
        while wait and comparison.state not in ("ready", "failed", "removed") and time.monotonic() < end:
            time.sleep(0.01)
        return comparison

    return SimpleNamespace(run=run, node=Node, module=comparisons, temp=tmp_path / "temp")


def video(path, **more):
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(film(path, **more)))


def test_frames_and_films_of_other_sizes_and_rates(door, tmp_path, noise):
    before = video(tmp_path / "a.mp4", pictures=clip(4, height=24, width=32))
    after = noise(8, 96, 128)
    comparison = door.run(before, after, fps=48.0)
    facts = comparison.described()
    assert facts["state"] == "ready" and facts["total"] == 8 and facts["end"] == pytest.approx(8 / 48, abs=1e-3)
    assert facts["sides"]["before"]["size"] == [32, 24] and facts["sides"]["after"]["size"] == [128, 96]
    assert facts["sides"]["before"]["numbers"] == [0, 0, 1, 1, 2, 2, 3, 3] and "numbers" not in facts["sides"]["after"]
    found = list(frames(probe(door.temp / facts["file"]["subfolder"] / facts["file"]["filename"])))
    x, y, width, height = facts["sides"]["after"]["box"]
    shown = found[3][y : y + height, x : x + width].mean((0, 1))
    assert len(found) == 8 and np.abs(shown - after[3].mean((0, 1)).numpy() * 255).max() < 3


def test_frames_take_the_rate_of_the_film_beside_them(door, tmp_path, noise):
    facts = door.run(video(tmp_path / "a.mp4", pictures=clip(6)), noise(5, 48, 64)).described()
    assert facts["total"] == 5 and facts["sides"]["after"]["rate"] == 24
    assert door.run(noise(5, 48, 64), noise(4, 48, 64)).described()["sides"]["before"]["rate"] == 24


def test_a_part_is_the_source_itself(door, tmp_path):
    before = clip(5, height=48, width=64)
    after = torch.from_numpy(np.stack(clip(5, height=192, width=256))).float() / 255
    comparison = door.run(video(tmp_path / "a.mp4", pictures=before), after, size=64)
    assert comparison.described()["sides"]["after"]["box"][2:] == (64, 48)

    def part(side, box, size=(4096, 4096)):
        return np.asarray(Image.open(io.BytesIO(comparison.part(side, 3, box, size))))

    exact = np.rint(after[3].numpy() * 255).astype(int)
    assert (part("after", (0.25, 0.5, 0.75, 1.0)) == exact[96:, 64:192]).all()
    assert np.abs(part("before", (0, 0, 1, 1)) - before[3].astype(int)).mean() < 4
    assert part("after", (0, 0, 1, 1), (64, 48)).shape == (48, 64, 3)
    del after
    assert comparison.part("after", 3, (0, 0, 1, 1), (64, 48)) is None, "frames are held no longer than by the host"


def test_cuts_are_marked(door):
    one = torch.from_numpy(np.stack(clip(4, height=96, width=128))).float() / 255
    other = torch.rand(4, 12, 16, 3, generator=torch.Generator().manual_seed(1)).repeat_interleave(8, 1)
    both = torch.cat((one, other.repeat_interleave(8, 2)[:1].expand(4, -1, -1, -1)))
    assert door.run(both, both).described()["cuts"] == [4]
    assert door.run(both, both, start=2, frames=5).described()["cuts"] == [2]


def test_joints_of_segments_are_marked_where_no_cut_is(door, tmp_path, monkeypatch):
    from cascadevsr.nodes.host.film import joints

    before, after = video(tmp_path / "a.mp4", pictures=clip(6)), video(tmp_path / "b.mp4", pictures=clip(6))
    assert door.run(before, after).described()["joints"] == []
    monkeypatch.setitem(joints, tmp_path / "b.mp4", (2, 5))
    assert door.run(before, after).described()["joints"] == [2, 5]
    assert door.run(before, after, start=3).described()["joints"] == [2]
    assert door.run(after, before).described()["joints"] == []


def test_what_is_wrong_is_said(door, tmp_path, noise):
    with pytest.raises(ValueError, match="Compare Video: before must be frames .IMAGE. or a VIDEO; got str"):
        door.run("text", noise(2, 8, 8))
    with pytest.raises(ValueError, match="Compare Video: after must have at least one frame; got 0"):
        door.run(noise(2, 8, 8), torch.zeros(0, 8, 8, 3))
    found = door.run(noise(2, 8, 8), noise(2, 8, 8), start=2)
    assert found.state == "failed" and found.text.startswith("start: must leave a frame of the 2 that are compared")
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    from comfy_api.latest import InputImpl

    found = door.run(InputImpl.VideoFromFile(str(tmp_path / "broken.mp4")), noise(2, 8, 8))
    assert found.state == "failed" and "cannot be read as a video" in found.text
    assert not list(door.temp.rglob("*.mp4"))


def test_nobody_waits_for_what_its_node_no_longer_shows(door, noise):
    with door.module._turn:  # as while another one is made
        first = door.run(noise(2, 16, 16), noise(2, 16, 16), wait=False)
        second = door.run(noise(3, 16, 16), noise(3, 16, 16), wait=False)
    end = time.monotonic() + 60
    while second.state != "ready" or first.state != "removed":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert first.done == 0 and door.module.looked_at(first.key) is None
    assert [path.stem for path in door.temp.rglob("*.mp4")] == [second.key]


def test_all_small_films_together_are_bounded(door, noise, monkeypatch):
    made = [door.run(noise(2, 64, 64, seed=seed), noise(2, 64, 64)) for seed in range(2)]
    size = made[0].file.stat().st_size
    monkeypatch.setattr(door.module, "_ALL", int(2.5 * size))
    door.module.looked_at(made[0].key)  # now the other one is the one to go
    before = door.node.fingerprint_inputs()
    made.append(door.run(noise(2, 64, 64, seed=9), noise(2, 64, 64)))
    end = time.monotonic() + 10
    while made[1].state != "removed" and time.monotonic() < end:
        time.sleep(0.01)
    assert [each.state for each in made] == ["ready", "removed", "ready"]
    assert {path.stem for path in door.temp.rglob("*.mp4")} == {made[0].key, made[2].key}
    assert door.node.fingerprint_inputs() == before + 1, "the host must run the node again"


def test_frames_are_read_once_and_few_are_held(door, noise, monkeypatch):
    from cascadevsr.nodes.host.film import Film

    calls = []
    inherited = Film.pictures

    def counted(self, *values):
        calls.append(values[1:])
        return inherited(self, *values)

    monkeypatch.setattr(Film, "pictures", counted)
    door.run(noise(6, 32, 32), noise(3, 32, 32), fps=0.0, start=1, frames=2)
    assert calls == [(1, 3), (1, 3)]


def test_a_rate_of_television_is_kept(door, noise):
    found = door.run(noise(3, 32, 32), noise(3, 32, 32), fps=23.976)
    assert found.described()["times"] == pytest.approx([0, 1 / 23.976, 2 / 23.976], abs=1e-5)
    assert probe(found.file).times == pytest.approx([0, 1 / 23.976, 2 / 23.976], abs=1 / 90000)  # what MP4 counts in
