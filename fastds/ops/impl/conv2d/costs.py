# SPDX-License-Identifier: Apache-2.0
"""Whether the engine takes less time than the library for a convolution of any size in groups.

Seconds = sum of COSTS times terms, fitted by `python -m bench.fit_conv2d` on two cores; those with AVX2 are of an AMD
processor kept to it.
"""

import functools
import math

import torch

from fastds.ops.impl.conv3x3 import costs as conv3x3

PASSES = ("forward", "grad_x", "grad_weight", "inference")  # the last: forward, with filters kept by the library, too
PASSES_BY_GRADIENTS = {  # by whether the gradients of x and of the weight are; a table, for small calls wait for it
    (False, False): PASSES[3:], (True, False): PASSES[:2], (False, True): PASSES[:3:2], (True, True): PASSES[:3],
}  # fmt: skip
MARGIN = 0.85  # times that differ less are not told apart
PACKING_COST = 2.5e-10  # seconds a transformed weight more than where they are kept, as in the fit of "forward"
MAX_CACHED_ELEMENTS = 8 << 20  # transformed weights; more of them would push those of other layers out
CALL_OVERHEAD = 8e-6  # what a pass of the op takes longer than one of torch before it computes
Costs = tuple[tuple[float, ...], tuple[float, ...]]  # of engine and library
COSTS: dict[tuple[str, str], dict[str, Costs]] = {
    ("amd", "float32"): {
        "forward": (
            (1.4e-05, 1.5e-05, 2.1e-10, 9.9e-12, 5.7e-11, 7.1e-11, 4e-10),
            (4.6e-05, 4.6e-10, 6.8e-12, 5.2e-10, 6.3e-12),
        ),
        "grad_x": ((1.3e-05, 2e-05, 1.2e-09, 1e-11, 6.2e-11, 6.8e-11, 0), (7e-05, 5.1e-10, 7.4e-12, 4e-10, 0)),
        "grad_weight": (
            (2.1e-05, 1.8e-05, 2.3e-10, 1.1e-11, 5.6e-11, 0, 4.1e-10),
            (8.3e-05, 6.4e-13, 8.6e-12, 1.9e-12),
        ),
    },
    ("amd", "bfloat16"): {
        "forward": (
            (1.1e-05, 1.4e-05, 1.5e-10, 9.8e-12, 5.7e-11, 5.5e-11, 4.4e-10),
            (5.4e-05, 3.5e-10, 3.8e-12, 2.9e-10, 1.7e-11),
        ),
        "grad_x": (
            (1.2e-05, 1.5e-05, 4.9e-10, 1e-11, 5.5e-11, 9.2e-11, 6.5e-11),
            (8.9e-05, 1.5e-10, 4.3e-12, 1.4e-10, 0),
        ),
        "grad_weight": ((1.2e-05, 2.3e-05, 7.5e-10, 1e-11, 5.2e-11, 0, 0), (9.5e-05, 5.8e-10, 5.1e-12, 1.6e-12)),
    },
    ("amd", "float16"): {
        "forward": (
            (1.3e-05, 1.2e-05, 1.5e-10, 8.8e-12, 6.7e-11, 5.6e-11, 0),
            (1.3e-05, 2e-09, 1.1e-10, 4.8e-11, 9.5e-09),
        ),
    },
    ("zen5", "float32"): {
        "forward": (
            (1e-05, 9.8e-06, 6.8e-11, 5.4e-12, 3.4e-11, 3.2e-11, 6.1e-10),
            (3.1e-05, 8.5e-11, 3.6e-12, 1.1e-10, 5e-11),
        ),
        "grad_x": (
            (1.1e-05, 1.3e-05, 2.7e-10, 4.9e-12, 3.9e-11, 3.3e-11, 7.8e-10),
            (4.1e-05, 1.2e-10, 3.7e-12, 1.3e-10, 0),
        ),
        "grad_weight": (
            (1.1e-05, 9.4e-06, 1.9e-10, 5e-12, 3.8e-11, 0, 2.5e-10),
            (4.3e-05, 1.9e-10, 4.4e-12, 1.9e-12),
        ),
        "inference": (
            (9.8e-06, 1e-05, 7.8e-11, 5.4e-12, 3.6e-11, 3.3e-11, 5.8e-10),
            (2.6e-05, 7.3e-11, 3.6e-12, 1.6e-10, 2e-11),
        ),
    },
    ("zen5", "bfloat16"): {
        "forward": (
            (9.9e-06, 9.4e-06, 8.1e-11, 4.7e-12, 3.5e-11, 3e-11, 4.8e-10),
            (3.2e-05, 1e-10, 2.1e-12, 3.7e-11, 1.1e-10),
        ),
        "grad_x": (
            (1.1e-05, 1.2e-05, 2.6e-10, 4.5e-12, 3.8e-11, 3e-11, 5.2e-10),
            (3.8e-05, 2.4e-10, 2e-12, 1.4e-10, 0),
        ),
        "grad_weight": (
            (1.2e-05, 8.3e-06, 1.8e-10, 4.9e-12, 3.5e-11, 0, 1.9e-10),
            (4.4e-05, 2.8e-10, 2.9e-12, 4.9e-13),
        ),
        "inference": (
            (1e-05, 9.6e-06, 8.6e-11, 4.8e-12, 3.8e-11, 3e-11, 4.2e-10),
            (2.9e-05, 4.1e-12, 2.1e-12, 2.6e-11, 4.1e-11),
        ),
    },
    ("avx2", "float32"): {
        "forward": (
            (1.8e-05, 9.5e-06, 1.8e-10, 1.1e-11, 2.6e-11, 1.1e-10, 7e-10),
            (5e-05, 4.5e-10, 9.1e-12, 2.7e-10, 1.9e-10),
        ),
        "grad_x": (
            (2.9e-05, 1.4e-05, 9.9e-10, 1e-11, 2.4e-11, 1.1e-10, 0),
            (8.1e-05, 3.3e-10, 9.3e-12, 2.9e-10, 9.9e-11),
        ),
        "grad_weight": (
            (2.6e-05, 2.2e-05, 5.2e-10, 1.3e-11, 3.1e-11, 0, 1.3e-10),
            (9.1e-05, 5.2e-10, 1.2e-11, 1.4e-12),
        ),
    },
    ("avx2", "bfloat16"): {
        "forward": (
            (1.9e-05, 1.9e-05, 1.9e-10, 4.6e-12, 2.7e-10, 2.1e-10, 0),
            (1.4e-05, 2.8e-09, 7.1e-11, 6.4e-11, 1.5e-08),
        ),
        "grad_x": (
            (1.6e-05, 2.1e-05, 3.6e-10, 6.1e-12, 2.6e-10, 2.1e-10, 0),
            (3.7e-05, 2.3e-09, 2.6e-09, 4.3e-10, 0),
        ),
        "grad_weight": (
            (2.4e-05, 1.5e-05, 3.1e-10, 6.6e-12, 2.2e-10, 0, 0),
            (2.8e-05, 2.2e-09, 6e-11, 6.9e-11, 2.1e-09),
        ),
    },
    ("avx2", "float16"): {
        "forward": (
            (1.4e-05, 1.1e-05, 1.3e-10, 3.8e-12, 2.3e-10, 1.1e-10, 0),
            (9.7e-06, 1.9e-09, 4.6e-11, 5e-11, 9.1e-09),
        ),
    },
}


def count_blocks(size: int) -> int:
    """Blocks of 3 x 3 taps in a row of a filter of `size` taps each way."""
    return -(-size // 3)


def _round_up(channels: int, to: int = 16) -> int:
    return -(-channels // to) * to


def _engine_terms(direction: str, inputs: int, outputs: int, tiles: int, size: int) -> tuple[int, ...]:
    """The group, transformed weights, multiplications, numbers read, numbers written, and transformed weights from
    memory."""
    blocks, padded_inputs, padded_outputs = count_blocks(size) ** 2, _round_up(inputs), _round_up(outputs)
    weights, read, written = (
        36 * blocks * inputs * padded_outputs,
        36 * blocks * padded_inputs * tiles,
        36 * padded_outputs * tiles,
    )
    uncached = max(0, weights - conv3x3.CACHED_WEIGHT_ELEMENTS)
    if direction == "grad_weight":
        return 1, weights, weights * tiles, read + written, 0, uncached
    return 1, weights, weights * tiles, read, written, uncached


def _library_terms(direction: str, inputs: int, outputs: int, points: int, size: int, lanes: int) -> tuple[float, ...]:
    """Weights, multiplications, numbers read and written; for grad_weight in place of those two sums that
    multiplications add to. lanes: of a vector."""
    weights = size**2 * _round_up(outputs, lanes)
    filters, products = weights * _round_up(inputs), weights * points
    if direction == "grad_weight":
        return filters, inputs * products, products
    taken = 1.5 * inputs if inputs < 3 else -(-inputs // 4) * 4  # oneDNN has kernels for one and two
    return filters, taken * products, inputs * points, outputs * points


def _im2col_terms(inputs: int, outputs: int, points: int, size: int) -> tuple[int, ...]:
    """Pixels copied to a matrix of the taps at every pixel, its numbers, multiplications by it, results."""
    taps = size**2 * points
    return taps, taps * inputs, taps * inputs * outputs, outputs * points


def compute_terms(
    direction: str, isa: str, dtype: torch.dtype,
    batch: int, inputs: int, outputs: int, height: int, width: int, size: int, groups: int,
) -> tuple[tuple[float, ...], tuple[float, ...]]:  # fmt: skip
    """What the times of engine and library grow with: the call and, for every group, the terms above.

    direction: one of PASSES; inputs, outputs: of one group."""
    points, tiles = batch * height * width, batch * -(-height // 4) * -(-width // 4)
    channels = (outputs, inputs) if direction == "grad_x" else (inputs, outputs)
    engine = _engine_terms(direction, *channels, tiles, size)
    library: tuple[float, ...] = (
        _im2col_terms(inputs, outputs, points, size)
        if conv3x3.uses_im2col(isa, dtype)
        else _library_terms(direction, *channels, points, size, 8 if isa == "avx2" else 16)
    )
    return (1, *(groups * term for term in engine)), (1, *(groups * term for term in library))


def can_cache_filters(outputs: int, inputs: int, size: int) -> bool:
    """Whether the transformed filters are kept between calls; inputs: of one group, outputs: of all."""
    return 36 * count_blocks(size) ** 2 * inputs * outputs <= MAX_CACHED_ELEMENTS


def _get_fitted_costs(key: tuple[str, str], direction: str) -> Costs:
    """Those of "forward" where nobody measured inference."""
    return COSTS[key].get(direction) or COSTS[key]["forward"]


def _get_costs(isa: str, dtype: torch.dtype, direction: str) -> Costs:
    """Where nobody measured them, as much longer than AMD's as products of conv3x3."""
    has_own_costs = dtype == torch.bfloat16 or conv3x3.uses_im2col(isa, dtype)
    name = str(dtype).removeprefix("torch.") if has_own_costs else "float32"
    key = conv3x3.cpu_profile(isa, dtype), name
    if key in COSTS:
        return _get_fitted_costs(key, direction)
    fitted = "amd", "float16" if name == "float16" else "float32"
    target_costs, reference_costs = (
        conv3x3.COSTS.get((*k, False)) or conv3x3.COSTS[k[0], "float32", False] for k in (key, fitted)
    )
    factors = (target_costs[algorithm][2] / reference_costs[algorithm][2] for algorithm in ("winograd", "direct"))
    return tuple(
        tuple(factor * cost for cost in costs)
        for factor, costs in zip(factors, _get_fitted_costs(fitted, direction), strict=True)
    )


def _estimate_seconds(direction: str, isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> list[float]:
    """Of engine and library; shape: batch, inputs and outputs of a group, height, width, size, groups."""
    backward = direction.startswith("grad")
    if conv3x3.is_prohibitively_slow(dtype, backward):
        return [0.0, math.inf]
    counts = compute_terms(direction, isa, dtype, *shape)
    engine, library = map(conv3x3.estimate_seconds, _get_costs(isa, dtype, direction), counts)
    _, inputs, outputs, _, _, size, groups = shape
    if not backward and not can_cache_filters(groups * outputs, inputs, size):
        engine += PACKING_COST * counts[0][2]
    return [engine, library]


@functools.lru_cache(maxsize=4096)
def is_engine_faster(direction: str, isa: str, dtype: torch.dtype, *shape: int) -> bool:
    """Whether the engine takes less time for one of PASSES; shape: as in _seconds. In inference as op_pays, which is
    asked where nobody watches: what is recorded of an op has the bits of a call."""
    if direction == "inference":
        return is_op_faster((direction,), isa, dtype, *shape)
    engine, library = _estimate_seconds(direction, isa, dtype, shape)
    return engine < MARGIN * library


@functools.lru_cache(maxsize=4096)
def is_op_faster(directions: tuple[str, ...], isa: str, dtype: torch.dtype, *shape: int) -> bool:
    """Whether all these passes together, each by the quicker one, take less time than torch's own convolution."""
    seconds = [_estimate_seconds(direction, isa, dtype, shape) for direction in directions]
    return len(directions) * CALL_OVERHEAD + sum(map(min, seconds)) < MARGIN * sum(library for _, library in seconds)
