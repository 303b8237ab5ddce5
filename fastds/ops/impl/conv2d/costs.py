# SPDX-License-Identifier: Apache-2.0
"""Cost model that estimates whether the native engine or the library's convolution is faster for conv2d.

The estimated time in seconds is the scalar product of COSTS and the terms of compute_terms. `python -m
bench.fit_conv2d` fits the costs on two cores. The costs for AVX2 were measured on an AMD processor restricted to AVX2.

COSTS were fitted without call plans. A plan saves most of the time that a small call takes for its start. The shares
that remain were fitted on a Zen 5 processor.
"""

import functools
import math

import torch

from fastds.ops.core.plans import MAX_BYTES
from fastds.ops.impl.conv3x3 import costs as conv3x3

# "inference" is the forward pass where the library, too, uses cached filters.
PASSES = ("forward", "grad_x", "grad_weight", "inference")
PASSES_BY_GRADIENTS = {  # (gradient of x needed, gradient of the weight needed) -> passes
    (False, False): PASSES[3:], (True, False): PASSES[:2], (False, True): PASSES[:3:2], (True, True): PASSES[:3],
}  # fmt: skip
MARGIN = 0.85  # the engine is chosen if its estimate is below this share of the library's: estimates are inexact
PACKING_COST = 2.5e-10  # seconds for each transformed weight that is not cached; "forward" was fitted with cached ones
MAX_CACHED_ELEMENTS = 8 << 20  # transformed weights of a layer; larger ones would evict those of other layers
CALL_OVERHEAD = 8e-6  # seconds that a call of the op takes longer than one of torch
PLANNED_CALL_SHARE, PLANNED_GROUP_SHARE = 0.55, 0.25  # of the first two costs of the engine, if a plan repeats the call
UNPLANNED_OVERHEAD = 2.5e-5  # seconds that a pass of the op takes longer without a plan
PLANNED_PASS_OVERHEAD = 5e-6  # seconds that each gradient of the op takes longer than one of torch, with plans
Costs = tuple[tuple[float, ...], tuple[float, ...]]  # costs of the engine, costs of the library
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
    """Return the number of 3 x 3 blocks along one side of a filter of `size` x `size` taps."""
    return -(-size // 3)


def _round_up(channels: int, to: int = 16) -> int:
    return -(-channels // to) * to


def _engine_terms(direction: str, inputs: int, outputs: int, tiles: int, size: int) -> tuple[int, ...]:
    """Return the terms of the engine.

    The terms are 1 (for the group), transformed weights, multiplications, elements read, elements written, and
    transformed weights that do not fit into the cache. For "grad_weight" all elements count as read.

    Args:
        direction: "forward", "grad_x", "grad_weight" or "inference".
        inputs: channels that are read, of one group.
        outputs: channels that are written, of one group.
        tiles: number of 4 x 4 output tiles.
        size: taps along one side of a filter.
    """
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
    """Return the terms of the library: weights, multiplications, elements read and elements written.

    For "grad_weight" the last two terms are replaced by the multiplications per input channel.

    Args:
        direction: "forward", "grad_x", "grad_weight" or "inference".
        inputs: channels that are read, of one group.
        outputs: channels that are written, of one group.
        points: number of pixels.
        size: taps along one side of a filter.
        lanes: float32 elements of a SIMD vector.
    """
    weights = size**2 * _round_up(outputs, lanes)
    filters, products = weights * _round_up(inputs), weights * points
    if direction == "grad_weight":
        return filters, inputs * products, products
    taken = 1.5 * inputs if inputs < 3 else -(-inputs // 4) * 4  # oneDNN has kernels for one and two inputs
    return filters, taken * products, inputs * points, outputs * points


def _im2col_terms(inputs: int, outputs: int, points: int, size: int) -> tuple[int, ...]:
    """Return the terms of im2col: pixels copied, elements of the matrix, multiplications, and elements written."""
    taps = size**2 * points
    return taps, taps * inputs, taps * inputs * outputs, outputs * points


def compute_terms(
    direction: str, isa: str, dtype: torch.dtype,
    batch: int, inputs: int, outputs: int, height: int, width: int, size: int, groups: int,
) -> tuple[tuple[float, ...], tuple[float, ...]]:  # fmt: skip
    """Return the terms of the engine and of the library.

    Both are 1, for the call, followed by the terms of one group (see the functions *_terms) times the number of groups.

    Args:
        direction: one of PASSES.
        isa: instruction set of the native module.
        dtype: dtype of x.
        batch: images.
        inputs: input channels of one group.
        outputs: output channels of one group.
        height: rows.
        width: columns.
        size: taps along one side of a filter.
        groups: number of groups.
    """
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
    """Return True if the transformed filters are cached between calls.

    Args:
        outputs: outputs of all groups.
        inputs: input channels of one group.
        size: taps along one side of a filter.
    """
    return 36 * count_blocks(size) ** 2 * inputs * outputs <= MAX_CACHED_ELEMENTS


def _get_fitted_costs(key: tuple[str, str], direction: str) -> Costs:
    """Return the costs for a direction, or the costs of "forward" if "inference" was not measured."""
    return COSTS[key].get(direction) or COSTS[key]["forward"]


def _get_costs(isa: str, dtype: torch.dtype, direction: str) -> Costs:
    """Return the costs of engine and library for a direction.

    If they were not measured, the costs of "amd" are used, scaled by the ratio of the costs of a multiplication in
    conv3x3.
    """
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
    engine, library = (
        tuple(factor * cost for cost in costs)
        for factor, costs in zip(factors, _get_fitted_costs(fitted, direction), strict=True)
    )
    return engine, library


def _can_have_plan(dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Return True if the tensors of a call are small enough for a plan. For `shape` see _estimate_seconds."""
    batch, inputs, outputs, height, width, size, groups = shape
    points, weights = groups * batch * height * width, groups * inputs * outputs * size**2
    return dtype.itemsize * max(points * inputs + weights, points * outputs) <= MAX_BYTES


def _estimate_seconds(direction: str, isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> list[float]:
    """Estimate the seconds that the engine and the library need.

    Args:
        direction: one of PASSES.
        isa: instruction set of the native module.
        dtype: dtype of x.
        shape: batch, inputs of a group, outputs of a group, height, width, taps along one side of a filter, groups.
    """
    backward = direction.startswith("grad")
    if conv3x3.is_prohibitively_slow(dtype, backward):
        return [0.0, math.inf]
    counts, costs = compute_terms(direction, isa, dtype, *shape), _get_costs(isa, dtype, direction)
    engine, library = map(conv3x3.estimate_seconds, costs, counts)
    _, inputs, outputs, _, _, size, groups = shape
    if _can_have_plan(dtype, shape):
        call, group = costs[0][:2]
        engine -= (1 - PLANNED_CALL_SHARE) * call + (1 - PLANNED_GROUP_SHARE) * groups * group
    if not backward and not can_cache_filters(groups * outputs, inputs, size):
        engine += PACKING_COST * counts[0][2]
    return [engine, library]


@functools.lru_cache(maxsize=4096)
def is_engine_faster(direction: str, isa: str, dtype: torch.dtype, *shape: int) -> bool:
    """Return True if the engine is expected to be faster than the library for one of PASSES.

    For "inference" the rule of is_op_faster is applied, so that recorded ops and direct calls give the same bits. The
    passes of a call that can have plans lose them if the library computes one of them.

    Args:
        direction: one of PASSES.
        isa: instruction set of the native module.
        dtype: dtype of x.
        *shape: ints, see _estimate_seconds.
    """
    if direction == "inference":
        return is_op_faster((direction,), isa, dtype, *shape)
    engine, library = _estimate_seconds(direction, isa, dtype, shape)
    return engine - UNPLANNED_OVERHEAD < library if _can_have_plan(dtype, shape) else engine < MARGIN * library


@functools.lru_cache(maxsize=4096)
def is_op_faster(directions: tuple[str, ...], isa: str, dtype: torch.dtype, *shape: int) -> bool:
    """Return True if the op is expected to be faster than torch's convolution for all given passes together.

    It is assumed that each pass of the op runs on the faster of engine and library, or on the engine if there can be a
    plan, and has the overhead of a call.

    Args:
        directions: some of PASSES.
        isa: instruction set of the native module.
        dtype: dtype of x.
        *shape: ints, see _estimate_seconds.
    """
    seconds = [_estimate_seconds(direction, isa, dtype, shape) for direction in directions]
    planned = _can_have_plan(dtype, shape)
    overhead = (len(directions) - 1) * PLANNED_PASS_OVERHEAD if planned else len(directions) * CALL_OVERHEAD
    op = sum(engine if planned else min(engine, library) for engine, library in seconds)
    return overhead + op < MARGIN * sum(library for _, library in seconds)
