"""Several windows of a restorer in one batch, as on a GPU: the same clip, fewer calls; out of memory, one by one."""

import pytest
import torch

from .uav_release import recorded, write_release


@pytest.fixture(scope="module")
def folder(core, tmp_path_factory):
    return write_release(recorded("pipeline_windowed_video"), tmp_path_factory.mktemp("release"), text=False)


def _sample(core, folder, noise, tiles: bool):
    """Sample 21 frames in windows with guidance; gives the latent and the batch of every network call."""
    from cascadevsr.nodes.cascade import CascadeInput
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.restorers import load_restorer
    from cascadevsr.nodes.sampling import AddressedNoise, RefineSigmas, RestorerSampler
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    batches = []
    with torch.inference_mode():
        model, vae, _ = load_restorer(folder, "auto")
        texts = [[[torch.randn(1, 6, 40, generator=torch.Generator().manual_seed(i)), {}]] for i in range(2)]
        frames = noise(21, 12, 16)
        latent = CascadeInput.execute(vae, {"target": "scale", "scale": 4.0}, "bilinear", frames=frames).args[
            0
        ]
        positive, negative, empty = VSRConditioning.execute(latent, 0.12, 0, *texts).args
        model = TemporalWindows.execute(model, {"windows": "auto"}).args[0]
        if tiles:
            sides = {"tile_height": 32, "tile_width": 40, "overlap": 16}
            model = SpatialTiles.execute(model, {"tiling": "manual", **sides}).args[0]
        network = model.model.diffusion_model
        hook = network.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
        guider = core.custom.CFGGuider.execute(model, positive, negative, 3.0).args[0]
        sigmas = RefineSigmas.execute(model, 1.0, 2, 1.0).args[0]
        sampler = RestorerSampler.execute("ddim").args[0]
        run = core.custom.SamplerCustomAdvanced.execute
        result = run(AddressedNoise(1), guider, sampler, sigmas, empty).args[0]["samples"]
        hook.remove()
    return result, batches


@pytest.mark.parametrize("tiles", [False, True], ids=["whole frames", "tiles"])
def test_windows_together_give_the_same_clip(core, folder, noise, monkeypatch, tiles):
    from cascadevsr.nodes.window_handler import WindowHandler

    alone, one = _sample(core, folder, noise, tiles)
    monkeypatch.setattr(WindowHandler, "_count_together", lambda *_: 3)
    together, three = _sample(core, folder, noise, tiles)
    assert (alone - together).abs().max() < 1e-5 * alone.abs().max()
    assert sum(one) == sum(three) and len(three) < len(one)


def test_out_of_memory_goes_on_window_by_window(core, folder, noise, monkeypatch):
    import comfy.model_management as management
    from cascadevsr.nodes import window_handler

    alone, _ = _sample(core, folder, noise, False)
    failures = []

    def fail(*_):
        failures.append(1)
        raise management.OOM_EXCEPTION("not enough memory")

    monkeypatch.setattr(
        window_handler.WindowHandler, "_count_together", lambda self, *_: min(2, self._at_once)
    )
    monkeypatch.setattr(window_handler, "_answer", fail)
    assert torch.equal(alone, _sample(core, folder, noise, False)[0])
    assert len(failures) == 1, "tried once a run"
