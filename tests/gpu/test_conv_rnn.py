# SPDX-License-Identifier: Apache-2.0
"""Tests of the fused recurrent cells on a GPU, against float64 on the CPU."""

import pytest
import torch
from gpu import checks

import fastds
from fastds.ops import conv_gru_cell, conv_lstm_cell, conv_memory_gates, conv_output_gate, conv_st_lstm_gates
from fastds.ops.impl.conv_rnn import reference as stages
from fastds.ops.impl.conv_rnn.reference import conv_lstm_cell as reference

DTYPES = {
    torch.float32: 4e-5,  # of cuDNN's gradient of a weight, over 33,000 pixels: 2.4e-5
    torch.bfloat16: 6e-2,
    torch.float16: 1e-2,
}
SHAPES = [(2, 24, 20, 9, 7), (1, 3, 24, 5, 18), (1, 17, 16, 4, 4), (2, 5, 1, 1, 3), (1, 40, 65, 6, 5)]  # B, C1, C, H, W
LARGE = (2, 24, 24, 130, 127)


@pytest.fixture(params=["native", "triton"])
def backend(request, forced, device):
    x, weight = torch.ones(1, 1, 2, 2, device=device), torch.ones(4, 2, 3, 3, device=device)
    with forced("conv_lstm_cell", request.param, x, x, weight, None, None, x, "auto", False):
        yield request.param


def inputs(shape, dtype=torch.float32):
    batch, inputs, channels, height, width = shape
    maps = [torch.randn(batch, n, height, width).to(dtype) for n in (inputs, channels)]
    maps += [torch.randn(batch, channels, height, width)]
    weight = torch.randn(4 * channels, inputs + channels, 3, 3) / (9 * (inputs + channels)) ** 0.5
    return [*(t.contiguous(memory_format=torch.channels_last) for t in maps), weight, torch.randn(4 * channels)]


def op(function=conv_lstm_cell):
    """Return a function that concatenates both results of a cell in the dtype of the cell state."""

    def joined(*tensors):
        h, c = function(*tensors)
        return torch.cat([h.to(c.dtype), c], 1)

    return joined


def compare(shape, dtype, device):
    tensors = inputs(shape, dtype)
    exact = checks.value_and_gradients(op(reference), [t.double() for t in tensors])
    checks.close(checks.value_and_gradients(op(), checks.moved(tensors, device)), exact, DTYPES[dtype])


@pytest.mark.parametrize("dtype", checks.dtypes(DTYPES))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv_lstm_cell_agrees_with_reference(shape, dtype, backend, device):
    compare(shape, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv_lstm_cell_with_many_tiles(dtype, backend, device):
    compare(LARGE, dtype, device)


def test_conv_lstm_cell_in_streams_graphs_compile_and_layouts(backend, device):
    checks.check_everything(op(), checks.moved(inputs(SHAPES[0]), device), tolerance=1e-4)


def test_conv_lstm_cell_on_another_device(backend, device):
    checks.check_other_device(op(), checks.moved(inputs(SHAPES[0]), device))


def test_conv_lstm_cell_autocast_and_errors(backend, device):
    x, h, c, weight, bias = checks.moved(inputs(SHAPES[0]), device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        new_h, new_c = conv_lstm_cell(x, h, c, weight, bias)
    assert new_h.dtype == torch.bfloat16 and new_c.dtype == torch.float32
    torch.testing.assert_close(new_c, conv_lstm_cell(x, h, c, weight, bias)[1], rtol=5e-2, atol=5e-2)
    if device.type == "cuda":
        with pytest.raises(ValueError, match="c is on device cpu, expected cuda:0"):
            conv_lstm_cell(x, h, c.cpu(), weight, bias)
    with pytest.raises(TypeError, match="h has dtype torch.float64, expected torch.float32"):
        conv_lstm_cell(x, h.double(), c, weight, bias)


def gru_inputs(dtype, given=5, channels=20, size=(9, 7)):
    x, h = (torch.randn(2, n, *size).to(dtype).contiguous(memory_format=torch.channels_last) for n in (given, channels))
    counts = (2 * channels, channels)
    weights = [torch.randn(n, given + channels, 3, 3).to(dtype) / 15 for n in counts]
    biases = [torch.randn(n).to(dtype) for n in counts]
    return [x, h, weights[0], biases[0], weights[1], biases[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_conv_gru_cell(dtype, device):
    tensors = gru_inputs(dtype)
    with fastds.use_backend("reference"):
        exact = checks.value_and_gradients(conv_gru_cell, [t.double() for t in tensors])
    checks.close(checks.value_and_gradients(conv_gru_cell, checks.moved(tensors, device)), exact, DTYPES[dtype])


@pytest.mark.parametrize("dtype", checks.dtypes(DTYPES))
def test_conv_gru_cell_without_gradients(dtype, backend, device):
    tensors = gru_inputs(dtype)
    with fastds.use_backend("reference"):
        exact = conv_gru_cell(*(t.double() for t in tensors))
    checks.close([conv_gru_cell(*checks.moved(tensors, device))], [exact], DTYPES[dtype])


STAGES = {  # reference, gates
    conv_st_lstm_gates: (stages.conv_st_lstm_gates, 4), conv_memory_gates: (stages.conv_memory_gates, 3),
    conv_output_gate: (stages.conv_output_gate, 1),
}  # fmt: skip


@pytest.mark.parametrize("dtype", checks.dtypes(DTYPES))
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_conv_st_lstm_stages(stage, dtype, backend, device):
    compare_stage(stage, dtype, device)


def compare_stage(stage, dtype, device):
    reference, gates = STAGES[stage]
    tensors = inputs(LARGE, dtype)
    tensors[3:] = [t[: gates * LARGE[2]] for t in tensors[3:]]

    def both(function):
        return lambda *t: torch.cat([y.float() if y.dtype != torch.float64 else y for y in as_list(function(*t))], 1)

    exact = checks.value_and_gradients(both(reference), [t.double() for t in tensors])
    checks.close(checks.value_and_gradients(both(stage), checks.moved(tensors, device)), exact, DTYPES[dtype])


def use_window(device):
    """Return a context manager that requests the kernel with a window; the dry run has tensors of the CPU."""
    return fastds.use_conv_algorithm("window" if device.type == "cuda" else "auto")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 24, 24, 9, 7), LARGE, (1, 8, 32, 33, 50), (1, 96, 16, 20, 18), (4, 24, 24, 160, 160)], ids=str
)
def test_window_agrees_with_the_reference(shape, dtype, device):
    """Many tiles for each warpgroup, slabs of channels, one and two warps with different channels, and gradients."""
    tensors = inputs(shape, dtype)
    with use_window(device):
        compare(shape, dtype, device)
        given = checks.moved(tensors, device)
        if device.type == "cuda":
            assert fastds.explain("conv_lstm_cell", *given)["kernels"] == "window: estimated"
        with torch.no_grad():
            first = op()(*given)
            assert all(torch.equal(op()(*given), first) for _ in range(20))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_window_in_st_lstm_stages(stage, dtype, device):
    with use_window(device):
        compare_stage(stage, dtype, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [pytest.param(16, marks=pytest.mark.sanitize), 24])
def test_window_in_conv_gru_cell(channels, dtype, device):
    tensors = gru_inputs(dtype, 8, channels, (65, 50))
    with fastds.use_backend("reference"):
        exact = conv_gru_cell(*(t.double() for t in tensors))
    with use_window(device), torch.no_grad():
        checks.close([conv_gru_cell(*checks.moved(tensors, device))], [exact], DTYPES[dtype])


def test_window_in_streams_graphs_compile_and_layouts(device):
    tensors = checks.moved(inputs((2, 24, 16, 9, 7), torch.bfloat16), device)
    with use_window(device):
        checks.check_everything(op(), tensors, 2e-2)  # misaligned tensors go to the Triton kernel


def as_list(y):
    return [y] if isinstance(y, torch.Tensor) else list(y)
