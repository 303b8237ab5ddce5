# SPDX-License-Identifier: Apache-2.0
"""Tests of recurrent cells with a window of the map in shared memory (csrc/conv_rnn/cuda_window.cuh), emulated."""

import pytest
import torch
from gpuless.conv3x3_window_cases import is_untouched
from gpuless.conv_rnn_window_cases import DTYPES, FORMULAS, KERNEL, Case, draw_case, poison_results

import fastds
from fastds.ops import conv_gru_cell, conv_lstm_cell
from fastds.ops.impl.conv3x3 import algorithm as conv_algorithm
from fastds.ops.impl.conv_rnn import cuda_window
from fastds.ops.impl.conv_rnn.fused import recompute_gates

CHANNELS_LAST = torch.channels_last
# Several tiles for each warpgroup, edges of tiles, and a pack that only fills up a product; several slabs.
TILES = Case("lstm_gates", 3, (8, 8), 8, 3, 18, residual=True, keep=True)
SLABS = Case("gru_update_leaky", 1, (72,), 24, 3, 5)


@pytest.fixture
def results(monkeypatch):
    """Fill results with NaN before the kernel runs, between guards that must stay as they are; return the results."""
    return poison_results(monkeypatch)


@pytest.mark.parametrize("seed", range(27))
def test_drawn_steps(emulated, results, seed):
    torch.manual_seed(seed)
    case = draw_case(seed)
    tensors = case.make_tensors()
    emulator = emulated("conv_rnn", seed=seed)
    found = case.compute(tensors)
    assert [launch.name for launch in emulator.launches] == [KERNEL]
    assert len(found) == len(case.ops.spec.outputs) + 1 and (found[-1].numel() > 0) == case.keep
    assert case.measure_error(tensors, found) <= 1 and is_untouched(results), case


@pytest.mark.parametrize(
    "case, threads, parts",
    [
        (Case("lstm_gates", 2, (8, 24), 24, 17, 9), 256, 3),  # 8 channels of a warp
        (Case("lstm_gates", 1, (8, 32), 32, 17, 9), 256, 2),  # of two warps
        (Case("lstm_gates", 1, (120, 8), 8, 3, 5), 128, 1),  # two slabs
        (Case("memory_gates", 1, (72,), 24, 17, 17), 128, 3),
        (Case("gru_reset", 1, (24, 24), 24, 17, 9), 256, 3),
        (Case("gru_reset", 1, (24, 24), 32, 3, 5), 128, 2),  # 16 channels of a warp
        (Case("gru_update", 1, (24, 24), 24, 3, 5), 128, 1),  # 24 channels
        (Case("output_gate", 1, (24, 24), 40, 3, 5, residual=True), 128, 2),  # 24 channels, of which 8 do not exist
        (Case("output_gate", 1, (24,), 8, 3, 5), 128, 1),  # 16 channels, of which 8 do not exist
    ],
    ids=lambda v: f"{v.formula} {v.inputs} {v.channels}" if isinstance(v, Case) else str(v),
)
def test_sizes_of_blocks(emulated, results, case, threads, parts):
    torch.manual_seed(3)
    tensors = case.make_tensors()
    emulator = emulated("conv_rnn", seed=2)
    assert case.measure_error(tensors, case.compute(tensors)) <= 1 and is_untouched(results)
    (launch,) = emulator.launches
    assert launch.block == (threads, 1, 1) and launch.shared_bytes <= 227 << 10
    assert launch.grid[0] % parts == 0 and launch.grid[0] // parts <= 2


@pytest.mark.parametrize("case", [TILES, SLABS], ids=lambda case: case.formula)
def test_results_do_not_depend_on_the_order_of_threads(emulated, case):
    tensors = case.make_tensors()
    emulator = emulated("conv_rnn")
    first = case.compute(tensors)
    assert case.measure_error(tensors, first) <= 1
    for emulator.seed in range(1, 51):
        assert all(map(torch.equal, case.compute(tensors), first)), emulator.seed


@pytest.mark.sanitized
def test_memory_of_a_small_step(emulated):
    emulated("conv_rnn", seed=1)
    for case in (
        Case("memory_gates", 2, (8, 16), 8, 5, 18, residual=True, keep=True),
        Case("gru_update", 1, (8,), 24, 3, 3, residual=True, keep=True),
    ):
        tensors = case.make_tensors()
        assert case.measure_error(tensors, case.compute(tensors)) <= 1


@pytest.mark.parametrize("formula", FORMULAS)
def test_infinite_and_missing_values(emulated, formula):
    """Infinite pre-activations give the limits of the formulas. A NaN reaches the pixels around it."""
    case = Case(formula, 1, (8, 8), 8, 6, 20, bias=torch.float32)
    torch.manual_seed(0)
    x, x2, weight, bias, residual, *others = case.make_tensors()
    emulated("conv_rnn")
    for sign in (-1, 1):
        given = [x, x2, weight, torch.full_like(bias, sign * torch.inf), residual, *others]
        *found, pre = case.compute(given)
        for result, exact in zip(found, case.compute_exactly(given), strict=True):
            torch.testing.assert_close(result.double(), exact, rtol=8e-3, atol=1e-3, equal_nan=True)
    x[0, 3, 2, 16] = torch.nan
    found, _ = case.compute([x, x2, weight, bias, residual, *others])[0], None
    expected = torch.zeros(6, 20, dtype=torch.bool)
    expected[1:4, 15:18] = True
    assert torch.equal(found[0].isnan(), expected.expand(8, 6, 20))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_public_functions(emulated, dtype):
    """A step of a ConvLSTM without a state, and one of a ConvGRU, which is two kernels."""

    def make_map(channels):
        return torch.randn(1, channels, 5, 7).to(dtype).contiguous(memory_format=CHANNELS_LAST)

    emulator = emulated("conv_rnn")
    x, h, c, weight, bias = make_map(16), make_map(8), torch.randn(1, 8, 5, 7), torch.randn(32, 24, 3, 3) / 15, None
    gru = (x, h, torch.randn(16, 24, 3, 3) / 15, torch.randn(16), torch.randn(8, 24, 3, 3) / 15, torch.randn(8))
    with torch.no_grad(), fastds.use_conv_algorithm("window"):
        found = [*conv_lstm_cell(x, h, c, weight, bias), *conv_lstm_cell(x, None, c, weight, bias), conv_gru_cell(*gru)]
    assert [launch.name for launch in emulator.launches] == 4 * [KERNEL]
    with fastds.use_backend("reference"):
        exact = [*conv_lstm_cell(x, h, c, weight, bias), *conv_lstm_cell(x, None, c, weight, bias), conv_gru_cell(*gru)]
    for result, expected in zip(found, exact, strict=True):
        assert result.dtype == expected.dtype and result.is_contiguous(memory_format=CHANNELS_LAST)
        torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("formula", ["lstm_gates", "output_gate", "gru_update"])
def test_gradients(emulated, formula):
    """The backward pass reads the pre-activations that the kernel stores, or computes the same again."""
    case = Case(formula, 1, (8, 8), 8, 5, 6, torch.float16)
    tensors = case.make_tensors()
    emulator = emulated("conv_rnn", "conv3x3", "gates")

    def compute_gradients(algorithm):
        leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
        total = sum(t.double().square().sum() for t in case.compute(leaves, algorithm)[:-1])
        return torch.autograd.grad(total, [t for t in leaves if t is not None])

    found = compute_gradients("window")
    assert emulator.launches[0].name == KERNEL
    for gradient, direct in zip(found, compute_gradients("direct"), strict=True):
        torch.testing.assert_close(gradient, direct, rtol=2e-2, atol=2e-2)
    with recompute_gates():
        again = compute_gradients("window")
    assert "conv3x3_window_kernel" in {launch.name for launch in emulator.launches}
    assert all(map(torch.equal, again, found))


def test_calls_that_the_kernel_does_not_take(emulated, monkeypatch):
    """They run as with "auto": here torch's convolution and the pointwise kernel."""
    emulator = emulated("conv_rnn", "gates")
    monkeypatch.setattr(conv_algorithm, "winograd_unsupported_reason", lambda x: "as on a GPU")
    case = Case("lstm_gates", 1, (12, 8), 8, 4, 5, state=torch.bfloat16)
    tensors = case.make_tensors()
    assert case.measure_error(tensors, case.compute(tensors)) <= 4  # the pre-activations are rounded
    assert [launch.name for launch in emulator.launches] == ["gates_run_kernel"]
    batch = Case("lstm_gates", 0, (8, 8), 8, 4, 5)
    assert [t.shape[0] for t in batch.compute(batch.make_tensors())] == [0, 0, 0]
    assert len(emulator.launches) == 1


def test_reasons_why_the_kernel_does_not_take_a_call(emulated):
    emulated("conv_rnn")
    x, h = (torch.empty(1, n, 4, 4).bfloat16().contiguous(memory_format=CHANNELS_LAST) for n in (16, 24))
    weight, wide = torch.empty(96, 40, 3, 3), torch.empty(1, 8, 4, 6).bfloat16().contiguous(memory_format=CHANNELS_LAST)

    def reason(x=x, x2=h, weight=weight, residual=None, c=h, gates=4):
        return cuda_window.get_call_reason(x, x2, weight, residual, (c,), gates)

    assert reason() is None and reason(c=h.float()) is None and reason(c=h.contiguous()) is None
    assert reason(gates=3) is None and reason(gates=1) is None
    assert "multiples of 8" in reason(x2=h[:, :4]) and "multiples of 8" in reason(c=h[:, 4:12])
    assert "no states other than" in reason(c=h.half()) and "no torch.float32" in reason(x.float())
    assert "multiples of 8" in reason(residual=h[:, :12]) and reason(wide[..., 1:5], None) is None
    assert "shared memory" in reason(weight=torch.empty(96, 300, 3, 3))


def test_request_on_a_cpu():
    case = Case("lstm_gates", 1, (8, 8), 8, 4, 4)
    message = "'window' was requested, but there is no native kernel for cpu tensors"
    with pytest.raises(RuntimeError, match=message):
        case.compute(case.make_tensors())
