# SPDX-License-Identifier: Apache-2.0
"""Tests of plans under autocast: the same results, dtypes and gradients as without plans."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from fastds import nn, ops
from fastds.ops.core import native, plans
from tests.support.planned_calls import C, draw, list_calls, list_further_calls

pytestmark = pytest.mark.skipif(plans._module is None, reason="plans are switched off, or torch has no DLPack table")
CALLS = {**list_calls(), **list_further_calls()}
BITS = {2: torch.int16, 4: torch.int32}


@pytest.fixture(autouse=True)
def empty_table():
    """Start each test without plans."""
    plans.clear()
    yield
    plans.clear()


def autocast(dtype=torch.bfloat16, **options):
    return torch.autocast("cpu", dtype, **options)


def list_tensors(results) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def assert_same_bits(found, expected):
    found, expected = list_tensors(found), list_tensors(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride() and a.requires_grad == b.requires_grad
        bits = BITS[a.element_size()]
        assert torch.equal(a.detach().view(bits), b.detach().view(bits))


def run_planned(call, *tensors) -> tuple[list[Tensor], bool]:
    """Return the results of a call, and whether it ran a plan."""
    before = plans.count_runs()
    return list_tensors(call(*tensors)), plans.count_runs() > before


def run_suspended(call, *tensors) -> list[Tensor]:
    with plans.suspended():
        return list_tensors(call(*tensors))


def differentiate(call, leaves, inside: bool) -> list[Tensor]:
    """Return results and gradients of a call under bfloat16 autocast.

    Args:
        call: function of the leaves.
        leaves: tensors that require gradients.
        inside: run the backward pass under autocast, too.
    """
    with autocast():
        results = list_tensors(call(*leaves))
        along = [torch.linspace(-1, 2, y.numel()).view(y.shape).to(y.dtype) for y in results]
        if inside:
            return [*results, *torch.autograd.grad(results, leaves, along)]
    return [*results, *torch.autograd.grad(results, leaves, along)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_without_plans(name, dtype):
    call, tensors = CALLS[name]
    with autocast(dtype):
        for seed in range(2):
            others = [draw(*t.shape, seed=seed + k) for k, t in enumerate(tensors)]
            expected, outcomes = run_suspended(call, *others), [run_planned(call, *others) for _ in range(3)]
            if name not in ("conv2d", "null_op"):  # torch computes conv2d in float16; null_op copies two tensors
                assert [planned for _, planned in outcomes] == [seed > 0, seed > 0, True]
            for found, _ in outcomes:
                assert_same_bits(found, expected)


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_those_without_plans(name, inside):
    call, tensors = CALLS[name]
    leaves = [t.clone().requires_grad_() for t in tensors]
    with plans.suspended():
        expected = differentiate(call, leaves, inside)
    for repeat in range(4):
        before = plans.count_runs()
        with autocast():
            call(*leaves)
        assert (plans.count_runs() > before) == (repeat > 0)
        found = differentiate(call, leaves, inside)  # the second call of a key in the first round
        assert_same_bits(found, expected)
        assert all(g.dtype == torch.float32 for g in found[-len(leaves) :])


@pytest.mark.parametrize("name", ["conv3x3", "deform_conv2d", "conv_lstm_cell"])
def test_some_tensors_require_gradients_or_have_16_bits(name):
    call, tensors = CALLS[name]
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        leaves = [
            t.clone().to(torch.bfloat16 if half else torch.float32).requires_grad_(bool(needed))
            for t, half, needed in zip(tensors, *torch.randint(2, (2, len(tensors)), generator=generator), strict=True)
        ]
        with autocast():
            expected = run_suspended(call, *leaves)
            for _ in range(4):
                assert_same_bits(run_planned(call, *leaves)[0], expected)


@contextmanager
def nested(*blocks) -> Iterator[None]:
    """Enter the blocks one after another."""
    if not blocks:
        yield
        return
    with blocks[0](), nested(*blocks[1:]):
        yield


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Set the state that torch.autocast("cuda") sets where CUDA is available."""
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


STATES = {
    "none": (),
    "bfloat16": (autocast,),
    "float16": (lambda: autocast(torch.float16),),
    "no cache": (lambda: autocast(cache_enabled=False),),
    "disabled inside": (autocast, lambda: autocast(enabled=False)),
    "float16 inside bfloat16": (autocast, lambda: autocast(torch.float16)),
    "enabled inside disabled": (autocast, lambda: autocast(enabled=False), autocast),
    "cuda": (cuda_autocast,),
    "cuda and bfloat16": (cuda_autocast, autocast),
}
SAME_KEYS = (
    ("none", "disabled inside", "cuda"),
    ("bfloat16", "enabled inside disabled", "cuda and bfloat16"),
    ("float16", "float16 inside bfloat16"),
    ("no cache",),
)


@pytest.mark.parametrize("gradients", [False, True], ids=["no gradients", "gradients"])
@pytest.mark.parametrize("name", ["conv3x3", "lstm_gates", "pixel_shuffle"])
def test_states_of_autocast_are_keys(name, gradients):
    """Calls under changing states give the results of their own state; the third call of a key runs its plan."""
    call, tensors = CALLS[name]
    tensors = [t.clone().requires_grad_(gradients) for t in tensors]
    calls = dict.fromkeys(SAME_KEYS, 0)
    for _ in range(4):
        for state, blocks in STATES.items():
            key = next(names for names in SAME_KEYS if state in names)
            calls[key] += 1
            with nested(*blocks):
                expected = run_suspended(call, *tensors)
                found, planned = run_planned(call, *tensors)
            assert planned == (calls[key] > 2), state
            assert_same_bits(found, expected)


def test_code_may_depend_on_the_cache():
    def shuffle(x):
        return ops.pixel_shuffle.__wrapped__(x, 2 if torch.is_autocast_cache_enabled() else 1)

    public, x = plans.planned(shuffle), draw(1, 4, 3, 3)
    for _ in range(4):
        for cached, sides in ((True, (6, 6)), (False, (3, 3))):
            with autocast(cache_enabled=cached):
                assert public(x).shape[2:] == sides


def test_regions_without_autocast_inside_of_it():
    """The plans of a module that disables autocast in between are those of each region."""

    def run(x, weight):
        with autocast():
            y = ops.conv3x3(x, weight, algorithm="winograd")
            with autocast(enabled=False):
                z = ops.conv3x3(y.float(), weight, algorithm="winograd")
            return y, z, ops.conv3x3(z, weight, algorithm="winograd")

    x, weight = CALLS["conv3x3"][1]
    for leaf in (weight, weight.clone().requires_grad_()):
        expected = run_suspended(run, x, leaf)
        assert [t.dtype for t in expected] == [torch.bfloat16, torch.float32, torch.bfloat16]
        for _ in range(4):
            assert_same_bits(run(x, leaf), expected)


# ---- casts


NANS = torch.tensor([0x7FC00000, 0x7FA00001, -0x400000, 0x7F800001], dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize("name", ["lstm_gates", "output_gate", "pixel_shuffle"])
def test_calls_with_nan_run_in_python(name):
    """The bits of a NaN that torch casts depend on its position, which a plan does not reproduce."""
    call, tensors = CALLS[name]
    with autocast():
        for _ in range(3):
            call(*tensors)
        for k in range(tensors[0].numel()):
            first = tensors[0].clone()
            first.as_strided((first.numel(),), (1,))[k] = NANS[k % 4]
            expected = run_suspended(call, first, *tensors[1:])
            found, planned = run_planned(call, first, *tensors[1:])
            assert not planned
            assert_same_bits(found, expected)
        assert run_planned(call, *tensors)[1]


def test_a_call_with_nan_may_be_the_recorded_one():
    call, tensors = CALLS["lstm_gates"]
    with autocast():
        for _ in range(2):
            call(torch.full_like(tensors[0], float("nan")), tensors[1])
        expected = run_suspended(call, *tensors)
        found, planned = run_planned(call, *tensors)
    assert planned
    assert_same_bits(found, expected)


def test_packed_weights_are_not_changed_by_the_recording():
    call, (x, weight) = CALLS["conv3x3"]
    weight = weight.clone()
    weight[0, 0, 0, 0] = float("nan")
    x = x.clone().fill_(float("nan"))
    with autocast():
        for _ in range(3):
            call(x, weight)
    assert weight[0, 0, 0, 0].isnan() and x.isnan().all()


def list_numbers(dtype: torch.dtype) -> Tensor:
    """Return all numbers of a 16-bit dtype, or float32 numbers with every exponent and rounding, without NaN."""
    high = torch.arange(1 << 16)
    if dtype != torch.float32:
        numbers = (high - (high >> 15 << 16)).to(torch.int16).view(dtype)
    else:
        low = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
        bits = (high[:, None] << 16 | low).flatten()
        numbers = (bits - (bits >> 31 << 32)).to(torch.int32).view(dtype)
    return numbers[~numbers.isnan()]


def cast(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """Cast by the native function of plans to the layout that torch gives the result."""
    result = torch.full_like(x, -1, dtype=dtype)
    codes = native.DTYPE_CODES[x.dtype], native.DTYPE_CODES[dtype]
    places = x.data_ptr(), result.data_ptr(), *codes
    return result, plans._module.plans_cast_strided(*places, tuple(x.shape), x.stride(), result.stride())


@pytest.mark.parametrize("isa", native.get_module().build_info()["isa_usable"] if plans._module else [])
def test_casts_have_the_bits_of_torch(isa):
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    native.get_module().set_isa(isa)
    try:
        for source, target in [(a, b) for a in dtypes for b in dtypes if a != b]:
            x = list_numbers(source)
            for part in (
                x,
                x[::3],
                x[1:18],
                x[:720].view(2, 3, 8, 15).permute(0, 3, 1, 2),
                x[:720].view(24, 30).t()[3:],
            ):
                found, valid = cast(part, target)
                assert valid
                assert_same_bits(found, part.to(target))
            for k in range(40):
                assert not cast(torch.where(torch.arange(40) == k, float("nan"), x[:40]), target)[1]
    finally:
        native.get_module().set_isa("auto")


@pytest.mark.parametrize("sides", [(), (0, 3), (4, 3), (2, 3, 4), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
def test_copies_between_layouts(sides, dtype):
    x = torch.arange(torch.Size(sides).numel()).view(sides).to(dtype)
    for source in (x, x.mT.contiguous().mT if len(sides) > 1 else x):
        for stride in {source.stride(), torch.empty(sides[::-1]).permute(tuple(range(len(sides)))[::-1]).stride()}:
            target = torch.empty_strided(sides, stride, dtype=dtype)
            places = source.data_ptr(), target.data_ptr(), x.element_size()
            plans._module.plans_copy_strided(*places, sides, source.stride(), stride)
            assert torch.equal(target, source)


def test_a_training_gives_the_same_weights():
    def train():
        torch.manual_seed(3)
        cell, out = nn.ConvLSTMCell(3, C), torch.nn.Conv2d(C, 1, 1)
        optimizer = torch.optim.SGD([*cell.parameters(), *out.parameters()], 0.05)
        frames = torch.rand(2, 4, 3, 12, 10)
        for _ in range(6):
            with autocast():
                states, _ = cell.sequence(frames)
                loss = (out(states[:, -1]).float() - 0.3).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [*cell.parameters(), *out.parameters()]

    with plans.suspended():
        expected = train()
    assert_same_bits(train(), expected)
