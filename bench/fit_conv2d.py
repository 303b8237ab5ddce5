# SPDX-License-Identifier: Apache-2.0
"""The cost model of conv2d: `python -m bench.fit_conv2d --shapes 150 --seed 1 [--dtypes float32 bfloat16]`.

Times engine and library on shapes drawn at random, in each pass, without the op around them, fits
COSTS of fastds/ops/impl/conv2d/costs.py (seconds per unit of each term, none negative), and prints the table and what
its choices lose against the quicker one on every third shape, which it is not fitted to. Run it on an idle machine,
once per kind of machine, with --avx2 on a newer one for AVX2. Where oneDNN has no convolution of a dtype (bfloat16 with
AVX2, float16 without AVX512_FP16) the largest shapes take torch seconds: --flops 2e8.
"""

import argparse
import random
from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import nnls

import fastds
from bench import in_turn
from bench.avx2 import keep_to_avx2
from bench.sweep import MOST_FLOPS, draw_conv2d_shape
from fastds.ops.core import native
from fastds.ops.impl.conv2d import kernels
from fastds.ops.impl.conv2d.costs import PASSES, SURE, terms
from fastds.ops.impl.conv3x3 import direct
from fastds.ops.impl.conv3x3.costs import is_hopeless, machine

Row = tuple[tuple[int, ...], float, float]  # shape, seconds of engine and library
ROUNDS = 30  # of weights that make squared errors absolute ones


def drawn(count: int, seed: int, most_flops: float) -> Iterator[tuple[int, ...]]:
    rng = random.Random(seed)
    return (draw_conv2d_shape(rng, most_flops) for _ in range(count))


def measured(shape: tuple[int, ...], dtype: torch.dtype, direction: str) -> Row:
    """With the weight of the next step every time for gradients, as in a training."""
    batch, inputs, outputs, height, width, size, groups = shape

    def maps(channels: int) -> torch.Tensor:
        field = torch.randn(batch, groups * channels, height, width, dtype=dtype)
        return field.contiguous(memory_format=torch.channels_last)

    x, grad = maps(inputs), maps(outputs)
    weight = (torch.randn(groups * outputs, inputs, size, size) / (size * inputs**0.5)).to(dtype)
    for tensor in x, weight:
        tensor.requires_grad_(direction != "inference")  # else the library's filters are kept

    forward = (
        lambda: kernels.convolution(x, weight, None, groups, False, False),
        lambda: direct.conv2d(x, weight, None, groups),
    )
    engine, library = {
        "forward": forward,
        "inference": forward,
        "grad_x": (
            lambda: kernels.convolution(grad, weight.neg_(), None, groups, True, True),
            lambda: direct.conv2d_backward(grad, x, weight.neg_(), groups, True, False),
        ),
        "grad_weight": (
            lambda: kernels.grad_weight(grad, x, weight.neg_(), groups),
            lambda: direct.conv2d_backward(grad, x, weight.neg_(), groups, False, True),
        ),
    }[direction]
    with torch.no_grad():
        seconds = in_turn.quiet({"engine": engine, "library": library})
    return shape, seconds["engine"], seconds["library"]


def fitted(matrix: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Costs of the terms with the least mean relative error."""
    weights = 1 / seconds
    for _ in range(ROUNDS):
        costs = nnls(matrix * weights[:, None], seconds * weights)[0]
        error = np.abs(matrix @ costs / seconds - 1)
        weights = 1 / seconds / np.sqrt(np.maximum(error, 0.05))
    return costs


def print_costs(rows: list[Row], direction: str, dtype: torch.dtype) -> None:
    """The entry of COSTS, and the time of its choices over the quicker one's."""
    isa = native.module().isa()
    matrices = [np.array(m, float) for m in zip(*(terms(direction, isa, dtype, *row[0]) for row in rows), strict=True)]
    seconds = np.array([row[1:] for row in rows]).T
    tested = np.arange(len(rows)) % 3 == 2
    costs = [fitted(m[~tested], s[~tested]) for m, s in zip(matrices, seconds, strict=True)]
    guesses = [m @ c for m, c in zip(matrices, costs, strict=True)]
    taken = np.where(guesses[0] < SURE * guesses[1], *seconds)
    lost, slower = taken / seconds.min(0), taken > seconds[1] / 0.95
    texts = (f"({', '.join(f'{value:.2g}' for value in values)})" for values in costs)
    print(f"        {direction!r}: ({', '.join(texts)}),")
    gain = np.exp(np.log(seconds[1] / taken)[tested].mean())
    print(
        f"        # over the quicker one: mean {lost[tested].mean():.2f}, 95 % {np.quantile(lost[tested], 0.95):.2f}; "
        f"{gain:.2f} times as quick as the library, slower in {slower[tested].mean():.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--avx2", action="store_true", help="on a machine that has more")
    parser.add_argument("--flops", type=float, default=MOST_FLOPS, help="of the largest shape drawn")
    options = parser.parse_args()
    if options.avx2:
        keep_to_avx2()
    in_turn.SECONDS, in_turn.LEAST_TURNS = 0.03, 2
    fastds.keep_freed_memory()
    for dtype in options.dtypes:
        kind = getattr(torch, dtype)
        print(f"    ({machine(native.module().isa(), kind)!r}, {dtype!r}): {{")
        for direction in PASSES:
            if is_hopeless(kind, direction.startswith("grad")):
                continue
            rows = [measured(shape, kind, direction) for shape in drawn(options.shapes, options.seed, options.flops)]
            print_costs(rows, direction, kind)
        print("    },", flush=True)


if __name__ == "__main__":
    main()
