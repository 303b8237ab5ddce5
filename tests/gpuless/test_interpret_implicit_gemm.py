# SPDX-License-Identifier: Apache-2.0
"""Tests of the interpreted implicit-GEMM convolution, against float64."""

import random

import pytest
import torch
import torch.nn.functional as F
from fastds.kernels import implicit_gemm as kernels
from gpuless.triton_rig import guard, untouched

import fastds
from fastds.ops import conv3x3
from fastds.ops.impl.conv3x3 import triton_implicit_gemm
from fastds.ops.impl.conv3x3.reference import PADDING_MODES, activate, pad

pytestmark = pytest.mark.interpreted

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3}
CALLS = 16


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "select_tiles", lambda *_: kernels.Tiles(32, 16, 16, 4, 1))


def maps(*shape, dtype=torch.float32, filler=torch.nan):
    """Return random channels_last maps that are a slice of a tensor with NaN in all other elements."""
    batch, channels, height, width = shape
    wide = torch.full((batch, channels + 16, height, width), filler, dtype=dtype)
    wide = guard(wide.contiguous(memory_format=torch.channels_last))
    return wide[:, 8:-8].copy_(torch.randn(shape))


def drawn(seed):
    """Return the options of a random call with sizes that are no multiples of a tile."""
    d = random.Random(seed)
    size, shuffle = d.choice((1, 3, 3)), d.choice((1, 1, 2, 3))
    return {
        "batch": d.choice((1, 2)), "inputs": d.choice((1, 3, 16, d.randint(2, 37))),
        "inputs2": d.choice((0, d.randint(1, 20))), "fine": d.choice((1, 16, d.randint(2, 24))) // shuffle + 1,
        "height": d.randint(1, 7), "width": d.randint(1, 9), "size": size, "stride": d.choice((1, 1, 2)),
        "shuffle": shuffle, "padding_mode": d.choice(PADDING_MODES) if size == 3 else "zeros",
        "act": d.choice(("none", "relu", "leaky_relu")), "bias": d.random() < 0.7, "residual": d.random() < 0.6,
        "dtype": d.choice((torch.float32, torch.float32, torch.float16)),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(CALLS))
def test_implicit_gemm_random_calls(seed):
    call = drawn(seed)
    torch.manual_seed(seed)
    dtype, size, stride, r = (call[name] for name in ("dtype", "size", "stride", "shuffle"))
    batch, height, width = (call[name] for name in ("batch", "height", "width"))
    outputs, inputs = call["fine"] * r * r, call["inputs"] + call["inputs2"]
    x = maps(batch, call["inputs"], height, width, dtype=dtype)
    x2 = maps(batch, call["inputs2"], height, width, dtype=dtype) if call["inputs2"] else None
    shape = (-(-height // stride), -(-width // stride))
    residual = maps(batch, outputs, *shape, dtype=dtype) if call["residual"] else None
    bias = guard(torch.randn(outputs)) if call["bias"] else None
    weight = maps(outputs, inputs, size, size, dtype=dtype).mul_((size**2 * inputs) ** -0.5)  # a slice of the inputs
    assert triton_implicit_gemm.to_kernel_layout(weight, dtype) is weight
    empty = torch.empty(batch, call["fine"], shape[0] * r, shape[1] * r, dtype=dtype)
    out = guard(empty.contiguous(memory_format=torch.channels_last))
    slope = {"none": None, "relu": 0.0, "leaky_relu": 0.1}[call["act"]]
    options = {"stride": stride, "padding_mode": call["padding_mode"], "slope": slope, "shuffle": r}
    kernels.launch(x, x2, weight, bias, residual, out, **options)
    source = (x if x2 is None else torch.cat([x, x2], 1)).double()
    source = source if size == 1 else pad(source, call["padding_mode"])
    exact = F.conv2d(source, weight.double(), None if bias is None else bias.double(), stride)
    exact = activate(exact if residual is None else exact + residual.double(), call["act"], 0.1)
    exact = F.pixel_shuffle(exact, r)
    assert (out.double() - exact).abs().max() <= TOLERANCES[dtype] * exact.abs().max().clamp_min(1), call
    assert untouched(out)
    if seed % 4 == 0:  # 64-bit addresses give the same bits
        again = torch.empty_like(out)
        kernels.launch(x, x2, weight, bias, residual, again, **options, use_int64=True)
        assert torch.equal(again, out)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_implicit_gemm_equals_conv3x3(padding_mode):
    tensors = [torch.randn(2, 5, 4, 6), torch.randn(8, 8, 3, 3) / 8, torch.randn(8), torch.randn(2, 3, 4, 6)]
    tensors = [t.requires_grad_() for t in (*tensors, torch.randn(2, 8, 4, 6))]
    doubles = [t.detach().double().requires_grad_() for t in tensors]

    def run(x, weight, bias, x2, residual):
        options = {"activation": "leaky_relu", "padding_mode": padding_mode, "upscale_factor": 2}
        return conv3x3(x, weight, bias, second_input=x2, residual=residual, **options)

    with fastds.use_conv_algorithm("implicit_gemm"):
        y = run(*tensors)
    exact = run(*doubles)
    along = torch.randn_like(y)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(y, tensors, along), torch.autograd.grad(exact, doubles, along.double())
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_nan_spreads_to_neighbours_only():
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 2, 3] = torch.nan
    y = conv3x3(x, torch.ones(1, 1, 3, 3), activation="relu", algorithm="implicit_gemm")
    assert torch.equal(y.isnan(), F.max_pool2d(x.isnan().float(), 3, 1, 1).bool())


def test_unsupported_calls_are_rejected():
    x, weight = torch.randn(1, 3, 4, 4), torch.randn(2, 3, 3, 3)
    with pytest.raises(RuntimeError, match="'implicit_gemm' was requested, but no Triton kernel for torch.float64"):
        conv3x3(x.double(), weight.double(), algorithm="implicit_gemm")
    with pytest.raises(RuntimeError, match="returns the dtype of x, torch.float16, not torch.float32"):
        conv3x3(x.half(), weight.half(), out_dtype=torch.float32, algorithm="implicit_gemm")
    assert conv3x3(x[:0], weight, algorithm="implicit_gemm").shape == (0, 2, 4, 4)
