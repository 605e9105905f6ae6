"""The training code at toy size: exact flow, batches, losses, all stages, resume, export, Muon."""

import json

import numpy as np
import pytest
import torch
from cascadevsr.models.checkpoints import load_state, strip_prefix
from cascadevsr.models.motion.flow import warp
from cascadevsr.models.unimmvsr.checkpoint import dit_config, open_state, vae_config
from cascadevsr.models.unimmvsr.dit import DiTConfig
from cascadevsr.models.unimmvsr.vae import VAEConfig
from cascadevsr.training import builtin, restorer, stages
from cascadevsr.training.batches import BatchMaker, Pool
from cascadevsr.training.clips import (
    CELL,
    _any_turn,
    in_other_light,
    keep_part,
    make_clip,
    make_reference,
    soften,
)
from cascadevsr.training.loop import CURVE, LOG, read_log
from cascadevsr.training.losses import flicker, lattice, pixel_loss, texture
from cascadevsr.training.muon import Muon, orthogonalise
from cascadevsr.training.photos import corpus_hash, find_photos, load_photo, procedural_photo


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    drawn = (procedural_photo(rng, 220) for _ in range(60))
    # thin lines are not where bilinear sampling twice gives the same
    return [photo for photo in drawn if photo.name in ("noise", "polygons")][:3]


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
    assert a.references and all(r.shape[:3] == (2, 3, 1) for r in a.references)
    assert all(r.shape[3] == r.shape[4] in (32, 48) for r in a.references)
    maker = BatchMaker(photos, 3, textures=1)
    assert [tuple(r.shape) for r in maker.unrelated(2, 5, 32, "video")] == [(2, 3, 5, 32, 32)]
    assert maker.unrelated(2, 5, 32, "none") == []
    video = BatchMaker(photos, 3, textures=1).draw(2, 5, 32, "video").references
    assert [tuple(r.shape) for r in video] == [(2, 3, 5, 32, 32)]


def cells_of(picture):
    cells = picture[0].unfold(1, CELL, CELL).unfold(2, CELL, CELL)
    return cells.permute(1, 2, 0, 3, 4)


def test_identity_images_of_the_first_kind_show_the_clip_at_whole_cells(photos):
    frames = make_clip(np.random.default_rng(2), photos, 2, 64, layers=0).frames[:1]
    places = set()
    for seed in range(12):
        picture = make_reference(np.random.default_rng(seed), frames, 96, whole_cells=1.0)
        ours, seen = (cells.flatten(0, 1) for cells in (cells_of(frames), cells_of(picture)))
        errors = (seen[:, None] / seen[:, None].mean((-3, -2, -1), True) - ours / ours.mean((-3, -2, -1), True)).abs()
        errors = errors.mean((-3, -2, -1))  # of every cell of the picture beside every cell of the clip
        found = errors.amin(0) < 0.01
        places.add(int(errors[:, found].argmin(0)[0]))
        assert found.float().mean() >= 0.25, "half of the rows and half of the columns at least are in the picture"
    assert len(places) > 3


@pytest.mark.parametrize("seed", range(3))
def test_soft_clips_have_less_detail_and_the_same_motion(photos, seed):
    sharp = make_clip(np.random.default_rng(seed), photos, 3, 64, layers=1)
    soft = soften(np.random.default_rng(seed), sharp)

    def detail(frames):
        return frames.diff(dim=-1).abs().mean() + frames.diff(dim=-2).abs().mean()

    for name in ("frames", "plain"):
        assert 0.2 < detail(getattr(soft, name)) / detail(getattr(sharp, name)) < 0.95
        assert (getattr(soft, name).mean() - getattr(sharp, name).mean()).abs() < 5e-3
    assert soft.flow is sharp.flow and soft.visible is sharp.visible and soft.layer is sharp.layer


def test_photographs_are_laid_in_all_eight_ways():
    corner = np.zeros((4, 4))
    corner[0, 1] = 1.0
    y, x = np.mgrid[:4, :4]
    ways = set()
    for seed in range(60):
        u, v, _ = _any_turn(np.random.default_rng(seed), 4) @ np.stack((x, y, np.ones_like(x))).reshape(3, -1)
        ways.add(tuple(corner[v.astype(int), u.astype(int)]))
    assert len(ways) == 8


def test_relit_clips_keep_their_motion_and_their_pair(photos):
    clip = make_clip(np.random.default_rng(2), photos, 3, 64, layers=1)
    lit = [in_other_light(np.random.default_rng(seed), clip) for seed in range(6)]
    assert all(x.frames.min() >= 0 and x.frames.max() <= 1 and x.flow is clip.flow for x in lit)
    assert len({round(float(x.frames.mean()), 4) for x in lit}) == 6
    kept = (clip.frames == clip.plain).all(1, keepdim=True).expand_as(clip.frames)
    assert all(torch.equal(x.frames[kept], x.plain[kept]) for x in lit), "a take and its edit are lit alike"


def test_a_share_of_clips_is_soft(photos):
    def drawn(soft):
        return BatchMaker(photos, 9, textures=0, soft=soft).draw(1, 3, 64, "none", "bicubic").clip

    assert (drawn(0.0).diff(dim=-1).abs().mean() > 1.05 * drawn(1.0).diff(dim=-1).abs().mean()).item()


def test_an_edit_keeps_one_side_of_a_moving_outline(photos):
    rng = np.random.default_rng(4)
    frames, other = (make_clip(rng, photos, 5, 64, layers=0).frames for _ in range(2))
    for seed in range(8):
        taken = keep_part(np.random.default_rng(seed), frames, other)
        kept = ((taken - frames).abs().amax(1) < 1e-6).float().mean()
        assert taken.shape == frames.shape and 0.02 < kept < 0.98


def test_some_references_are_of_something_else(photos):
    shares = []
    for share in (0.0, 1.0):
        batch = BatchMaker(photos, 9, textures=0, wrong=share).draw(6, 5, 64, "video")
        still = (batch.references[0] - batch.clip).abs().flatten(1).median(1).values
        shares.append(float((still < 0.02).float().mean()))
    assert shares[0] > shares[1]


def test_unrelated_references_are_trained_to_change_nothing(monkeypatch):
    torch.manual_seed(4)
    config = VAEConfig(encoder_width=8, latent_width=8, feature_width=8, restore_width=8, restore_blocks=1)
    networks = stages.Networks(config, DiTConfig(width=32, depth=1, heads=2))
    for parameter in networks.dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    truth, lr, right, other = (torch.randn(2, 16, 2, 4, 4) for _ in range(4))

    def loss(neutral, *references):
        torch.manual_seed(5)
        monkeypatch.setattr(stages, "NEUTRAL", neutral)
        return stages.dit_loss(networks, stages.Latents(truth, lr, *references), np.random.default_rng(6)).detach()

    monkeypatch.setattr(stages, "ALONE_SHARE", 1.0)
    nothing = loss(5.0, [], [])
    assert loss(0.0, [right], [other]) == nothing, "the step goes without references"
    assert loss(5.0, [right], [other]) > nothing * 1.001, "what unrelated ones change is counted"
    assert loss(5.0, [right], [lr]) != loss(5.0, [right], [other])
    monkeypatch.setattr(stages, "ALONE_SHARE", 0.0)
    assert loss(5.0, [right], [other]) == loss(0.0, [right], []) != nothing, "else references are seen"


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
    truth = BatchMaker(photos, 3, textures=0).draw(1, 3, 64).clip
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


TINY = "--latent-batch 1 5 32 --clean-batch 2 13 160 --worn-batch 2 13 160 --judge-batch 2 5 160"
TINY += " --dit-batch 1 5 32 --complete-batch 1 5 32"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(builtin, "NORMALISING", 1)
    monkeypatch.setattr(builtin, "Maker", lambda *options, **_: restorer.Maker(*options, textures=1))
    monkeypatch.setattr(builtin, "figures_of", lambda *_: {"gain": 0.0})
    monkeypatch.setattr(builtin, "judge_figures_of", lambda *_: {"right": 0.0})
    monkeypatch.setattr(restorer, "LOOKED_AT", (2, 40))
    monkeypatch.setattr(restorer, "STILLS", 2)
    monkeypatch.setattr(restorer, "CLIPS", 1)
    monkeypatch.setattr(builtin, "BatchMaker", lambda photos, seed, **_: BatchMaker(photos, seed, textures=1))
    monkeypatch.setattr(builtin, "validate", lambda *_: {"gain": 0.0})
    monkeypatch.setattr(builtin, "VAEConfig", lambda **_: VAEConfig(4, 8, 12, 10, 8, 1, 2))
    monkeypatch.setattr(builtin, "DiTConfig", lambda **_: DiTConfig(4, 48, 1, 2, 2))


def train(folder, work, steps, more=""):
    steps = " ".join(f"--{stage}-steps {steps}" for stage in builtin.STAGES)
    paths = f"--photos {folder} --hold-out held --work {work} --out {work / 'weights.safetensors'}"
    builtin.main(f"{paths} --device cpu --every 2 {TINY} {steps} {more}".split())


def test_all_stages_train_and_export(folder, tmp_path, small):
    train(folder, tmp_path, 1, "--complete-steps 2")
    state, metadata = load_state(tmp_path / "weights.safetensors")
    assert open_state(state, tmp_path / "weights.safetensors") and metadata["architecture"] == "unimmvsr"
    assert all(key.startswith(("vae.", "dit.")) for key in state), "what only training needs is not shipped"
    assert dit_config(strip_prefix(state, "dit.")).width == 48
    assert vae_config(strip_prefix(state, "vae.")).feature_width == 10
    facts = json.loads((tmp_path / "weights.json").read_text())
    assert facts["photographs"] == ["a.png", "b.png", "tiny.png"] and facts["held_out"] == ["held.png"]
    assert [(f["stage"], f["step"]) for f in facts["figures"]] == [
        (name, 1 + (name == "complete")) for name in builtin.STAGES
    ]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_stage_computes_in_the_precision_asked_for(folder, tmp_path, small):
    for precision in ("bf16", "fp32"):
        train(folder, tmp_path / precision, 2, f"--only clean --precision {precision}")
    losses = [[line["loss"] for line in read_log(tmp_path / name / "clean" / LOG)] for name in ("bf16", "fp32")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_stage_needs_those_before_it(folder, tmp_path, small):
    with pytest.raises(ValueError, match="stage latent must be done before dit"):
        train(folder, tmp_path, 1, "--only dit")


def test_weights_go_on_without_the_stages_before(folder, tmp_path, small):
    first, second = tmp_path / "first", tmp_path / "second"
    train(folder, first, 1)
    before = load_state(first / "weights.safetensors")[0]
    train(folder, second, 1, f"--only complete --start {first / 'weights.safetensors'}")
    after = load_state(second / "weights.safetensors")[0]
    trained = ("vae.decoder.complete.", "vae.decoder.latent.")
    assert all(torch.equal(value, after[key]) for key, value in before.items() if not key.startswith(trained))
    assert any(not torch.equal(value, after[key]) for key, value in before.items() if key.startswith(trained))


def test_clips_that_are_too_short_for_the_restorer_are_refused(folder, tmp_path, small):
    with pytest.raises(
        ValueError, match="--clean-batch needs clips of at least 13 frames, 6 to each .*; got 5. Use 13"
    ):
        train(folder, tmp_path, 1, "--clean-batch 2 5 160")


def test_shares_must_add_up(folder, tmp_path, small):
    with pytest.raises(ValueError, match="--shares must add up to 1"):
        train(folder, tmp_path, 1, "--shares 0.5 0.5 0.5")


def test_larger_batches_are_of_lengths_and_sides_that_the_vae_takes():
    drawn = {builtin.larger(np.random.default_rng(seed), 5, 9, 128) for seed in range(40)}
    assert len(drawn) == len(builtin.LARGER)
    assert all(size <= 5 and count % 4 == 1 and side % 16 == 0 for size, count, side in drawn)
    assert max(count for _, count, _ in drawn) > 21 and max(side for *_, side in drawn) > 256


@pytest.mark.parametrize("stage", list(builtin.STAGES))
def test_a_killed_run_resumes_to_the_same_numbers(folder, tmp_path, small, monkeypatch, stage):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for work in (whole, killed):
        for earlier in builtin.STAGES[stage]:
            train(folder, work, 1, f"--only {earlier}")
    train(folder, whole, 5, f"--only {stage}")
    step = builtin.Loop._one_step

    def killed_in_the_fourth(loop):
        if loop.step == 3:
            raise KeyboardInterrupt
        return step(loop)

    with monkeypatch.context() as patch:
        patch.setattr(builtin.Loop, "_one_step", killed_in_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            train(folder, killed, 5, f"--only {stage}")
    train(folder, killed, 5, f"--only {stage}")
    losses = [[line["loss"] for line in read_log(work / stage / LOG)] for work in (whole, killed)]
    assert len(losses[0]) == 5 and losses[0] == losses[1]
    results = [torch.load(work / stage / "result.pt", weights_only=True) for work in (whole, killed)]
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
    assert (whole / stage / CURVE).exists()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch 2.9 brought its own Muon")
@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (12, 12)])
def test_muon_takes_the_steps_of_pytorchs_own(shape):
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    target, start = torch.randn(shape), ours.detach().clone()
    optimisers = Muon([ours], lr=0.05), torch.optim.Muon([theirs], lr=0.05, weight_decay=0.0)
    for _ in range(20):
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            parameter.grad = parameter.detach() - target
            optimiser.step()
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm(), "bf16 rounds the momentum's other scale otherwise"


def test_muon_brings_singular_values_near_one_and_descends():
    torch.manual_seed(0)
    for shape in ((24, 40), (40, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
        assert values.min() > 0.6 and values.max() < 1.3
    layer, data = torch.nn.Linear(16, 16), torch.randn(64, 16)
    target = data @ torch.randn(16, 16) + 1
    optimiser = Muon(layer.parameters(), lr=0.1)
    losses = []
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        loss = (layer(data) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.01 * losses[0]


def test_the_pool_depends_on_the_step_alone():
    drawn = []

    def draw(number):
        drawn.append(number)
        return number

    pool = Pool(draw, 3, size=4, fresh=3)
    seen = [pool.at(step) for step in range(60)]
    assert seen[::3] == list(range(20)) and len(drawn) == 20, "every third step is new, and nothing is drawn twice"
    assert any(number != step // 3 for step, number in enumerate(seen))
    assert all(step // 3 - 4 < number <= step // 3 for step, number in enumerate(seen))
    assert [Pool(draw, 3, size=4, fresh=3).at(step) for step in (31, 7, 58)] == [seen[31], seen[7], seen[58]]


def test_turned_batches_keep_their_flow(photos):
    batch = BatchMaker(photos, 5, textures=0).draw(2, 3, 64, "video")
    rng = np.random.default_rng(1)
    for _ in range(6):
        turned = batch.turned(rng)
        frames = turned.clip[0].transpose(0, 1)
        error = (warp(frames[1:], turned.flow[0]) - frames[:-1]).abs() * turned.visible[0]
        assert error.mean() < 0.04
    assert turned.references[0].shape == batch.references[0].shape
