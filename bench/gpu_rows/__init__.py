# SPDX-License-Identifier: Apache-2.0
"""What bench.gpu_bench times: one module per op or model, each with rows(small) -> list of Row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One line of the results.

    Args:
        op, case, mode, dtype, peer: the row's key; ours are called "fastds cuda", "fastds triton", ..., and "fastds" in
            the small rows of a CPU; everything else is a peer.
        build: device -> the callable to time; called once, on the stream that is timed.
        expected: device -> float64 results of that callable, a tensor or several; computed once per oracle key.
        oracle: key of `expected`; rows with equal keys share it.
        tolerance: largest error allowed, relative to the largest expected value of each tensor.
        flops, bytes: work and least memory traffic of one call.
        yardstick: it does other work (a plain convolution) and is no peer.
        graph: time replays of a captured graph, the GPU's time alone; False: launches count too, as in eager use.
    """

    op: str
    case: str
    mode: str
    dtype: str
    peer: str
    build: Callable
    expected: Callable
    oracle: tuple
    tolerance: float
    flops: float
    bytes: float
    yardstick: bool = False
    graph: bool = True


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
