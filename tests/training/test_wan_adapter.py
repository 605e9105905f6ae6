"""A Wan adapter at toy size: equal to the base untrained, references by tokens, data, a run from the command line."""

import json

import numpy as np
import pytest
import torch
from cascadevsr.training import adapter as program
from cascadevsr.training.curriculum import IMAGES, TEXT, VIDEO
from cascadevsr.training.latents import LatentSample, LatentStore
from cascadevsr.training.loop import checkpoint_blocks, read_log
from cascadevsr.training.pairs import (
    PhotoTakes,
    Recipe,
    VideoTakes,
    find_videos,
    make_pair,
    without_augmentation,
)
from cascadevsr.training.photos import procedural_photo
from cascadevsr.training.sdedit import SDEditTransform
from cascadevsr.training.wan_adapter import AdapterConfig, WanAdapter, flow_matching_loss
from cascadevsr.training.wan_base import Texts, WanBase, WanCodec, load_base, load_vae

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 20,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
}


def tiny_base(**changes):
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(**{**SIZES, **changes}).eval()


def tiny_vae():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(1)
    return AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A diffusers folder with a tiny random Wan."""
    folder = tmp_path_factory.mktemp("wan")
    tiny_base().save_pretrained(folder / "transformer")
    tiny_vae().save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    import av

    folder = tmp_path_factory.mktemp("videos")
    for number in range(2):
        small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        with av.open(str(folder / f"clip{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for shift in range(24):
                image = np.roll(small.repeat(11, 0)[:64].repeat(12, 1), shift * 2, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    return folder


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    latents = {name: draw(2, 16, 3, 4, 6) for name in ("z", "lr", "same")}
    return {**latents, "text": draw(2, 5, 20), "image": draw(2, 16, 1, 6, 4), "t": torch.tensor([0.3, 0.9])}


LEVEL = torch.tensor([0.2, 0.5])


@torch.no_grad()
def test_untrained_it_is_the_base_bit_for_bit(inputs):
    z, t, text = inputs["z"], inputs["t"], inputs["text"]
    expected = tiny_base()(z, 1000 * t, text, return_dict=False)[0]
    adapter = WanAdapter(tiny_base(), AdapterConfig(rank=4)).eval()
    assert torch.equal(adapter(z, t, inputs["lr"], LEVEL, text), expected)
    _disturb(adapter)
    assert not torch.allclose(adapter(z, t, inputs["lr"], LEVEL, text), expected, atol=1e-3)
    with adapter.bare() as base:
        assert torch.equal(base(z, 1000 * t, text, return_dict=False)[0], expected)


def _disturb(adapter):
    """Give what starts at zero something to say."""
    generator = torch.Generator().manual_seed(9)
    quiet = [adapter.patch_lr.weight, adapter.level_out.weight, adapter.level_out.bias]
    quiet += [delta.up.weight for delta in adapter.deltas.values()]
    for parameter in quiet:
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def test_references_are_tokens_with_their_own_time(inputs):
    z, t, text, same, image = (inputs[name] for name in ("z", "t", "text", "same", "image"))
    adapter = WanAdapter(tiny_base(), AdapterConfig(rank=0)).eval()
    joined = tiny_base()(torch.cat((z, same), 2), 1000 * t, text, return_dict=False)[0][:, :, :3]
    assert torch.allclose(adapter(z, t, None, None, text, [same], starts=[3]), joined, atol=1e-6)
    plain = adapter(z, t, None, None, text)
    own = adapter(z, t, None, None, text, [same, image])
    assert not torch.allclose(own, plain, atol=1e-4)
    assert torch.allclose(own, adapter(z, t, None, None, text, [image, same], starts=[24, 20]), atol=1e-5)
    assert not torch.allclose(own, adapter(z, t, None, None, text, [same, image], starts=[30, 60]), atol=1e-6)


@torch.no_grad()
def test_every_part_speaks(inputs):
    z, t, text = inputs["z"], inputs["t"], inputs["text"]
    adapter = WanAdapter(tiny_base(), AdapterConfig(rank=2)).eval()
    _disturb(adapter)
    whole = adapter(z, t, inputs["lr"], LEVEL, text)
    assert not torch.allclose(whole, adapter(z, t, 0 * inputs["lr"], LEVEL, text), atol=1e-3)
    assert not torch.allclose(whole, adapter(z, t, inputs["lr"], LEVEL + 0.1, text), atol=1e-4)
    assert not torch.allclose(whole, adapter(z, t, inputs["lr"], LEVEL, text + 1), atol=1e-4)


def test_only_its_own_parts_learn_and_the_sign_is_the_base_s(inputs):
    adapter = WanAdapter(tiny_base(), AdapterConfig(rank=2))
    assert adapter.train().base.training is False
    z, eps = inputs["z"], inputs["same"]
    more = (inputs["lr"], LEVEL, inputs["text"], [inputs["image"]])
    loss = flow_matching_loss(adapter, z, eps, inputs["t"], *more)
    loss.backward()
    moved = {name for name, value in adapter.named_parameters() if value.grad is not None}
    assert {name.split(".")[0] for name in moved} == {"patch_lr", "level_out", "level_in", "deltas"}

    class Right(torch.nn.Module):
        def forward(self, z_t, *rest):
            return eps - z

    assert flow_matching_loss(Right(), z, eps, inputs["t"], *more) == 0


def test_checkpointed_blocks_give_the_same_gradients(inputs):
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(5)
        adapter = WanAdapter(tiny_base(), AdapterConfig(rank=2))
        _disturb(adapter)
        if checkpointed:
            checkpoint_blocks(adapter.base.blocks)
        more = (inputs["lr"], LEVEL, inputs["text"], [inputs["image"]])
        flow_matching_loss(adapter, inputs["z"], inputs["same"], inputs["t"], *more).backward()
        found.append([p.grad for p in adapter.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_a_base_in_half_precision_trains(folder, inputs):
    base = load_base(folder, torch.bfloat16)
    assert base.proj_out.weight.dtype == torch.bfloat16 and base.blocks[0].norm2 is not None
    assert base.scale_shift_table.dtype == torch.float32, "diffusers keeps it exact"
    adapter = WanAdapter(base, AdapterConfig(rank=2))
    _disturb(adapter)
    full = WanAdapter(load_base(folder), AdapterConfig(rank=2))
    full.load_state_dict({**full.state_dict(), **{k: v for k, v in adapter.state_dict().items() if k[:4] != "base"}})
    more = (inputs["z"], inputs["t"], inputs["lr"], LEVEL, inputs["text"], [inputs["image"]])
    with torch.autocast("cpu", torch.bfloat16):
        velocity = adapter(*more)
        velocity.float().square().mean().backward()
    assert adapter.patch_lr.weight.grad.abs().sum() > 0 and adapter.patch_lr.weight.dtype == torch.float32
    with torch.no_grad():
        exact = full(*more)
    assert (velocity.float() - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_image_to_video_bases_and_odd_sides_are_refused(inputs):
    with pytest.raises(ValueError, match="text-to-video model, with as many channels in as out; got 36 and 16"):
        WanAdapter(tiny_base(in_channels=36))
    with pytest.raises(ValueError, match="multiples of 16 px"):
        WanAdapter(tiny_base())(inputs["z"][..., :5], inputs["t"], None, None, inputs["text"])


def test_the_codec_is_the_hosts_normalised_latent(folder):
    vae = load_vae(folder)
    codec = WanCodec(vae)
    clip = torch.rand(1, 3, 5, 32, 48, generator=torch.Generator().manual_seed(0))
    latent = codec.encode(clip)
    assert latent.shape == (1, 16, 2, 4, 6)
    raw = vae.encode(clip * 2 - 1).latent_dist.mode()
    mean, deviation = (torch.tensor(v).view(1, 16, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    assert torch.allclose(latent, (raw - mean) / deviation, atol=1e-6)
    assert codec.decode(latent).shape == clip.shape


def test_the_base_redraws_clips_without_the_adapter(folder):
    adapter = WanAdapter(load_base(folder), AdapterConfig(rank=2))
    codec = WanCodec(load_vae(folder))
    redraw = SDEditTransform(WanBase(adapter, codec, torch.zeros(1, 1, 20)))
    frames = torch.rand(6, 3, 64, 80)
    made = redraw(frames, 20, 24, np.random.default_rng(0), k=3)
    assert made.shape == (6, 3, 20, 24)
    _disturb(adapter)
    assert torch.equal(made, redraw(frames, 20, 24, np.random.default_rng(0), k=3))
    assert not torch.equal(made, redraw(frames, 20, 24, np.random.default_rng(0), k=0))


def test_texts(tmp_path):
    from cascadevsr.models.checkpoints import save_state

    save_state(tmp_path / "clip.safetensors", {"text": torch.ones(3, 20)})
    texts = Texts(tmp_path, 20)
    assert texts.get("clip.mp4").shape == (1, 3, 20) and texts.get("other").sum() == 0
    assert Texts(None, 20).null().shape == (1, 1, 20)
    with pytest.raises(ValueError, match="text must be 4096 wide for this base; got 20"):
        Texts(tmp_path, 4096).get("clip")
    with pytest.raises(FileNotFoundError, match="--text"):
        Texts(tmp_path / "none", 20)


def test_takes_of_photographs_and_videos(videos):
    drawn = np.random.default_rng(0)
    photos = PhotoTakes([procedural_photo(drawn, 220) for _ in range(2)], 48)
    clips = VideoTakes(find_videos([videos]), 32, 48)
    recipe = Recipe(scale=2, presets=("bicubic",))
    for source, (height, width) in ((photos, (48, 48)), (clips, (32, 48))):
        for task in (TEXT, IMAGES, VIDEO):
            pair, again = (
                make_pair(source.make(task, 5, rng), task, recipe, rng)
                for rng in (np.random.default_rng(7) for _ in range(2))
            )
            assert torch.equal(pair.frames, again.frames) and torch.equal(pair.low, again.low)
            assert pair.frames.shape == (5, 3, height, width) and pair.low.shape == (
                5,
                3,
                height // 2,
                width // 2,
            )
            lengths = {len(reference) for reference in pair.references}
            assert lengths == {TEXT: set(), IMAGES: {1}, VIDEO: {5}}[task]
    assert pair.layer is not None and pair.layer.sum() > 0
    rng = np.random.default_rng(7)
    plain = make_pair(clips.make(VIDEO, 5, rng), VIDEO, without_augmentation(recipe), rng)
    unedited = plain.layer == 0
    assert torch.equal((plain.references[0] - plain.frames) * unedited, torch.zeros_like(plain.frames))
    assert (plain.references[0] - plain.frames).abs().max() > 0.02


def test_missing_folders_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="--videos"):
        find_videos([tmp_path / "none"])
    with pytest.raises(ValueError, match="no video clips"):
        VideoTakes([], 32, 32)
    with pytest.raises(FileNotFoundError, match="diffusers folder with transformer/config.json"):
        load_base(tmp_path)


def test_the_store_makes_a_sample_once(tmp_path):
    made = []

    def make(task, frames, number):
        made.append((task, frames, number))
        z = torch.full((1, 2, 1, 2, 2), float(number))
        return LatentSample(z, z + 1, (z + 2, z + 3), "name", {"flow": z})

    store = LatentStore(make, tmp_path, "one")
    first, again = (store.get(IMAGES, 5, 3) for _ in range(2))
    assert made == [(IMAGES, 5, 3)] and again.name == "name" and len(again.references) == 2
    assert torch.equal(again.references[1], first.z + 3) and torch.equal(again.extra["flow"], first.z)
    LatentStore(make, tmp_path, "other").get(IMAGES, 5, 3)
    LatentStore(make).get(IMAGES, 5, 3)
    assert len(made) == 3


def arguments(folder, videos, work, steps, *more):
    text = f"--base {folder} --videos {videos} --size 32 48 --frames 5 9 --scale 2 --rank 4 --batch 1 --rate 3e-3"
    text += f" --steps {steps} --device cpu --precision fp32 --keep 2 --every 4"
    text += f" --work {work} --out {work}/a.safetensors"
    return [*text.split(), *more]


def test_a_run_learns_resumes_and_follows_the_curriculum(folder, videos, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(program, "export", lambda adapter, path, steps, *_: written.append((path.name, steps)))
    program.main(arguments(folder, videos, tmp_path / "whole", 60, "--checkpointing"))
    losses = [line["loss"] for line in read_log(tmp_path / "whole" / "log.jsonl")]
    assert len(losses) == 60 and written == [("a.safetensors", 60)]
    assert np.mean(losses[-15:]) < np.mean(losses[:15])
    tasks = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "whole" / "samples").rglob("*.safetensors")}
    assert {"none-5", "images-5", "none-9"} <= tasks and {"video-5", "video-9"} & tasks

    class Killed(Exception):
        pass

    whole = program.AdapterData.draw

    def dies(self, number):
        if number == 11:
            raise Killed
        return whole(self, number)

    monkeypatch.setattr(program.AdapterData, "draw", dies)
    with pytest.raises(Killed):
        program.main(arguments(folder, videos, tmp_path / "cut", 60))
    monkeypatch.setattr(program.AdapterData, "draw", whole)
    program.main(arguments(folder, videos, tmp_path / "cut", 60))
    again = [line["loss"] for line in read_log(tmp_path / "cut" / "log.jsonl")]
    assert again == pytest.approx(losses, rel=1e-5)
    assert json.loads((tmp_path / "cut" / "log.jsonl").read_text().splitlines()[0])["step"] == 1


def test_the_command_line_says_what_is_missing(folder):
    with pytest.raises(ValueError, match="needs --videos or --photos"):
        program.main(["--base", str(folder), "--size", "32", "48"])
    with pytest.raises(ValueError, match="multiples of 16"):
        program.main(["--base", str(folder), "--size", "30", "48"])
