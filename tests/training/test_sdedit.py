"""The training transform: synthetic after SDEdit, with the built-in model's classes as the base."""

import numpy as np
import pytest
import torch
from cascadevsr.models.pixels.degradation import PRESETS
from cascadevsr.models.unimmvsr.dit import DiTConfig, UniMMVSRDiT
from cascadevsr.models.unimmvsr.sdedit import SDEdit
from cascadevsr.models.unimmvsr.vae import CausalVideoVAE, VAEConfig
from cascadevsr.training.sdedit import BuiltInBase, SDEditTransform, degrade_both


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    vae = CausalVideoVAE(VAEConfig(encoder_width=8, latent_width=8, feature_width=8, restore_width=8, restore_blocks=1))
    dit = UniMMVSRDiT(DiTConfig(width=32, depth=2, heads=2, ffn_ratio=2))
    for block in dit.blocks:
        torch.nn.init.normal_(block.modulation, std=0.3)
    return BuiltInBase(vae.eval(), dit.eval())


FRAMES = torch.rand(6, 3, 64, 80, generator=torch.Generator().manual_seed(1))


def test_no_step_is_the_vae_alone_and_more_drift_more(base):
    redraw = SDEditTransform(base, SDEdit(0, 8, 8))
    made = [redraw(FRAMES, 32, 36, np.random.default_rng(0), k) for k in (0, 1, 4, 8)]
    assert all(frames.shape == (6, 3, 32, 36) for frames in made)
    from cascadevsr.models.layout.sizes import ClipSize, pad_clip, resize_clip

    small = resize_clip(FRAMES.transpose(0, 1)[None], 32, 36, "bicubic").clamp(0, 1)
    padded = pad_clip(small, ClipSize(9, 32, 40))
    with torch.no_grad():
        plain = base.decode(base.encode(padded)).clamp(0, 1)[0, :, :6, :, :36].transpose(0, 1)
    assert torch.equal(made[0], plain)
    drift = [float((frames - made[0]).abs().mean()) for frames in made]
    assert drift == sorted(drift) and drift[1] > 0


def test_the_generator_decides(base):
    redraw = SDEditTransform(base, SDEdit(1, 8, 8))
    first, again, other = (redraw(FRAMES, 32, 32, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_both_halves_and_each_alone(base):
    redraw = SDEditTransform(base, SDEdit(4, 4, 8))
    parameters = PRESETS["real"](np.random.default_rng(0))

    def run(parameters, redraw):
        return degrade_both(FRAMES, 32, 32, parameters, np.random.default_rng(5), redraw)

    both, synthetic, alone = run(parameters, redraw), run(parameters, None), run(None, redraw)
    assert both.shape == synthetic.shape == alone.shape == (6, 3, 32, 32)
    assert not torch.equal(both, synthetic) and not torch.equal(both, alone)
    drawn = redraw(FRAMES, 32, 32, np.random.default_rng(5))
    assert torch.equal(alone, (drawn.clamp(0, 1) * 255).round() / 255), "SDEdit comes first, at the base resolution"
    larger = degrade_both(FRAMES, 32, 32, None, np.random.default_rng(5), redraw, (48, 56))
    assert larger.shape == alone.shape and not torch.equal(larger, alone)
