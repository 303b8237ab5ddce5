# SPDX-License-Identifier: Apache-2.0
"""Cost model of the conv3x3 algorithms on a CPU, which "auto" uses to select an algorithm.

The estimated time in seconds is the scalar product of COSTS and TERMS. `python -m bench.fit_conv3x3` fits the costs on
two cores; it is assumed that more cores speed up all algorithms alike.

The costs for AVX2 were measured on an AMD processor restricted to AVX2. The costs of "planes" for bfloat16 on Intel
processors with AVX-512 but without AMX were not measured; they are the costs of AMD, scaled by the ratio of the
engine's costs of a multiplication. All costs of "planes" were fitted without ROW_OVERHEAD_PIXELS. The costs for AMX
were measured on a machine that is 2.2 times slower than the others, and divided by 2.2.
"""

import functools

import torch

ENGINES = ("winograd", "amx")  # algorithms of the native engine, which can fuse the gates of recurrent cells
MAX_IM2COL_ELEMENTS = 1 << 24  # 64 MiB of float32
ROW_OVERHEAD_PIXELS = 4  # "planes" takes as long for the start of a row as for this number of pixels
CACHED_WEIGHT_ELEMENTS = 1 << 22  # transformed weights that fit into the processor's cache


def _round_up(channels: int, to: int) -> int:
    return -(-channels // to) * to


def _winograd_terms(batch: int, inputs: int, outputs: int, height: int, width: int) -> tuple[int, ...]:
    """Return the terms of "winograd": see TERMS."""
    tiles, padded_outputs = batch * -(-height // 4) * -(-width // 4), _round_up(outputs, 16)
    weights = 36 * inputs * padded_outputs
    read = 36 * _round_up(inputs, 16) * tiles  # transforms process whole vectors of channels
    return 1, weights, weights * tiles, read, 36 * padded_outputs * tiles, max(0, weights - CACHED_WEIGHT_ELEMENTS)


def _amx_terms(batch: int, inputs: int, outputs: int, height: int, width: int) -> tuple[int, ...]:
    """Return the terms of "amx": see TERMS."""
    row = min(width + 2, _round_up(width, 16))  # tiles that end with a row skip the two padded positions after it
    positions, padded_outputs = _round_up(batch * height * row, 32), _round_up(outputs, 16)
    # Tile steps for the channels of one pixel and of three neighbouring pixels: csrc/conv3x3/amx.h.
    steps, steps_of_three = -(-inputs // 32), -(-3 * _round_up(inputs, 2) // 32)
    depth = 32 * (3 * steps_of_three if steps_of_three <= 2 * steps else 9 * steps)
    return 1, depth * padded_outputs, depth * padded_outputs * positions, inputs * positions, padded_outputs * positions


def _product_terms(batch: int, inputs: int, outputs: int, height: int, width: int) -> tuple[int, ...]:
    """Return the terms of "product": see TERMS."""
    points = batch * height * width
    return 1, 9 * inputs * outputs, 9 * inputs * outputs * points, 9 * inputs * points, outputs * points


def _direct_terms(batch: int, inputs: int, outputs: int, height: int, width: int) -> tuple[float, ...]:
    """Return the terms of "direct": see TERMS."""
    points, padded_outputs = batch * height * width, _round_up(outputs, 16)
    taken = 1.5 * inputs if inputs < 3 else _round_up(inputs, 4)  # oneDNN has kernels for one and two inputs
    weights, products = 9 * _round_up(inputs, 16) * padded_outputs, 9 * taken * padded_outputs * points
    return 1, weights, products, inputs * points, outputs * points


def _planes_terms(batch: int, inputs: int, outputs: int, height: int, width: int) -> tuple[int, ...]:
    """Return the terms of "planes": see TERMS."""
    points, few, many = batch * height * width, min(inputs, outputs), _round_up(max(inputs, outputs), 16)
    weights, run = 9 * inputs * outputs, batch * _round_up(height * (width + 2), 16)
    read = inputs * batch * height * (width + ROW_OVERHEAD_PIXELS)
    # There are two multiplication terms. The first is for the outputs or the gradient of the input. The second is for
    # the gradient of the weight, whose vectors hold channels of the input or the output, whichever has more.
    return 1, weights, weights * run, 9 * few * many * points, read, outputs * points


# Terms of each algorithm: 1 for the call, weights read, multiplications (two terms for "planes"), elements read,
# elements written, and for "winograd" weights that do not fit into the cache.
TERMS = {
    "winograd": _winograd_terms,
    "amx": _amx_terms,
    "planes": _planes_terms,
    "product": _product_terms,
    "direct": _direct_terms,
}
COSTS = {
    ("avx2", "float32", False): {
        "winograd": (1.9e-05, 4.6e-11, 1.1e-11, 6.7e-12, 9.8e-11, 1.9e-10),
        "planes": (1.8e-05, 8.3e-10, 1.4e-11, 0, 2.2e-10, 1.7e-10),
        "product": (6.3e-05, 2.1e-10, 1.2e-11, 5.9e-10, 4.5e-10),
        "direct": (3.6e-05, 9.9e-10, 8.3e-12, 0, 3.7e-11),
    },
    ("avx2", "float32", True): {
        "winograd": (3.8e-05, 4.8e-10, 2.2e-11, 0, 2.3e-10, 5.5e-10),
        "planes": (5e-05, 2e-09, 2.3e-11, 2.1e-12, 4.1e-10, 3.9e-10),
        "product": (0.00021, 9e-10, 2.4e-11, 1.2e-09, 1.1e-09),
        "direct": (9e-05, 2.3e-09, 1.8e-11, 0, 1.1e-09),
    },
    ("avx512", "float32", False): {
        "winograd": (1.4e-05, 9.8e-11, 6.1e-12, 4.7e-11, 6.2e-11, 0),
        "planes": (1.4e-05, 5.6e-10, 5.9e-12, 0, 2e-10, 2.1e-10),
        "product": (4.7e-05, 1.4e-10, 5.5e-12, 3.3e-10, 2.9e-10),
        "direct": (3.1e-05, 5.7e-10, 4.5e-12, 9.7e-11, 5.4e-11),
    },
    ("avx512", "float32", True): {
        "winograd": (4.3e-05, 3.3e-10, 1.4e-11, 2.7e-11, 2.2e-10, 6.4e-10),
        "planes": (4.3e-05, 1.3e-09, 1e-11, 3.1e-12, 3.1e-10, 4.3e-10),
        "product": (0.00018, 4.4e-10, 1e-11, 8.1e-10, 7e-10),
        "direct": (7.3e-05, 1.6e-09, 9.3e-12, 0, 8.3e-10),
    },
    ("avx512", "bfloat16", False): {
        "winograd": (1.8e-05, 1.5e-10, 6.1e-12, 9.1e-11, 7.8e-11, 3.1e-10),
        "planes": (2e-05, 1.2e-09, 6.1e-12, 0, 2.6e-10, 1.2e-10),
        "product": (5.4e-05, 1.1e-10, 1.1e-11, 3.9e-10, 7.9e-10),
        "direct": (5.1e-05, 5.9e-10, 8.9e-12, 2.4e-10, 0),
    },
    ("avx512", "bfloat16", True): {
        "winograd": (4.9e-05, 4.2e-10, 1.7e-11, 4.1e-11, 2.4e-10, 9.9e-10),
        "planes": (5.4e-05, 2.3e-09, 1.2e-11, 6e-12, 2.4e-10, 5.7e-10),
        "product": (0.00024, 4.8e-10, 2.2e-11, 1e-09, 6.3e-10),
        "direct": (0.00014, 1.8e-09, 1.9e-11, 0, 1.2e-09),
    },
    ("amd", "float32", False): {
        "winograd": (1.4e-05, 3e-11, 5.2e-12, 4.8e-11, 4.1e-11, 1.3e-10),
        "planes": (1.4e-05, 4.3e-10, 5.2e-12, 0, 2.1e-10, 1.1e-10),
        "product": (4.9e-05, 2.7e-10, 1.1e-11, 5.3e-10, 3.6e-10),
        "direct": (4.5e-05, 6.5e-10, 4.5e-12, 9.8e-11, 0),
    },
    ("amd", "float32", True): {
        "winograd": (3e-05, 1.5e-10, 1.1e-11, 3e-11, 1.7e-10, 4.1e-10),
        "planes": (3.3e-05, 9.1e-10, 8e-12, 5.2e-12, 2.3e-10, 2.9e-10),
        "product": (0.00017, 6.7e-10, 2.3e-11, 1e-09, 1e-09),
        "direct": (9.6e-05, 1.7e-09, 9.4e-12, 0, 8.4e-10),
    },
    ("amd", "bfloat16", False): {
        "winograd": (1.4e-05, 2.3e-11, 5e-12, 4.4e-11, 3.9e-11, 1.2e-10),
        "planes": (1.6e-05, 9.9e-10, 5e-12, 0, 2.1e-10, 9.9e-11),
        "product": (7.5e-05, 7.3e-11, 3.1e-12, 2.6e-10, 1.2e-10),
        "direct": (5.3e-05, 5.3e-10, 2.3e-12, 8.1e-11, 0),
    },
    ("amd", "bfloat16", True): {
        "winograd": (3.1e-05, 1.5e-10, 1e-11, 2.8e-11, 1.5e-10, 3.9e-10),
        "planes": (3.8e-05, 1.6e-09, 8.7e-12, 4.2e-12, 1.7e-10, 4e-10),
        "product": (0.00025, 3.7e-10, 6.1e-12, 5.9e-10, 4.8e-10),
        "direct": (0.00014, 1.6e-09, 5.4e-12, 2.2e-11, 3.4e-10),
    },
    ("zen5", "float32", False): {
        "winograd": (1.7e-05, 2.9e-11, 5.1e-12, 4.4e-11, 3.4e-11, 9.8e-11),
        "planes": (1.4e-05, 5.8e-10, 5e-12, 0, 1.9e-10, 9.8e-11),
        "product": (5e-05, 1.7e-10, 1e-11, 3.9e-10, 3.8e-10),
        "direct": (4.1e-05, 8.8e-11, 4e-12, 6e-11, 1e-11),
    },
    ("zen5", "float32", True): {
        "winograd": (4.1e-05, 1.3e-10, 1.2e-11, 4.8e-11, 1.4e-10, 2.3e-10),
        "planes": (3.7e-05, 8.4e-10, 7.2e-12, 4.8e-12, 1.7e-10, 2.4e-10),
        "product": (0.00016, 4.8e-10, 2.1e-11, 7.7e-10, 8.8e-10),
        "direct": (8.9e-05, 1.5e-09, 8.1e-12, 0, 7.8e-10),
    },
    ("zen5", "bfloat16", False): {
        "winograd": (1.7e-05, 2.5e-11, 4.8e-12, 4.2e-11, 3.1e-11, 8.7e-11),
        "planes": (1.6e-05, 1.1e-09, 4.7e-12, 0, 1.9e-10, 9.3e-11),
        "product": (7.4e-05, 5.5e-11, 2.8e-12, 2e-10, 7.4e-11),
        "direct": (4.4e-05, 2.3e-11, 2.1e-12, 3.5e-11, 1.9e-11),
    },
    ("zen5", "bfloat16", True): {
        "winograd": (4.3e-05, 1.2e-10, 1.1e-11, 4.4e-11, 1.2e-10, 1.9e-10),
        "planes": (4.2e-05, 1.7e-09, 7e-12, 4.7e-12, 1.3e-10, 2.1e-10),
        "product": (0.00024, 2.5e-10, 5.4e-12, 4.6e-10, 3.5e-10),
        "direct": (0.00012, 1.2e-09, 4.7e-12, 0, 3.3e-10),
    },
    ("amx", "bfloat16", False): {
        "winograd": (1.6e-05, 7.7e-11, 5e-12, 5.9e-11, 5.5e-11, 4.5e-12),
        "amx": (1.6e-05, 9.5e-11, 6.8e-13, 8.6e-12, 5e-11),
        "planes": (1.7e-05, 7.3e-10, 5.5e-12, 0, 1.6e-10, 1.7e-10),
        "product": (8.2e-05, 4.2e-11, 1.5e-12, 2.1e-10, 2.7e-10),
        "direct": (4.5e-05, 5e-10, 1.1e-12, 1.5e-11, 7.7e-11),
    },
    ("amx", "bfloat16", True): {
        "winograd": (4e-05, 2.3e-10, 1.1e-11, 3.9e-11, 2e-10, 0),
        "amx": (4e-05, 7.1e-10, 1.7e-12, 1.3e-10, 2e-10),
        "planes": (5.1e-05, 1.7e-09, 7.1e-12, 6.2e-12, 1.9e-10, 3.4e-10),
        "product": (0.00027, 4.1e-10, 2.8e-12, 8.7e-10, 5.6e-10),
        "direct": (0.00013, 1.7e-09, 2e-12, 2.7e-10, 3.3e-10),
    },
}

# torch convolves a single float32 image of at most MAX_SMALL_IMAGE_ELEMENTS by matrix products and not by oneDNN.
# SMALL_IMAGE_COSTS are multiplied by the terms of "product" and exist only for measured machines. The costs of the
# forward pass are 1.6 times the fitted costs, because the checks of the op take as long as many such convolutions. The
# costs are not used for recurrent cells (gates or two sources), because the bits of torch's matrix products depend on
# the number of threads.
MAX_SMALL_IMAGE_ELEMENTS = 20480
SMALL_IMAGE_COSTS = {
    ("avx512", False): (1.5e-05, 1.5e-10, 3.8e-12, 1.9e-10, 3e-10),
    ("avx512", True): (2e-05, 1.7e-10, 6.9e-12, 4.8e-10, 2e-10),
}


def _get_cpu_capabilities() -> dict:
    """Return the processor's capabilities as torch reports them, {} if torch has no such function."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def has_cpu_feature(feature: str) -> bool:
    """Return True if torch reports this feature of the processor."""
    return bool(_get_cpu_capabilities().get(feature))


@functools.cache
def cpu_profile(isa: str, dtype: torch.dtype) -> str:
    """Return the processor name in the keys of COSTS.

    The name is the instruction set, except in these cases. For bfloat16 on processors with AMX it is "amx". For AMD
    processors with AVX-512 it is "zen5" if they have AVX-VNNI, otherwise "amd". For NEON, which was not measured, it is
    "avx2".
    """
    if isa != "avx512":
        return "avx2" if isa == "neon" else isa
    if has_cpu_feature("amx_bf16") and dtype == torch.bfloat16:
        return "amx"
    if "AMD" in _get_cpu_capabilities().get("cpu_name", ""):
        return "zen5" if has_cpu_feature("avx_vnni") else "amd"
    return isa


def has_amx_kernels(dtype: torch.dtype) -> bool:
    """Return True if torch's kernels use AMX tiles for this dtype."""
    return cpu_profile("avx512", dtype) == "amx"


def uses_im2col(isa: str, dtype: torch.dtype) -> bool:
    """Return True if oneDNN has no convolution of this dtype, so that torch multiplies im2col matrices.

    The product of im2col matrices is fast for few output channels and very slow otherwise.
    """
    if dtype == torch.float16:
        return not has_cpu_feature("avx512_fp16")
    return dtype == torch.bfloat16 and cpu_profile(isa, dtype) == "avx2"


def is_prohibitively_slow(dtype: torch.dtype, backward: bool) -> bool:
    """Return True if torch's convolution is about a thousand times slower than in float32."""
    return backward and dtype == torch.float16


# Cost of a copy from contiguous memory to channels_last: seconds for a call and seconds for a byte. "amx" needs no
# copy. "planes" needs a copy only for gradients, if there are more input than output channels.
LAYOUT_COST = (5e-6, 8e-11)
# Cost of gates after a convolution, which the engine fuses: seconds for a call and seconds for an output element.
GATES_COST = (1e-5, 2e-10)
# Cost of an elementwise operation of torch or of a concatenation: seconds for a call and seconds for an element.
ELEMENTWISE_COST = (2e-6, 1.5e-10)


def get_costs(isa: str, dtype: torch.dtype, backward: bool) -> dict[str, tuple[float, ...]]:
    """Return the costs of the algorithms for a processor, dtype and direction.

    Algorithms that are prohibitively slow are left out.

    Args:
        isa: instruction set of the native module.
        dtype: dtype of the computation.
        backward: bool, whether gradients are computed.
    """
    slow, half = uses_im2col(isa, dtype), dtype == torch.float16
    costs = COSTS[cpu_profile(isa, dtype), "float32" if half or slow else str(dtype).removeprefix("torch."), backward]
    left_out = ("direct", "product") if slow else ("direct",) if is_prohibitively_slow(dtype, backward) else ()
    return {name: numbers for name, numbers in costs.items() if name not in left_out}


def estimate_seconds(costs: tuple[float, ...], terms: tuple[float, ...]) -> float:
    """Return the scalar product of costs and terms."""
    return sum(cost * term for cost, term in zip(costs, terms, strict=True))


@functools.lru_cache(maxsize=4096)
def select_fastest(
    isa: str, dtype: torch.dtype, backward: bool, batch: int, inputs: int, outputs: int, height: int, width: int,
    gated: bool = False, contiguous: bool = False, joined: bool = False, passes: int = 0,
) -> str:  # fmt: skip
    """Select the algorithm with the lowest estimated time.

    Args:
        isa: instruction set of the native module.
        dtype: dtype of the computation, float32 or a 16-bit dtype.
        backward: bool, whether gradients are computed.
        batch: images.
        inputs: input channels.
        outputs: output channels.
        height: rows.
        width: columns.
        gated: bool, whether gates are applied to the result, which the engine fuses.
        contiguous: bool, whether the input has to be copied to channels_last.
        joined: bool, whether there are two sources, which "direct" concatenates.
        passes: number of elementwise passes over the result (residual, activation, pixel shuffle). The engine fuses
            these passes, and "planes" fuses them in the forward pass.

    Returns:
        name of the algorithm.
    """
    costs = get_costs(isa, dtype, backward)
    names = set(costs)
    if 9 * inputs * batch * height * width > MAX_IM2COL_ELEMENTS:
        names.discard("product")

    points, shape = batch * height * width, (batch, inputs, outputs, height, width)
    small_image_costs = None
    if batch == 1 and inputs * points <= MAX_SMALL_IMAGE_ELEMENTS and dtype == torch.float32 and not (gated or joined):
        small_image_costs = SMALL_IMAGE_COSTS.get((cpu_profile(isa, dtype), backward))

    def seconds(name: str) -> float:
        if name == "direct" and small_image_costs is not None:
            total = estimate_seconds(small_image_costs, TERMS["product"](*shape))
        else:
            total = estimate_seconds(costs[name], TERMS[name](*shape))
        if name not in ENGINES:
            total += gated * (GATES_COST[0] + GATES_COST[1] * outputs * points)
        if name not in ENGINES and (backward or name != "planes"):
            total += passes * (ELEMENTWISE_COST[0] + ELEMENTWISE_COST[1] * outputs * points)
        if joined and name == "direct":
            total += ELEMENTWISE_COST[0] + ELEMENTWISE_COST[1] * inputs * points
        if contiguous and not (name == "amx" or (name == "planes" and not (backward and inputs > outputs))):
            total += LAYOUT_COST[0] + LAYOUT_COST[1] * dtype.itemsize * inputs * points
        return total

    return min(sorted(names), key=seconds)
