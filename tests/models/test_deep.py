"""UNets without their deep half: what they are given stands for it, bit for bit; a guided pair shares its beginning."""

import pytest
import torch
from cascadevsr.models.mgld_vsr.structure import StructureConfig, StructureEncoder
from cascadevsr.models.mgld_vsr.unet import MGLDUNet
from cascadevsr.models.mgld_vsr.unet import UNetConfig as MGLDConfig
from cascadevsr.models.transformer import Deep, over_time, over_tokens
from cascadevsr.models.upscale_a_video import unet as uav

LEVELS = {"model_channels": 64, "channel_mult": (1, 2, 2), "num_res_blocks": 1, "attention_resolutions": (1, 2)}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def _alive(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for value in network.parameters():
        value.copy_(
            torch.randn(value.shape, generator=generator) * (0.5 / value[0].numel() ** 0.5 if value.ndim > 1 else 0.3)
        )
    return network.eval()


@pytest.fixture(scope="module")
def upscale_a_video():
    config = uav.UNetConfig(
        block_out_channels=(32, 64, 64, 128), heads=(1, 1, 1, 2), layers_per_block=1, cross_attention_dim=24
    )
    with torch.no_grad():
        return _alive(uav.VideoUNet(config))


def _pair(frames=3, rows=10, columns=13):
    drawn = torch.Generator().manual_seed(1)
    x, low = (torch.randn(1, c, frames, rows, columns, generator=drawn) for c in (4, 3))
    return x.repeat(2, 1, 1, 1, 1), low.repeat(2, 1, 1, 1, 1), torch.randn(2, 5, 24, generator=drawn)


def test_upscale_a_video_takes_its_deep_half_back(upscale_a_video):
    x, low, text = _pair()
    kept = Deep()
    whole = upscale_a_video(x, 500, low, text, 120, deep=kept)
    assert torch.equal(whole, upscale_a_video(x, 500, low, text, 120)) and kept.kept.shape == (2, 64, 3, 5, 7)
    ran = []
    hooks = [part.register_forward_hook(lambda *_: ran.append(1)) for part in upscale_a_video.down_blocks[1].resnets]
    assert torch.equal(upscale_a_video(x, 500, low, text, 120, deep=Deep(kept.kept)), whole) and not ran
    assert not torch.equal(upscale_a_video(x, 500, low, text, 120, deep=Deep(kept.kept * 0)), whole)
    assert not torch.equal(upscale_a_video(x * 0.9, 500, low, text, 120, deep=Deep(kept.kept)), whole), "the rest runs"
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("pairs", [1, 2])
def test_a_guided_pair_shares_what_comes_before_its_text(upscale_a_video, pairs, monkeypatch):
    x, low, text = _pair()
    if pairs == 2:  # two tiles of each branch
        x, low = (torch.cat((part[:1], part[:1].flip(-1))).repeat(2, 1, 1, 1, 1) for part in (x, low))
        text = text.repeat_interleave(2, 0)
    seen = []
    hook = upscale_a_video.conv_in.register_forward_hook(lambda layer, given, result: seen.append(len(given[0])))
    shared = upscale_a_video(x, 500, low, text, 120)
    monkeypatch.setattr(uav, "_halves_alike", lambda *parts: False)
    alone = upscale_a_video(x, 500, low, text, 120)
    hook.remove()
    assert seen == [3 * pairs, 6 * pairs]
    torch.testing.assert_close(shared, alone, rtol=0, atol=2e-6 * float(alone.abs().max()))


@pytest.mark.parametrize("changed", ["x", "low", "level"])
def test_halves_that_differ_are_computed_both(upscale_a_video, changed):
    x, low, text = _pair()
    level = torch.tensor([120, 20 if changed == "level" else 120])
    x[1] += changed == "x"
    low[1] += 0.5 * (changed == "low")
    both = upscale_a_video(x, 500, low, text, level)
    alone = [upscale_a_video(x[i : i + 1], 500, low[i : i + 1], text[i : i + 1], level[i]) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=2e-6 * float(both.abs().max()))


def test_mgld_takes_its_deep_half_back():
    unet = _alive(MGLDUNet(MGLDConfig(**LEVELS, context_dim=32, semb_channels=32)))
    structure = _alive(StructureEncoder(StructureConfig(**LEVELS, out_channels=32)))
    drawn = torch.Generator().manual_seed(1)
    x, low, text = (torch.randn(shape, generator=drawn) for shape in ((1, 4, 2, 9, 11), (1, 4, 2, 9, 11), (1, 5, 32)))
    maps, first = structure(low, 500), structure(low, 500, first=True)
    assert len(maps) == 3 and len(first) == 1 and torch.equal(first[0], maps[0])
    kept = Deep()
    whole = unet(x, 500, maps, text, deep=kept)
    assert torch.equal(whole, unet(x, 500, maps, text)) and kept.kept.shape == (2, 128, 5, 6)
    assert torch.equal(unet(x, 500, first, text, deep=Deep(kept.kept)), whole)
    assert not torch.equal(unet(x, 500, first, text, deep=Deep(kept.kept * 0)), whole)
    with pytest.raises(ValueError, match="structure maps must be"):
        unet(x, 500, first, text)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_convolution_over_time_is_that_of_pictures(kernel):
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(6, 10, (kernel, 1, 1), padding=(kernel // 2, 0, 0))
    x = torch.randn(2, 6, 4, 5, 7)
    before = layer(x)
    torch.testing.assert_close(over_time(layer)(x), before, rtol=0, atol=1e-6)
    part = x.transpose(3, 4)[..., 1:3, :]  # strided, as rows of a clip are
    torch.testing.assert_close(layer(part), before.transpose(3, 4)[..., 1:3, :], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cells", [1, 2], ids=["Conv1d", "Conv2d"])
def test_a_convolution_of_single_cells_takes_tokens(cells):
    kind, shape = ((torch.nn.Conv1d, (2, 6, 20)), (torch.nn.Conv2d, (2, 6, 4, 5)))[cells - 1]
    layer, x = kind(6, 9, 1), torch.randn(shape)
    before, names = (
        layer(x).flatten(2).transpose(1, 2),
        {name: value.shape for name, value in layer.state_dict().items()},
    )
    torch.testing.assert_close(over_tokens(layer)(x.flatten(2).transpose(1, 2)), before, rtol=0, atol=1e-6)
    assert {name: value.shape for name, value in layer.state_dict().items()} == names
