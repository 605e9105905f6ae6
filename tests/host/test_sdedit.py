"""SDEdit Degradation in the host: a tiny Wan, the tiny restorer, strengths, seeds, errors."""

import pytest
import torch

from . import families, small_wan

SIZE = {"size": "exact size", "width": 40, "height": 24}


@pytest.fixture(scope="module")
def wan(core):
    with torch.inference_mode():
        return small_wan.make_model(), small_wan.make_vae()


@pytest.fixture
def redraw(core):
    """Run the node: redraw(model, vae, images, strength or range, ...) -> (frames, steps done)."""

    def run(
        model, vae, images, strength, steps=8, seed=3, size=SIZE, cfg=1.0, positive=None, negative=None, multiple=1
    ):
        from cascadevsr.nodes.sdedit import SDEditDegradation

        low, high = strength if isinstance(strength, tuple) else (strength, strength)
        node = SDEditDegradation.execute
        return node(model, vae, images, size, low, high, steps, cfg, seed, positive, negative, multiple).args

    return run


def plain_trip(vae, images):
    """What the VAE alone makes of the reduced clip."""
    from cascadevsr.models.layout.sizes import ClipSize, pad_clip, resize_clip

    clip = resize_clip(images.movedim(-1, 0).unsqueeze(0), 24, 40, "bicubic").clamp(0, 1)
    clip = pad_clip(clip, ClipSize(9, 32, 48))[0].movedim(0, -1)
    return vae.decode(vae.encode(clip)).flatten(0, 1)[:7, :24, :40]


@pytest.mark.parametrize("kind", ["wan", "built-in"])
def test_no_step_is_the_vae_alone_and_more_steps_drift_more(wan, restorer, noise, redraw, kind):
    model, vae = wan if kind == "wan" else restorer
    positive = small_wan.prompt() if kind == "wan" else None
    images = noise(7, 48, 80)
    still, done = redraw(model, vae, images, 0.0, positive=positive)
    assert done == 0 and still.shape == (7, 24, 40, 3)
    assert torch.equal(still, plain_trip(vae, images))
    drift = []
    for strength, wanted in ((0.125, 1), (0.5, 4), (1.0, 8)):
        made, done = redraw(model, vae, images, strength, positive=positive)
        assert done == wanted and torch.isfinite(made).all() and made.shape == still.shape
        drift.append(float((made - still).abs().mean()))
    assert 0 < drift[0] < drift[1] < drift[2]


def test_the_seed_decides_strength_and_noise(wan, noise, redraw):
    images, positive = noise(5, 48, 80), small_wan.prompt()
    options = {"strength": (0.0, 1.0), "positive": positive}
    first, again = (redraw(*wan, images, seed=3, **options) for _ in range(2))
    assert first[1] == again[1] and torch.equal(first[0], again[0])
    drawn = {redraw(*wan, images, seed=seed, **options)[1] for seed in range(12)}
    assert len(drawn) > 3 and drawn <= set(range(9))
    one, other = (redraw(*wan, images, seed=seed, strength=0.5, positive=positive)[0] for seed in (1, 2))
    assert not torch.equal(one, other)


def test_the_start_is_the_clip_noised_by_the_forward_process(wan, noise, redraw, monkeypatch):
    """Through the host's own sampling: sigmas even whatever the shift, x = (1 - s) z + s noise."""
    import comfy.samplers
    from cascadevsr.nodes.sampling import AddressedNoise

    model, vae = wan
    images, seen = noise(5, 32, 48), []
    whole = comfy.samplers.sampling_function

    def spy(inner, x, sigma, *rest, **more):
        seen.append((x.clone(), float(sigma[0])))
        return whole(inner, x, sigma, *rest, **more)

    monkeypatch.setattr(comfy.samplers, "sampling_function", spy)
    size = {"size": "exact size", "width": 48, "height": 32}
    redraw(model, vae, images, 0.5, size=size, positive=small_wan.prompt())
    assert [sigma for _, sigma in seen] == pytest.approx([0.5, 0.375, 0.25, 0.125])
    latent = vae.encode(images)
    drawn = AddressedNoise(3).generate_noise({"samples": latent})
    clean = model.model.process_latent_in(latent)
    assert torch.allclose(seen[0][0], 0.5 * clean + 0.5 * drawn, atol=1e-5)


def test_prompt_and_cfg_matter(wan, noise, redraw):
    images = noise(5, 24, 40)
    one, other = (redraw(*wan, images, 0.5, positive=small_wan.prompt(seed))[0] for seed in (2, 5))
    assert not torch.equal(one, other)
    strong = redraw(*wan, images, 0.5, cfg=4.0, positive=small_wan.prompt(2), negative=small_wan.prompt(5))[0]
    assert not torch.equal(strong, one)


def test_sizes(wan, noise, redraw):
    images, positive = noise(2, 50, 70), small_wan.prompt()
    for size, shape in (
        ({"size": "scale", "scale": 0.5}, (2, 25, 35, 3)),
        ({"size": "short side", "short_side": 20}, (2, 20, 28, 3)),
    ):
        assert redraw(*wan, images, 0.25, size=size, positive=positive)[0].shape == shape
    for size, multiple, shape in (
        ({"size": "scale", "scale": 0.5}, 2, (2, 24, 34, 3)),
        ({"size": "largest edge", "largest_edge": 28}, 4, (2, 20, 28, 3)),
    ):
        assert redraw(*wan, images, 0.25, size=size, positive=positive, multiple=multiple)[0].shape == shape


def test_errors_say_what_to_change(wan, restorer, noise, redraw):
    images = noise(1, 24, 40)
    with pytest.raises(ValueError, match="min_strength must not be above max_strength; got 0.5 and 0.2"):
        redraw(*restorer, images, (0.5, 0.2))
    with pytest.raises(ValueError, match="SDEdit Degradation: a text-to-video model needs positive; got none"):
        redraw(*wan, images, 0.5)
    with pytest.raises(ValueError, match="cfg other than 1 needs a negative prompt; got cfg 3"):
        redraw(*wan, images, 0.5, cfg=3.0, positive=small_wan.prompt())
    with pytest.raises(ValueError, match="vae must be the video VAE of model"):
        redraw(wan[0], None, images, 0.5, positive=small_wan.prompt())
    with pytest.raises(ValueError, match="size must be one of scale, short side"):
        redraw(*wan, images, 0.5, size={"size": "half"}, positive=small_wan.prompt())


@pytest.mark.parametrize("name", ["hunyuan", "cosmos"])
def test_other_families_of_sixteen_channels(core, noise, redraw, name):
    """Cosmos counts its noise in another way than flow models do: its own schedule serves."""
    model, vae = families.make_family(name), small_wan.make_vae()
    images, text = noise(5, 48, 80), families.text()
    still = redraw(model, vae, images, 0.0, positive=text)[0]
    drift = [
        float((redraw(model, vae, images, strength, positive=text)[0] - still).abs().mean())
        for strength in (0.125, 1.0)
    ]
    assert 0 < drift[0] < drift[1]


def test_restorers_of_other_systems_are_refused(core, noise, redraw, tmp_path):
    from cascadevsr.nodes.loaders import load_restorer

    from . import uav_release

    folder = uav_release.write_release(uav_release.recorded("pipeline_short_3d"), tmp_path / "uav", text=False)
    model, vae = load_restorer(folder, "auto")[:2]
    with pytest.raises(ValueError, match="base video model or the built-in one; got .*, which only restores"):
        redraw(model, vae, noise(1, 24, 40), 0.5)
