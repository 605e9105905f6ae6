"""What is sampled at once where the user names no sizes: by the memory law of the system, on cards of four sizes."""

from types import SimpleNamespace

import pytest
import torch

from ..test_docs import ROOT

# card in GB, of which the screen and the host keep one: side of the largest tile beside the weights, in px
TABLE = {"upscale_a_video": {8: 768, 12: 1280, 16: 1536, 24: 1536}, "mgld_vsr": {8: 768, 12: 768, 16: 768, 24: 768}}
LARGE = 2160, 3840


@pytest.fixture
def card(core, monkeypatch):
    """Make MODELs of the published size without memory, on a card with so much free: card(key, gigabytes) -> plan."""
    import comfy.model_management as management
    import comfy.model_patcher
    from cascadevsr.models.layout.sizes import ClipSize
    from cascadevsr.nodes import plan
    from cascadevsr.nodes.host import services
    from cascadevsr.nodes.host.model import set_precision
    from cascadevsr.nodes.systems import mgld_vsr, upscale_a_video
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    def settings(key):
        if key == "upscale_a_video":
            from cascadevsr.models.upscale_a_video import published, unet, vae

            made = upscale_a_video.UpscaleAVideoConfig(unet.UNetConfig(), published.SCHEDULE, vae.LATENT_SCALE)
            return made, upscale_a_video.UpscaleAVideoModel, upscale_a_video.SYSTEM, vae.SCALE
        from cascadevsr.models.mgld_vsr import structure, unet, vae

        networks = mgld_vsr.Networks(unet.UNetConfig(), structure.StructureConfig(), 77)
        return mgld_vsr.MGLDConfig(networks), mgld_vsr.MGLDModel, mgld_vsr.SYSTEM, vae.SPACE

    def make(key, free, size=LARGE, frames=16, tiles=True):
        monkeypatch.setattr(services, "free_bytes", lambda device: free)
        monkeypatch.setattr(management, "pytorch_attention_flash_attention", lambda: True)  # as on a GPU
        made, kind, system, space = settings(key)
        set_precision(made, "fp16")
        made.manual_cast_dtype = None  # a GPU computes in fp16
        with torch.device("meta"):
            model = kind(made)
        device = torch.device("meta")
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
        patcher.model.system = system
        if tiles:
            patcher = SpatialTiles.execute(patcher, {"tiling": "auto"}).args[0]
        patcher = TemporalWindows.execute(patcher, {"windows": "auto"}).args[0]
        shape = (1, 4, frames, size[0] // space, size[1] // space)
        conds = {"positive": [{}]}
        found = plan.make_plan(patcher, None, conds, ClipSize(frames, *size), shape, 1)
        return SimpleNamespace(plan=found, space=space, weights=patcher.model_size(), trained=system.windows.length)

    return make


@pytest.mark.parametrize("gigabytes", [8, 12, 16, 24])
@pytest.mark.parametrize("key", TABLE)
def test_every_card_gets_the_tile_of_the_table(card, key, gigabytes):
    made = card(key, (gigabytes - 1) * 1e9)
    side = TABLE[key][gigabytes]
    first, window = made.plan.tiles[0], made.plan.windows[0]
    assert (first.width * made.space, first.height * made.space) == (side, side) and window == made.trained
    assert f"of {side}x{side} px" in made.plan.text() and f"of {window} latent frames" in made.plan.text()
    assert 1.3 * made.plan.memory.one + made.weights < (gigabytes - 1) * 1e9


@pytest.mark.parametrize("key", TABLE)
def test_windows_get_shorter_only_where_the_smallest_tile_does_not_fit(card, key, caplog):
    """Before that, the host keeps weights in RAM."""
    roomy = card(key, 1.0)
    least = roomy.plan.tiles[0].height
    exact = 1.3 * card(key, 1e12, (least * roomy.space, least * roomy.space)).plan.memory.one
    for free, length in ((exact * 1.001, roomy.trained), (exact * 0.999, -(-roomy.trained // 2))):
        caplog.clear()
        made = card(key, free)
        assert made.plan.windows[0] == length and made.plan.tiles[0].height == least
        assert ("memory is short; windows have" in caplog.text) == (length < roomy.trained)
    free = 1.3 * card(key, 1e12, (1080, 1920), tiles=False).plan.memory.one
    assert card(key, free * 1.001, (1080, 1920), tiles=False).plan.windows[0] == roomy.trained
    whole = card(key, free * 0.999, (1080, 1920), tiles=False).plan
    assert len(whole.tiles) == 1 and whole.windows[0] < roomy.trained, "without tiles, too"


def test_the_page_has_the_table():
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    for name, key in (("Upscale-A-Video", "upscale_a_video"), ("MGLD-VSR", "mgld_vsr")):
        cells = " | ".join(f"{side}x{side}" for side in TABLE[key].values())
        assert f"| {name} | tile, px | {cells} |" in text, key
