# SPDX-License-Identifier: Apache-2.0
"""Fit of the cost model of conv3x3: `python -m bench.fit_conv3x3 --shapes 150 --seed 1 [--rows FILE]`.

Times every algorithm on randomly drawn shapes, forward and backward. Fits COSTS of fastds/ops/impl/conv3x3/costs.py
(seconds per unit of each term, none negative) with the least squared relative error, and prints the table and the time
of the selected algorithm relative to the fastest one. --rows writes the times to a JSON file, or reads them if the file
exists.

Run the program on an idle machine, once per instruction set. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 makes a processor with
AMX one without; --avx2 --dtypes float32 limits it to AVX2, where the 16-bit kernels of torch are too slow to measure.
"""

import argparse
import json
import pathlib
import random

import numpy as np
import torch
from scipy.optimize import nnls

from bench import interleaved_timing
from bench.avx2 import limit_to_avx2
from bench.sweep import draw_channels, draw_log_uniform, draw_size
from fastds.ops import conv3x3
from fastds.ops.core import native
from fastds.ops.impl.conv3x3.algorithm import amx_unsupported_reason
from fastds.ops.impl.conv3x3.costs import TERMS, cpu_profile
from fastds.ops.impl.conv3x3.op import CONV3X3_BACKWARD

MAX_FLOPS, MAX_NUMBERS = 3e10, 1 << 23
MAX_IM2COL_NUMBERS = 1 << 26  # in the unfolded input
MAX_PLANES_CHANNELS = 32  # inputs or outputs, the fewer of the two, for which the algorithm planes is measured


def draw_shapes(count: int, seed: int):
    """Yield shapes (batch, inputs, outputs, height, width).

    A third is drawn as in bench.sweep, a third has many channels on small images, and a third few inputs or outputs.
    """
    rng, count_drawn = random.Random(seed), 0
    while count_drawn < count:
        (batch, height, width), inputs, outputs = draw_size(rng), draw_channels(rng), draw_channels(rng)
        if count_drawn % 3 == 1:
            inputs, outputs = draw_log_uniform(rng, 64, 1024), draw_log_uniform(rng, 64, 2048)
            height, width = draw_log_uniform(rng, 3, 40), draw_log_uniform(rng, 3, 40)
        elif count_drawn % 3 == 2:
            few = draw_log_uniform(rng, 1, MAX_PLANES_CHANNELS)
            inputs, outputs = (few, outputs) if rng.random() < 0.5 else (inputs, few)
        points = batch * height * width
        if points * max(inputs, outputs) <= MAX_NUMBERS and 18 * points * inputs * outputs <= MAX_FLOPS:
            count_drawn += 1
            yield batch, inputs, outputs, height, width


def measure(shape, dtype: torch.dtype, backward: bool) -> dict[str, float]:
    """Return the seconds of one call on a shape by algorithm."""
    batch, inputs, outputs, height, width = shape
    x = torch.randn(batch, inputs, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(batch, outputs, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)).to(dtype)
    algorithms = ["winograd", "direct"]
    if amx_unsupported_reason(x, dtype) is None:
        algorithms.append("amx")
    if min(inputs, outputs) <= MAX_PLANES_CHANNELS:
        algorithms.append("planes")
    if 9 * inputs * batch * height * width <= MAX_IM2COL_NUMBERS:
        algorithms.append("product")

    def run(algorithm):
        if not backward:
            return lambda: conv3x3(x, weight, algorithm=algorithm)
        requires = [True, True, True, False, False]  # gradients of x, weight and bias
        return lambda: CONV3X3_BACKWARD(grad, x, weight, None, None, 0.0, "zeros", 1, algorithm, requires, None, None)

    with torch.no_grad():
        return interleaved_timing.measure_fastest_calls({algorithm: run(algorithm) for algorithm in algorithms})


def measure_all(options) -> list[dict]:
    """Return rows with shape, dtype, backward and the seconds by algorithm."""
    rows = []
    for number, shape in enumerate(draw_shapes(options.shapes, options.seed), 1):
        for dtype in options.dtypes:
            for backward in (False, True):
                seconds = measure(shape, getattr(torch, dtype), backward)
                rows.append({"shape": shape, "dtype": dtype, "backward": backward, "seconds": seconds})
        print(f"{number}/{options.shapes} {shape}", flush=True)
    return rows


def fit_costs(rows: list[dict], algorithm: str) -> np.ndarray:
    """Return the non-negative seconds per unit of each term of an algorithm with the least squared relative error."""
    measured = [row for row in rows if algorithm in row["seconds"]]
    terms = np.array([TERMS[algorithm](*row["shape"]) for row in measured], dtype=float)
    seconds = np.array([row["seconds"][algorithm] for row in measured])
    return nnls(terms / seconds[:, None], np.ones(len(measured)))[0]


def print_costs(rows: list[dict], dtype: str, backward: bool) -> None:
    """Print one entry of COSTS and the time of the selected algorithms relative to the fastest ones."""
    rows = [row for row in rows if (row["dtype"], row["backward"]) == (dtype, backward)]
    names = [name for name in TERMS if any(name in row["seconds"] for row in rows)]
    costs, relative = {name: fit_costs(rows, name) for name in names}, []
    for row in rows:
        seconds = row["seconds"]
        selected = min(seconds, key=lambda name: costs[name] @ np.array(TERMS[name](*row["shape"]), dtype=float))
        relative.append(seconds[selected] / min(seconds.values()))
    print(f"({cpu_profile(native.get_module().isa(), getattr(torch, dtype))!r}, {dtype!r}, {backward}): {{")
    for name, values in costs.items():
        print(f"    {name!r}: ({', '.join(f'{value:.2g}' for value in values)}),")
    print(f"}},  # relative to the fastest: mean {np.mean(relative):.2f}, 95 % {np.quantile(relative, 0.95):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--avx2", action="store_true", help="limit fastds and torch to AVX2")
    parser.add_argument("--rows", type=pathlib.Path, default=None)
    options = parser.parse_args()
    if options.avx2:
        limit_to_avx2()
    interleaved_timing.SECONDS, interleaved_timing.MIN_TURNS = 0.03, 2
    if options.rows and options.rows.exists():
        rows = json.loads(options.rows.read_text())
    else:
        rows = measure_all(options)
        if options.rows:
            options.rows.write_text(json.dumps(rows))
    for dtype in options.dtypes:
        for backward in (False, True):
            print_costs(rows, dtype, backward)


if __name__ == "__main__":
    main()
