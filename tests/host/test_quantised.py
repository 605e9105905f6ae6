"""Quantised weights as the host offers them: our networks keep them so, and give nearly what the whole weights give."""

import json
from types import SimpleNamespace

import pytest
import torch
from cascadevsr.models.checkpoints import CheckpointError, load_state, save_state

# system: (folder or file, the file with its network, prefixes of the networks in it)
FILES = {
    "Upscale-A-Video": ("uav", "uav/unet/unet_video.safetensors", ("",)),
    "MGLD-VSR": ("mgld", "mgld/mgldvsr_unet.safetensors", ("model.diffusion_model.", "structcond_stage_model.")),
    "built-in": ("built-in.safetensors", "built-in.safetensors", ("dit.",)),
}


@pytest.fixture(scope="module")
def tiny(core, tmp_path_factory):
    """Tiny systems, and what they give in fp32."""
    from cascadevsr.nodes.loaders import load_restorer
    from cascadevsr.research import accelerators

    folder = tmp_path_factory.mktemp("quantised")
    with torch.inference_mode():
        subjects = accelerators.make_subjects(folder)
        plain = {name: accelerators.sample(subjects[name], subjects[name].model, 2) for name in FILES}

    def changed(system, change):
        """Load a system whose file has other entries for a moment: change(entries, metadata, prefixes)."""
        name, file, prefixes = FILES[system]
        whole, metadata = load_state(folder / file)
        entries, said = dict(whole), dict(metadata)
        change(entries, said, prefixes)
        save_state(folder / file, entries, said)
        try:
            return load_restorer(folder / name, "fp32")[0]
        finally:
            save_state(folder / file, whole, metadata)

    sample = lambda system, model: accelerators.sample(subjects[system], model, 2)  # noqa: E731
    return SimpleNamespace(changed=changed, sample=sample, plain=plain, likeness=accelerators.likeness, all=subjects)


FORMATS = {"int8": ("int8_tensorwise", torch.int8, 127)}  # the host's name, dtype, largest value
FORMATS |= {each: ("float8_e5m2", torch.float8_e5m2, 57344) for each in ("plain e5m2", "scaled e5m2")}


def quantise(how):
    """Give a change of entries to one of the ways in which files of ComfyUI are quantised."""
    name, dtype, most = FORMATS.get(how, ("float8_e4m3fn", torch.float8_e4m3fn, 448))

    def change(entries, metadata, prefixes):
        layers = {}
        for key, value in list(entries.items()):
            if not (
                key.endswith(".weight") and key.startswith(prefixes) and value.ndim == 2 and min(value.shape) >= 16
            ):
                continue
            layer = key.removesuffix(".weight")
            if how.startswith("plain"):
                entries[key] = value.to(dtype)
                continue
            scale = value.float().abs().amax() / most
            small = value.float() / scale
            entries[key] = (small.round() if dtype == torch.int8 else small).to(dtype)
            entries[layer + (".scale_weight" if how == "older fp8" else ".weight_scale")] = scale
            layers[layer] = {"format": name}
        if how == "older fp8":
            entries.update({prefix + "scaled_fp8": torch.zeros(1, dtype=torch.float8_e4m3fn) for prefix in prefixes})
        elif how == "fp8 of the metadata":
            metadata["_quantization_metadata"] = json.dumps({"layers": layers})
        else:
            entries.update({f"{layer}.comfy_quant": said(**conf) for layer, conf in layers.items()})

    return change


def said(**conf):
    return torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "how", ["plain fp8", "scaled fp8", "older fp8", "fp8 of the metadata", "plain e5m2", "scaled e5m2", "int8"]
)
@pytest.mark.parametrize("system", FILES)
def test_quantised_weights_are_kept_and_computed_with(tiny, system, how):
    from comfy.quant_ops import QuantizedTensor

    model = tiny.changed(system, quantise(how))
    kept = [each for each in model.model.diffusion_model.parameters() if isinstance(each.data, QuantizedTensor)]
    assert kept and model.model_size() < 0.9 * tiny.all[system].model.model_size()
    found = tiny.sample(system, model)
    least = 19 if how.endswith("e5m2") else 25  # dB; a bit less of every weight is 6 dB
    assert least < tiny.likeness(found, tiny.plain[system]) < 100


def test_the_host_builds_quantised_models_again(tiny):
    entries = {}

    def change(state, metadata, prefixes):
        quantise("scaled fp8")(state, metadata, prefixes)
        entries.update(state)

    model = tiny.changed("built-in", change)
    make, (part, system, path, loading) = model.cached_patcher_init
    save_state(path, entries, {"architecture": "unimmvsr"})
    again = make(part, system, path, loading, disable_dynamic=True)
    assert torch.equal(tiny.sample("built-in", again), tiny.sample("built-in", model))


def test_what_the_host_does_not_offer_is_refused_in_one_line(tiny, tmp_path):
    def other(entries, metadata, prefixes):
        entries["dit.patch_out.comfy_quant"] = said(format="nvfp4")

    def convolution(entries, metadata, prefixes):
        entries["conv_in.comfy_quant"] = said(format="float8_e4m3fn")
        entries["conv_in.weight_scale"] = torch.ones(())

    with pytest.raises(ValueError, match="quantised weights must be float8_e4m3fn, .*; got nvfp4. Take a file in"):
        tiny.changed("built-in", other)
    with pytest.raises(ValueError, match="only matrices may be quantised.*; got the layer conv_in. Take a file"):
        tiny.changed("Upscale-A-Video", convolution)
    tiny.changed("Upscale-A-Video", lambda entries, *_: None)  # the remedy: the file in fp16
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(CheckpointError, match="got x.gguf, which is GGUF.* Take the file in fp8 or fp16"):
        load_state(tmp_path / "x.gguf")
