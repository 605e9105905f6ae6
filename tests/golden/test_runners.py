"""The runners take their shapes from the case: cases of other shapes, made here of our own networks."""

import json

import pytest
import torch
from cascadevsr.models.mgld_vsr.blocks import fold
from cascadevsr.models.mgld_vsr.structure import StructureConfig, StructureEncoder
from cascadevsr.models.mgld_vsr.unet import MGLDUNet, UNetConfig
from cascadevsr.models.schedules import timestep_features
from cascadevsr.tests.golden import cases, mgld_networks
from safetensors.torch import save_file

LEVELS = {"model_channels": 32, "channel_mult": [1, 1, 2], "num_res_blocks": 1, "attention_resolutions": [2]}
FRAMES, HEIGHT, WIDTH = 3, 6, 10


def recorded(folder, name, config, given, produced, weights=()):
    """Write a case as the recorded ones are, and read it."""
    tensors = {f"in.{key}": value for key, value in given.items()}
    tensors |= {f"out.{key}": value for key, value in produced.items()} | {
        f"w.{k}": v for k, v in dict(weights).items()
    }
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps({"name": name, "config": config}))
    return cases.read_case(folder / f"{name}.json")


@pytest.fixture
def draw():
    """Draw numbers, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


def grow(network, draw):
    """Fill a network whose new layers are zero."""
    state = {key: 0.2 * draw(*value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


@torch.no_grad()
def test_time_steps_of_other_widths(tmp_path):
    t = torch.tensor([0, 3, 999])
    produced = {f"dim{width}": timestep_features(t, width) for width in (48, 10)}
    produced["dim7"] = torch.cat((timestep_features(t, 6), torch.zeros(3, 1)), 1)
    case = recorded(tmp_path, "timestep_embedding", {}, {"t": t}, produced)
    cases.compare(case, mgld_networks.timestep_embedding(case))


@torch.no_grad()
def test_networks_of_three_levels_on_odd_sides(tmp_path, draw):
    config = {**LEVELS, "out_channels": 32, "num_heads": 2}
    shape = StructureConfig(**{**config, "channel_mult": (1, 1, 2), "attention_resolutions": (2,)})
    encoder, t = (
        grow(StructureEncoder(shape), draw),
        {"t_single": torch.tensor([7]), "t_per_frame": torch.arange(FRAMES)},
    )
    x = draw(FRAMES, 4, HEIGHT, WIDTH)
    clip = x.transpose(0, 1)[None]
    maps = {name: encoder(clip, time) for name, time in (("single", t["t_single"]), ("per_frame", t["t_per_frame"]))}
    produced = {f"{name}.{each.shape[-1]}": fold(each) for name, found in maps.items() for each in found}
    assert produced.keys() == {f"{name}.{width}" for name in maps for width in (10, 5, 3)}
    case = recorded(tmp_path, "structcond", config, {"x": x, **t}, produced, encoder.state_dict())
    cases.compare(case, mgld_networks.structcond(case))

    config = {**LEVELS, "num_head_channels": 16, "context_dim": 24, "semb_channels": 32}
    shape = UNetConfig(**{**config, "channel_mult": (1, 1, 2), "attention_resolutions": (2,)})
    network, text, two, texts = (
        grow(MGLDUNet(shape), draw),
        draw(1, 5, 24),
        draw(2, 4, FRAMES, HEIGHT, WIDTH),
        draw(2, 5, 24),
    )
    struct = maps["single"]
    given = {"x": x, "context": text, "x2": fold(two), "context2": texts, **t}
    given |= {f"struct.{each.shape[-1]}": fold(each) for each in struct}
    both = [torch.cat((each, each.flip(2))) for each in struct]
    produced = {
        "y_single": fold(network(clip, t["t_single"], struct, text)),
        "y_per_frame": fold(network(clip, t["t_per_frame"], struct, text)),
        "y_two_clips": fold(network(two, t["t_single"], both, texts)),
    }
    case = recorded(tmp_path, "unet", config, given, produced, network.state_dict())
    cases.compare(case, mgld_networks.unet(case))
