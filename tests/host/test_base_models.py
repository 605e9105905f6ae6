"""The training-free refine behind any base model: the host's own families, with nothing of them named."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from .base_models import FAMILIES, make_model, make_prompt, make_vae

NAMES = list(FAMILIES)
_BAR = 1.1  # a joint may differ by this much more than it does without tiles and windows


@pytest.fixture(scope="module")
def bases(core):
    """MODEL, VAE and prompt of every family."""
    with torch.inference_mode():
        return {
            name: SimpleNamespace(model=make_model(name), vae=make_vae(name), prompt=make_prompt(name), **vars(family))
            for name, family in FAMILIES.items()
        }


@pytest.fixture
def refine(core):
    """Run the graph of the cascade: refine(base, clip, tile=, window=, hooks=, start=, steps=, estimate=) -> LATENT."""

    def run(base, clip, tile=None, window=None, hooks=True, start=0.4, steps=2, estimate=False):
        from cascadevsr.models.motion.estimation import Motion
        from cascadevsr.nodes.low_frequency import LowFrequencyTie
        from cascadevsr.nodes.motion import EstimateMotion, LatentPropagation, LoadFlowModel
        from cascadevsr.nodes.motion_guidance import MotionGuidance
        from cascadevsr.nodes.sampling import AddressedNoise, RefineSigmas

        model, whole = base.model, {"steps": "percent range", "start_percent": 0.0, "end_percent": 1.0}
        if hooks:
            flow = torch.full((len(clip.low) - 1, 2, *clip.low.shape[1:3]), 0.5)
            motion = Motion(flow, -flow, (), len(clip.low), *clip.low.shape[1:3])
            if estimate:
                flow_model = LoadFlowModel.execute("built-in").args[0]
                motion = EstimateMotion.execute(clip.low, flow_model).args[0]
            model = LatentPropagation.execute(model, motion, whole, "both", 0.3, "nearest", 0.001, 0.05).args[0]
            model = MotionGuidance.execute(model, motion, 0.5, 0.0, 1.0, "both", "default").args[0]
            model = LowFrequencyTie.execute(model, 0.5, 4.0, 0.0, 1.0, clip.tie).args[0]
        model = windowed(tiled(model, tile), window)
        guider = core.custom.CFGGuider.execute(model, clip.positive, clip.negative, 2.0).args[0]
        sigmas = RefineSigmas.execute(model, start, steps, 1.0).args[0]
        sampler = core.custom.KSamplerSelect.execute("euler").args[0]
        noise = AddressedNoise(3)
        return core.custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, clip.latent).args[0]

    return run


def tiled(model, tile):
    from cascadevsr.nodes.tiling import SpatialTiles

    if tile is None:
        return model
    size = dict(zip(("tile_height", "tile_width", "overlap"), tile, strict=True))
    return SpatialTiles.execute(model, {"tiling": "manual", **size}).args[0]


def windowed(model, window):
    from cascadevsr.nodes.tiling import TemporalWindows

    if window is None:
        return model
    settings = {"windows": "manual", "window": window[0], "overlap": window[1]}
    return TemporalWindows.execute(model, settings).args[0]


def prepared(model):
    """Give a model's options with its wrappers, as the host's guider makes them before it estimates memory."""
    return {**model.model_options, "transformer_options": {"wrappers": model.wrappers}}


def make_clip(base, frames, rows, columns):
    """Make a moving clip, and bring it to rows x columns cells of the base model's latent."""
    from cascadevsr.nodes.frames import CascadeInput
    from cascadevsr.runner.sample import make_sample

    height, width = rows * base.space - 2, columns * base.space - 3
    low = np.stack(make_sample(frames, 160, 128).low)  # 40x32 px, whatever the family makes of it
    low = torch.from_numpy(low).float() / 255
    target = {"target": "exact size", "height": height, "width": width}
    latent, low = CascadeInput.execute(base.vae, target, "bilinear", frames=low).args[:2]
    return SimpleNamespace(
        latent=latent,
        tie=latent,
        low=low,
        size=(frames, height, width),
        positive=base.prompt,
        negative=base.prompt,
    )


def _frames(base, latents):
    return 1 + base.time * (latents - 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_graph_runs_and_ends_at_the_exact_size(bases, refine, name):
    from cascadevsr.nodes.frames import TemporalDecode

    base = bases[name]
    clip = make_clip(base, _frames(base, 4) - 2, 12, 16)
    tile = tuple(base.space * cells for cells in (8, 8, 4))
    result = refine(base, clip, tile, (_frames(base, 3), base.time), estimate=True)
    assert result["samples"].shape == clip.latent["samples"].shape == (1, base.channels, 4, 12, 16)
    assert torch.isfinite(result["samples"]).all()
    moved = (result["samples"] - clip.latent["samples"]).abs().mean()
    assert moved > 0.01 * clip.latent["samples"].abs().mean()
    frames = TemporalDecode.execute(result, base.vae, 1.0, 16, 0).args[0]
    assert frames.shape == (*clip.size, 3) and torch.isfinite(frames).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_start_near_zero_keeps_the_clip(bases, refine, name):
    """What is sampled begins at the low-resolution latent, in the scale that the model's latent format has."""
    base = bases[name]
    clip = make_clip(base, _frames(base, 2), 4, 4)
    result = refine(base, clip, hooks=False, start=0.01, steps=1)["samples"]
    far = refine(base, clip, hooks=False, start=0.9, steps=1)["samples"]
    start = clip.latent["samples"]
    assert (result - start).abs().mean() < 0.1 * (far - start).abs().mean()


@pytest.mark.parametrize("name", NAMES)
def test_a_tile_and_a_window_of_everything_are_none(bases, refine, name):
    base = bases[name]
    clip = make_clip(base, _frames(base, 3), 4, 6)
    plain = refine(base, clip)["samples"]
    whole = (4 * base.space, 6 * base.space, base.space)
    assert torch.equal(refine(base, clip, whole, (_frames(base, 3), base.time))["samples"], plain)


def _seam(x, dim, joints):
    """Compare the differences along `dim` at the joints with the others: (t, h, w, c) -> number."""
    steps = x.diff(dim=dim).abs().mean([other for other in range(4) if other != dim])
    at = torch.zeros(len(steps), dtype=torch.bool)
    at[torch.tensor(sorted(joints))] = True
    return float(steps[at].mean() / steps[~at].mean())


@pytest.mark.parametrize("name", NAMES)
def test_no_seam_at_tiles_and_windows(bases, refine, name):
    from cascadevsr.models.layout.pieces import plan_windows, spread_windows

    base = bases[name]
    clip = make_clip(base, _frames(base, 7), 1, 1)
    generator, shape = torch.Generator().manual_seed(0), (1, base.channels, 9, 16, 20)
    smooth = torch.nn.functional.avg_pool3d(torch.randn(shape, generator=generator), 3, 1) * 3
    clip.latent = clip.tie = {"samples": smooth}  # 7 x 14 x 18 cells; the graph from pixels runs above
    tile, window = tuple(base.space * cells for cells in (8, 10, 4)), (_frames(base, 4), 2 * base.time)
    cut = refine(base, clip, tile, window)["samples"][0].permute(1, 2, 3, 0)
    whole = refine(base, clip)["samples"][0].permute(1, 2, 3, 0)
    assert not torch.equal(cut, whole)
    windows = plan_windows(7, 4, 2)
    starts = {step for each in windows[1:] for step in (each.start - 1, each.start, each.start + 1)}
    assert _seam(cut, 0, starts) < _BAR * _seam(whole, 0, starts)
    for dim, length, side in ((1, 14, 8), (2, 18, 10)):
        plan = spread_windows(length, side, 4)
        edges = {edge - 1 for each in plan for edge in (each.start, each.stop) if 0 < edge < length}
        assert _seam(cut, dim, edges) < _BAR * _seam(whole, dim, edges)


@pytest.mark.parametrize("name", NAMES)
def test_motion_reaches_every_latent_frame_at_the_familys_own_rate(bases, name):
    """A latent frame stands for the last of its frames: 4 or 8 frames apart, as the latent format says."""
    from cascadevsr.models.motion.estimation import Motion

    base = bases[name]
    time = base.model.get_model_object("latent_format").temporal_downscale_ratio
    assert time == base.time
    frames = _frames(base, 3)
    flow = torch.zeros(frames - 1, 2, 32, 32)
    flow[:, 0] = 1.0  # one px a frame
    motion = Motion(flow, -flow, (2 * time,), frames, 32, 32)
    there, back = motion.on_grid(3, 8, 8, time)
    assert there.shape == (1, 2, 2, 8, 8) and torch.allclose(there[0, 0, 0, 4, 2], torch.tensor(time / 4.0))
    assert torch.allclose(back[0, 0, 0, 4, 6], torch.tensor(-time / 4.0)) and motion.latent_cuts(time) == (2,)


def test_guide_frames_of_ltx_are_left_alone(core, bases, refine, noise):
    """LTX appends guide frames to the clip: they are no frames of it, and no motion leads to them."""
    from cascadevsr.nodes.frames import TemporalDecode
    from comfy_extras.nodes_lt import LTXVAddGuide, LTXVCropGuides

    base = bases["ltxv"]
    clip = make_clip(base, 33, 4, 4)
    guided = LTXVAddGuide.execute(
        base.prompt, base.prompt, base.vae, clip.latent, noise(1, 4 * base.space, 4 * base.space), 0, 1.0
    ).args
    long = SimpleNamespace(
        **{**vars(clip), "positive": guided[0], "negative": guided[1], "latent": {**clip.latent, **guided[2]}}
    )
    assert long.latent["samples"].shape[2] == clip.latent["samples"].shape[2] + 1
    plain = refine(base, long, hooks=False)["samples"]
    moved = refine(base, long)
    assert plain.shape[2] == 6 and not torch.equal(moved["samples"][:, :, :5], plain[:, :, :5])
    cropped = LTXVCropGuides.execute(*guided[:2], {**long.latent, **moved}).args[2]
    # That node of the host makes a new latent, which has forgotten the exact size: all of the grid comes out.
    assert TemporalDecode.execute(cropped, base.vae, 1.0, 16, 0).args[0].shape == (33, 128, 128, 3)
    with pytest.raises(ValueError, match="Temporal Windows: .*guide frames.*Set windows to off"):
        refine(base, long, window=(17, 8))
    with pytest.raises(ValueError, match="Spatial Tiles: .*guide frames"):
        refine(base, long, tile=(64, 64, 32))
    with pytest.raises(ValueError, match="Temporal Decode: .*LTXVCropGuides"):
        TemporalDecode.execute(moved, base.vae, 1.0, 16, 0)
    clip.latent = {"samples": long.latent["samples"]}  # longer, and nothing says that the last one is a guide
    with pytest.raises(ValueError, match="the motion must be that of the sampled clip"):
        refine(base, clip)


def test_what_edits_predictions_sees_the_clip_and_not_its_guides(core):
    """What is predicted for the clip is edited as if the guides were not there, and they are not edited at all."""
    from cascadevsr.models.motion.estimation import Motion
    from cascadevsr.models.motion.flow import propagate
    from cascadevsr.nodes.low_frequency import _Tie
    from cascadevsr.nodes.motion import _Propagation
    from cascadevsr.nodes.motion_guidance import _Guidance

    flow = torch.ones(8, 2, 16, 16)
    motion = Motion(flow, -flow, (), 9, 16, 16)
    clean = torch.randn(1, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    carry = partial(propagate, mode="bilinear")
    always = lambda *_: True  # noqa: E731
    for hook in (
        _Propagation(motion, 8, always, carry),
        _Guidance(motion, 8, always, 1.0, "both", "default"),
        _Tie(None, torch.ones(1, 8, 2, 4, 4), 0.5, 4.0, always),
    ):

        def run(x, conds, hook=hook):
            def predict(*_):
                return clean[:, :, : x.shape[2]].clone()

            predict.class_obj = SimpleNamespace(conds={"positive": conds})
            model_options = {"transformer_options": {"sample_sigmas": torch.ones(2)}}
            return hook(predict, x, torch.ones(1), model_options)

        alone = run(clean[:, :, :2], [{"model_conds": {}}])
        guided = run(clean, [{"model_conds": {"keyframe_idxs": None}}])
        assert torch.equal(guided[:, :, :2], alone) and torch.equal(guided[:, :, 2], clean[:, :, 2])
        assert not torch.equal(alone, clean[:, :, :2])


def test_a_latent_packed_with_sound_is_refused(core, bases):
    from cascadevsr.nodes.host.services import check_clip
    from cascadevsr.nodes.prediction import clip_shape
    from cascadevsr.nodes.tiling import SpatialTiles

    model = SpatialTiles.execute(bases["ltxv"].model, {"tiling": "auto"}).args[0]
    handler = windowed(bases["ltxv"].model, (17, 8)).model_options["context_handler"]
    packed = torch.zeros(1, 1, 900)
    for call in (
        lambda: clip_shape("Motion Guidance", packed),
        lambda: check_clip("Spatial Tiles", packed.shape),
        lambda: handler.should_use_context(model.model, [], packed, None, {}),
        lambda: core.sampler_helpers.prepare_sampling(model, packed.shape, {}, prepared(model)),
    ):
        with pytest.raises(ValueError, match="packs sound or other data"):
            call()


def test_the_automatic_tile_makes_room_for_references(core, bases, monkeypatch):
    """Each tile sees one window, and all references, whole."""
    from cascadevsr.models.unimmvsr.references import VIDEO, Reference, References
    from cascadevsr.nodes.host.keys import REFERENCES_KEY, TILES_KEY
    from cascadevsr.nodes.tiling import SpatialTiles

    base = bases["wan21"]
    clip = [1, 16, 21, 90, 160]
    references = References((Reference(torch.zeros(clip), VIDEO),))

    def tile(cond, window=None):
        model = windowed(SpatialTiles.execute(base.model, {"tiling": "auto"}).args[0], window)
        options = prepared(model)
        core.sampler_helpers.prepare_sampling(model, clip, {"positive": [cond]}, options)
        choice = options["transformer_options"][TILES_KEY]
        return choice.height * choice.width

    from cascadevsr.nodes.host import services

    room = base.model.memory_required(clip) * 1.3
    monkeypatch.setattr(services, "free_bytes", lambda device: room + 1)
    assert tile({}) == 90 * 160 and tile({REFERENCES_KEY: references}) < 90 * 160
    monkeypatch.setattr(services, "free_bytes", lambda device: 2 * room + 1)
    assert tile({REFERENCES_KEY: references}) == 90 * 160
    monkeypatch.setattr(services, "free_bytes", lambda device: room / 3 + 1)
    assert tile({}) < 90 * 160 and tile({}, (25, 8)) == 90 * 160, "a window of 7 of the 21 latent frames"


@pytest.mark.parametrize("name", NAMES)
def test_prompts_may_go_through_vsr_conditioning(bases, refine, name):
    """The templates keep it in the graph: at noise level 0 it hands prompts on, and base models take no LR clip."""
    from cascadevsr.nodes.conditioning import VSRConditioning

    base = bases[name]
    clip = make_clip(base, _frames(base, 2), 4, 4)
    plain = refine(base, clip)["samples"]
    clip.positive, clip.negative = VSRConditioning.execute(clip.latent, 0.0, 0, base.prompt, base.prompt).args[:2]
    assert torch.equal(refine(base, clip)["samples"], plain)
