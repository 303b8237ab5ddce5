# SPDX-License-Identifier: Apache-2.0
"""What a 3x3 convolution is expected to cost by the engine and by the library: sums of terms of its shape.

The factors are microseconds of one thread, fitted to drawn shapes by `python -m bench.fit_conv3x3`.
"""

from functools import cache, lru_cache
from typing import NamedTuple

import torch


class Shape(NamedTuple):
    """Of a convolution; planes: x is contiguous, not channels_last."""

    batch: int
    channels: int
    height: int
    width: int
    outputs: int
    planes: bool


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def engine_terms(shape: Shape) -> tuple[int, ...]:
    """A call; products, transforms of inputs and outputs, in whole vectors; packed weights; reordered inputs."""
    batch, channels, height, width, outputs, planes = shape
    tiles, wide = batch * -(-height // 4) * -(-width // 4), _up(outputs, 16)
    moved = batch * height * width * channels if planes and channels > 1 else 0
    return 1, tiles * _up(channels, 4) * wide, tiles * _up(channels, 16), tiles * wide, channels * outputs, moved


def library_terms(shape: Shape) -> tuple[int, ...]:
    """A call; products, pixels of inputs and outputs, in whole vectors; weights; what direct.laid_out reorders."""
    batch, channels, height, width, outputs, planes = shape
    pixels, weights, wide = batch * height * width, channels * outputs, _up(outputs, 16)
    maps = pixels * (channels + outputs)
    in_planes = 9 * weights > maps
    moved = pixels * channels if (planes and channels > 1) != in_planes else 0
    reordered = (0, maps) if in_planes else (weights, 0)
    return 1, pixels * channels * wide, pixels * _up(channels, 16), pixels * wide, weights, moved, *reordered


# (instruction set of the engine, type, backward): factors of the engine, of the library; "amx": bfloat16 by AMX
FACTORS: dict[tuple[str, str, bool], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("avx2", "float32", False): (
        (7.66, 0.000705, 0.0, 0.00517, 0.00485, 0.000654),
        (34.0, 0.000119, 0.0, 0.000137, 0.00803, 0.000601, 0.0068, 0.000455),
    ),
    ("avx2", "float32", True): (
        (16.2, 0.00148, 0.0, 0.0128, 0.0226, 0.000945),
        (77.8, 0.00026, 0.0, 0.00076, 0.0283, 0.000281, 0.0195, 7.51e-05),
    ),
    ("avx512", "float32", False): (
        (8.04, 0.000465, 0.00494, 0.00354, 0.00644, 0.000622),
        (41.2, 0.000103, 0.0, 0.000191, 0.00427, 0.000616, 6.61e-06, 0.0),
    ),
    ("avx512", "float32", True): (
        (16.5, 0.0011, 0.00446, 0.0162, 0.0182, 0.000615),
        (89.0, 0.000202, 0.0, 0.000989, 0.0159, 0.000304, 0.0225, 0.000163),
    ),
    ("avx512", "amx", False): (
        (8.73, 0.000418, 0.00507, 0.00347, 0.00375, 0.000527),
        (41.1, 1.02e-05, 7.75e-05, 0.000128, 0.00432, 0.000469, 0.00236, 0.000838),
    ),
    ("avx512", "amx", True): (
        (18.9, 0.00104, 0.00345, 0.0147, 0.0141, 0.000574),
        (105.0, 4.18e-05, 0.000212, 0.000527, 0.0133, 0.000641, 0.0105, 0.00173),
    ),
}


@cache
def _sixteen_bit() -> str:
    return "amx" if torch.cpu.get_capabilities().get("amx_bf16", False) else "bfloat16"


def kind_of(dtype: torch.dtype) -> str:
    """The name of a type in FACTORS."""
    return "float32" if dtype == torch.float32 else _sixteen_bit() if dtype == torch.bfloat16 else "bfloat16"


@lru_cache(4096)
def engine_pays(isa: str, kind: str, backward: bool, shape: Shape) -> bool:
    """Whether the engine is expected to be faster.

    16-bit types without AMX have no factors: on AMD EPYC, whose library has twice the rate there, the engine pays from
    16 channels on both sides, 8 in the backward pass, unless a field of few tiles reads 36 matrices of weights.
    """
    known = FACTORS.get((isa, kind, backward))
    if known is None:
        batch, channels, height, width, outputs, _ = shape
        tiles = batch * -(-height // 4) * -(-width // 4)
        return 8192 * tiles >= channels * outputs and min(channels, outputs) >= (8 if backward else 16)
    terms = engine_terms(shape), library_terms(shape)
    engine, library = (sum(a * b for a, b in zip(*pair, strict=True)) for pair in zip(known, terms, strict=True))
    return engine <= library
