"""Tiles and windows: whole ones change nothing, bit for bit; smaller ones call the network as planned."""

import time

import pytest
import torch


def _tiles(model, width, height, overlap):
    from cascadevsr.nodes.tiling import SpatialTiles

    manual = {"tiling": "manual", "tile_width": width, "tile_height": height, "overlap": overlap}
    return SpatialTiles.execute(model, manual).args[0]


def _windows(model, window, overlap):
    from cascadevsr.nodes.tiling import TemporalWindows

    return TemporalWindows.execute(model, {"windows": "manual", "window": window, "overlap": overlap}).args[0]


@pytest.fixture
def calls(core):
    """Record the shapes the network is called with: calls(model) -> (model, list)."""
    from comfy.patcher_extension import WrappersMP

    def watch(model):
        seen, patched = [], model.clone()

        def wrapper(executor, x, timestep, context, options, **kwargs):
            seen.append((tuple(x.shape[2:]), [tuple(r.shape[2:]) for r in kwargs.get("references", ())]))
            return executor(x, timestep, context, options, **kwargs)

        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", wrapper)
        return patched, seen

    return watch


@pytest.mark.parametrize("steps", [1, 3])
def test_whole_tile_and_whole_window_are_none(model, clip, ksample, steps):
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    plain = ksample(model, clip, steps=steps)["samples"]
    patched = [
        _tiles(model, 80, 64, 16),
        _tiles(model, 4096, 4096, 96),
        _windows(model, 9, 4),
        _windows(_tiles(model, 80, 64, 16), 33, 8),
        SpatialTiles.execute(model, {"tiling": "auto"}).args[0],
        TemporalWindows.execute(model, {"windows": "auto"}).args[0],
        SpatialTiles.execute(TemporalWindows.execute(model, {"windows": "off"}).args[0], {"tiling": "off"}).args[0],
    ]
    for variant in patched:
        assert torch.equal(ksample(variant, clip, steps=steps)["samples"], plain)


@pytest.mark.parametrize("alternate", [False, True])
def test_a_step_of_a_long_clip_is_not_planned_again(core, alternate):
    """10,000 frames: a step's plan takes at most a millisecond once its windows were planned."""
    from types import SimpleNamespace

    from cascadevsr.nodes.host.joints import JointFade
    from cascadevsr.nodes.tiling import TurningWindows, WindowHandler

    kind, fade = (TurningWindows, JointFade(2)) if alternate else (WindowHandler, None)
    handler, x, taken = kind(8, 2, False, None, fade), torch.empty(1, 4, 10_000, 1, 1), []
    for step in range(12):
        handler._step = step  # as the host counts them
        began = time.thread_time()
        windows = handler.get_context_windows(SimpleNamespace(), x, {})
        taken.append(time.thread_time() - began)
    assert len(windows) == (1251 if alternate else 1667) and min(taken[2:]) <= 1e-3


def test_windows_outside_tiles_inside_references_whole(model, vae, prepare, noise, ksample, calls):
    from cascadevsr.nodes.conditioning import ReferenceSet

    references = ReferenceSet.execute(vae, {"image_0": noise(1, 40, 40)}, {}, 40).args[0]
    clip = prepare(17, 24, 24, (96, 96), references=references)  # latent 5 x 12 x 12
    watched, seen = calls(_windows(_tiles(model, 64, 64, 32), 9, 4))
    result = ksample(watched, clip, steps=2)["samples"]
    assert torch.isfinite(result).all() and result.shape == (1, 16, 5, 12, 12)
    # Two windows of 3 latent frames, the second with one extra frame before it; 2 x 2 tiles of 8 x 8 cells.
    assert [shape for shape, _ in seen] == ([(3, 8, 8)] * 4 + [(4, 8, 8)] * 4) * 2
    assert all(whole == [(1, 5, 5)] for _, whole in seen)


@pytest.mark.parametrize(("window", "overlap"), [(5, 0), (9, 1), (13, 8), (1, 0)])
def test_any_overlap_gives_a_finite_clip(model, prepare, ksample, window, overlap):
    clip = prepare(22, 8, 8, (24, 24))
    assert torch.isfinite(ksample(_windows(model, window, overlap), clip, steps=2)["samples"]).all()


def test_tiles_and_windows_leave_a_pointwise_prediction_alone(model, prepare, ksample):
    """A network that answers per cell must give the same clip however it is cut: weights sum to one."""
    from comfy.patcher_extension import WrappersMP

    def pointwise(executor, x, *args, **kwargs):
        noisy, lr = x.chunk(2, dim=1)
        return noisy - 0.5 * lr

    patched, clip = model.clone(), prepare(22, 20, 28, (80, 112))
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", pointwise)
    plain = ksample(patched, clip, steps=2)["samples"]
    for variant in (
        _tiles(patched, 64, 64, 16),
        _windows(patched, 9, 4),
        _windows(_tiles(patched, 64, 64, 24), 13, 8),
    ):
        assert torch.allclose(ksample(variant, clip, steps=2)["samples"], plain, atol=1e-5)


def test_a_second_tiles_node_replaces_the_first(model, prepare, ksample, calls):
    clip = prepare(1, 24, 24, (96, 96))
    watched, seen = calls(_tiles(_tiles(model, 64, 64, 0), 96, 96, 0))
    ksample(watched, clip)
    assert [shape for shape, _ in seen] == [(1, 12, 12)]


def test_the_memory_estimate_knows_the_tile(model, clip, ksample, monkeypatch):
    shapes = []
    estimate = type(model.model).memory_required
    monkeypatch.setattr(
        type(model.model),
        "memory_required",
        lambda self, shape, **k: shapes.append(shape) or estimate(self, shape, **k),
    )
    ksample(_windows(_tiles(model, 64, 64, 16), 5, 0), clip)
    assert list(shapes[0]) == [2, 16, 2, 6, 8]


def test_inputs_are_refused_with_a_reason(model, clip, ksample):
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    with pytest.raises(ValueError, match="overlap must be at least 0 and smaller than the window"):
        _tiles(model, 64, 64, 64)
    with pytest.raises(ValueError, match="overlap must be at least 0 and smaller than the window"):
        _windows(model, 9, 16)
    with pytest.raises(ValueError, match="tiling must be one of auto, manual, off; got 'none'"):
        SpatialTiles.execute(model, {"tiling": "none"})
    with pytest.raises(ValueError, match="windows must be one of auto, manual, off; got 'none'"):
        TemporalWindows.execute(model, {"windows": "none"})
    clip.positive[0][1]["area"] = (4, 4, 0, 0)
    with pytest.raises(ValueError, match="Spatial Tiles: .*'area'"):
        ksample(_tiles(model, 64, 64, 16), clip)


def test_tiles_predicted_together_are_those_predicted_alone(core, model, clip, ksample, monkeypatch):
    from cascadevsr.nodes import tiling
    from comfy.patcher_extension import WrappersMP

    tiled, seen = _tiles(model, 64, 48, 32), []

    def watch(executor, x, *args, **kwargs):
        seen.append(x.shape[0])
        if x.shape[0] > limit[0]:
            raise torch.cuda.OutOfMemoryError("pretended")
        return executor(x, *args, **kwargs)

    limit = [99]
    tiled.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watch)
    alone = ksample(tiled, clip, steps=2, cfg=2.0)["samples"]
    count = len(seen)
    monkeypatch.setattr(tiling, "tiles_at_once", lambda model, plan, conds, x, most: min(most, len(plan)))
    seen.clear()
    together = ksample(tiled, clip, steps=2, cfg=2.0)["samples"]
    assert max(seen) > 2 and len(seen) < count and torch.allclose(together, alone, atol=1e-4)
    limit[0] = max(seen) // 2
    seen.clear()
    assert torch.allclose(ksample(tiled, clip, steps=2, cfg=2.0)["samples"], alone, atol=1e-4)
    assert seen[0] > limit[0] and max(seen[1:]) <= limit[0], "one by one after the first lack of memory"
