# SPDX-License-Identifier: Apache-2.0
"""The cost model of conv3x3's "auto": `python -m bench.fit_conv3x3 --shapes 150 --seed 1 [--rows FILE]`.

Times every algorithm on shapes drawn at random, forward and backward, fits COSTS of
fastds/ops/impl/conv3x3/costs.py (seconds per unit of each term, none negative) to the relative errors, and prints
the table and what its choices lose against the fastest. --rows keeps the times, or reads them where the file is there.
Run it on an idle machine, once per kind of machine. A newer one is an AVX-512 machine without AMX with
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16, and an AVX2 machine with --avx2 --dtypes float32 (torch's 16-bit kernels take up to
700 times as long there).
"""

import argparse
import json
import pathlib
import random

import numpy as np
import torch
from scipy.optimize import nnls

from bench import in_turn
from bench.avx2 import keep_to_avx2
from bench.sweep import channels, log_uniform, maps
from fastds.ops import conv3x3
from fastds.ops.core import native
from fastds.ops.impl.conv3x3.algorithm import amx_refusal
from fastds.ops.impl.conv3x3.costs import TERMS, machine
from fastds.ops.impl.conv3x3.op import CONV3X3_BACKWARD

MOST_FLOPS, MOST_NUMBERS, MOST_NEIGHBOURHOODS = 3e10, 1 << 23, 1 << 26
MOST_FEW = 32  # channels of the smaller side that planes are measured for


def drawn(count: int, seed: int):
    """(batch, inputs, outputs, height, width): a third as in bench.sweep, a third of many channels on small maps, the
    others of few inputs or outputs."""
    rng, found = random.Random(seed), 0
    while found < count:
        (batch, height, width), inputs, outputs = maps(rng), channels(rng), channels(rng)
        if found % 3 == 1:
            inputs, outputs = log_uniform(rng, 64, 1024), log_uniform(rng, 64, 2048)
            height, width = log_uniform(rng, 3, 40), log_uniform(rng, 3, 40)
        elif found % 3 == 2:
            few = log_uniform(rng, 1, MOST_FEW)
            inputs, outputs = (few, outputs) if rng.random() < 0.5 else (inputs, few)
        points = batch * height * width
        if points * max(inputs, outputs) <= MOST_NUMBERS and 18 * points * inputs * outputs <= MOST_FLOPS:
            found += 1
            yield batch, inputs, outputs, height, width


def measured(shape, dtype: torch.dtype, backward: bool) -> dict[str, float]:
    """Seconds by algorithm."""
    batch, inputs, outputs, height, width = shape
    x = torch.randn(batch, inputs, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(batch, outputs, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)).to(dtype)
    algorithms = ["winograd", "direct"]
    if amx_refusal(x, dtype) is None:
        algorithms.append("amx")
    if min(inputs, outputs) <= MOST_FEW:
        algorithms.append("planes")
    if 9 * inputs * batch * height * width <= MOST_NEIGHBOURHOODS:
        algorithms.append("product")

    def run(algorithm):
        if not backward:
            return lambda: conv3x3(x, weight, algorithm=algorithm)
        wanted = [True, True, True, False, False]
        return lambda: CONV3X3_BACKWARD(grad, x, weight, None, None, 0.0, "zeros", 1, algorithm, wanted, None, None)

    with torch.no_grad():
        return in_turn.quiet({algorithm: run(algorithm) for algorithm in algorithms})


def measure_all(options) -> list[dict]:
    rows = []
    for number, shape in enumerate(drawn(options.shapes, options.seed), 1):
        for dtype in options.dtypes:
            for backward in (False, True):
                seconds = measured(shape, getattr(torch, dtype), backward)
                rows.append({"shape": shape, "dtype": dtype, "backward": backward, "seconds": seconds})
        print(f"{number}/{options.shapes} {shape}", flush=True)
    return rows


def fitted(rows: list[dict], algorithm: str) -> np.ndarray:
    """Seconds per unit of each term that explain the times of an algorithm with the least relative squared error."""
    kept = [row for row in rows if algorithm in row["seconds"]]
    terms = np.array([TERMS[algorithm](*row["shape"]) for row in kept], dtype=float)
    seconds = np.array([row["seconds"][algorithm] for row in kept])
    return nnls(terms / seconds[:, None], np.ones(len(kept)))[0]


def print_costs(rows: list[dict], dtype: str, backward: bool) -> None:
    """The entry of COSTS, and the time of its choices over the fastest."""
    rows = [row for row in rows if (row["dtype"], row["backward"]) == (dtype, backward)]
    names = [name for name in TERMS if any(name in row["seconds"] for row in rows)]
    costs, lost = {name: fitted(rows, name) for name in names}, []
    for row in rows:
        seconds = row["seconds"]
        guess = min(seconds, key=lambda name: costs[name] @ np.array(TERMS[name](*row["shape"]), dtype=float))
        lost.append(seconds[guess] / min(seconds.values()))
    print(f"({machine(native.module().isa(), getattr(torch, dtype))!r}, {dtype!r}, {backward}): {{")
    for name, values in costs.items():
        print(f"    {name!r}: ({', '.join(f'{value:.2g}' for value in values)}),")
    print(f"}},  # over the fastest: mean {np.mean(lost):.2f}, 95 % {np.quantile(lost, 0.95):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--avx2", action="store_true", help="on a machine that has more")
    parser.add_argument("--rows", type=pathlib.Path, default=None)
    options = parser.parse_args()
    if options.avx2:
        keep_to_avx2()
    in_turn.SECONDS, in_turn.LEAST_TURNS = 0.03, 2
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
