"""The restorer's convolutions in 8-bit integers against those in float32."""

import pytest
import torch
import torch.nn.functional as F
from cascadevsr.models.unimmvsr import restorer
from cascadevsr.models.unimmvsr.restorer import Int8Conv, Int8Step, Step, cpu_convolutions, in_bytes, int8_works

here = pytest.mark.skipif(not int8_works(), reason="this CPU has no instructions for 8-bit products")


def drawn(*shape, seed=0):
    """Draw (b, c, h, w), channels_last."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def relative(found, right):
    return float((found - right).square().mean().sqrt() / right.std())


@here
@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_it_is_the_convolution(shift):
    x, weight, bias = drawn(2, 24, 9, 14) + shift, drawn(40, 24, 3, 3, seed=1), drawn(1, 40, 1, 1, seed=2).flatten()
    there = drawn(2, 40, 9, 14, seed=3)
    right = there + F.conv2d(x, weight, bias, padding=1)
    found = Int8Conv(weight, bias).add(in_bytes(x), there)
    assert found.data_ptr() == there.data_ptr()
    assert 0 < relative(found, right) < 0.02
    for edge in ((..., 0, slice(None)), (..., slice(None), -1)):
        assert relative(found[edge], right[edge]) < 0.02, "what lies outside is zero"


@here
def test_a_value_far_out_is_not_cut_off():
    x, weight, bias = drawn(1, 8, 12, 12), drawn(8, 8, 3, 3, seed=1), torch.zeros(8)
    x[0, 3, 5, 6] = 40.0
    found = Int8Conv(weight, bias).add(in_bytes(x), torch.zeros_like(x))
    around = (..., slice(4, 7), slice(5, 8))
    assert relative(found[around], F.conv2d(x, weight, bias, padding=1)[around]) < 0.02


@here
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_levels_lie_as_far_on_both_sides_of_zero(scale):
    x = scale * drawn(1, 4, 6, 6)
    for signed in (x, x.abs(), -x.abs()):
        levels, step, zero = in_bytes(signed, even=True)
        assert zero == 128 and levels.dtype == torch.uint8 and levels.is_contiguous(memory_format=torch.channels_last)
        assert ((levels.float() - zero) * step - signed).abs().max() <= 1.01 * step


@here
def test_a_step_whose_parts_are_of_different_sizes_of_value():
    torch.manual_seed(0)
    step = Step(24, 2, torch.nn).requires_grad_(False).to(memory_format=torch.channels_last)
    scales = (1, 100, 0.01, 3, 0.1, 1)
    parts = [drawn(1, size, 10, 11, seed=size) * scale for size, scale in zip(step.parts, scales, strict=True)]
    for weight, part in zip(step.into.weight.split(step.parts, 1), parts, strict=True):
        weight.div_(part.std())
    exact = step(parts)
    found = step(parts, Int8Step(step, "", dict(step.named_parameters())))
    for mine, right in zip(found, exact, strict=True):
        assert mine.shape == right.shape and 0 < relative(mine, right) < 0.05


@here
def test_nothing_gives_the_bias():
    x, bias = torch.zeros(1, 8, 5, 5).contiguous(memory_format=torch.channels_last), torch.linspace(-1, 1, 8)
    found = Int8Conv(drawn(8, 8, 3, 3), bias).add(in_bytes(x), torch.zeros_like(x))
    torch.testing.assert_close(found, bias.view(1, 8, 1, 1).expand_as(found))


@here
def test_the_number_of_threads_changes_nothing():
    x, conv, threads = drawn(1, 32, 40, 50), Int8Conv(drawn(32, 32, 3, 3), torch.zeros(32)), torch.get_num_threads()
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(conv.add(in_bytes(x), torch.zeros_like(x)))
    torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.fixture
def forgetful():
    """Let int8_works() look again, before and after."""
    int8_works.cache_clear()
    yield
    int8_works.cache_clear()


@pytest.mark.parametrize("kind", [AttributeError, RuntimeError, TypeError])
def test_without_the_operators_it_does_not_work(forgetful, monkeypatch, kind):
    def missing(*_):
        raise kind("not here")

    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    monkeypatch.setattr(restorer, "Int8Conv", missing)
    assert int8_works() is False


def test_where_products_overflow_it_does_not_work(forgetful, monkeypatch):
    class Wrong(Int8Conv):
        def __init__(self, *_):
            pass

        def add(self, x, onto):
            return onto

    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    monkeypatch.setattr(restorer, "Int8Conv", Wrong)
    assert int8_works() is False


@pytest.mark.parametrize(
    ("amx", "bytes_", "expected"),
    [(True, True, torch.bfloat16), (False, True, torch.int8), (False, False, None), (None, False, None)],
)
def test_a_cpu_gets_what_it_is_fast_at(monkeypatch, amx, bytes_, expected):
    if amx is None:  # an older torch
        monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(restorer, "int8_works", lambda: bytes_)
    assert cpu_convolutions() is expected


def test_an_older_torch_says_less(forgetful, monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported", raising=False)
    assert int8_works() is False
