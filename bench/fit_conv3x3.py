# SPDX-License-Identifier: Apache-2.0
"""Fits the costs that conv3x3's "auto" compares: `python -m bench.fit_conv3x3 --dtype bfloat16 [--isa avx2]`.

Draws shapes, times engine and library in turn on one thread (times of two say on a shared machine how long barriers
wait), and prints the line of FACTORS in fastds/ops/impl/conv3x3/costs.py, with the share of shapes, not used for the
factors they are judged by, on which the choice costs more than 5 % and 20 %. For a library without AMX or AVX-512 set
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 or AVX2.
"""

import argparse
import random
import time

import numpy as np
import torch
from scipy.optimize import nnls

from bench import in_turn
from bench.sweep import CHANNELS_LAST, log_uniform
from fastds.ops.core import native
from fastds.ops.impl.conv3x3 import direct, kernels, winograd
from fastds.ops.impl.conv3x3.costs import FACTORS, Shape, engine_terms, kind_of, library_terms

MOST_FLOPS, MOST_NUMBERS = 4e8, 1 << 21
USUAL = (1, 2, 3, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)


def draw(rng: random.Random) -> Shape:
    while True:
        channels, outputs = (rng.choice(USUAL) if rng.random() < 0.6 else log_uniform(rng, 1, 1024) for _ in range(2))
        batch, height = log_uniform(rng, 1, 16), log_uniform(rng, 4, 200)
        width = height if rng.random() < 0.5 else log_uniform(rng, 4, 200)
        pixels = batch * height * width
        if 18 * pixels * channels * outputs < MOST_FLOPS and pixels * max(channels, outputs) < MOST_NUMBERS:
            return Shape(batch, channels, height, width, outputs, rng.random() < 0.5)


def seconds(shape: Shape, dtype: torch.dtype) -> dict[bool, tuple[float, float]]:
    """{backward: (engine, library)}."""
    x = torch.randn(shape[:4]).to(dtype)
    x = x if shape.planes else x.contiguous(memory_format=CHANNELS_LAST)
    weight = (torch.randn(shape.outputs, shape.channels, 3, 3) / (3 * shape.channels**0.5)).to(dtype)
    y = torch.randn(shape.batch, shape.outputs, shape.height, shape.width).to(dtype)
    y, bias = y.contiguous(memory_format=CHANNELS_LAST), torch.randn(shape.outputs).to(dtype)
    args = (x, weight, bias, None, None, "none", 0.1, "zeros", 1, dtype)
    given = (y, x, weight, None, None, 0.1, "zeros", 1)
    wanted = [True, True, True, False, False]
    runs = {
        False: (lambda: winograd.forward(*args), lambda: direct.forward(*args)),
        True: (
            lambda: kernels.backward(*given, "winograd", wanted),
            lambda: kernels.backward(*given, "direct", wanted),
        ),
    }
    with torch.no_grad():
        found = {mode: in_turn.quiet(dict(enumerate(pair))) for mode, pair in runs.items()}
    return {mode: (times[0], times[1]) for mode, times in found.items()}


def fitted(terms: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Factors >= 0, least squares of relative errors; times of shapes that were disturbed count little."""
    scale, weight = np.maximum(terms.max(0), 1), 1 / times
    for _ in range(6):
        factors = nnls(terms / scale * weight[:, None], times * weight)[0] / scale
        expected = np.maximum(terms @ factors, 1e-9)
        weight = 1 / np.sqrt(times * expected) / (1 + (np.abs(np.log(expected / times)) > 0.7))
    return factors


def judged(terms: list[np.ndarray], times: np.ndarray) -> np.ndarray:
    """Best time / time of the choice; either half by the factors of the other."""
    ratios, half = [], len(times) // 2
    for known, asked in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        expected = np.stack([t[asked] @ fitted(t[known], times[known, k]) for k, t in enumerate(terms)], 1)
        chosen = np.take_along_axis(times[asked], expected.argmin(1)[:, None], 1)[:, 0]
        ratios.append(times[asked].min(1) / chosen)
    return np.concatenate(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--kind", help="name in FACTORS, if not that of this machine")
    parser.add_argument("--isa", choices=["auto", "avx2", "avx512"], default="auto")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    native.module().set_isa(options.isa)
    torch.set_num_threads(1)
    in_turn.SECONDS, in_turn.TURN_SECONDS = 0.025, 0.008
    rng, dtype, end = random.Random(options.seed), getattr(torch, options.dtype), time.time() + 60 * options.minutes
    shapes, found = [], []
    while time.time() < end:
        shapes.append(draw(rng))
        found.append(seconds(shapes[-1], dtype))
    terms = [np.array([of(s) for s in shapes], float) for of in (engine_terms, library_terms)]
    for backward in (False, True):
        times = 1e6 * np.array([row[backward] for row in found])
        ratios, key = judged(terms, times), (native.module().isa(), options.kind or kind_of(dtype), backward)
        lines = [tuple(float(f"{v:.3g}") for v in fitted(t, times[:, k])) for k, t in enumerate(terms)]
        print(f"    {key!r}: (\n        {lines[0]},\n        {lines[1]},\n    ),")
        known = FACTORS.get(key)
        print(f"# {len(ratios)} shapes, {(ratios < 0.95).mean():.1%} below .95, {(ratios < 0.8).mean():.1%} below .8")
        if known:
            expected = np.stack([t @ np.array(f) for t, f in zip(terms, known, strict=True)], 1).argmin(1)
            ratios = times.min(1) / times[np.arange(len(times)), expected]
            print(f"# by the table as it is: {(ratios < 0.95).mean():.1%} and {(ratios < 0.8).mean():.1%}")


if __name__ == "__main__":
    main()
