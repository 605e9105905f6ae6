"""The MGLD-VSR networks at tiny size, and what their configs and weights must look like at full size.

Recorded numbers of the same networks are compared in tests/golden.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from cascadevsr.models import transformer
from cascadevsr.models.checkpoints import CheckpointError
from cascadevsr.models.mgld_vsr import blocks, checkpoint, decoder, structure, text, unet, vae
from cascadevsr.tests.golden import cases
from cascadevsr.tests.golden.configs import from_options

KEYS = cases.HERE.parent.parent.parent / "shared" / "keys"

SMALL = unet.UNetConfig(
    model_channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(1, 2),
    num_head_channels=16,
    context_dim=40,
    semb_channels=32,
)
SMALL_STRUCTURE = structure.StructureConfig(
    out_channels=32, model_channels=32, channel_mult=(1, 1, 2), num_res_blocks=1, attention_resolutions=(1,)
)
SMALL_VAE = vae.VAEConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1)
SEQUENCE = replace(SMALL_VAE, sequence=True)
SMALL_TEXT = text.TextConfig(vocab_size=60, context_length=12, width=32, heads=2, layers=3, projection=16)

FULL = {
    "unet_diffusion_model": ("", lambda: unet.MGLDUNet(unet.UNetConfig())),
    "structcond_stage_model": ("", lambda: structure.StructureEncoder(structure.StructureConfig())),
    "first_stage_model": ("", lambda: vae.FirstStage(vae.VAEConfig())),
    "video_vae_cfw": ("", lambda: decoder.SequenceVAE(vae.VAEConfig(sequence=True))),
    "cond_stage_model_openclip_text": ("model.", lambda: text.OpenCLIPText(text.TextConfig())),
}


def on_meta(build):
    """Build without memory for the weights."""
    with torch.device("meta"):
        return build()


def filled(build, seed=0):
    """Build with random weights throughout: a new network's temporal layers and positions are zero."""
    torch.manual_seed(seed)
    network = build().eval()
    with torch.no_grad():
        for key, each in network.named_parameters():
            if key.endswith("temporal_alpha"):
                each.uniform_(0.3, 0.7)
            elif not key.endswith(("weight", "bias")) or "in_proj" in key:
                each.normal_(0, 0.2)
    return network


def small_unet(**settings):
    return filled(lambda: unet.MGLDUNet(replace(SMALL, **settings)))


def small_structure():
    return filled(lambda: structure.StructureEncoder(SMALL_STRUCTURE))


def small_decoder():
    return filled(lambda: decoder.SequenceVAE(SEQUENCE))


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(frames=3, height=9, width=13, batch=1):
    maps = [noise(batch, 32, frames, -(-height // 2**k), -(-width // 2**k), seed=9 + k) for k in range(3)]
    return noise(batch, 4, frames, height, width), torch.tensor(601.0), maps, noise(1, 5, 40, seed=3)


def relative_error(result, exact):
    return ((result.float() - exact).square().mean() / exact.square().mean()).sqrt()


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


class TestFullSize:
    @pytest.mark.parametrize("name", FULL)
    def test_keys_and_shapes_of_the_published_files(self, name):
        file = KEYS / f"mgld_vsr_{name}.json"
        if not file.is_file():
            pytest.skip(f"the list of published keys is not here: {file}")
        prefix, build = FULL[name]
        published = {key: shape for key, (shape, _) in json.loads(file.read_text()).items()}
        state = on_meta(build).state_dict()
        assert published == {prefix + key: list(value.shape) for key, value in state.items()}

    def test_counts_of_parameters(self):
        counts = [sum(each.numel() for each in on_meta(build).parameters()) for _, build in FULL.values()]
        assert counts == [935_321_287, 52_494_080, 83_653_863, 114_973_812, 354_032_641]

    def test_counts_of_what_was_added_to_the_image_model(self):
        state = on_meta(FULL["unet_diffusion_model"][1]).state_dict()
        sizes = {part: 0 for part in ("spade", "temporal")}
        for key, value in state.items():
            for part in sizes:
                sizes[part] += value.numel() if part in key else 0
        assert [round(size / 1e6, 2) for size in sizes.values()] == [53.02, 16.39]


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "heads"),
        [(unet.UNetConfig(), 64), (SMALL, 16), (replace(SMALL, attention_resolutions=(2,)), 16)],
        ids=["full", "small", "attention on one level"],
    )
    def test_unet_from_weights(self, settings, heads):
        state = on_meta(lambda: unet.MGLDUNet(settings)).state_dict()
        assert checkpoint.unet_config(state, heads) == settings

    @pytest.mark.parametrize("settings", [structure.StructureConfig(), SMALL_STRUCTURE], ids=["full", "small"])
    def test_structure_encoder_from_weights(self, settings):
        state = on_meta(lambda: structure.StructureEncoder(settings)).state_dict()
        assert checkpoint.structure_config(state) == settings

    @pytest.mark.parametrize("settings", [vae.VAEConfig(), SMALL_VAE], ids=["full", "small"])
    @pytest.mark.parametrize("sequence", [False, True], ids=["first stage", "sequence"])
    def test_autoencoders_from_weights(self, settings, sequence):
        settings = replace(settings, sequence=sequence)
        kind = decoder.SequenceVAE if sequence else vae.FirstStage
        assert checkpoint.vae_config(on_meta(lambda: kind(settings)).state_dict()) == settings

    @pytest.mark.parametrize("settings", [text.TextConfig(), SMALL_TEXT], ids=["full", "small"])
    def test_text_encoder_from_weights(self, settings):
        state = on_meta(lambda: text.OpenCLIPText(settings)).state_dict()
        assert checkpoint.text_config(state, settings.heads) == settings

    def test_published_options(self):
        options = {"channel_mult": [1, 2], "num_head_channels": 32, "image_size": 32, "dims": 2}
        expected = unet.UNetConfig(channel_mult=(1, 2), num_head_channels=32)
        assert from_options(unet.UNetConfig, options) == expected
        assert from_options(vae.VAEConfig, {"double_z": True}, sequence=True).sequence
        with pytest.raises(ValueError, match="UNetConfig: use_scale_shift_norm must be False; got True"):
            from_options(unet.UNetConfig, {"use_scale_shift_norm": True})

    def test_incomplete_files(self):
        state = on_meta(lambda: unet.MGLDUNet(SMALL)).state_dict()
        del state["out.2.weight"]
        with pytest.raises(CheckpointError, match="out.2.weight"):
            checkpoint.unet_config(state)
        state = on_meta(lambda: unet.MGLDUNet(SMALL)).state_dict()
        uneven = {key: value for key, value in state.items() if not key.startswith("input_blocks.5.")}
        with pytest.raises(CheckpointError, match=r"as many residual blocks; got \[1, 1, 0\]"):
            checkpoint.unet_config(uneven)

    def test_a_missing_share_is_noticed(self):
        """The published code would go on with whatever its memory holds."""
        network = small_decoder()
        state = network.state_dict()
        del state["decoder.up.0.temporal_mixing.1.temporal_alpha"]
        with pytest.raises(RuntimeError, match="temporal_alpha"):
            network.load_state_dict(state)


@pytest.mark.usefixtures("without_gradients")
class TestBlocks:
    def test_folding_and_back(self):
        clip = noise(2, 3, 4, 5, 6)
        frames = blocks.fold(clip)
        assert torch.equal(frames[5], clip[1, :, 1])  # clips in turn, the frame index fastest
        assert torch.equal(blocks.unfold(frames, 2), clip)

    def test_temporal_convolution_by_hand(self):
        layer = filled(lambda: blocks.TemporalConv(8, nn))
        frames, share = noise(6, 8, 4, 5), layer.temporal_alpha.item()
        kernel, bias = layer.temporal_conv.weight[..., 0, 0], layer.temporal_conv.bias
        expected = torch.empty_like(frames)
        for clip in (range(0, 3), range(3, 6)):
            for k in clip:
                mixed = bias[:, None, None].expand(8, 4, 5).clone()
                for tap in (-1, 0, 1):
                    if k + tap in clip:
                        mixed += torch.einsum("oi,ihw->ohw", kernel[..., tap + 1], frames[k + tap])
                expected[k] = share * mixed + (1 - share) * frames[k]
        assert torch.allclose(layer(frames.clone(), 2), expected, atol=1e-5)

    def test_temporal_attention_sees_its_clip_and_its_position_only(self):
        layer = filled(lambda: blocks.TemporalAttention(32, 2, nn))
        frames = noise(6, 32, 3, 4)
        before = layer(frames, 2)
        touched = frames.clone()
        touched[4, :, 1, 2] += noise(32)
        change = (layer(touched, 2) - before).abs().amax(1) > 1e-5
        assert change.nonzero().tolist() == [[3, 1, 2], [4, 1, 2], [5, 1, 2]]
        # Without positions, reversing time commutes with the layer.
        assert torch.allclose(layer(frames[:3].flip(0), 1).flip(0), before[:3], atol=1e-5)

    @pytest.mark.parametrize("limit", [0, 1, 100, 10**9])
    def test_frames_in_turn(self, limit, monkeypatch):
        monkeypatch.setattr(blocks, "NUMBERS_AT_ONCE", limit)
        a, b = noise(5, 3, 4, 4), noise(5, 3, 4, 4, seed=2)
        assert torch.equal(blocks.in_turn(lambda *both: sum(both), a, b), a + b)


@pytest.mark.usefixtures("without_gradients")
class TestUNet:
    @pytest.mark.parametrize("size", [(1, 8, 8), (3, 9, 13), (2, 1, 5), (9, 7, 4)], ids=str)
    def test_any_size_and_length(self, size):
        given = inputs(*size)
        assert small_unet()(*given).shape == given[0].shape

    @pytest.mark.parametrize("size", [(2, 8, 12), (3, 9, 13)], ids=str)
    def test_it_takes_the_maps_of_the_structure_encoder(self, size):
        x, step, maps, prompt = inputs(*size)
        made = small_structure()(noise(*x.shape, seed=4), step)
        assert [each.shape for each in made] == [each.shape for each in maps]
        network = small_unet()
        assert not torch.allclose(network(x, step, made, prompt), network(x, step, maps, prompt), atol=1e-3)

    def test_clips_do_not_see_each_other(self):
        network, encoder = small_unet(), small_structure()
        x, step, maps, prompt = inputs(batch=2)
        whole = network(x, step, maps, prompt)
        for i in range(2):
            alone = network(x[i : i + 1], step, [each[i : i + 1] for each in maps], prompt)
            assert torch.allclose(alone, whole[i : i + 1], atol=1e-5)
        made = encoder(x, step)
        for a, b in zip(encoder(x[1:], step), made, strict=True):
            assert torch.allclose(a, b[1:], atol=1e-5)

    def test_frames_meet_in_the_middle(self):
        network = small_unet()
        x, step, maps, prompt = inputs()
        alone = network(x[:, :, :1], step, [each[:, :, :1] for each in maps], prompt)
        assert not torch.allclose(alone, network(x, step, maps, prompt)[:, :, :1], atol=1e-4)

    def test_time_steps_may_be_one_or_one_a_clip_or_one_a_frame(self):
        network = small_unet()
        x, step, maps, prompt = inputs(batch=2)
        whole = network(x, step, maps, prompt)
        for same in (601, torch.tensor([601, 601]), torch.full((6,), 601)):
            assert torch.allclose(network(x, same, maps, prompt), whole, atol=1e-5)
        other = network(x, torch.tensor([601, 20]), maps, prompt)
        assert torch.allclose(other[0], whole[0], atol=1e-5) and not torch.allclose(other[1], whole[1])
        with pytest.raises(ValueError, match=r"one, 2 \(one a clip\) or 6 \(one a frame\); got 3"):
            network(x, torch.zeros(3), maps, prompt)

    def test_one_text_a_clip(self):
        network = small_unet()
        x, step, maps, prompt = inputs(batch=2)
        both = torch.cat((prompt, -prompt))
        whole = network(x, step, maps, prompt)
        other = network(x, step, maps, both)
        assert torch.allclose(other[0], whole[0], atol=1e-5) and not torch.allclose(other[1], whole[1])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_stays_finite_and_close(self, dtype):
        network, encoder = small_unet(), small_structure()
        x, step, _, prompt = inputs(frames=5)
        maps = encoder(x, step)
        exact = network(x, step, maps, prompt)
        halved = encoder.to(dtype)(x.to(dtype), step)
        result = network.to(dtype)(x.to(dtype), step, halved, prompt)
        assert result.dtype == dtype and result.isfinite().all()
        assert relative_error(result, exact) < (0.06 if dtype == torch.bfloat16 else 0.01)

    def test_memory_limits_do_not_change_the_result(self, monkeypatch):
        network, given = small_unet(), inputs(batch=2)
        whole = network(*given)
        monkeypatch.setattr(blocks, "NUMBERS_AT_ONCE", 0)
        monkeypatch.setattr(transformer, "TOKENS_AT_ONCE", 7)
        assert torch.allclose(network(*given), whole, atol=1e-5)

    def test_gradients_flow_and_recording_them_changes_nothing(self):
        network, encoder = small_unet(), small_structure()
        x, step, _, prompt = inputs()
        silent = network(x, step, encoder(x, step), prompt)
        with torch.enable_grad():
            result = network(x, step, encoder(x, step), prompt)
            result.square().mean().backward()
        assert torch.allclose(result, silent, atol=1e-5)
        for each in (*network.parameters(), *encoder.parameters()):
            assert each.grad is not None and each.grad.isfinite().all()

    def test_inputs_are_left_alone(self):
        network, encoder = small_unet(), small_structure()
        x, step, maps, prompt = inputs()
        given = [x, *maps, prompt]
        before = [each.clone() for each in given]
        network(x, step, maps, prompt)
        encoder(x, step)
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))

    def test_progress(self):
        seen = []
        small_unet()(*inputs(), progress=lambda done, total: seen.append((done, total)))
        assert seen == [(k, 13) for k in range(1, 14)]  # 6 entries down, the middle, 6 up

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

        kinds = ("Conv1d", "Conv2d", "Conv3d", "Linear", "GroupNorm", "LayerNorm", "Embedding")
        ops = SimpleNamespace(**{kind: layer(kind) for kind in kinds})
        networks = {
            "unet": unet.MGLDUNet(SMALL, ops, attention),
            "structure": structure.StructureEncoder(SMALL_STRUCTURE, ops, attention),
            "first stage": vae.FirstStage(SMALL_VAE, ops, attention),
            "sequence": decoder.SequenceVAE(SEQUENCE, ops, attention),
            "text": text.OpenCLIPText(SMALL_TEXT, ops),
        }
        bare = ("temporal_alpha", "in_proj_weight", "in_proj_bias", "positional_embedding")
        bare += ("text_projection", "logit_scale")
        for network in networks.values():
            own = [key for key, each in network.named_parameters() if id(each) not in made]
            assert all(key.endswith(bare) for key in own)
        networks["unet"](*inputs())
        assert len(attended) == 2 * (2 + 1 + 4)
        assert attended[:2] == [
            (3, 2, 9 * 13, 16),
            (1, 2, 3 * 9 * 13, 16),
        ]  # within frames; a clip to its text

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {0: torch.zeros(1, 16, 3, 9, 13)},
                r"latents must be \(b, 4, t, h, w\); got \(1, 16, 3, 9, 13\)",
            ),
            ({2: []}, r"structure maps must be \[\(1, 32, 3, 9, 13\), .*; got \[\]"),
            ({3: torch.zeros(1, 5, 768)}, r"text must be \(1 or 1, tokens, 40\); got \(1, 5, 768\)"),
        ],
    )
    def test_wrong_inputs_are_named(self, changes, message):
        given = [changes.get(i, each) for i, each in enumerate(inputs())]
        with pytest.raises(ValueError, match=message):
            small_unet()(*given)

    def test_other_wrong_sizes_are_named(self):
        with pytest.raises(ValueError, match=r"the LR latent must be \(b, 4, t, h, w\); got \(4, 4, 8, 8\)"):
            small_structure()(torch.zeros(4, 4, 8, 8), 1)
        with pytest.raises(ValueError, match="24 channels a head must divide the width; got 32"):
            small_unet(num_head_channels=24)


@pytest.mark.usefixtures("without_gradients")
class TestAutoencoders:
    def clip(self, frames=3, height=24, width=16, batch=1):
        return noise(batch, 3, frames, height, width, seed=5).clamp(-1, 1)

    def latent(self, frames=3, height=3, width=2, batch=1):
        return noise(batch, 4, frames, height, width, seed=6)

    def test_sizes(self):
        first, network, clip, z = (
            filled(lambda: vae.FirstStage(SMALL_VAE)),
            small_decoder(),
            self.clip(),
            self.latent(),
        )
        for mean, logvar in (first.encode(clip), network.encode(clip)):
            assert mean.shape == logvar.shape == (1, 4, 3, 3, 2)
        assert [tuple(each.shape) for each in network.features(clip)] == [(1, 32, 3, 12, 8), (1, 64, 3, 6, 4)]
        assert first.decode(z).shape == network.decode(z, network.features(clip)).shape == clip.shape

    def test_features_are_those_the_encoder_passes_on(self):
        network, clip = small_decoder(), self.clip()
        levels = list(network.encoder.levels(blocks.fold(clip)))
        for ours, theirs in zip(network.features(clip), levels[1:3], strict=True):
            assert torch.allclose(blocks.fold(ours), theirs, atol=1e-5)

    def test_deeper_levels_are_not_computed_for_features(self):
        network = small_decoder()
        network.encoder.down[3] = network.encoder.mid = None
        assert len(network.features(self.clip())) == 2

    def test_fusion_weight(self):
        network, z = small_decoder(), self.latent()
        features = network.features(self.clip())
        none = network.decode(z, weight=0.0)
        assert torch.equal(network.decode(z, features, 0.0), none)
        assert torch.allclose(network.decode(z, features, 1e-9), none, atol=1e-5)
        assert not torch.allclose(network.decode(z, features), none, atol=1e-3)

    def test_frames_meet_in_the_sequence_decoder_only(self):
        first, network, z = filled(lambda: vae.FirstStage(SMALL_VAE)), small_decoder(), self.latent()
        whole = first.decode(z)
        assert torch.allclose(first.decode(z[:, :, :1]), whole[:, :, :1], atol=1e-5)
        whole = network.decode(z, weight=0.0)
        assert not torch.allclose(network.decode(z[:, :, :1], weight=0.0), whole[:, :, :1], atol=1e-3)

    def test_clips_do_not_see_each_other(self):
        network, z, clip = small_decoder(), self.latent(batch=2), self.clip(batch=2)
        both = network.decode(z, network.features(clip))
        alone = network.decode(z[1:], network.features(clip[1:]))
        assert torch.allclose(both[1:], alone, atol=1e-5)

    def test_memory_limits_do_not_change_the_result(self, monkeypatch):
        first, network = filled(lambda: vae.FirstStage(SMALL_VAE)), small_decoder()
        clip, z = self.clip(batch=2), self.latent(batch=2)

        def everything():
            features = network.features(clip)
            return [*first.encode(clip), first.decode(z), *features, network.decode(z, features, 0.7)]

        whole = everything()
        for limit in (0, 5000):
            monkeypatch.setattr(blocks, "NUMBERS_AT_ONCE", limit)
            for ours, theirs in zip(everything(), whole, strict=True):
                assert torch.allclose(ours, theirs, atol=1e-5)

    def test_large_frames_are_worked_on_one_by_one(self, monkeypatch):
        monkeypatch.setattr(blocks, "NUMBERS_AT_ONCE", 0)
        network, seen = small_decoder(), []
        hook = lambda module, args, result: seen.append(args[0].shape[0])  # noqa: E731
        for each in network.modules():
            if isinstance(each, vae.ResnetBlock):
                each.register_forward_hook(hook)
        network.decode(self.latent(), network.features(self.clip()))
        assert set(seen[:-1]) == {1, 3} and seen.count(3) == 1  # only the smallest resolution's first block

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_stays_finite_and_close(self, dtype):
        network, z, clip = small_decoder(), self.latent(), self.clip()
        exact = network.decode(z, network.features(clip))
        network = network.to(dtype)
        result = network.decode(z.to(dtype), network.features(clip.to(dtype)))
        assert result.dtype == dtype and result.isfinite().all()
        # 8 bits a number: 0.044 here, 0.051 on a busy machine with another choice of kernels
        assert relative_error(result, exact) < (0.08 if dtype == torch.bfloat16 else 0.01)

    def test_gradients_flow_and_inputs_are_left_alone(self):
        network, z, clip = small_decoder(), self.latent(), self.clip()
        features = network.features(clip)
        before = [each.clone() for each in (z, *features)]
        silent = network.decode(z, features)
        assert all(torch.equal(a, b) for a, b in zip((z, *features), before, strict=True))
        with torch.enable_grad():
            result = network.decode(z, features)
            result.square().mean().backward()
        assert torch.allclose(result, silent, atol=1e-5)
        assert all(each.grad is not None for each in network.decoder.parameters())

    def test_wrong_inputs_are_named(self):
        network, z = small_decoder(), self.latent()
        wanted = r"\[\(1, 32, 3, 12, 8\), \(1, 64, 3, 6, 4\)\]"
        with pytest.raises(ValueError, match=f"features of the LR clip as {wanted}; got none"):
            network.decode(z)
        with pytest.raises(ValueError, match=rf"{wanted}; got \[\(1, 32, 2, 12, 8\)"):
            network.decode(z, network.features(self.clip(2)))
        with pytest.raises(ValueError, match=r"a latent must be \(b, 4, t, h, w\)"):
            network.decode(z[0], weight=0)
        for wrong in (z, self.clip(height=20)):
            with pytest.raises(ValueError, match=r"a clip must be \(b, 3, t, h, w\) with sides that 8 divides"):
                network.features(wrong)


@pytest.mark.usefixtures("without_gradients")
class TestText:
    def test_the_empty_prompt(self):
        network = filled(lambda: text.OpenCLIPText(SMALL_TEXT))
        prompt = network.empty_prompt()
        tokens = torch.tensor([[58, 59] + [0] * 10])
        assert prompt.shape == (1, 12, 32) and torch.equal(prompt, network(tokens))

    def test_no_token_sees_a_later_one(self):
        network = filled(lambda: text.OpenCLIPText(SMALL_TEXT))
        tokens = torch.arange(12)[None]
        changed = tokens.clone()
        changed[0, 7] = 40
        same = (network(tokens) - network(changed)).abs().amax(2)[0] < 1e-5
        assert same.tolist() == [True] * 7 + [False] * 5

    def test_the_last_block_has_no_part(self):
        network = filled(lambda: text.OpenCLIPText(SMALL_TEXT))
        before = network.empty_prompt()
        for each in network.transformer.resblocks[-1].parameters():
            each.zero_()
        assert torch.equal(network.empty_prompt(), before)
