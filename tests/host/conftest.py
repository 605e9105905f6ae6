"""Lend tests the host's modules in this process, and a tiny restorer with random weights."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

TINY = "tiny-random.safetensors"
TEXT_WIDTH = 12


def write_tiny_restorer(path: Path, text_width: int = 0, depth: int = 2) -> Path:
    """Write a restorer of a few thousand random weights, the same every time, with text layers or without."""
    from cascadevsr.models.checkpoints import save_state
    from cascadevsr.models.unimmvsr.dit import DiTConfig, UniMMVSRDiT
    from cascadevsr.models.unimmvsr.vae import CausalVideoVAE, VAEConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # biases keep what the layers drew
        vae = CausalVideoVAE(
            VAEConfig(encoder_width=8, latent_width=8, feature_width=8, restore_width=8, restore_blocks=1)
        )
        dit = UniMMVSRDiT(DiTConfig(width=32, depth=depth, heads=2, ffn_ratio=2, text_width=text_width))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for prefix, network in (("vae.", vae), ("dit.", dit)):
        for key, value in network.state_dict().items():
            if value.ndim > 1:
                value = torch.randn(value.shape, generator=generator) * 0.7 / value[0].numel() ** 0.5
            state[prefix + key] = value.half()
    save_state(path, state, {"architecture": "unimmvsr"})
    return path


@pytest.fixture(scope="session")
def core(comfyui, tmp_path_factory):
    """The host's `nodes`, `samplers` and others, imported in this process for the CPU."""
    base = tmp_path_factory.mktemp("base")
    before, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(base), "--disable-api-nodes"]
    sys.path.insert(0, str(comfyui.path))
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.sampler_helpers
        import comfy.samplers
        import comfy_extras.nodes_custom_sampler as custom

        import nodes
    finally:
        sys.argv = before
    from cascadevsr.nodes.host import folders

    folders.register_folders()
    return SimpleNamespace(nodes=nodes, custom=custom, samplers=comfy.samplers, sampler_helpers=comfy.sampler_helpers)


@pytest.fixture
def listed(core):
    """Show a folder of restorers to the host: listed(path)."""
    import folder_paths
    from cascadevsr.nodes.host import services

    paths, extensions = folder_paths.folder_names_and_paths[services.RESTORER_FOLDER]

    def show(path: Path) -> None:
        folder_paths.folder_names_and_paths[services.RESTORER_FOLDER] = ([*paths, str(path)], extensions)
        folder_paths.filename_list_cache.clear()

    yield show
    folder_paths.folder_names_and_paths[services.RESTORER_FOLDER] = (paths, extensions)
    folder_paths.filename_list_cache.clear()


@pytest.fixture(autouse=True)
def inference():
    """Run tests as the host's executor runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory) -> Path:
    """The tiny restorer as a file."""
    return write_tiny_restorer(tmp_path_factory.mktemp("tiny") / TINY)


@pytest.fixture(scope="session")
def restorer(core, tiny_file):
    """The tiny restorer as (MODEL, VAE)."""
    from cascadevsr.nodes.loaders import load_restorer

    with torch.inference_mode():
        return load_restorer(tiny_file, "auto")[:2]


@pytest.fixture
def model(restorer):
    return restorer[0]


@pytest.fixture
def vae(restorer):
    return restorer[1]


@pytest.fixture(scope="session")
def noise():
    """Make reproducible random frames: noise(count, height, width) -> (B, H, W, 3)."""

    def make(*shape: int, seed: int = 0) -> torch.Tensor:
        return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def picture():
    """Make References of one picture with `channels`: picture(channels)."""
    from cascadevsr.models.unimmvsr.references import IMAGE, Reference, References

    return lambda channels: References((Reference(torch.zeros(1, channels, 1, 4, 4), IMAGE),))


@pytest.fixture
def prepare(vae, noise):
    """Run Cascade Input and VSR Conditioning on random frames: prepare(count, height, width, (H, W), ...)."""

    def run(count, height, width, size, noise_level=0.0, references=None, seed=1) -> SimpleNamespace:
        from cascadevsr.nodes.conditioning import VSRConditioning
        from cascadevsr.nodes.frames import CascadeInput

        frames = noise(count, height, width)
        target = {"target": "exact size", "height": size[0], "width": size[1]}
        latent = CascadeInput.execute(vae, target, "bilinear", frames=frames).args[0]
        conditions = VSRConditioning.execute(latent, noise_level, seed, references=references).args
        names = ("positive", "negative", "samples")
        return SimpleNamespace(latent=latent, frames=frames, **dict(zip(names, conditions, strict=True)))

    return run


@pytest.fixture
def clip(prepare):
    """A clip of 9 frames on its way from 20x12 to 80x48."""
    return prepare(9, 12, 20, (48, 80))


@pytest.fixture
def ksample(core):
    """Run the host's KSampler: ksample(model, clip, seed=, steps=, cfg=, sampler=, scheduler=, denoise=)."""

    def run(model, clip, seed=5, steps=1, cfg=1.0, sampler="euler", scheduler="simple", denoise=1.0):
        return core.nodes.common_ksampler(
            model,
            seed,
            steps,
            cfg,
            sampler,
            scheduler,
            clip.positive,
            clip.negative,
            clip.samples,
            denoise=denoise,
        )[0]

    return run


@pytest.fixture(scope="session")
def worded(core, tmp_path_factory):
    """A tiny restorer with text layers, so that positive and negative differ: (MODEL, VAE)."""
    from cascadevsr.nodes.loaders import load_restorer

    path = tmp_path_factory.mktemp("worded") / "worded.safetensors"
    with torch.inference_mode():
        return load_restorer(write_tiny_restorer(path, TEXT_WIDTH), "auto")[:2]


@pytest.fixture
def scene(worded, noise):
    """Prompts, clip and references for `worded`: scene(frames=9, references=True) -> positive, negative, samples."""

    def make(frames=9, references=True):
        from cascadevsr.nodes.conditioning import ReferenceSet, VSRConditioning
        from cascadevsr.nodes.frames import CascadeInput

        vae = worded[1]
        target = {"target": "exact size", "height": 48, "width": 80}
        latent = CascadeInput.execute(vae, target, "bilinear", frames=noise(frames, 12, 20)).args[0]
        images = {"image_0": noise(1, 40, 32), "image_1": noise(1, 24, 40, seed=4)}
        given = ReferenceSet.execute(vae, images, {}, 40).args[0] if references else None
        shape, draw = (1, 5, TEXT_WIDTH), torch.Generator().manual_seed
        texts = [[[torch.randn(shape, generator=draw(i)), {}]] for i in (1, 2)]
        conditions = VSRConditioning.execute(latent, 0.1, 1, *texts, references=given).args
        return SimpleNamespace(**dict(zip(("positive", "negative", "samples"), conditions, strict=True)))

    return make


@pytest.fixture
def signs(core):
    """The (time, done, total) of every update of the host's progress bar."""
    import comfy.utils

    before, seen = comfy.utils.PROGRESS_BAR_HOOK, []
    comfy.utils.set_progress_bar_global_hook(lambda done, total, *_, **__: seen.append((time.monotonic(), done, total)))
    yield seen
    comfy.utils.set_progress_bar_global_hook(before)
