# SPDX-License-Identifier: Apache-2.0
"""Tests of plans of sequences of recurrent cells: one plan for all steps, with the same bits as without plans."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from fastds import nn
from fastds.nn import recurrent
from fastds.nn.convolutions import get_parameters
from fastds.ops.core import plans

pytestmark = pytest.mark.skipif(plans._module is None, reason="plans are switched off, or torch has no DLPack table")
BITS = {2: torch.int16, 4: torch.int32}
# batch, steps, channels of x, channels of the state, height, width. With 32 channels on 4 x 4 pixels, x is convolved
# for all steps at once.
SIZES = {"steps": (2, 3, 3, 8, 6, 5), "one step": (1, 1, 8, 8, 6, 5), "all steps at once": (1, 3, 32, 32, 4, 4)}
CELLS = [nn.ConvLSTMCell, nn.ConvGRUCell]


@pytest.fixture(autouse=True)
def empty_table():
    """Start each test without plans, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plans.clear()
    yield
    plans.clear()
    torch.set_num_threads(threads)


def make_cell(kind, size, seed: int = 0):
    torch.manual_seed(seed)
    return kind(*size[2:4])


def draw_inputs(kind, size, with_state: bool, seed: int = 0) -> tuple[Tensor, ...]:
    """Return x and, if requested, the tensors of the state."""
    batch, times, inputs, hidden, *sides = size
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, times, inputs, *sides)] + (1 + (kind is nn.ConvLSTMCell)) * with_state * [(batch, hidden, *sides)]
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def run(cell, x: Tensor, *state: Tensor) -> list[Tensor]:
    """Return the states of all steps and the tensors of the last state."""
    lstm = isinstance(cell, nn.ConvLSTMCell)
    states, last = cell.sequence(x, (state or None) if lstm else next(iter(state), None))
    return [states, *(last if lstm else (last,))]


def has_plan(cell, x: Tensor, *state: Tensor) -> bool:
    """Return whether the sequence has a plan of its own."""
    if isinstance(cell, nn.ConvLSTMCell):
        h, c = state or (None, None)
        return plans.has_plan(recurrent._run_lstm_sequence, (x, h, c, *get_parameters(cell.gates)), {})
    arguments = (x, next(iter(state), None), *get_parameters(cell.gates), *get_parameters(cell.candidate))
    return plans.has_plan(recurrent._run_gru_sequence, arguments, cell.options)


def differentiate(cell, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return results and the gradients of inputs and parameters."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    results = run(cell, *leaves)
    along = [torch.linspace(-1, 2, y.numel()).view(y.shape).to(y.dtype) for y in results]
    return [*results, *torch.autograd.grad(results, [*leaves, *cell.parameters()], along)]


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride()
        bits = BITS[a.element_size()]
        assert torch.equal(a.detach().contiguous().view(bits), b.detach().contiguous().view(bits))


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", CELLS)
def test_a_sequence_is_one_plan(kind, size, with_state, autocast):
    """The first step of a GRU from zeros uses torch.sigmoid, which has no plan without gradients."""
    cell, has_own = make_cell(kind, size), kind is nn.ConvLSTMCell or with_state
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for seed in range(4):
            inputs = draw_inputs(kind, size, with_state, seed)
            with plans.suspended():
                expected = run(cell, *inputs)
            before = plans.count_runs()
            assert_same_bits(run(cell, *inputs), expected)
            if seed > 1 and has_own:
                assert plans.count_runs() == before + 1
        assert has_plan(cell, *inputs) == has_own


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", CELLS)
def test_gradients_are_those_without_plans(kind, size, with_state, autocast):
    cell = make_cell(kind, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for seed in range(4):
            inputs = draw_inputs(kind, size, with_state, seed)
            with plans.suspended():
                expected = differentiate(cell, inputs)
            assert_same_bits(differentiate(cell, inputs), expected)
        assert has_plan(cell, *(t.requires_grad_() for t in inputs))


@pytest.mark.parametrize("channels", [slice(0, 3), slice(3, None), slice(None)], ids=["x", "state", "all"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", CELLS)
def test_changed_weights_are_packed_again(kind, size, channels):
    """The plan reads the packed form of some channels of a weight: those that belong to x or to the state."""
    cell, inputs = make_cell(kind, size), draw_inputs(kind, size, True)[: 2 if kind is nn.ConvGRUCell else 1]
    weight = cell.gates.weight
    other = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for _ in range(3):
            run(cell, *inputs)
        original = weight.clone()
        for k in range(4):
            target = weight if k < 2 else weight.data
            target[-1, channels] = (other if k % 2 == 0 else original)[-1, channels]  # the last output only
            before = plans.count_runs()
            found = run(cell, *inputs)
            assert plans.count_runs() == before + 1
            with plans.suspended():
                copy = make_cell(kind, size)
                copy.load_state_dict(cell.state_dict())
                assert_same_bits(found, run(copy, *inputs))


@pytest.mark.parametrize("kind", CELLS)
def test_cells_of_one_shape_share_a_plan(kind):
    size = SIZES["steps"]
    cells, inputs = [make_cell(kind, size, seed) for seed in range(3)], draw_inputs(kind, size, True)
    with torch.no_grad():
        for _ in range(3):
            run(cells[0], *inputs)
        for cell in [*cells, *cells]:
            before = plans.count_runs()
            found = run(cell, *inputs)
            assert plans.count_runs() == before + 1
            with plans.suspended():
                assert_same_bits(found, run(cell, *inputs))


@pytest.mark.parametrize("kind", CELLS)
def test_errors_are_those_without_plans(kind):
    cell, (x, *state) = make_cell(kind, SIZES["steps"]), draw_inputs(kind, SIZES["steps"], True)
    for _ in range(3):
        run(cell, x, *state)
    for inputs, message in (
        ((x[0], *state), "expected a sequence"),
        ((x[:, :0], *state), "T >= 1"),
        ((x[:, :, 1:], *state), "channels"),
        ((x, *(t[:, 1:] for t in state)), "has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            run(cell, *inputs)


@pytest.mark.parametrize("kind", CELLS)
def test_plans_hold_no_results(kind):
    cell, inputs, results = make_cell(kind, SIZES["steps"]), draw_inputs(kind, SIZES["steps"], True), []
    for _ in range(3):
        found = run(cell, *inputs)
        results += [weakref.ref(y) for y in found]
        del found
    gc.collect()
    assert has_plan(cell, *inputs) and not any(reference() is not None for reference in results)


def test_other_options_are_other_plans():
    size = SIZES["steps"]
    inputs = draw_inputs(nn.ConvGRUCell, size, True)
    with torch.no_grad():
        for options in ({}, {"keep": "1-z"}, {"activation": "leaky_relu"}, {"keep": "1-z", "activation": "leaky_relu"}):
            torch.manual_seed(0)
            cell = nn.ConvGRUCell(*size[2:4], **options)
            with plans.suspended():
                expected = run(cell, *inputs)
            for _ in range(4):
                assert_same_bits(run(cell, *inputs), expected)


def test_steps_without_state_have_plans_with_gradients():
    """The weight of a first step is a view of some channels."""
    cell, (x,) = make_cell(nn.ConvLSTMCell, SIZES["steps"]), draw_inputs(nn.ConvLSTMCell, SIZES["steps"], False)
    for _ in range(3):
        expected = run(cell, x[:, :1])
        before = plans.count_runs()
        cell(x[:, 0])
    assert plans.count_runs() > before
    assert torch.equal(cell(x[:, 0])[0], expected[0][:, 0])
