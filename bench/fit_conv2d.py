# SPDX-License-Identifier: Apache-2.0
"""Fit of the cost model of conv2d: `python -m bench.fit_conv2d --shapes 150 --seed 1 [--dtypes float32 bfloat16]`.

Times the engine of fastds and the convolution of torch on randomly drawn shapes, separately for each pass and without
the op around them. Fits COSTS of fastds/ops/impl/conv2d/costs.py (seconds per unit of each term, none negative) and
prints the table. Every third shape is held out; for these shapes the program prints the time of the selected algorithm
relative to the faster one.

Run the program on an idle machine, once per instruction set; --avx2 limits a newer processor to AVX2. Where oneDNN has
no convolution of a dtype (bfloat16 with AVX2, float16 without AVX512_FP16), torch needs seconds for the largest shapes;
draw smaller ones by --flops 2e8.
"""

import argparse
import random
from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import nnls

import fastds
from bench import interleaved_timing
from bench.avx2 import limit_to_avx2
from bench.sweep import MAX_FLOPS, draw_conv2d_shape
from fastds.ops.core import native
from fastds.ops.impl.conv2d import kernels
from fastds.ops.impl.conv2d.costs import MARGIN, PASSES, compute_terms
from fastds.ops.impl.conv3x3 import library
from fastds.ops.impl.conv3x3.costs import cpu_profile, is_prohibitively_slow

Row = tuple[tuple[int, ...], float, float]  # shape, seconds of the engine, seconds of the library
ROUNDS = 30  # iterations of reweighted least squares, which minimizes the mean absolute relative error


def draw_shapes(count: int, seed: int, max_flops: float) -> Iterator[tuple[int, ...]]:
    """Yield shapes as draw_conv2d_shape() returns them."""
    rng = random.Random(seed)
    return (draw_conv2d_shape(rng, max_flops) for _ in range(count))


def measure(shape: tuple[int, ...], dtype: torch.dtype, direction: str) -> Row:
    """Time the engine and the library on one shape.

    Args:
        shape: see draw_conv2d_shape().
        dtype: dtype of all tensors.
        direction: one of PASSES. Gradients change the weight before every call, as training steps do, so that cached
            packed weights cannot be reused.

    Returns:
        The shape and the seconds of both.
    """
    batch, inputs, outputs, height, width, size, groups = shape

    def draw_images(channels: int) -> torch.Tensor:
        field = torch.randn(batch, groups * channels, height, width, dtype=dtype)
        return field.contiguous(memory_format=torch.channels_last)

    x, grad = draw_images(inputs), draw_images(outputs)
    weight = (torch.randn(groups * outputs, inputs, size, size) / (size * inputs**0.5)).to(dtype)
    for tensor in x, weight:
        tensor.requires_grad_(direction != "inference")  # inference caches the filters of the library

    forward = (
        lambda: kernels.convolve_groups(x, weight, None, groups, False, False),
        lambda: library.conv2d(x, weight, None, groups),
    )
    by_engine, by_library = {
        "forward": forward,
        "inference": forward,
        "grad_x": (
            lambda: kernels.convolve_groups(grad, weight.neg_(), None, groups, True, True),
            lambda: library.conv2d_backward(grad, x, weight.neg_(), groups, True, False),
        ),
        "grad_weight": (
            lambda: kernels.grad_weight(grad, x, weight.neg_(), groups),
            lambda: library.conv2d_backward(grad, x, weight.neg_(), groups, False, True),
        ),
    }[direction]
    with torch.no_grad():
        seconds = interleaved_timing.measure_fastest_calls({"engine": by_engine, "library": by_library})
    return shape, seconds["engine"], seconds["library"]


def fit_costs(matrix: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Fit non-negative costs with the least mean absolute relative error.

    Args:
        matrix: terms (shapes, terms).
        seconds: measured times (shapes,).

    Returns:
        Seconds per unit of each term.
    """
    weights = 1 / seconds
    for _ in range(ROUNDS):
        costs = nnls(matrix * weights[:, None], seconds * weights)[0]
        error = np.abs(matrix @ costs / seconds - 1)
        weights = 1 / seconds / np.sqrt(np.maximum(error, 0.05))
    return costs


def print_costs(rows: list[Row], direction: str, dtype: torch.dtype) -> None:
    """Print one entry of COSTS and how the selected algorithm compares with the faster one on held-out shapes."""
    isa = native.get_module().isa()
    matrices = [
        np.array(m, float) for m in zip(*(compute_terms(direction, isa, dtype, *row[0]) for row in rows), strict=True)
    ]
    seconds = np.array([row[1:] for row in rows]).T
    tested = np.arange(len(rows)) % 3 == 2
    costs = [fit_costs(m[~tested], s[~tested]) for m, s in zip(matrices, seconds, strict=True)]
    estimates = [m @ c for m, c in zip(matrices, costs, strict=True)]
    selected = np.where(estimates[0] < MARGIN * estimates[1], *seconds)
    relative, slower = selected / seconds.min(0), selected > seconds[1] / 0.95
    texts = (f"({', '.join(f'{value:.2g}' for value in values)})" for values in costs)
    print(f"        {direction!r}: ({', '.join(texts)}),")
    gain = np.exp(np.log(seconds[1] / selected)[tested].mean())
    print(
        f"        # relative to the faster one: mean {relative[tested].mean():.2f},"
        f" 95 % {np.quantile(relative[tested], 0.95):.2f}; {gain:.2f} times as fast as the library,"
        f" slower in {slower[tested].mean():.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--avx2", action="store_true", help="limit fastds and torch to AVX2")
    parser.add_argument("--flops", type=float, default=MAX_FLOPS, help="FLOPs of the largest shape")
    options = parser.parse_args()
    if options.avx2:
        limit_to_avx2()
    interleaved_timing.SECONDS, interleaved_timing.MIN_TURNS = 0.03, 2
    fastds.memory.set_malloc_retention()
    for dtype in options.dtypes:
        torch_dtype = getattr(torch, dtype)
        print(f"    ({cpu_profile(native.get_module().isa(), torch_dtype)!r}, {dtype!r}): {{")
        for direction in PASSES:
            if is_prohibitively_slow(torch_dtype, direction.startswith("grad")):
                continue
            rows = [
                measure(shape, torch_dtype, direction)
                for shape in draw_shapes(options.shapes, options.seed, options.flops)
            ]
            print_costs(rows, direction, torch_dtype)
        print("    },", flush=True)


if __name__ == "__main__":
    main()
