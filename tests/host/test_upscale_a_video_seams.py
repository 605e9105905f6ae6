"""Upscale-A-Video in pieces: no seam at windows, tiles or decoding chunks; every number format gives the clip."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from .uav_release import recorded, write_release

_FRAMES, _HEIGHT, _WIDTH = 21, 32, 40
_TILE = (80, 96, 32)  # height, width, overlap in output px
_BAR = 1.1  # a joint may differ by this much more than what lies between joints


@pytest.fixture(scope="module")
def folder(core, tmp_path_factory):
    return write_release(recorded("pipeline_windowed_video"), tmp_path_factory.mktemp("release"), text=False)


@pytest.fixture(scope="module")
def sampled(core, folder):
    """A moving clip, sampled with the default preset in windows and tiles, and its decoder."""
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.frames import CascadeInput
    from cascadevsr.nodes.loaders import load_restorer
    from cascadevsr.nodes.sampling import AddressedNoise, RefineSigmas, RestorerSampler
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows
    from cascadevsr.runner.sample import make_sample

    with torch.inference_mode():
        model, vae, _ = load_restorer(folder, "auto")
        low = torch.from_numpy(np.stack(make_sample(_FRAMES, 4 * _WIDTH, 4 * _HEIGHT).low)).float() / 255
        generator = torch.Generator().manual_seed(0)
        texts = [[[torch.randn(1, 6, 40, generator=generator), {}]] for _ in range(2)]
        latent = CascadeInput.execute(vae, {"target": "scale", "scale": 4.0}, "bilinear", frames=low).args[0]
        positive, negative, empty = VSRConditioning.execute(latent, 0.12, 0, *texts).args
        tile = dict(zip(("tile_height", "tile_width", "overlap"), _TILE, strict=True))
        model = TemporalWindows.execute(model, {"windows": "auto"}).args[0]
        model = SpatialTiles.execute(model, {"tiling": "manual", **tile}).args[0]
        guider = core.custom.CFGGuider.execute(model, positive, negative, 3.0).args[0]
        sigmas = RefineSigmas.execute(model, 1.0, 4, 1.0).args[0]
        sampler = RestorerSampler.execute("ddim").args[0]
        result = core.custom.SamplerCustomAdvanced.execute(AddressedNoise(1), guider, sampler, sigmas, empty).args[0]
    return SimpleNamespace(latent=result["samples"], vae=vae, low=low, result=result)


def _ratio(x, dim, joints):
    """Compare the differences along `dim` at the joints with the others: (t, h, w, c) -> number."""
    steps = x.diff(dim=dim).abs().mean([other for other in range(4) if other != dim])
    at = torch.zeros(len(steps), dtype=torch.bool)
    at[torch.tensor(sorted(joints))] = True
    return float(steps[at].mean() / steps[~at].mean())


def _starts(plan):
    return {step for window in plan[1:] for step in (window.start - 1, window.start, window.start + 1)}


def _ends(plan, scale=1):
    length = plan[-1].stop
    cells = {cell for window in plan for cell in (window.start - 1, window.stop - 1) if 0 <= cell < length - 1}
    return {scale * cell + scale - 1 for cell in cells}


def test_no_seam_at_windows_and_tiles(sampled):
    from cascadevsr.models.layout.pieces import plan_windows, spread_windows

    latent = sampled.latent[0].permute(1, 2, 3, 0)
    assert _ratio(latent, 0, _starts(plan_windows(_FRAMES, 8, 2))) < _BAR
    height, width, overlap = (side // 4 for side in _TILE)
    assert _ratio(latent, 1, _ends(spread_windows(_HEIGHT, height, overlap))) < _BAR
    assert _ratio(latent, 2, _ends(spread_windows(_WIDTH, width, overlap))) < _BAR


def test_no_seam_in_the_decoded_clip(sampled):
    from cascadevsr.models.layout.pieces import plan_windows, spread_windows
    from cascadevsr.nodes.frames import TemporalDecode

    clip = TemporalDecode.execute(sampled.result, sampled.vae, 1.0, 16, 0, sampled.low).args[0]
    assert _ratio(clip, 0, _starts(plan_windows(_FRAMES, 8, 2))) < _BAR
    height, width, overlap = (side // 4 for side in _TILE)
    tiled = sampled.vae.decode_tiled(sampled.latent, width, height, overlap)[0]
    assert _ratio(tiled, 1, _ends(spread_windows(_HEIGHT, height, overlap), 4)) < _BAR
    assert _ratio(tiled, 2, _ends(spread_windows(_WIDTH, width, overlap), 4)) < _BAR


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_number_format_gives_the_clip(core, folder, noise, precision):
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.frames import CascadeInput
    from cascadevsr.nodes.loaders import load_restorer

    results = []
    for kind in ("fp32", precision):
        model, vae, _ = load_restorer(folder, kind)
        assert vae.vae_dtype == torch.float32, "on a CPU"
        frames = noise(3, 8, 8)
        latent = CascadeInput.execute(vae, {"target": "scale", "scale": 4.0}, "bilinear", frames=frames).args[0]
        text = [[torch.ones(1, 6, 40), {}]]
        conditions = VSRConditioning.execute(latent, 0.12, 0, text, text).args
        results.append(core.nodes.common_ksampler(model, 1, 2, 1.0, "ddim", "normal", *conditions)[0]["samples"])
    exact, rounded = results
    assert (exact - rounded).abs().mean() < 0.02 * exact.abs().mean()


def test_the_host_can_build_everything_again(core, tmp_path):
    """It does so on several GPUs, and for hooks."""
    from cascadevsr.nodes.host.keys import PRESET_KEY, PUBLISHED
    from cascadevsr.nodes.loaders import load_restorer

    folder = write_release(recorded("pipeline_noguidance"), tmp_path)
    model, vae, clip = load_restorer(folder, "auto", "auto", PUBLISHED)
    for patcher in (model, vae.patcher, clip.patcher):
        make, arguments = patcher.cached_patcher_init
        fresh = make(*arguments, disable_dynamic=True)
        state, expected = (each.model.state_dict() for each in (fresh, patcher))
        assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)
    make, arguments = model.cached_patcher_init
    assert make(*arguments).model_options[PRESET_KEY] == PUBLISHED
