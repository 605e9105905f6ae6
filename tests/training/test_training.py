"""The training code at toy size: exact flow, degradations, losses, both stages, resume, export."""

import json

import numpy as np
import pytest
import torch
from cascadevsr.models.checkpoints import load_state, strip_prefix
from cascadevsr.models.motion.warp import warp
from cascadevsr.models.unimmvsr.config import dit_config, is_unimmvsr, vae_config
from cascadevsr.training import builtin
from cascadevsr.training.batches import BatchMaker
from cascadevsr.training.clips import make_clip
from cascadevsr.training.losses import flicker, lattice, pixel_loss, texture
from cascadevsr.training.photos import corpus_hash, find_photos, load_photo, procedural_photo


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [procedural_photo(rng, 220) for _ in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    for name in ("a", "b", "held", "page"):
        small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize((280, 210)).save(folder / f"{name}.png")
    Image.new("RGB", (20, 20)).save(folder / "tiny.png")
    return folder


@pytest.mark.parametrize("seed", range(4))
def test_flow_is_exact_where_visible(photos, seed):
    clip = make_clip(np.random.default_rng(seed), photos, 4, 64, layers=2)
    assert clip.frames.shape == (4, 3, 64, 64) and clip.flow.shape == (3, 2, 64, 64)
    error = (warp(clip.frames[1:], clip.flow) - clip.frames[:-1]).abs() * clip.visible
    still = (clip.frames[1:] - clip.frames[:-1]).abs() * clip.visible
    assert error.mean() < 0.02
    assert error.mean() <= still.mean() + 1e-6


def test_batches_are_reproducible_and_whole(photos):
    a, b = (BatchMaker(photos, 3, textures=1).draw(2, 5, 32, "images") for _ in range(2))
    assert torch.equal(a.clip, b.clip) and torch.equal(a.base, b.base)
    assert a.clip.shape == a.base.shape == a.smooth.shape == (2, 3, 5, 32, 32)
    assert all(r.shape == (2, 3, 1, 32, 32) for r in a.references) and a.references
    video = BatchMaker(photos, 3, textures=1).draw(2, 5, 32, "video").references
    assert [tuple(r.shape) for r in video] == [(2, 3, 5, 32, 32)]


def test_mirrored_clips_keep_their_flow(photos):
    maker = BatchMaker(photos, 5, textures=0)
    for _ in range(6):
        clip = maker._clip(3, 64)
        error = (warp(clip.frames[1:], clip.flow) - clip.frames[:-1]).abs() * clip.visible
        assert error.mean() < 0.02


def test_losses_are_zero_only_without_error(photos):
    batch = BatchMaker(photos, 1, textures=0).draw(1, 3, 32)
    nothing = pixel_loss(batch.clip, batch.clip, batch.flow, batch.visible)
    assert nothing < 2e-3  # the Charbonnier's floor
    assert pixel_loss(batch.base, batch.clip, batch.flow, batch.visible) > nothing
    steady = torch.ones_like(batch.clip) * 0.1
    assert flicker(steady, batch.flow, batch.visible) < 1e-6
    steady[:, :, 1] *= -1
    assert flicker(steady, batch.flow, batch.visible) > 1e-3


def test_a_regular_pattern_is_no_detail_and_is_a_lattice(photos):
    truth = BatchMaker(photos, 1, textures=0).draw(1, 3, 64).clip
    soft = truth.flatten(0, 2)
    soft = torch.nn.functional.avg_pool2d(soft, 3, 1, 1).view_as(truth)
    assert texture(truth, truth) < 1e-7 and lattice(truth, truth) == 0
    assert texture(soft, truth) > 1e-3
    cell = torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1], [1, -1, 1, -1], [-1, 1, -1, 1]]).repeat(16, 16)
    patterned = soft + 0.02 * cell
    assert texture(patterned, truth) > 0.97 * texture(soft, truth), "no reward for what the truth has not"
    assert lattice(patterned, truth) > lattice(soft, truth) + 0.01


def test_photos_are_found_excluded_and_hashed(folder, tmp_path):
    found = find_photos([folder], exclude=["page"])
    assert [p.stem for p in found] == ["a", "b", "held", "tiny"]
    assert load_photo(folder / "tiny.png") is None
    assert load_photo(folder / "a.png").levels[0].shape == (3, 210, 280)
    assert corpus_hash(found) != corpus_hash(found[:2])
    with pytest.raises(ValueError, match="no pictures"):
        find_photos([tmp_path])
    with pytest.raises(FileNotFoundError, match="--photos"):
        find_photos([tmp_path / "missing"])


def test_both_stages_train_resume_and_export(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "validate", lambda *_: {"gain": 0.0})
    monkeypatch.setattr(builtin, "VAEConfig", lambda **_: builtin_vae(4, 8, 12, 10, 1))
    monkeypatch.setattr(builtin, "DiTConfig", lambda **_: builtin_dit(4, 48, 1, 2, 2))
    out = tmp_path / "weights.safetensors"
    arguments = f"--photos {folder} --hold-out held --work {tmp_path} --out {out} --device cpu --every 1"
    arguments += " --vae-batch 1 5 32 --dit-batch 1 5 32 --vae-steps 1 --dit-steps {}"
    builtin.main(arguments.format(1).split())
    assert is_unimmvsr(load_state(out)[0])
    builtin.main(arguments.format(2).split())  # goes on from the checkpoint
    state, metadata = load_state(out)
    assert metadata["architecture"] == "unimmvsr"
    assert dit_config(strip_prefix(state, "dit.")).width == 48
    assert vae_config(strip_prefix(state, "vae.")).refine_width == 10
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["photographs"] == ["a.png", "b.png", "tiny.png"] and facts["held_out"] == ["held.png"]
    assert [(f["stage"], f["step"]) for f in facts["figures"]] == [("vae", 1), ("cascade", 1), ("cascade", 2)]
    assert not (tmp_path / "state.tmp").exists()


builtin_vae, builtin_dit = builtin.VAEConfig, builtin.DiTConfig
