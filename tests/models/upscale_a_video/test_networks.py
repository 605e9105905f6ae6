"""The UNet and the autoencoder at tiny size, and what their configs and weights must look like at full size.

Recorded numbers of the same networks are compared in tests/golden.
"""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from cascadevsr.models import transformer
from cascadevsr.models.checkpoints import CheckpointError
from cascadevsr.models.upscale_a_video import checkpoint, temporal, unet, vae
from cascadevsr.tests.golden import cases
from cascadevsr.tests.golden.configs import unet_of, vae_of

KEYS = cases.HERE.parent.parent.parent / "shared" / "keys"

UNET_JSON = {
    "_class_name": "UNetVideoModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [256, 512, 512, 1024],
    "center_input_sample": False,
    "cross_attention_dim": 1024,
    "down_block_types": ["DownBlock3D"] + ["CrossAttnDownBlock3D"] * 3,
    "down_temporal_idx": [0, 1, 2, 3],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 7,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_temporal": True,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": 1000,
    "only_cross_attention": [True, True, True, False],
    "out_channels": 4,
    "sample_size": 128,
    "temporal_module_config": {"attention_block_types": ["", ""]},
    "up_block_types": ["CrossAttnUpBlock3D"] * 3 + ["UpBlock3D"],
    "up_temporal_idx": [0, 1, 2, 3],
    "use_linear_projection": True,
}
VAE_3D_JSON = {
    "_class_name": "AutoencoderKL3D",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock3D"] * 3,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "scaling_factor": 0.08333,
    "up_block_types": ["UpDecoderBlock3D"] * 3,
}
VAE_VIDEO_JSON = VAE_3D_JSON | {
    "condition_channels": 128,
    "condition_img": True,
    "up_block_types": ["UpDecoderBlock3D_plus"] * 3,
    "use_temporal_block": True,
}
SMALL = unet.UNetConfig(
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    attention=(False, True, True),
    heads=(2, 1, 2),
    only_cross_attention=(True, True, False),
    cross_attention_dim=40,
    down_temporal_idx=(0, 1, 2),
    up_temporal_idx=(0, 1, 2),
)
SMALL_VAE = vae.VAEConfig(block_out_channels=(32, 32, 64), layers_per_block=1, condition_channels=32)
CONDITIONED = replace(SMALL_VAE, condition=True)


def on_meta(build):
    """Build without memory for the weights."""
    with torch.device("meta"):
        return build()


FULL = on_meta(lambda: unet.VideoUNet(unet.UNetConfig())).state_dict()
FULL_VAE = on_meta(lambda: vae.UpscaleVAE(vae.VAEConfig())).state_dict()


def small_unet(seed=0, **settings):
    torch.manual_seed(seed)
    return unet.VideoUNet(replace(SMALL, **settings)).eval()


def small_vae(settings=SMALL_VAE, seed=0):
    torch.manual_seed(seed)
    return vae.UpscaleVAE(settings).eval()


def inputs(frames=3, height=9, width=13, batch=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x, low_res = (torch.randn(batch, c, frames, height, width, generator=generator) for c in (4, 3))
    return (
        x,
        torch.tensor(601.0),
        low_res,
        torch.randn(batch, 5, 40, generator=generator),
        torch.tensor([120]),
    )


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


class TestFullSize:
    def test_counts_of_parameters(self):
        network = on_meta(lambda: unet.VideoUNet(unet.UNetConfig()))
        assert sum(each.numel() for each in network.parameters()) == 691_036_436  # rotary frequencies once
        assert sum(each.numel() for each in network.state_dict().values()) == 691_036_692  # in all 17 places
        temporal_only = sum(each.numel() for key, each in network.named_parameters() if "temp" in key)
        assert round(temporal_only / 1e6, 1) == 217.6

    @pytest.mark.parametrize(
        ("settings", "count"),
        [(vae.VAEConfig(), 55_325_927), (vae.VAEConfig(condition=True), 113_776_365)],
        ids=["3d", "video"],
    )
    def test_counts_of_the_autoencoders(self, settings, count):
        network = on_meta(lambda: vae.UpscaleVAE(settings))
        assert sum(each.numel() for each in network.parameters()) == count

    @pytest.mark.parametrize(
        ("name", "build"),
        [
            ("unet", lambda state: unet.VideoUNet(checkpoint.unet_config(state, UNET_JSON))),
            ("vae_3d", lambda state: vae.UpscaleVAE(checkpoint.vae_config(state, VAE_3D_JSON))),
            ("vae_video", lambda state: vae.UpscaleVAE(checkpoint.vae_config(state, VAE_VIDEO_JSON))),
        ],
    )
    def test_keys_and_shapes_of_the_published_files(self, name, build):
        file = KEYS / f"upscale_a_video_{name}.json"
        if not file.is_file():
            pytest.skip(f"the list of published keys is not here: {file}")
        published = {key: shape for key, (shape, _) in json.loads(file.read_text()).items()}
        given = {key: torch.empty(shape, device="meta") for key, shape in published.items()}
        network = on_meta(lambda: build(given))
        assert published == {key: list(value.shape) for key, value in network.state_dict().items()}


class TestConfig:
    def test_published_jsons(self):
        assert checkpoint.unet_config(FULL, UNET_JSON) == unet.UNetConfig() == unet_of(UNET_JSON)
        assert checkpoint.vae_config(FULL_VAE, VAE_3D_JSON) == vae.VAEConfig() == vae_of(VAE_3D_JSON)
        conditioned = vae.VAEConfig(condition=True)
        state = on_meta(lambda: vae.UpscaleVAE(conditioned)).state_dict()
        assert checkpoint.vae_config(state, VAE_VIDEO_JSON) == conditioned == vae_of(VAE_VIDEO_JSON)
        assert 2 ** (len(vae.VAEConfig().block_out_channels) - 1) == vae.SCALE

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"attention_head_dim": [1, 4, 8, 16]},
            {"only_cross_attention": [False, False, True, False], "cross_attention_dim": 768},
            {"layers_per_block": 1, "num_class_embeds": 500},
            {"down_temporal_idx": [1, 3], "up_temporal_idx": [0], "mid_temporal": False},
            {
                "down_block_types": ["CrossAttnDownBlock3D"] * 2 + ["DownBlock3D"] * 2,
                "up_block_types": ["UpBlock3D"] * 2 + ["CrossAttnUpBlock3D"] * 2,
                "attention_head_dim": [4, 8, 2, 16],
            },
        ],
        ids=str,
    )
    def test_unet_from_json_and_from_weights_agree(self, changes):
        stated = unet_of(UNET_JSON | changes)
        state = checkpoint.normalise_unet_keys(on_meta(lambda: unet.VideoUNet(stated)).state_dict())
        assert checkpoint.unet_config(state) == checkpoint.unet_config(state, UNET_JSON | changes) == stated

    @pytest.mark.parametrize("changes", [{}, {"block_out_channels": [32, 64, 96]}, {"layers_per_block": 1}])
    @pytest.mark.parametrize("published", [VAE_3D_JSON, VAE_VIDEO_JSON], ids=["3d", "video"])
    def test_vae_from_json_and_from_weights_agree(self, published, changes):
        stated = vae_of(published | changes)
        state = checkpoint.normalise_vae_keys(on_meta(lambda: vae.UpscaleVAE(stated)).state_dict())
        assert checkpoint.vae_config(state) == checkpoint.vae_config(state, published | changes) == stated

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"act_fn": "gelu"}, "act_fn in the json must be 'silu'; got 'gelu'"),
            ({"use_linear_projection": False}, "use_linear_projection"),
            ({"class_embed_type": "timestep"}, "class_embed_type"),
            ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
            ({"temporal_module_config": {"attention_block_types": ["Temporal_Self", ""]}}, "must not be set"),
            ({"use_relative_position": True}, "use_relative_position"),
            ({"addition_embed_type": "text"}, "addition_embed_type in the json must not be set; got 'text'"),
            ({"down_block_types": ["AttnDownBlock"] * 4}, "down_block_types"),
            ({"up_block_types": ["UpBlock3D"] * 4}, "up_block_types"),
            (
                {"down_block_types": ["DownBlock3D"] * 2, "up_block_types": ["UpBlock3D"] * 2},
                "down_block_types",
            ),
            (
                {"block_out_channels": [256, 512, 512, 512]},
                "block_out_channels in the json must be .256, 512",
            ),
            ({"attention_head_dim": 16}, "attention_head_dim in the json must be .8, 8, 8, 8.; got .8, 16"),
            (
                {"only_cross_attention": [True, False, True, False]},
                "only_cross_attention in the json must be",
            ),
            ({"mid_temporal": False}, "mid_temporal in the json must be True"),
            ({"down_temporal_idx": [1, 3]}, "down_temporal_idx in the json must be"),
            ({"num_class_embeds": 350}, "num_class_embeds in the json must be 1000"),
            ({"attention_head_dim": [8, 8]}, "attention_head_dim in the json must be one value or 4"),
        ],
    )
    def test_another_unet_is_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            checkpoint.unet_config(FULL, UNET_JSON | changes)

    @pytest.mark.parametrize(
        "changes",
        [{"condition_img": True}, {"up_block_types": ["UpDecoderBlock3D_plus"] * 3}, {"act_fn": "relu"}],
    )
    def test_another_vae_is_refused(self, changes):
        with pytest.raises(ValueError, match="in the json must be .* Weights made with it need another network"):
            checkpoint.vae_config(FULL_VAE, VAE_3D_JSON | changes)

    def test_options_that_are_off_or_change_nothing_are_accepted(self):
        extra = {"dropout": 0.0, "later_option": None, "_name_or_path": "x", "upcast_attention": True}
        assert checkpoint.unet_config(FULL, UNET_JSON | extra) == unet.UNetConfig()
        extra = {"down_temporal_idx": [0, 1, 2, 3, 4]}
        assert checkpoint.unet_config(FULL, UNET_JSON | extra) == unet.UNetConfig()

    def test_what_no_shape_shows_comes_from_the_json(self):
        extra = {
            "norm_eps": 1e-6,
            "norm_num_groups": 16,
            "max_noise_level": 200,
            "only_cross_attention": True,
        }
        stated = unet_of(UNET_JSON | extra)
        assert checkpoint.unet_config(FULL, UNET_JSON | extra) == stated and stated.only_cross_attention[3]
        extra = {"norm_num_groups": 16, "scaling_factor": 0.5}
        assert checkpoint.vae_config(FULL_VAE, VAE_3D_JSON | extra) == vae_of(VAE_3D_JSON | extra)

    def test_heads_that_do_not_fit(self):
        with pytest.raises(ValueError, match="got 4 heads for width 64"):
            small_unet(heads=(2, 4, 2))


class TestWeights:
    def test_prefixes_and_missing_or_shared_frequencies(self):
        state = small_unet().state_dict()
        bare = {"module." + key: value for key, value in state.items() if not key.endswith("freqs")}
        given = checkpoint.normalise_unet_keys(bare | {"other.weight": torch.zeros(1)})
        assert given.keys() == state.keys() and checkpoint.is_unet(bare)
        assert all(torch.equal(given[key], state[key]) for key in state)
        copies = {value.data_ptr() for key, value in given.items() if key.endswith("freqs")}
        assert len(copies) == sum(key.endswith("freqs") for key in state)  # files must not share memory
        small_unet(seed=1).load_state_dict(checkpoint.normalise_unet_keys(state))

    @pytest.mark.parametrize("wrong", [torch.ones(16), torch.ones(8)], ids=["values", "count"])
    def test_other_frequencies_are_refused(self, wrong):
        state = small_unet().state_dict() | {"temporal_rotary_emb.freqs": wrong}
        with pytest.raises(CheckpointError, match="temporal_rotary_emb.freqs must hold the constants"):
            checkpoint.normalise_unet_keys(state)
        half = small_unet().state_dict()["temporal_rotary_emb.freqs"].bfloat16()
        checkpoint.normalise_unet_keys(state | {"temporal_rotary_emb.freqs": half})

    def test_both_namings_of_the_vae_attention(self):
        state = small_vae().state_dict()
        newer = {"query.": "to_q.", "key.": "to_k.", "value.": "to_v.", "proj_attn.": "to_out.0."}
        renamed = {}
        for key, value in state.items():
            for old, new in newer.items():
                key = key.replace("." + old, "." + new)
            renamed["vae." + key] = value
        assert sum("to_" in key for key in renamed) == 16 and checkpoint.is_vae(renamed)
        given = checkpoint.normalise_vae_keys(renamed)
        assert given.keys() == state.keys()
        small_vae(seed=1).load_state_dict(given)

    def test_recognition(self):
        unet_state, vae_state = small_unet().state_dict(), small_vae().state_dict()
        conditioned = small_vae(replace(CONDITIONED, block_out_channels=(32, 64))).state_dict()
        eightfold = small_vae(replace(SMALL_VAE, block_out_channels=(32, 32, 32, 32))).state_dict()
        assert checkpoint.is_unet(unet_state) and not checkpoint.is_vae(unet_state)
        assert checkpoint.is_vae(vae_state) and checkpoint.is_vae(conditioned) and not checkpoint.is_unet(vae_state)
        assert not checkpoint.is_vae(eightfold) and not checkpoint.is_unet({}) and not checkpoint.is_vae({})

    def test_incomplete_files(self):
        state = small_unet().state_dict()
        del state["conv_in.weight"]
        with pytest.raises(CheckpointError, match="conv_in.weight"):
            checkpoint.unet_config(state)
        with pytest.raises(CheckpointError, match="Upscale-A-Video VAE: the weights must have an entry"):
            checkpoint.normalise_vae_keys(state)


class TestBlocks:
    def test_buckets_of_distance(self):
        """The rule of docs/systems/upscale_a_video.md (Temporal attention), written out for single pairs."""

        def bucket(distance):
            m = abs(distance)
            far = min(15, 8 + int(math.log(max(m, 1) / 8) / math.log(4) * 8 + 1e-6))
            return 16 * (distance < 0) + (m if m < 8 else far)

        expected = [[bucket(i - j) for j in range(70)] for i in range(70)]
        bias = temporal.RelativeBias(1, nn)
        bias.relative_attention_bias.weight.data = torch.arange(temporal.BUCKETS).float().view(-1, 1)
        assert bias(70, "cpu")[0].tolist() == expected
        assert bucket(16) == 12 and bucket(-40) == 31

    def test_temporal_attention_by_hand(self):
        torch.manual_seed(3)
        layer = temporal.TemporalAttention(96, 2, temporal.Rotary(), nn)
        x = torch.randn(1, 5, 4, 96)
        bias = layer.time_rel_pos_bias(5, x.device)
        expected = torch.zeros_like(x)
        for place in range(4):
            tokens = x[0, :, place]
            q, k, v = (each(tokens).view(5, 2, 48) for each in (layer.to_q, layer.to_k, layer.to_v))
            for head in range(2):
                scores = torch.zeros(5, 5)
                for i in range(5):
                    for j in range(5):
                        turned = self.turn(q[i, head], i) @ self.turn(k[j, head], j)
                        scores[i, j] = turned * 48**-0.5 + bias[head, i, j]
                out = scores.softmax(1) @ v[:, head]
                expected[0, :, place, head * 48 : head * 48 + 48] = out
        assert torch.allclose(layer(x), layer.to_out[0](expected), atol=1e-5)

    @staticmethod
    def turn(x, position):
        """Rotate pairs by complex numbers, dims from 32 on stay."""
        angle = position * 10000 ** (-torch.arange(16.0) / 16)
        pairs = torch.view_as_complex(x[:32].reshape(16, 2).contiguous()) * torch.polar(torch.ones(16), angle)
        return torch.cat((torch.view_as_real(pairs).flatten(), x[32:]))

    def test_text_attention_serves_all_frames_as_one_sequence(self):
        torch.manual_seed(4)
        layer = transformer.CrossAttention(64, 40, 2, nn, F.scaled_dot_product_attention)
        x, text = torch.randn(2, 3, 6, 64), torch.randn(2, 5, 40)
        whole = layer(x.flatten(1, 2), text).view(x.shape)
        framewise = torch.stack([layer(x[:, k], text) for k in range(3)], 1)
        assert torch.allclose(whole, framewise, atol=1e-6)


@pytest.mark.usefixtures("without_gradients")
class TestUNet:
    @pytest.mark.parametrize("size", [(1, 8, 8), (3, 9, 13), (2, 1, 5), (9, 7, 4)], ids=str)
    def test_any_size_and_length(self, size):
        given = inputs(*size)
        assert small_unet()(*given).shape == given[0].shape

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_stays_finite_and_close(self, dtype):
        network = small_unet()
        x, step, low_res, text, level = inputs(frames=8, batch=2)
        exact = network(x, step, low_res, text, level)
        result = network.to(dtype)(x.to(dtype), step, low_res.to(dtype), text.to(dtype), level)
        assert result.dtype == dtype and result.isfinite().all()
        error = (result.float() - exact).square().mean() / exact.square().mean()
        assert error.sqrt() < (0.05 if dtype == torch.bfloat16 else 0.01)

    def test_frequencies_are_not_rounded_with_the_network(self):
        cos, _ = temporal.Rotary().bfloat16().angles(8, torch.zeros(1))
        assert torch.equal(cos, temporal.Rotary().angles(8, torch.zeros(1))[0])

    def test_numbers_may_be_scalars_or_one_a_clip(self):
        network = small_unet()
        x, step, low_res, text, level = inputs(batch=2)
        whole = network(x, step, low_res, text, level)
        assert torch.allclose(network(x, 601, low_res, text, 120), whole, atol=1e-5)
        steps, levels = torch.tensor([601, 601]), torch.tensor([120, 120])
        assert torch.allclose(network(x, steps, low_res, text, levels), whole, atol=1e-5)
        other = network(x, torch.tensor([601, 20]), low_res, text, torch.tensor([120, 0]))
        assert torch.allclose(other[0], whole[0], atol=1e-5) and not torch.allclose(other[1], whole[1])

    def test_memory_limits_do_not_change_the_result(self, monkeypatch):
        network, given = small_unet(), inputs(batch=2)
        whole = network(*given)
        monkeypatch.setattr(temporal, "CELLS_AT_ONCE", 0)
        monkeypatch.setattr(temporal, "ROWS_AT_ONCE", 100)
        monkeypatch.setattr(transformer, "TOKENS_AT_ONCE", 7)
        assert torch.allclose(network(*given), whole, atol=1e-5)

    def test_gradients_flow_and_recording_them_changes_nothing(self):
        network, given = small_unet(), inputs()
        silent = network(*given)
        with torch.enable_grad():
            result = network(*given)
            result.square().mean().backward()
        assert torch.allclose(result, silent, atol=1e-6)
        trained = [each for each in network.parameters() if each.requires_grad]
        assert all(each.grad is not None and each.grad.isfinite().all() for each in trained)

    def test_inputs_are_left_alone(self):
        network, given = small_unet(), inputs()
        before = [each.clone() for each in given]
        network(*given)
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))

    def test_progress(self):
        seen = []
        small_unet()(*inputs(), progress=lambda done, total: seen.append((done, total)))
        assert seen == [(k, 7) for k in range(1, 8)]

    def test_layers_and_attention_are_injected(self):
        made, attended = set(), []

        def layer(kind):
            class Injected(getattr(nn, kind)):
                def __init__(self, *args, **kwargs):
                    super().__init__(*args, **kwargs)
                    made.update(map(id, self.parameters()))

            return Injected

        def attention(q, k, v):
            attended.append(q.shape)
            return F.scaled_dot_product_attention(q, k, v)

        kinds = ("Conv2d", "Conv3d", "Linear", "GroupNorm", "LayerNorm", "Embedding")
        ops = SimpleNamespace(**{kind: layer(kind) for kind in kinds})
        network = unet.VideoUNet(SMALL, ops, attention)
        own = {key for key, each in network.state_dict(keep_vars=True).items() if id(each) not in made}
        assert own and all(key.endswith("rotary_emb.freqs") for key in own)
        network(*inputs())
        assert len(attended) == 2 * (2 + 1 + 4) and attended[0] == (1, 1, 3 * 5 * 7, 64)
        decoder = vae.UpscaleVAE(CONDITIONED, ops, attention)
        assert all(id(each) in made for each in decoder.parameters())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {0: torch.zeros(1, 16, 3, 9, 13)},
                r"latents must be \(b, 4, t, h, w\); got \(1, 16, 3, 9, 13\)",
            ),
            ({2: torch.zeros(1, 3, 3, 18, 26)}, r"LR frames must be \(1, 3, 3, 9, 13\)"),
            ({3: torch.zeros(1, 5, 768)}, r"text must be \(1, tokens, 40\); got \(1, 5, 768\)"),
            ({4: torch.tensor([351])}, "the noise level must be 0 to 350; got 351"),
            ({4: -1}, "the noise level must be 0 to 350; got -1"),
        ],
    )
    def test_wrong_inputs_are_named(self, changes, message):
        given = [changes.get(i, each) for i, each in enumerate(inputs())]
        with pytest.raises(ValueError, match=message):
            small_unet()(*given)


@pytest.mark.usefixtures("without_gradients")
class TestVAE:
    def latent(self, frames=3, height=5, width=6):
        generator = torch.Generator().manual_seed(2)
        return (torch.randn(1, c, frames, height, width, generator=generator) for c in (4, 3))

    def test_sizes(self):
        network = small_vae(CONDITIONED)
        z, lr = self.latent(2, 5, 3)
        assert network.decode(z, lr).shape == (1, 3, 2, 20, 12)
        mean, logvar = network.encode(torch.zeros(1, 3, 2, 21, 14))
        assert mean.shape == logvar.shape == (1, 4, 2, 5, 3)

    def test_the_3d_form_ignores_lr_frames(self):
        network = small_vae()
        z, lr = self.latent()
        assert torch.equal(network.decode(z), network.decode(z, lr, 0.3))

    def test_fusion_weight(self):
        network = small_vae(CONDITIONED)
        z, lr = self.latent()
        none = network.decode(z, lr_weight=0.0)
        assert torch.allclose(network.decode(z, lr, 1e-9), none, atol=1e-5)
        assert not torch.allclose(network.decode(z, lr), none, atol=1e-3)

    def test_frames_meet_in_the_norms(self):
        network = small_vae()
        z, _ = self.latent()
        together = network.decode(z)
        assert not torch.allclose(network.decode(z[:, :, :1]), together[:, :, :1], atol=1e-4)

    def test_one_frame_many_clips(self):
        network = small_vae(CONDITIONED)
        z, lr = self.latent(1)
        both = network.decode(torch.cat((z, -z)), torch.cat((lr, -lr)))
        assert torch.allclose(both[:1], network.decode(z, lr), atol=1e-5)

    @pytest.mark.parametrize("settings", [SMALL_VAE, CONDITIONED], ids=["3d", "video"])
    def test_memory_limits_do_not_change_the_result(self, settings, monkeypatch):
        network = small_vae(settings)
        z, lr = self.latent()
        whole, clip = network.decode(z, lr), torch.randn(1, 3, 2, 13, 10)
        encoded = network.encode(clip)[0]
        monkeypatch.setattr(temporal, "CELLS_AT_ONCE", 0)
        assert torch.allclose(network.decode(z, lr), whole, atol=1e-5)
        assert torch.allclose(network.encode(clip)[0], encoded, atol=1e-5)

    @pytest.mark.parametrize("settings", [SMALL_VAE, CONDITIONED], ids=["3d", "video"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_stays_finite_and_close(self, settings, dtype):
        network = small_vae(settings)
        z, lr = self.latent()
        exact = network.decode(z, lr)
        result = network.to(dtype).decode(z.to(dtype), lr)
        assert result.dtype == dtype and result.isfinite().all()
        error = (result.float() - exact).square().mean() / exact.square().mean()
        assert error.sqrt() < (0.05 if dtype == torch.bfloat16 else 0.01)

    def test_gradients_flow(self):
        network = small_vae(CONDITIONED)
        z, lr = self.latent()
        with torch.enable_grad():
            result = network.decode(z, lr)
            result.square().mean().backward()
        assert torch.allclose(result, network.decode(z, lr), atol=1e-6)
        assert all(each.grad is not None for each in network.decoder.parameters())

    def test_wrong_inputs_are_named(self):
        network = small_vae(CONDITIONED)
        z, lr = self.latent()
        with pytest.raises(ValueError, match=r"needs the LR frames as \(1, 3, 3, 5, 6\); got none"):
            network.decode(z)
        with pytest.raises(ValueError, match=r"got \(1, 3, 2, 5, 6\)"):
            network.decode(z, lr[:, :, :2])
        with pytest.raises(ValueError, match=r"a latent must be \(b, 4, t, h, w\)"):
            network.decode(z[0], lr)
        with pytest.raises(ValueError, match=r"a clip must be \(b, 3, t, h, w\)"):
            network.encode(z)
