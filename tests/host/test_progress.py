"""Long work shows that it goes on: the bar moves at least every 2 s, however slow a network is, and Stop works."""

import time

import pytest
import torch

from .conftest import write_tiny_restorer

LEAST = 2.0  # seconds between two signs of life at most


@pytest.fixture
def slowed():
    """Make `count` layers of a network take `seconds` more: slowed(network, count, seconds)."""
    hooks = []

    def slow(network: torch.nn.Module, count: int, seconds: float) -> None:
        layers = [each for each in network.modules() if not list(each.children()) and list(each.parameters(False))]
        for layer in layers[:: max(1, len(layers) // count)]:
            hooks.append(layer.register_forward_pre_hook(lambda *_: time.sleep(seconds)))

    yield slow
    for hook in hooks:
        hook.remove()


def _check(signs, began, ended):
    assert ended - began > 1.5 * LEAST, "the work was too quick to tell"
    moments = [began, *(moment for moment, *_ in signs), ended]
    assert max(after - before for before, after in zip(moments, moments[1:], strict=False)) < LEAST
    shares = [done / total for _, done, total in signs]
    assert shares == sorted(shares) and shares[-1] <= 1, "the bar never runs backwards"
    assert len(set(shares)) > 3, "the bar moves inside a piece"


def test_one_long_piece_of_our_vae(vae, noise, signs, slowed):
    """A single piece of a slow network takes more than the 2 s: its layers tick."""
    slowed(vae.first_stage_model.encoder, 12, 0.3)
    began = time.monotonic()
    vae.encode(noise(5, 16, 16))
    _check(signs, began, time.monotonic())


def test_one_long_piece_of_the_hosts_vae(core, signs, slowed):
    from cascadevsr.nodes.host import host_vae

    from .base_models import make_vae

    vae = make_vae("wan21")
    slowed(vae.first_stage_model, 30, 0.15)
    began = time.monotonic()
    host_vae.decode(vae, torch.zeros(1, vae.latent_channels, 2, 4, 4))
    _check(signs, began, time.monotonic())


def test_one_pair_of_a_slow_flow_network(core, noise, signs, slowed):
    from cascadevsr.models.motion.estimation import FlowNetwork, SpyFlow
    from cascadevsr.models.motion.spynet import SpyNet
    from cascadevsr.nodes.host import services
    from cascadevsr.nodes.motion import EstimateMotion

    network = FlowNetwork(SpyFlow(SpyNet()))
    slowed(network, 30, 0.15)
    began = time.monotonic()
    EstimateMotion.execute(noise(2, 48, 64), services.wrap_network(network))
    _check(signs, began, time.monotonic())


def test_stop_works_inside_a_piece(core, vae, noise, signs, slowed):
    import comfy.model_management as management

    slowed(vae.first_stage_model.encoder, 12, 0.3)
    management.interrupt_current_processing(True)
    began = time.monotonic()
    try:
        with pytest.raises(management.InterruptProcessingException):
            vae.encode(noise(5, 16, 16))
    finally:
        management.interrupt_current_processing(False)
    assert time.monotonic() - began < LEAST


def test_long_steps_of_a_sampler(core, tmp_path, prepare, signs, slowed):
    """Blocks of the network tick inside a step, which takes more than the 2 s, and a block a small part of them."""
    from cascadevsr.nodes.loaders import load_restorer
    from cascadevsr.nodes.sampling import AddressedNoise, RefineSigmas

    model = load_restorer(write_tiny_restorer(tmp_path / "deep.safetensors", depth=12), "auto")[0]
    clip = prepare(5, 8, 8, (32, 32))
    slowed(model.model.diffusion_model, 24, 0.1)
    guider = core.custom.CFGGuider.execute(model, clip.positive, clip.negative, 1.0).args[0]
    euler = core.custom.KSamplerSelect.execute("euler").args[0]
    sigmas = RefineSigmas.execute(model, 1.0, 2, 1.0).args[0]
    signs.clear()
    began = time.monotonic()
    core.custom.SamplerCustomAdvanced.execute(AddressedNoise(1), guider, euler, sigmas, clip.samples)
    _check(signs, began, time.monotonic())


def test_large_attention_on_a_cpu_is_in_parts_that_stop_and_equal_the_whole(core, monkeypatch):
    import comfy.model_management as management
    from cascadevsr.nodes.host import services

    q, k, v = torch.randn(3, 1, 2, 1300, 8, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    monkeypatch.setattr(services, "_PAIRS", 1)
    parts, asked = [], management.throw_exception_if_processing_interrupted
    monkeypatch.setattr(
        management, "throw_exception_if_processing_interrupted", lambda: (parts.append(time.monotonic()), asked())
    )
    assert torch.equal(services.attention(q, k, v), whole) and len(parts) == 3
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        services.attention(q, k, v)
    assert len(parts) == 4, "at the first part"


def test_pieces_count_by_their_length(core, signs, monkeypatch):
    """A last piece of 2 frames after two of 16 is no third of the work: time left was told 40 % too long by it."""
    from cascadevsr.models.layout.pieces import Pieces, Span, Tile, Window
    from cascadevsr.nodes.host import progress

    monkeypatch.setattr(progress, "_EVERY", 0.0)
    bar, windows = progress.PieceProgress("Decoding", 34), (Window(0, 16), Window(16, 32), Window(32, 34))
    bar.follow(Pieces(tuple(Span(window, window) for window in windows), (Tile(0, 0, 8, 8),)))
    for number in range(3):
        bar(number, 3)
        bar.inside(0.5, certain=True)
    bar(3, 3)
    shares = [done / total for _, done, total in signs]
    assert shares == pytest.approx([0, 8 / 34, 16 / 34, 24 / 34, 32 / 34, 33 / 34, 1], abs=0.01)
