"""The ablation harness: what is trained once, what is kept, verdicts, the page; and a tiny real world."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cascadevsr.models.checkpoints import save_state
from cascadevsr.models.unimmvsr.dit import DiTConfig, UniMMVSRDiT, patchify
from cascadevsr.models.unimmvsr.vae import CausalVideoVAE, VAEConfig
from cascadevsr.research import ablation_world, ablations
from cascadevsr.research.ablation_page import mean_and_error, report, verdict
from cascadevsr.research.ablation_settings import REGISTRY, Ablation, Config, Outcome
from cascadevsr.research.ablation_world import (
    ChannelReferences,
    LatentWorld,
    Scale,
    _on_grid,
    fresh_dit,
    restore,
)
from cascadevsr.research.ablations import choose, run
from cascadevsr.training.latents import LatentSample
from cascadevsr.training.loop import read_log
from cascadevsr.training.photos import find_photos, load_photo


class Counting:
    """A world of plain numbers that writes down what it is asked for."""

    identity = "numbers"

    def __init__(self):
        self.calls = []

    def build(self, config):
        self.calls.append("build")
        return torch.nn.Linear(1, 1)

    def train(self, networks, config, folder):
        self.calls.append(f"train {folder.name}")

    def evaluate(self, networks, config):
        self.calls.append("evaluate")
        value = float(config.sampling_steps) + 10 * (config.references == "channels")
        return Outcome({"psnr": [value, value + 1, value + 2]}, torch.full((3, 4, 5), value / 100))


PAIR = Ablation("pair", "?", {"a": {}, "b": {"references": "channels"}, "c": {"sampling_steps": 4}}, "a is best.")


def test_equal_trainings_are_shared_and_outcomes_kept(tmp_path):
    world = Counting()
    base = Config(given=False)
    first = run([PAIR], world, base, tmp_path)
    trained = [call for call in world.calls if call.startswith("train")]
    assert world.calls.count("evaluate") == 3
    assert len(set(trained)) == 2 and trained[0] == trained[2], "c differs from a in sampling only"
    again = Counting()
    second = run([PAIR], again, base, tmp_path)
    assert again.calls == []
    (before,), (after,) = (outcomes["pair"]["b"] for outcomes in (first, second))
    assert after.figures == before.figures and torch.allclose(after.picture, before.picture, atol=1 / 255)
    again.identity = "others"
    run([PAIR], again, base, tmp_path)
    assert again.calls.count("evaluate") == 3, "another world's outcomes are not these"


def test_given_weights_are_not_trained(tmp_path):
    world = Counting()
    run([PAIR], world, Config(), tmp_path)
    assert not any(call.startswith("train") for call in world.calls)


def test_what_is_trained_is_trained_once_with_every_seed(tmp_path):
    world = Counting()
    outcomes = run([PAIR], world, Config(given=False), tmp_path, seeds=(4, 5))["pair"]
    trained = {call for call in world.calls if call.startswith("train")}
    assert len(trained) == 4 and all(len(runs) == 2 for runs in outcomes.values())
    given = run([PAIR], Counting(), Config(), tmp_path, seeds=(4, 5))["pair"]
    assert all(len(runs) == 1 for runs in given.values())


def test_a_stop_between_variants_loses_nothing(tmp_path):
    class Stops(Counting):
        def evaluate(self, networks, config):
            if config.references == "channels":
                raise KeyboardInterrupt
            return super().evaluate(networks, config)

    with pytest.raises(KeyboardInterrupt):
        run([PAIR], Stops(), Config(), tmp_path)
    world = Counting()
    run([PAIR], world, Config(), tmp_path)
    assert world.calls.count("evaluate") == 2


def of_values(*runs):
    return [Outcome({"psnr": values}) for values in runs]


def test_verdicts_follow_paired_differences():
    outcomes = {
        "a": of_values((3.0, 5.0, 8.0)),
        "b": of_values((2.0, 4.1, 7.0)),
        "c": of_values((4.1, 6.0, 9.0)),
    }
    words = verdict(PAIR, outcomes)
    assert "b: reproduced (+0.967" in words and "c: **not reproduced**, the opposite (-1.033" in words
    outcomes["b"] = of_values((9.0, 1.0, 6.0))
    assert "b: no clear difference" in verdict(PAIR, outcomes)
    single = {name: of_values((1.0,)) for name in "abc"}
    assert "too few samples" in verdict(PAIR, single)


def test_errors_are_those_over_clips_and_over_trainings():
    assert mean_and_error([[1.0, float("nan"), 3.0]]) == (2.0, 1.0)
    assert mean_and_error([[1.0, 3.0], [1.0, 3.0]]) == (2.0, 1.0), "trainings that agree add nothing"
    assert mean_and_error([[0.0, 2.0], [4.0, 6.0]]) == pytest.approx((3.0, 5**0.5))
    assert mean_and_error([[1.0, 2.0, float("nan")], [1.0, float("nan"), 3.0]])[0] == 1.0


def test_a_difference_that_only_one_training_shows_is_not_clear():
    outcomes = {
        "a": of_values((1.0, 1.0, 1.1)),
        "b": of_values((0.5, 0.5, 0.6)),
        "c": of_values((0.0, 0.1, 0.0)),
    }
    assert "b: reproduced (+0.500" in verdict(PAIR, outcomes)
    second = {
        "a": of_values((0.6, 0.6, 0.6)),
        "b": of_values((1.0, 1.0, 1.0)),
        "c": of_values((0.0, 0.1, 0.0)),
    }
    both = {label: outcomes[label] + second[label] for label in outcomes}
    words = verdict(PAIR, both)
    assert "b: no clear difference (+0.050" in words and "c: reproduced" in words


def test_the_page_has_tables_pictures_and_verdicts(tmp_path):
    outcomes = run([PAIR], Counting(), Config(), tmp_path / "work")
    report([PAIR], outcomes, tmp_path / "docs" / "page.md", "About.")
    text = (tmp_path / "docs" / "page.md").read_text()
    assert "| a | 2.000 ± 0.577 |" in text and "The paper: a is best." in text and "**not reproduced**" in text
    for picture in ("page/pair.png", "page/pair-clips.png"):
        assert f"({picture})" in text and (tmp_path / "docs" / picture).exists()
    report([replace(PAIR, finding="")], outcomes, tmp_path / "docs" / "page.md", "About.")
    assert "The paper:" not in (tmp_path / "docs" / "page.md").read_text()


def test_the_registry_asks_what_was_to_be_asked():
    wanted = "references, reference conditioning, position of references, degradation, order of tasks"
    wanted += ", reference augmentation, reference scale, reference threshold, sampling steps, motion"
    assert [ablation.name for ablation in REGISTRY] == wanted.split(", ")
    for ablation in REGISTRY:
        configs = ablation.configs(Config())
        assert len({config.key() for config in configs.values()}) == len(configs) >= 2
    trainings = {c.training_key() for a in REGISTRY for c in a.configs(Config()).values()}
    assert len(trainings) == 9, "given, the method, channels, shared RoPE, 2 degradations, 2 orders, no augmentation"
    assert [a.name for a in choose(["motion"])] == ["motion"] and len(choose(None)) == 10
    with pytest.raises(ValueError, match="--only takes references"):
        choose(["speed"])


# The networks compared


def tiny_dit(seed=0):
    torch.manual_seed(seed)
    dit = fresh_dit(DiTConfig(4, 24, 1, 2, 2))
    torch.nn.init.normal_(dit.patch_out.weight, std=0.3)
    torch.nn.init.normal_(dit.condition_out.weight, std=0.05)
    return dit.eval()


@torch.no_grad()
def test_channel_references_are_a_wider_patch_embedding():
    network = ChannelReferences(tiny_dit())
    z, lr = torch.randn(2, 2, 4, 3, 4, 6)
    image = torch.randn(2, 4, 1, 6, 4)
    t, level = torch.tensor([1.0, 0.6]), torch.tensor([0.1, 0.4])
    plain = network.dit(z, t, lr, level)
    assert torch.equal(network(z, t, lr, level, [image]), plain), "zero at the start"
    torch.nn.init.normal_(network.reference_in.weight, std=0.3)
    found = network(z, t, lr, level, [image])
    assert not torch.allclose(found, plain, atol=1e-3)
    assert torch.equal(network(z, t, lr, level), plain), "without references nothing is added, and no hook is left"
    wide = tiny_dit()
    wide.patch_in = torch.nn.Linear(3 * 16, 24)
    wide.patch_in.weight.data = torch.cat((network.dit.patch_in.weight, network.reference_in.weight), 1)
    wide.patch_in.bias = network.dit.patch_in.bias
    extra = patchify(_on_grid(image, (3, 4, 6)))[0]
    before = wide.patch_in.forward
    wide.patch_in.forward = lambda x: before(torch.cat((x, extra), -1))
    assert torch.allclose(wide(z, t, lr, level), found, atol=1e-5)


def test_references_on_the_target_s_grid():
    video = torch.arange(2.0).view(1, 1, 2, 1, 1).expand(1, 1, 2, 4, 4)
    fitted = _on_grid(video, (4, 2, 6))
    assert fitted.shape == (1, 1, 4, 2, 6) and fitted[0, 0, :, 0, 0].tolist() == [0, 1, 1, 1]
    assert _on_grid(video, (1, 4, 4)).shape[2] == 1


@torch.no_grad()
def test_sampling_guides_counts_and_steadies():
    network = tiny_dit()
    draw = torch.Generator().manual_seed(3)
    z, lr, noise = torch.randn(3, 1, 4, 3, 4, 6, generator=draw)
    still = torch.zeros(1, 2, 2, 4, 6)
    sample = LatentSample(z, lr, (), "", {"forward": still, "backward": still})
    image = torch.randn(1, 4, 1, 4, 6, generator=draw)
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    config = Config(sampling_steps=4, reference_scale=1.0, reference_steps=3)
    guided = restore(network, config, sample, (image,), noise)
    assert len(calls) == 4 + 3
    plain = restore(network, Config(sampling_steps=4), sample, (image,), noise)
    assert not torch.allclose(guided, plain, atol=1e-4)
    one = restore(network, Config(reference_scale=2.0, reference_steps=1), sample, (image,), noise)
    t, level = torch.ones(1), torch.zeros(1)
    seen, unseen = (noise + network(noise, t, lr, level, refs) for refs in ((image,), ()))
    assert torch.allclose(one, seen + 2.0 * (seen - unseen), atol=1e-5)
    for changes in ({"motion": 1.0}, {"propagation": True}):
        steady = restore(network, Config(sampling_steps=4, **changes), sample, (image,), noise)
        assert steady.diff(dim=2).abs().mean() < plain.diff(dim=2).abs().mean()
    shared = restore(network, Config(rope="shared"), sample, (image,), noise)
    assert not torch.equal(shared, restore(network, Config(), sample, (image,), noise))


# A whole run at toy size


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    vae = CausalVideoVAE(VAEConfig(4, 8, 8, 8, 1))
    state = {f"vae.{key}": value for key, value in vae.state_dict().items()}
    state.update({f"dit.{key}": value for key, value in tiny_dit().state_dict().items()})
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_state(path, state)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        small = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(small).resize((280, 210)).save(folder / f"photo{number}.png")
    return folder


TINY = Scale(32, (5, 5), 5, batch=1, kept=1, tests=2, width=24, depth=1, heads=2)


def test_every_ablation_runs(weights, photos, tmp_path):
    pictures = [load_photo(path) for path in find_photos([photos])]
    world = LatentWorld(*ablation_world.load_networks(weights), pictures[:3], pictures[3:], TINY, tmp_path)
    outcomes = run(REGISTRY, world, Config(steps=2, tasks=("video",)), tmp_path)
    report(REGISTRY, outcomes, tmp_path / "page.md", world.identity)
    text = (tmp_path / "page.md").read_text()
    assert all(f"## {a.name[0].upper()}{a.name[1:]}" in text for a in REGISTRY) and text.count("The paper:") == 8
    logs = list(tmp_path.rglob("log.jsonl"))
    assert len(logs) == 8 and all(len(read_log(path)) == 2 for path in logs)
    for variants in outcomes.values():
        for (outcome,) in variants.values():
            assert tuple(outcome.figures) == (
                "psnr",
                "referenced psnr",
                "latent psnr",
                "detail",
                "steadiness",
            )
            assert len(outcome.figures["psnr"]) == 2


def test_one_command_measures_writes_and_is_not_done_twice(weights, photos, tmp_path):
    arguments = f"--photos {photos} --weights {weights} --side 32 --tests 2 --only references"
    arguments += f" --work {tmp_path}/work --out {tmp_path}/page.md"
    ablations.main(arguments.split())
    text = (tmp_path / "page.md").read_text()
    assert "## References" in text and "sha256" in text and (tmp_path / "page" / "references-clips.png").exists()
    outcomes = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/*.json")}
    assert len(outcomes) == 3
    ablations.main(arguments.split())
    assert outcomes == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/*.json")}


def test_the_command_line_says_what_is_missing(weights, photos, tmp_path):
    args = SimpleNamespace(photos=[photos], hold_out=[], weights=weights, side=40, kept=1, tests=1, work=tmp_path)
    with pytest.raises(ValueError, match="--side must be a multiple of 16; got 40"):
        ablation_world.make_world(args)
    args.side, args.hold_out = 32, ["none of them"]
    with pytest.raises(ValueError, match="needs photographs to train on and others to test on; got 4 and 0"):
        ablation_world.make_world(args)


def test_a_world_is_its_seed(weights, photos, tmp_path):
    args = SimpleNamespace(photos=[photos], hold_out=[], weights=weights, side=32, kept=1, tests=1, work=tmp_path)
    worlds = [ablation_world.make_world(args) for _ in range(2)]
    assert isinstance(worlds[0], LatentWorld) and worlds[0].identity == worlds[1].identity
    config = Config(tasks=("video",))
    networks = worlds[0].build(config)
    assert isinstance(networks, UniMMVSRDiT)
    first, again = (world.evaluate(world.build(config), config) for world in worlds)
    assert first.figures == again.figures and torch.equal(first.picture, again.picture)
    assert first.picture.shape == (3, 96, 32)
