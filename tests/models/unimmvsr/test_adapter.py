"""The adapter file: what is written comes back, what is damaged or foreign is named."""

import pytest
import torch
from cascadevsr.models.checkpoints import CheckpointError, load_state, save_state
from cascadevsr.models.unimmvsr.adapter import (
    LEVEL_KEYS,
    LEVEL_PREFIX,
    LR_WEIGHT,
    Adapter,
    AdapterInfo,
    LevelEmbedding,
    host_name,
    load_adapter,
    lora_entries,
    save_adapter,
    step_features,
)
from cascadevsr.models.unimmvsr.references import PAPER_RULE, StartRule

WIDTH = 24
NAME = "diffusion_model.blocks.1.self_attn.q"


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def make(**info):
    level = LevelEmbedding(16, WIDTH).state_dict()
    layers = lora_entries(NAME, draw(4, WIDTH), draw(WIDTH, 4), 2.0)
    layers["diffusion_model.head.head.diff"] = draw(64, WIDTH)
    return Adapter(AdapterInfo(rank=4, alpha=2.0, **info), draw(WIDTH, 16, 1, 2, 2), level, layers)


@pytest.fixture
def file(tmp_path):
    save_adapter(tmp_path / "a.safetensors", make())
    return tmp_path / "a.safetensors"


@pytest.fixture
def change(file):
    """Write the file again with other entries or metadata: change(entries, metadata); None leaves one out."""

    def run(entries=(), metadata=()):
        state, told = load_state(file)
        for values, new in ((state, dict(entries)), (told, dict(metadata))):
            values.update(new)
            for key in [key for key, value in values.items() if value is None]:
                del values[key]
        save_state(file, state, told)
        return file

    return run


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"rule": StartRule(None, 16, 3), "level_min": 0.0, "level_max": 1.0, "steps": 1200},
        {"rule": StartRule(0, 0, 0), "licence": "Apache-2.0", "made_from": "Wan 2.1 T2V 1.3B"},
    ],
)
def test_what_is_written_comes_back(tmp_path, info):
    adapter = make(**info)
    save_adapter(tmp_path / "a.safetensors", adapter)
    back = load_adapter(tmp_path / "a.safetensors")
    assert back.info == adapter.info and back.width == WIDTH
    assert back.modules == (NAME, "diffusion_model.head.head")
    assert torch.equal(back.lr_weight, adapter.lr_weight)
    for got, wanted in ((back.level, adapter.level), (back.layers, adapter.layers)):
        assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_only_the_clips_channels_are_compulsory(tmp_path):
    save_adapter(tmp_path / "a.safetensors", Adapter(AdapterInfo(), draw(WIDTH, 16, 1, 2, 2)))
    back = load_adapter(tmp_path / "a.safetensors")
    assert not back.level and not back.layers and back.info.rule == PAPER_RULE


def test_metadata_are_those_documented(file, repository):
    told = load_state(file)[1]
    assert told["format"] == "cascadevsr-adapter" and told["layout"] == "noisy,lr"
    assert told["start_first"] == "20" and told["start_lead"] == "0" and told["start_gap"] == "1"
    page = (repository / "docs" / "adapters.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in page for key in told)
    assert all(f"`{key}`" in page for key in (LR_WEIGHT, *(LEVEL_PREFIX + key for key in LEVEL_KEYS)))


@pytest.mark.parametrize(
    ("metadata", "rule"),
    [
        ({"format": None}, "must be a UniMMVSR adapter .* LoRA files belong into the host's own LoRA loader"),
        ({"format_version": "2"}, "must be version 1; got a.safetensors of version '2'. Update this pack"),
        ({"layout": "lr,noisy"}, "must have the channel layout 'noisy,lr'; got 'lr,noisy'"),
        ({"base": "wan9-t2v"}, r"must be for one of wan2.1-t2v \(16 channels\), .*; got wan9-t2v \(16"),
        ({"base": "wan2.2-ti2v"}, r"must be for one of .*; got wan2.2-ti2v \(16 channels\)"),
        ({"latent_channels": "many"}, "must state base, channels, .*many"),
        ({"start_gap": None}, "must state base, .*start_gap"),
        ({"level_min": "0.7"}, r"noise levels in 0..1, the lower first; got \(0.7, 0.6\)"),
        ({"base": "wan2.2-ti2v", "latent_channels": "48"}, "must have 48 LR channels, as its metadata says"),
    ],
)
def test_metadata_that_do_not_fit(change, metadata, rule):
    with pytest.raises(CheckpointError, match=rule):
        load_adapter(change(metadata=metadata))


@pytest.mark.parametrize(
    ("entries", "rule"),
    [
        ({LR_WEIGHT: None}, "must have the entry 'diffusion_model.patch_embedding.lr_weight'; got"),
        (
            {LR_WEIGHT: torch.zeros(WIDTH, 20, 1, 2, 2)},
            r"must have 16 LR channels.*; got \(24, 20, 1, 2, 2\)",
        ),
        ({LR_WEIGHT: torch.zeros(WIDTH, 16, 2, 2)}, r"must have 16 LR channels.*; got \(24, 16, 2, 2\)"),
        ({LEVEL_PREFIX + "0.bias": None}, "must have all of 0.weight, 0.bias, 2.weight, 2.bias"),
        ({LEVEL_PREFIX + "2.weight": torch.zeros(WIDTH, 9)}, r"of shape \(24, 24\); got \(24, 9\)"),
        ({NAME + ".alpha": None}, "must have lora_A, lora_B and alpha of .*; got none of alpha"),
        ({NAME + ".lora_A.weight": None}, "got none of lora_A.weight"),
        (
            {NAME + ".lora_B.weight": torch.zeros(WIDTH, 5)},
            r"one rank in both .*; got \(4, 24\) and \(24, 5\)",
        ),
        ({NAME + ".diff": torch.full((WIDTH, WIDTH), float("nan"))}, "finite numbers only; got NaN"),
        ({"diffusion_model.blocks.0.norm1.weight": torch.zeros(3)}, "entries of this format only; got"),
        (
            {"blocks.0.ffn.0.diff": torch.zeros(3, 3)},
            "entries of this format only; got 'blocks.0.ffn.0.diff'",
        ),
    ],
)
def test_entries_that_do_not_fit(change, entries, rule):
    with pytest.raises(CheckpointError, match=rule):
        load_adapter(change(entries))


def test_a_damaged_file(file):
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match="must be complete and readable"):
        load_adapter(file)


def test_the_writer_refuses_what_the_reader_would(tmp_path):
    adapter = make()
    bad = Adapter(adapter.info, adapter.lr_weight[:, :8], adapter.level, adapter.layers)
    with pytest.raises(CheckpointError, match="must have 16 LR channels"):
        save_adapter(tmp_path / "a.safetensors", bad)
    assert not list(tmp_path.iterdir())


def test_the_level_embedding_is_wans_time_embedding():
    step = torch.tensor([0, 200, 600])
    features = step_features(step, 8)
    frequency = torch.tensor([1.0, 0.1, 0.01, 0.001])
    angle = step[:, None] * frequency
    torch.testing.assert_close(features, torch.cat((angle.cos(), angle.sin()), 1), rtol=0, atol=1e-4)
    net = LevelEmbedding(8, WIDTH)
    assert list(net.state_dict()) == list(LEVEL_KEYS)
    torch.testing.assert_close(net(step), net[2](torch.nn.functional.silu(net[0](features))))


@pytest.mark.parametrize(
    ("diffusers", "host"),
    [
        ("blocks.3.attn1.to_q", "blocks.3.self_attn.q"),
        ("blocks.3.attn1.to_out.0", "blocks.3.self_attn.o"),
        ("blocks.11.attn2.to_v", "blocks.11.cross_attn.v"),
        ("blocks.0.attn2.add_k_proj", "blocks.0.cross_attn.k_img"),
        ("blocks.0.ffn.net.0.proj", "blocks.0.ffn.0"),
        ("blocks.0.ffn.net.2", "blocks.0.ffn.2"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("proj_out", "head.head"),
    ],
)
def test_names_of_diffusers(diffusers, host):
    assert host_name(diffusers) == f"diffusion_model.{host}"


def test_names_without_a_place():
    for name in ("patch_embedding", "blocks.0.norm2", "blocks.0.attn1.norm_q", "anything"):
        with pytest.raises(KeyError, match=name):
            host_name(name)
