"""What the restorer is trained on: windows whose LR, neighbours and motion belong together; weights of 0.1.0 go on."""

import numpy as np
import pytest
import torch
from cascadevsr.models.checkpoints import CheckpointError, save_state
from cascadevsr.models.motion.flow import warp
from cascadevsr.models.pixels.degradation import resize
from cascadevsr.models.unimmvsr import checkpoint
from cascadevsr.models.unimmvsr.dit import DiTConfig
from cascadevsr.models.unimmvsr.restorer import Restorer
from cascadevsr.models.unimmvsr.vae import VAEConfig
from cascadevsr.training import builtin, restorer
from cascadevsr.training.photos import Photo, procedural_photo
from cascadevsr.training.stages import Networks


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(3)
    return [Photo(str(k), procedural_photo(rng, 320).levels) for k in range(3)]


@pytest.fixture(scope="module")
def maker(photos):
    return restorer.Maker(photos, 1, 160, 2 * restorer.REACH + 1, textures=0)


@pytest.mark.parametrize("scale", restorer.SCALES[:-1])
def test_windows_are_the_same_place_at_every_scale(maker, monkeypatch, scale):
    monkeypatch.setattr(restorer, "SCALES", (scale,))
    monkeypatch.setattr(restorer, "SCALE_SHARES", (1.0,))
    monkeypatch.setattr(maker, "clean_share", 1.0)
    monkeypatch.setattr(restorer, "CLIPS", 1)
    monkeypatch.setattr(restorer, "draw_degradation", lambda rng, preset: restorer_free(preset))
    rng = np.random.default_rng(0)
    moving = restorer.clip_windows(maker.clips(1), 3, 160, rng, restorer.NEIGHBOURS, spoiled=0.0)
    still = restorer.still_windows(maker.stills(1), 3, rng)
    panned = restorer.still_windows(maker.stills(1), 3, rng, restorer.NEIGHBOURS, spoiled=0.0)
    for windows in (moving, still, panned):
        assert windows.truth.shape[-1] == 160 and windows.low.shape[-1] == round(160 / scale)
        low = resize(windows.truth, *windows.low.shape[-2:], "bicubic")
        inside = (..., slice(3, -3), slice(3, -3))
        assert (low - windows.low)[inside].abs().mean() < 0.006, "rounding, and what windows do not see beyond the edge"
    for other, there, back in moving.neighbours + panned.neighbours:
        assert other.shape == moving.low.shape and there.shape == back.shape == (3, 2, *other.shape[-2:])


def restorer_free(preset):
    """The reduction alone."""
    from cascadevsr.models.pixels.degradation import Degradation

    assert preset == "bicubic"
    return Degradation(last_filter="bicubic")


def test_motion_leads_to_the_neighbours_and_is_turned_with_the_pictures(maker):
    moving = maker.clips(0, "bicubic")
    for seed in range(8):  # every turn, forwards and backwards
        windows = restorer.clip_windows(moving, 2, 160, np.random.default_rng(seed), restorer.NEIGHBOURS, spoiled=0.0)
        apart = sum(float((windows.low - other).abs().mean()) for other, *_ in windows.neighbours)
        along = sum(float((windows.low - warp(other, there)).abs().mean()) for other, there, _ in windows.neighbours)
        assert along < 0.75 * apart, "motion that is turned wrongly leaves more than none"
        away = sum(float((other - warp(windows.low, back)).abs().mean()) for other, _, back in windows.neighbours)
        assert away < 0.75 * apart


def test_the_motion_of_panned_stills_is_exact(maker, monkeypatch):
    monkeypatch.setattr(restorer, "SCALE_SHARES", (1.0, *(0.0 for _ in restorer.SCALES[1:])))
    monkeypatch.setattr(maker, "clean_share", 1.0)
    monkeypatch.setattr(restorer, "draw_degradation", lambda rng, preset: restorer_free(preset))
    stills = maker.stills(4)
    assert (stills.pan == 0).all(1).any() and stills.pan.abs().max() > 2
    inside = (..., slice(4, -4), slice(4, -4))
    for seed in range(6):
        windows = restorer.still_windows(stills, 8, np.random.default_rng(seed), restorer.NEIGHBOURS, spoiled=0.0)
        for other, there, back in windows.neighbours:
            assert torch.equal(there, -back)
            wrong = (windows.low - warp(other, there))[inside].abs().mean((1, 2, 3))
            apart = (windows.low - other)[inside].abs().mean((1, 2, 3))
            assert (wrong[there.abs().amax((1, 2, 3)) == 0] < 1e-6).all()
            moved = apart > 0.02
            assert (wrong[moved] < apart[moved]).all()


def test_spoiled_motion_is_wrong_by_the_same_on_both_ways(maker):
    moving = maker.clips(2, "bicubic")
    plain, spoiled = (
        restorer.clip_windows(moving, 8, 160, np.random.default_rng(1), (1,), spoiled=amount).neighbours[0]
        for amount in (0.0, 0.3)
    )
    wrong = (spoiled[1] - plain[1]).flatten(1).abs().amax(1)
    assert (wrong == 0).any() and (wrong > 0.01).any()
    torch.testing.assert_close(spoiled[1] - plain[1], plain[2] - spoiled[2], rtol=0, atol=1e-5)


def test_an_untrained_restorer_is_bicubic_and_learns(maker):
    torch.manual_seed(0)
    networks = Networks(VAEConfig(4, 8, 12, 10, 8, 1, 2), DiTConfig(4, 48, 1, 2, 2))
    draws = restorer.Draws(maker, (2, 13, 160), 5, 4, 4)
    windows = draws.at(3)
    assert torch.equal(windows.truth, draws.at(3).truth), "a step's windows depend on its number alone"
    network: Restorer = networks.vae.decoder.restore.clean
    loss, figures = restorer.window_loss(network, windows)
    assert all(abs(gain) < 1e-3 for gain in figures.values())
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(12):
        optimiser.zero_grad()
        restorer.window_loss(network, windows)[0].backward()
        optimiser.step()
    assert restorer.window_loss(network, windows)[0] < loss


def test_the_judge_learns_to_tell_worn_frames(photos):
    torch.manual_seed(0)
    maker = restorer.Maker(photos, 1, 160, 9, textures=0)
    judge = Networks(VAEConfig(4, 8, 12, 10, 8, 1, 2), DiTConfig(4, 48, 1, 2, 2)).vae.decoder.restore.judge
    draws = restorer.JudgeDraws(maker, 5, 4, 30)
    frames, worn = draws.at(3)
    assert torch.equal(frames, draws.at(3)[0]), "a step's windows depend on its number alone"
    assert len(frames) == len(worn) == restorer.LOOKED_AT[0] and 0 < worn.mean() < 1
    optimiser = torch.optim.Adam(judge.parameters(), 3e-3)
    for step in range(120):
        optimiser.zero_grad()
        restorer.judge_loss(judge, draws.at(step))[0].backward()
        optimiser.step()
    with torch.no_grad():
        right = [
            restorer.judge_loss(judge, restorer.JudgeDraws(maker, 9, 4, 1).at(step))[1]["right"] for step in (90, 91)
        ]
    assert np.mean(right) > 0.75, "draws that it has not seen"


def test_a_file_holds_the_weights_for_worn_frames_as_small_differences(tmp_path):
    torch.manual_seed(0)
    networks = Networks(VAEConfig(4, 8, 12, 10, 8, 1, 2), DiTConfig(4, 48, 1, 2, 2))
    restore = networks.vae.decoder.restore
    for clean, worn in zip(restore.clean.parameters(), restore.worn.parameters(), strict=True):
        worn.data = clean.data + 0.004 * torch.randn_like(clean)
    state = networks.state_dict()
    file = tmp_path / "own.safetensors"
    save_state(file, checkpoint.packed(state))
    back = checkpoint.open_release(file).vae
    assert back.keys() == networks.vae.state_dict().keys()
    for name in ("clean", "worn"):
        key = f"decoder.restore.{name}.steps.1.into.weight"
        torch.testing.assert_close(back[key].float(), state["vae." + key], rtol=0, atol=1e-3)
    change = [back[f"decoder.restore.{name}.head.weight"].float() for name in ("clean", "worn")]
    assert (change[1] - change[0]).std() > 0.003


def test_weights_of_the_first_version_are_named_and_can_be_trained_on(tmp_path):
    torch.manual_seed(0)
    networks = Networks(VAEConfig(), DiTConfig(4, 48, 1, 2, 2))
    old = {key: value for key, value in networks.state_dict().items() if not key.startswith("vae.decoder.restore.")}
    old["vae.decoder.refine.lr_in.weight"] = torch.zeros(64, 55, 3, 3)
    name = "vae.decoder.complete.conv_in.weight"
    old[name] = torch.randn(64, 48 + 48 + 64 + 64, 3, 3)
    with pytest.raises((ValueError, CheckpointError), match=r"those of version 0.1.0.*run.py train --start"):
        checkpoint.open_state(old, tmp_path / "old.safetensors")
    kept = builtin._without_refinement(old)
    networks.load_state_dict(kept, strict=False)
    assert checkpoint.open_state(networks.state_dict(), tmp_path / "new.safetensors")
    assert torch.equal(networks.state_dict()[name][:, :160], old[name][:, :160])
    assert not networks.state_dict()[name][:, 160:].any()
    new = networks.state_dict()
    assert builtin._without_refinement(new) == new
