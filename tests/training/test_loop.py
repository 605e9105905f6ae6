"""The loop: same seed, same losses; a killed run goes on to the same numbers; precision, average, log, curve."""

import random

import numpy as np
import pytest
import torch
from cascadevsr.research.ablation_page import draw_bars
from cascadevsr.training.curriculum import rng_at
from cascadevsr.training.loop import (
    Average,
    Loop,
    LoopSettings,
    checkpoint_blocks,
    rate_share,
    read_log,
    smooth,
    trained_state,
)


class Net(torch.nn.Module):
    """Two layers, one of them frozen, dropout (global randomness) and a buffer."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Linear(4, 8).requires_grad_(False)
        self.blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in "ab")
        self.out = torch.nn.Linear(8, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        x = self.frozen(x)
        for block in self.blocks:
            x = torch.nn.functional.dropout(block(x), 0.1, self.training)
        return self.out(x)


def network():
    torch.manual_seed(3)
    return Net()


def draw(step):
    x = torch.from_numpy(rng_at(5, step).standard_normal((16, 4))).float()
    return x, x.sum(1, keepdim=True).sin()


def loss(module, batch):
    x, y = batch
    module.seen += 1
    # global generators of every kind: exact resume must restore them all
    jitter = float(np.random.rand() + random.random()) * 1e-3
    value = (module(x) - y + jitter).square().mean()
    return value, {"size": len(x)}


def settings(**changes):
    return LoopSettings(**{"steps": 40, "rate": 1e-2, "warmup": 5, "save_every": 7, "average": 0.9, **changes})


def start(folder, **changes):
    return Loop(network(), draw, loss, folder, settings(**changes))


def test_same_seed_same_first_hundred_losses(tmp_path):
    first, again = (start(tmp_path / name, steps=100).run() for name in "ab")
    assert len(first) == 100 and first == again
    assert start(tmp_path / "c", steps=100, seed=2).run() != first
    assert np.mean(first[-10:]) < 0.7 * np.mean(first[:10])


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    whole = start(tmp_path / "whole")
    expected = whole.run()

    class Killed(Exception):
        pass

    def dies(step):
        if step == 25:
            raise Killed
        return draw(step)

    with pytest.raises(Killed):
        Loop(network(), dies, loss, tmp_path / "cut", settings()).run()
    assert len(read_log(tmp_path / "cut" / "log.jsonl")) == 25  # checkpoint at 21
    np.random.rand(5), random.random(), torch.rand(9)  # another process would be anywhere
    resumed = start(tmp_path / "cut")
    rest = resumed.run()
    assert resumed.step == 40 and rest == expected[21:]
    lines = read_log(tmp_path / "cut" / "log.jsonl")
    assert [line["loss"] for line in lines] == expected and [line["step"] for line in lines] == list(range(1, 41))
    for one, other in (
        (whole.module.state_dict(), resumed.module.state_dict()),
        (whole.average.model.state_dict(), resumed.average.model.state_dict()),
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert resumed.run() == [], "nothing is left to do"
    assert not list((tmp_path / "cut").glob(".*"))


def test_a_stop_at_a_step_is_no_difference(tmp_path):
    expected = start(tmp_path / "whole").run()
    first = start(tmp_path / "parts").run(until=13)
    assert first + start(tmp_path / "parts").run() == expected


def test_other_settings_are_refused(tmp_path):
    start(tmp_path).run(until=2)
    with pytest.raises(ValueError, match="settings it began with; got other rate"):
        start(tmp_path, rate=5e-3).run()
    start(tmp_path, save_every=3).run(until=3)


def test_a_damaged_checkpoint_is_never_left(tmp_path, monkeypatch):
    loop = start(tmp_path)
    loop.run(until=7)
    good = (tmp_path / "state.pt").read_bytes()

    def fails(state, file):
        file.write(b"half")
        raise OSError(28, "no space")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="no space"):
        loop.run(until=14)
    assert (tmp_path / "state.pt").read_bytes() == good and not list(tmp_path.glob(".*"))


def test_frozen_parts_are_not_saved_and_do_not_move(tmp_path):
    loop = start(tmp_path)
    before = loop.module.frozen.weight.clone()
    loop.run(until=7)
    assert torch.equal(loop.module.frozen.weight, before)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert not any(name.startswith("frozen") for name in state["module"])
    assert state["module"]["seen"] == 7
    assert trained_state(loop.module).keys() == state["module"].keys()
    assert len(state["average"]) == 1 + len(loop.parameters), "the count of updates, and what is trained"


def test_precisions(tmp_path):
    full = start(tmp_path / "full").run()
    half = start(tmp_path / "half", precision="bf16").run()
    assert half != full and np.mean(half[-10:]) < np.mean(half[:10])
    assert half == start(tmp_path / "again", precision="bf16").run()
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16; got 'fp8'"):
        settings(precision="fp8")


def test_fp16_scales_and_resumes(tmp_path):
    expected = start(tmp_path / "whole", precision="fp16").run()
    first = start(tmp_path / "parts", precision="fp16").run(until=13)
    assert first + start(tmp_path / "parts", precision="fp16").run() == expected


def test_checkpointed_blocks_give_the_same_numbers(tmp_path):
    module = network()
    checkpoint_blocks(module.blocks)
    calls = []
    module.blocks[0][0].register_forward_hook(lambda *_: calls.append(1))
    losses = Loop(module, draw, loss, tmp_path / "a", settings()).run(until=5)
    assert losses == start(tmp_path / "b").run(until=5)
    assert len(calls) == 10, "once forwards, once again backwards"


def test_parts_add_up_to_one_large_batch(tmp_path):
    def whole(step):
        parts = [draw(2 * step), draw(2 * step + 1)]
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    def calm(module, batch):
        return (module.eval()(batch[0]) - batch[1]).square().mean()

    one = Loop(network(), whole, calm, tmp_path / "a", settings()).run(until=6)
    two = Loop(network(), draw, calm, tmp_path / "b", settings(parts=2)).run(until=6)
    assert two == pytest.approx(one, rel=1e-4)


def test_rates_rise_and_fall():
    plan = settings(steps=100, warmup=10)
    shares = [rate_share(step, plan) for step in range(101)]
    assert shares[0] == pytest.approx(0.1, abs=0.01) and shares[:10] == sorted(shares[:10])
    assert shares[10:] == sorted(shares[10:], reverse=True) and shares[-1] == pytest.approx(0.02)


def test_gradients_are_clipped_and_infinite_losses_refused(tmp_path):
    loop = start(tmp_path / "a", largest_gradient=1e-9)
    before = loop.module.out.weight.clone()
    loop.run(until=1)
    assert (loop.module.out.weight - before).abs().max() < 1.1e-2
    assert read_log(tmp_path / "a" / "log.jsonl")[0]["gradient"] > 1e-3
    wild = Loop(
        network(),
        draw,
        lambda module, batch: loss(module, batch)[0] * float("inf"),
        tmp_path / "b",
        settings(),
    )
    with pytest.raises(FloatingPointError, match="loss must stay finite; got inf at step 0"):
        wild.run()


def test_the_average_lags_and_is_put_in_for_a_while():
    module = network()
    average = Average(module, 0.5)
    before = module.out.weight.clone()
    with torch.no_grad():
        module.out.weight += 1
    average.update()
    own = module.out.weight.clone()
    with average.applied(module):
        assert torch.allclose(module.out.weight, own - 0.1, atol=1e-6), "it follows closely at first"
        module.seen += 5
    assert torch.equal(module.out.weight, own) and module.seen == 0
    for _ in range(40):
        average.update()
    with average.applied(module):
        assert torch.allclose(module.out.weight, own, atol=1e-6)
    assert not torch.equal(before, own)


def test_the_average_is_that_of_its_formula():
    module = network()
    average, expected = Average(module, 0.9), {k: v.clone() for k, v in trained_state(module).items()}
    for step in range(30):
        with torch.no_grad():
            for parameter in module.blocks.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in trained_state(module).items():
            expected[name].lerp_(value, 1 - decay)
    with average.applied(module):
        assert all(torch.equal(value, expected[name]) for name, value in trained_state(module).items())


def test_the_curve_is_a_picture(tmp_path):
    from PIL import Image

    start(tmp_path).run(until=8)
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (960, 540) and len(picture.convert("RGB").getcolors(1 << 20)) > 3
    draw_bars(tmp_path / "bars.png", {"a": 3.0, "b": -1.0, "none": float("nan")}, "bars")
    assert (tmp_path / "bars.png").exists()
    assert smooth([(0, 0.0), (1, 2.0), (2, 4.0), (3, 6.0)], 2) == [(0, 0.0), (1, 1.0), (2, 3.0), (3, 5.0)]
