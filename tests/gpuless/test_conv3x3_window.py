# SPDX-License-Identifier: Apache-2.0
"""Tests of the 3x3 convolution with a window of the map in shared memory (csrc/conv3x3/cuda_window.cuh), emulated."""

import dataclasses
import random

import pytest
import torch
from gpuless.conv3x3_window_cases import DTYPES, KERNEL, Case, draw_case, is_untouched, poison_outputs

import fastds
from fastds.ops import conv3x3
from fastds.ops.impl.conv3x3 import cuda_window, reference

CHANNELS_LAST = torch.channels_last
# Several tiles for each warpgroup, edges of tiles, and a pack that only fills up a product.
TILES = Case(1, (8,), 64, 27, 17, activation="leaky_relu", residual=True)


@pytest.fixture
def outputs(monkeypatch):
    """Fill results with NaN before the kernel runs, between guards that must stay as they are; return the results."""
    return poison_outputs(monkeypatch)


def with_bias(case: Case, seed: int) -> Case:
    return dataclasses.replace(case, bias=random.Random(seed).choice([None, case.dtype, torch.float32]))


@pytest.mark.parametrize("seed", range(20))
def test_drawn_convolutions(emulated, outputs, seed):
    torch.manual_seed(seed)
    case = with_bias(draw_case(seed), seed)
    tensors = case.make_tensors()
    emulator = emulated("conv3x3", seed=seed)
    result = case.compute(tensors)
    assert [launch.name for launch in emulator.launches] == [KERNEL]
    assert case.measure_error(tensors, result) <= 1 and is_untouched(outputs), case


@pytest.mark.parametrize("inputs, outputs_, threads", [((128,), 64, 256), ((72, 64), 48, 128), ((8,), 8, 256)])
def test_sizes_of_blocks(emulated, outputs, inputs, outputs_, threads):
    """Channels in several slabs, with one or more warpgroups that share the weights."""
    case = Case(1, inputs, outputs_, 17, 20, bias=torch.float32, sliced=True)
    torch.manual_seed(3)
    tensors = case.make_tensors()
    emulator = emulated("conv3x3", seed=2)
    assert case.measure_error(tensors, case.compute(tensors)) <= 1 and is_untouched(outputs)
    (launch,) = emulator.launches
    assert launch.block == (threads, 1, 1) and launch.shared_bytes <= 227 << 10


def test_results_do_not_depend_on_the_order_of_threads(emulated):
    tensors = TILES.make_tensors()
    emulator = emulated("conv3x3")
    first = TILES.compute(tensors)
    assert TILES.measure_error(tensors, first) <= 1
    assert emulator.launches[0].block[0] == 384  # three warpgroups, of which the first computes three tiles
    for emulator.seed in range(1, 51):
        assert torch.equal(TILES.compute(tensors), first), emulator.seed


@pytest.mark.sanitized
def test_memory_of_a_small_call(emulated):
    case = Case(2, (8, 16), 24, 5, 18, shuffle=1, bias=torch.bfloat16, residual=True)
    tensors = case.make_tensors()
    emulated("conv3x3", seed=1)
    assert case.measure_error(tensors, case.compute(tensors)) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_and_missing_values(emulated, dtype):
    """ReLU of minus infinity is 0. A NaN reaches the pixels around it, also where channels fill up a product."""
    x = torch.zeros(1, 24, 6, 20, dtype=dtype).contiguous(memory_format=CHANNELS_LAST)
    bias = torch.zeros(8, dtype=dtype)
    bias[0] = -torch.inf
    x[0, 23, 2, 16] = torch.nan
    emulated("conv3x3")
    y = conv3x3(x, torch.ones(8, 24, 3, 3, dtype=dtype), bias, activation="relu", algorithm="window")
    expected = torch.zeros(6, 20, dtype=torch.bool)
    expected[1:4, 15:18] = True
    assert torch.equal(y[0].isnan(), expected.expand(8, 6, 20)) and not y[0, :, ~expected].any()


def test_layouts_of_the_weight(emulated, outputs):
    """The weight may be contiguous, in float32, or a slice of the inputs of a larger one."""
    x = torch.randn(1, 16, 5, 7).bfloat16()  # not channels_last: copied
    large = (torch.randn(8, 28, 3, 3) / 12).bfloat16()
    emulator = emulated("conv3x3")
    for weight in (large, large.contiguous(memory_format=CHANNELS_LAST), large.float()):
        for first in (0, 8, 3):
            part = weight[:, first : first + 16]
            exact = reference.conv3x3(
                x.double(), part.double(), None, None, None, "none", 0.0, "zeros", 1, torch.float64, "auto"
            )
            got = conv3x3(x, part, algorithm="window")
            torch.testing.assert_close(got.double(), exact, rtol=8e-3, atol=8e-3)
    assert len(emulator.launches) == 9 and is_untouched(outputs)


def test_gradients_are_those_of_the_library(emulated):
    case = Case(1, (16, 8), 8, 5, 6, torch.float16, activation="leaky_relu", bias=torch.float16, residual=True)
    tensors = case.make_tensors()
    emulated("conv3x3")
    found, expected = (
        torch.autograd.grad(case.compute(leaves, algorithm).float().square().sum(), leaves)
        for algorithm in ("window", "direct")
        for leaves in ([t.detach().requires_grad_() for t in tensors],)
    )
    for gradient, direct in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, direct, rtol=2e-2, atol=2e-2)


def test_reasons_why_the_kernel_does_not_take_a_call(emulated):
    emulated("conv3x3")
    x, weight = torch.empty(1, 16, 4, 4).bfloat16().contiguous(memory_format=CHANNELS_LAST), torch.empty(32, 16, 3, 3)
    residual = torch.empty(1, 32, 4, 4).bfloat16().contiguous(memory_format=CHANNELS_LAST)

    def reason(x=x, weight=weight, x2=None, residual=None, shuffle=1, dtype=torch.bfloat16):
        return cuda_window.get_call_reason(x, weight, x2, residual, shuffle, dtype)

    assert reason() is None and reason(residual=residual) is None and reason(shuffle=2) is None
    assert "multiples of 8" in reason(x2=residual[:, :4]) and "multiples of 8" in reason(residual[:, 4:20])
    assert "multiple of 8" in reason(weight=weight[:12]) and "multiple of 8" in reason(shuffle=4)
    assert "before a pixel shuffle" in reason(residual=residual, shuffle=2)
    assert "shared memory" in reason(weight=torch.empty(8, 600, 3, 3))
    assert "no torch.bfloat16" in reason(dtype=torch.float32) and "no torch.float32" in reason(x.float())
    assert reason(x.contiguous()) is None and "multiples of 8" in reason(x[:, :12].contiguous())


def test_request_on_a_cpu():
    x, weight = torch.zeros(1, 8, 4, 4).bfloat16(), torch.zeros(8, 8, 3, 3)
    message = "'window' was requested, but there is no native kernel for cpu tensors"
    with pytest.raises(RuntimeError, match=message):
        conv3x3(x, weight, algorithm="window")
    with pytest.raises(RuntimeError, match=message), fastds.use_conv_algorithm("window"):
        conv3x3(x, weight)
