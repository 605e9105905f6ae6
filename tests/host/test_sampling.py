"""The restorer as a native MODEL: host samplers, sign, references, noise level, guard, sampler and sigmas."""

from types import SimpleNamespace

import pytest
import torch
from cascadevsr.models.layout.noise import addressed_noise
from cascadevsr.models.layout.sizes import ClipSize


def _advanced(core, model, clip, noise, sampler, sigmas):
    guider = core.custom.BasicGuider.execute(model, clip.positive).args[0]
    return core.custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, clip.samples).args[0]


def test_ksampler_keeps_size_and_is_repeatable(model, clip, ksample):
    before = clip.samples["samples"].clone()
    first, second = ksample(model, clip, steps=2), ksample(model, clip, steps=2)
    assert first["samples"].shape == (1, 16, 3, 6, 10)
    assert first["vsr_size"] == {"frames": 9, "height": 48, "width": 80}
    assert torch.isfinite(first["samples"]).all() and first["samples"].std() > 0.01
    assert torch.equal(first["samples"], second["samples"])
    assert torch.equal(clip.samples["samples"], before), "the incoming latent was written into"


def test_one_step_is_the_core_network_with_the_host_sign(core, model, clip, ksample):
    from cascadevsr.models.unimmvsr.dit import UniMMVSRDiT

    torch.manual_seed(5)
    eps = torch.randn(1, 16, 3, 6, 10)
    lr, network = clip.latent["samples"], model.model.diffusion_model
    velocity = UniMMVSRDiT.forward(network, eps, torch.ones(1), lr, torch.zeros(1))  # paper: z_HR - eps
    assert torch.allclose(ksample(model, clip)["samples"], eps + velocity, atol=1e-5)


def test_one_step_does_not_depend_on_the_seed(model, clip, ksample):
    first, second = ksample(model, clip, seed=1), ksample(model, clip, seed=2)
    assert torch.allclose(first["samples"], second["samples"], atol=2e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_ksampler_equals_sampler_custom_advanced(core, model, clip, ksample, steps):
    noise = core.custom.Noise_RandomNoise(5)
    sampler = core.samplers.sampler_object("euler")
    sigmas = core.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    advanced = _advanced(core, model, clip, noise, sampler, sigmas)
    assert torch.equal(advanced["samples"], ksample(model, clip, steps=steps)["samples"])
    assert advanced["vsr_size"] == clip.latent["vsr_size"]


@pytest.mark.parametrize("scheduler", ["simple", "normal", "karras", "beta", "sgm_uniform"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "ddim", "lcm"])
def test_safe_pairs_agree_at_one_step(model, clip, ksample, sampler, scheduler):
    reference = ksample(model, clip)["samples"]
    assert torch.allclose(ksample(model, clip, sampler=sampler, scheduler=scheduler)["samples"], reference, atol=1e-4)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "steps", "found"),
    [
        ("euler", "kl_optimal", 1, "nan"),
        ("euler", "ddim_uniform", 1, "0.002"),
        ("euler", "ddim_uniform", 4, "empty latent"),
        ("uni_pc", "simple", 1, "unipc"),
        ("uni_pc_bh2", "simple", 1, "unipc_bh2"),
        ("dpm_fast", "simple", 1, "dpm_fast"),
        ("dpm_adaptive", "simple", 4, "dpm_adaptive"),
        ("dpmpp_2m_sde", "simple", 1, "dpmpp_2m_sde"),
        ("er_sde", "simple", 1, "er_sde"),
    ],
)
def test_guard_names_what_breaks(model, clip, ksample, sampler, scheduler, steps, found):
    with pytest.raises(ValueError, match=r"KSampler / SamplerCustomAdvanced: .*; got .*Choose") as error:
        ksample(model, clip, steps=steps, sampler=sampler, scheduler=scheduler)
    assert found in str(error.value)


def test_guard_refuses_an_empty_latent_at_partial_denoise(model, clip, ksample):
    with pytest.raises(ValueError, match="empty latent must start at full noise"):
        ksample(model, clip, steps=4, denoise=0.5)
    refined = SimpleNamespace(**{**vars(clip), "samples": clip.latent})
    assert torch.isfinite(ksample(model, refined, steps=4, denoise=0.5)["samples"]).all()


def test_guidance_with_a_negative_runs(model, clip, ksample):
    guided = ksample(model, clip, steps=2, cfg=4.0)["samples"]
    assert torch.allclose(guided, ksample(model, clip, steps=2)["samples"], atol=1e-4)  # both branches are equal


def test_a_sampling_node_with_another_multiplier_changes_nothing(core, model, clip, ksample):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    patched = ModelSamplingSD3().patch(model, 1.0)[0]
    assert torch.allclose(
        ksample(patched, clip, steps=2)["samples"], ksample(model, clip, steps=2)["samples"], atol=1e-5
    )


def test_diffusion_model_wrappers_see_the_call(core, model, clip, ksample):
    from comfy.patcher_extension import WrappersMP

    seen, patched = [], model.clone()

    def wrapper(executor, x, *args, **kwargs):
        seen.append(tuple(x.shape))
        return executor(x, *args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    ksample(patched, clip, steps=2)
    assert seen == [(1, 32, 3, 6, 10)] * 2


def test_references_reach_the_network(model, vae, prepare, noise, ksample):
    from cascadevsr.nodes.conditioning import ReferenceSet

    images = {"image_10": noise(1, 40, 30), "image_2": noise(2, 64, 16, seed=1)}
    references = ReferenceSet.execute(vae, images, {"video_0": noise(6, 24, 40)}, 32).args[0]
    assert [tuple(r.shape[2:]) for r in references.latents] == [(1, 4, 1), (1, 4, 1), (1, 4, 3), (3, 3, 4)]
    without = ksample(model, prepare(9, 12, 20, (48, 80)))["samples"]
    with_references = ksample(model, prepare(9, 12, 20, (48, 80), references=references))["samples"]
    assert not torch.allclose(without, with_references, atol=1e-4)
    assert len(ReferenceSet.execute(vae, {}, {}, 32).args[0]) == 0


def test_noise_level_mixes_addressed_noise_and_reaches_the_network(model, prepare, ksample):
    plain, noised = prepare(5, 12, 20, (48, 80)), prepare(5, 12, 20, (48, 80), noise_level=0.5)
    again = prepare(5, 12, 20, (48, 80), noise_level=0.5, seed=2)
    lr, mixed = (c.positive[0][1]["concat_latent_image"] for c in (plain, noised))
    drawn = (mixed - 0.5 * lr) / 0.5
    assert 0.8 < drawn.std() < 1.2 and not torch.allclose(mixed, again.positive[0][1]["concat_latent_image"])
    assert not torch.allclose(drawn, addressed_noise(1, (16, ClipSize(2, 6, 10)))[None], atol=0.1)
    assert noised.positive[0][1]["vsr_noise_level"] == 0.5
    assert not torch.allclose(ksample(model, plain)["samples"], ksample(model, noised)["samples"], atol=1e-4)


def test_prompts_are_kept_and_text_of_another_width_is_ignored(core, model, clip, ksample):
    from cascadevsr.nodes.conditioning import VSRConditioning

    prompt = [[torch.randn(1, 7, 12), {"pooled_output": torch.zeros(1, 4)}]]
    positive, negative, _ = VSRConditioning.execute(clip.latent, 0.0, 1, positive=prompt).args
    assert positive[0][0] is prompt[0][0] and "pooled_output" in positive[0][1] and negative[0][0] is None
    assert "concat_latent_image" not in prompt[0][1], "the incoming conditioning was written into"
    prompted = SimpleNamespace(positive=positive, negative=negative, samples=clip.samples)
    assert torch.equal(ksample(model, prompted)["samples"], ksample(model, clip)["samples"])


def test_seeded_noise_is_the_addressed_noise(core, model, clip):
    from cascadevsr.nodes.sampling import SeededNoise

    noise = SeededNoise.execute(7).args[0]
    drawn = noise.generate_noise(clip.samples)
    assert noise.seed == 7
    assert torch.equal(drawn[0], addressed_noise(7, (16, ClipSize(3, 6, 10))))
    part = noise.generate_noise({"samples": torch.zeros(1, 16, 2, 4, 5)})
    assert torch.equal(part, drawn[:, :, :2, :4, :5])
    picture = noise.generate_noise({"samples": torch.zeros(3, 16, 6, 10)})  # a 4-D latent: frames in the batch
    assert torch.equal(picture, drawn[0].transpose(0, 1))


@pytest.mark.parametrize("kind", ["euler", "plms"])
def test_restorer_sampler_at_one_step_is_the_prediction(core, model, clip, ksample, kind):
    from cascadevsr.nodes.sampling import RefineSigmas, RestorerSampler

    sampler = RestorerSampler.execute(kind).args[0]
    sigmas, denoise = RefineSigmas.execute(model, 1.0, 1, 1.0).args
    assert sigmas.tolist() == [1.0, 0.0] and denoise == 1.0
    result = _advanced(core, model, clip, core.custom.Noise_RandomNoise(5), sampler, sigmas)["samples"]
    assert torch.allclose(result, ksample(model, clip)["samples"], atol=1e-5)


def test_euler_equals_the_hosts_and_plms_is_closer_to_many_steps(core, model, clip, ksample):
    from cascadevsr.nodes.sampling import RefineSigmas, RestorerSampler

    noise = core.custom.Noise_RandomNoise(5)
    sigmas = RefineSigmas.execute(model, 1.0, 6, 1.0).args[0]
    euler, plms = (
        _advanced(core, model, clip, noise, RestorerSampler.execute(kind).args[0], sigmas)["samples"]
        for kind in ("euler", "plms")
    )
    hosts = _advanced(core, model, clip, noise, core.samplers.sampler_object("euler"), sigmas)["samples"]
    exact = _advanced(core, model, clip, noise, core.samplers.sampler_object("euler"), torch.linspace(1, 0, 121))[
        "samples"
    ]
    assert torch.allclose(euler, hosts, atol=1e-5)
    assert (plms - exact).norm() < (euler - exact).norm()


def test_refine_sigmas_gives_the_equivalent_denoise(core, model, clip):
    from cascadevsr.nodes.sampling import RefineSigmas
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    assert RefineSigmas.execute(model, 0.3, 4, 1.0).args[1] == pytest.approx(0.3)
    shifted = ModelSamplingSD3().patch(model, 8.0)[0]
    sigmas, denoise = RefineSigmas.execute(shifted, 0.78, 2, 1.0).args
    assert sigmas[0] == pytest.approx(0.78) and denoise == pytest.approx(0.307, abs=0.01)
    ks = core.samplers.KSampler(shifted, steps=2, device="cpu", sampler="euler", scheduler="simple", denoise=denoise)
    assert float(ks.sigmas[0]) == pytest.approx(0.78, abs=0.05)  # KSampler rounds steps / denoise


def test_noise_of_a_segment_is_that_of_its_place_in_the_film(core):
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.host.keys import FIRST_KEY, LR_KEY, LR_NOISE_KEY
    from cascadevsr.nodes.sampling import AddressedNoise

    latent = torch.randn(1, 16, 6, 4, 5)
    later = {"samples": latent[:, :, 2:], FIRST_KEY: 2}
    whole = AddressedNoise(7).generate_noise({"samples": latent})
    assert torch.equal(AddressedNoise(7).generate_noise(later), whole[:, :, 2:])
    assert not torch.equal(AddressedNoise(7).generate_noise({"samples": later["samples"]}), whole[:, :, 2:])
    words = {"noise_level": 0.5, "seed": 3}
    found = []
    for given in ({"samples": latent}, later):
        positive, _, start = VSRConditioning.execute(given, **words).args
        found.append(positive[0][1])
    assert torch.equal(found[0][LR_NOISE_KEY][:, :, 2:], found[1][LR_NOISE_KEY])
    assert torch.equal(found[0][LR_KEY][:, :, 2:], found[1][LR_KEY]) and start[FIRST_KEY] == 2
