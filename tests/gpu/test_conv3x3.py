# SPDX-License-Identifier: Apache-2.0
"""Tests of conv3x3 and convolve with their epilogues on a GPU, against float64 on the CPU."""

import pytest
import torch
from gpu import checks

from fastds.nn.convolutions import convolve
from fastds.ops import conv3x3


@pytest.mark.parametrize("dtype", checks.dtypes([torch.float32, torch.bfloat16]))
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shuffle, act", [(1, None), (1, "relu"), (2, "leaky_relu")])
def test_conv3x3_epilogues(shuffle, act, kernel, dtype, device):
    x, x2 = torch.randn(2, 16, 13, 21), torch.randn(2, 8, 13, 21)
    weight, bias, residual = torch.randn(32, 24, kernel, kernel) / 10, torch.randn(32), torch.randn(2, 32, 13, 21)
    given = checks.moved([x, weight, bias, x2, residual], device, dtype)

    def run(x, weight, bias, x2, residual):
        with torch.no_grad():
            return convolve(x, weight, bias, second_input=x2, residual=residual, activation=act, upscale_factor=shuffle)

    exact = run(*(z.cpu().double() for z in given))
    tolerance = 2e-2 if dtype == torch.bfloat16 else 5e-3  # cuDNN may use tf32
    checks.close([run(*given)], [exact], tolerance)


SHAPES = [(2, 24, 20, 20, 9, 7, 1), (1, 3, 0, 64, 40, 37, 1), (1, 64, 64, 216, 33, 30, 1), (1, 17, 5, 36, 6, 5, 3)]


def joined(algorithm, **options):
    """Return conv3x3 with an algorithm as a function of (x, x2, weight, bias, residual).

    CPU tensors, which the dry run uses, take the algorithm "auto".
    """

    def run(x, x2, weight, bias, residual):
        settings = {"activation": "leaky_relu", "algorithm": algorithm if x.is_cuda else "auto"} | options
        return conv3x3(x, weight, bias, second_input=x2, residual=residual, **settings)

    return run


def inputs(shape, dtype=torch.float32):
    batch, c1, c2, outputs, height, width, _ = shape
    maps = [torch.randn(batch, n, height, width).to(dtype) if n else None for n in (c1, c2, outputs)]
    maps = [m if m is None else m.contiguous(memory_format=torch.channels_last) for m in maps]
    weight = torch.randn(outputs, c1 + c2, 3, 3) / (9 * (c1 + c2)) ** 0.5
    return [*maps[:2], weight.to(dtype), torch.randn(outputs).to(dtype), maps[2]]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular_x"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_implicit_gemm_agrees_with_the_reference(shape, padding_mode, dtype, tolerance, device):
    """Values, and gradients without the kink of an activation."""
    tensors = inputs(shape, dtype)
    options = {"padding_mode": padding_mode, "upscale_factor": shape[-1]}
    doubles, given = [t if t is None else t.double() for t in tensors], checks.moved(tensors, device)
    with torch.no_grad():
        checks.close([joined("implicit_gemm", **options)(*given)], [joined("direct", **options)(*doubles)], tolerance)
    exact = checks.value_and_gradients(joined("direct", activation=None, **options), doubles)
    checks.close(
        checks.value_and_gradients(joined("implicit_gemm", activation=None, **options), given), exact, tolerance
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular_x"])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 64, 0, 64, 200, 200, 1),
        (3, 24, 40, 24, 33, 50, 1),
        pytest.param((2, 8, 0, 96, 9, 7, 2), marks=pytest.mark.sanitize),
        (1, 128, 128, 16, 61, 70, 1),
    ],
    ids=str,
)
def test_window_agrees_with_the_reference(shape, padding_mode, dtype, device):
    """Many tiles for each warpgroup, slabs of channels, two sources, and a residual or a shuffle."""
    tensors = inputs(shape, dtype)
    tensors[-1] = None if shape[-1] > 1 else tensors[-1]
    options = {"padding_mode": padding_mode, "upscale_factor": shape[-1]}
    doubles, given = [t if t is None else t.double() for t in tensors], checks.moved(tensors, device)
    with torch.no_grad():
        first = joined("window", **options)(*given)
        checks.close([first], [joined("direct", **options)(*doubles)], 3e-2 if dtype == torch.bfloat16 else 1e-2)
        assert all(torch.equal(joined("window", **options)(*given), first) for _ in range(20))


def test_window_with_streams_graphs_and_layouts(device):
    tensors = checks.moved(inputs((2, 24, 16, 24, 9, 7, 1), torch.bfloat16), device)
    checks.check_everything(joined("window"), tensors, 2e-2)  # misaligned tensors go to the Triton kernel


@pytest.mark.sanitize
def test_implicit_gemm_with_streams_graphs_and_layouts(device):
    tensors = checks.moved(inputs(SHAPES[0]), device)
    checks.check_everything(joined("implicit_gemm"), tensors)
