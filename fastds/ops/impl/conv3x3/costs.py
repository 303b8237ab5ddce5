# SPDX-License-Identifier: Apache-2.0
"""What the algorithms of conv3x3 cost on a CPU: the rule of "auto".

Seconds = sum of COSTS times TERMS, fitted by `python -m bench.fit_conv3x3` on two cores; with more of them all
algorithms gain alike.

Those with AVX2 are of an AMD processor kept to it. Those of planes for bfloat16 with AVX-512 of Intel without matrix
tiles were not measured: they are taken to be slower than AMD's by the factor by which the products of the engine are.
All of planes are of a fit before ROW_START, which was set by looking at maps of 5 to 20 pixels a row. Those with matrix
tiles are of a machine 2.2 times as slow in everything as the others, and divided by that.
"""

import functools

import torch

ENGINES = ("winograd", "amx")  # algorithms of csrc/conv3x3, whose output stage may have gates
MAX_IM2COL_ELEMENTS = 1 << 24  # numbers of the matrix that the product makes, 64 MB
ROW_OVERHEAD_PIXELS = 4  # a row that is read costs planes as many pixels more
CACHED_WEIGHT_ELEMENTS = 1 << 22  # numbers of transformed weights; more of them come from memory


def _round_up(channels: int, to: int) -> int:
    return -(-channels // to) * to


def _winograd_terms(batch: int, inputs: int, outputs: int, height: int, width: int) -> tuple[int, ...]:
    tiles, padded_outputs = batch * -(-height // 4) * -(-width // 4), _round_up(outputs, 16)
    weights = 36 * inputs * padded_outputs
    read = 36 * _round_up(inputs, 16) * tiles  # a vector is transformed whatever it holds
    return 1, weights, weights * tiles, read, 36 * padded_outputs * tiles, max(0, weights - CACHED_WEIGHT_ELEMENTS)


def _amx_terms(batch: int, inputs: int, outputs: int, height: int, width: int) -> tuple[int, ...]:
    row = min(width + 2, _round_up(width, 16))  # tiles skip the two positions behind a row that ends with one of them
    positions, padded_outputs = _round_up(batch * height * row, 32), _round_up(outputs, 16)
    steps, of_three = -(-inputs // 32), -(-3 * _round_up(inputs, 2) // 32)  # of one pixel, of three: csrc/conv3x3/amx.h
    depth = 32 * (3 * of_three if of_three <= 2 * steps else 9 * steps)
    return 1, depth * padded_outputs, depth * padded_outputs * positions, inputs * positions, padded_outputs * positions


def _product_terms(batch: int, inputs: int, outputs: int, height: int, width: int) -> tuple[int, ...]:
    points = batch * height * width
    return 1, 9 * inputs * outputs, 9 * inputs * outputs * points, 9 * inputs * points, outputs * points


def _direct_terms(batch: int, inputs: int, outputs: int, height: int, width: int) -> tuple[float, ...]:
    points, padded_outputs = batch * height * width, _round_up(outputs, 16)
    taken = 1.5 * inputs if inputs < 3 else _round_up(inputs, 4)  # oneDNN has kernels for one and two
    weights, products = 9 * _round_up(inputs, 16) * padded_outputs, 9 * taken * padded_outputs * points
    return 1, weights, products, inputs * points, outputs * points


def _planes_terms(batch: int, inputs: int, outputs: int, height: int, width: int) -> tuple[int, ...]:
    points, few, many = batch * height * width, min(inputs, outputs), _round_up(max(inputs, outputs), 16)
    weights, run = 9 * inputs * outputs, batch * _round_up(height * (width + 2), 16)
    read = inputs * batch * height * (width + ROW_OVERHEAD_PIXELS)
    # Of the outputs and of the inputs' gradient, and of the weight's gradient, whose vectors are of the side with more.
    return 1, weights, weights * run, 9 * few * many * points, read, outputs * points


# What a time grows with: the call, weights read, multiplications, numbers read, numbers written, and for Winograd
# weights read from memory; for planes two kinds of multiplications.
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

# torch convolves one float32 map of at most so many numbers by matrix products, without a library and its start. Costs
# of TERMS["product"], of machines where somebody measured them; forward 1.6 times those of a fit, because the checks
# before it take as long as many such calls. Not of cells, which have gates or two sources: the bits of those products
# depend on the number of threads.
MAX_SMALL_IMAGE_ELEMENTS = 20480
SMALL_IMAGE_COSTS = {
    ("avx512", False): (1.5e-05, 1.5e-10, 3.8e-12, 1.9e-10, 3e-10),
    ("avx512", True): (2e-05, 1.7e-10, 6.9e-12, 4.8e-10, 2e-10),
}


def _get_cpu_capabilities() -> dict:
    """Of the processor, as torch names them; none where it does not."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def has_cpu_feature(feature: str) -> bool:
    """Whether the processor has what torch names so."""
    return bool(_get_cpu_capabilities().get(feature))


@functools.cache
def cpu_profile(isa: str, dtype: torch.dtype) -> str:
    """The rows of COSTS: those of the instruction set; "amx" where torch's kernels have tiles for bfloat16; "zen5" and
    "amd" for AVX-512 of AMD, from family 26 on and before, where torch's matrix products take longer and the engine
    less; for NEON, which nobody has measured, those of AVX2."""
    if isa != "avx512":
        return "avx2" if isa == "neon" else isa
    if has_cpu_feature("amx_bf16") and dtype == torch.bfloat16:
        return "amx"
    if "AMD" in _get_cpu_capabilities().get("cpu_name", ""):
        return "zen5" if has_cpu_feature("avx_vnni") else "amd"
    return isa


def has_amx_kernels(dtype: torch.dtype) -> bool:
    """Whether torch's kernels multiply the dtype on matrix tiles (AMX)."""
    return cpu_profile("avx512", dtype) == "amx"


def uses_im2col(isa: str, dtype: torch.dtype) -> bool:
    """Whether oneDNN has no convolution of the dtype, so that torch multiplies matrices of neighbourhoods: with few
    outputs quick enough, else up to 40 times as long as the engine, and 700 times backward."""
    if dtype == torch.float16:
        return not has_cpu_feature("avx512_fp16")
    return dtype == torch.bfloat16 and cpu_profile(isa, dtype) == "avx2"


def is_prohibitively_slow(dtype: torch.dtype, backward: bool) -> bool:
    """Whether torch's convolution takes a thousand times as long as in float32."""
    return backward and dtype == torch.float16


# Maps in contiguous memory are brought to channels_last: the call, bytes. Not for matrix tiles, nor for planes, whose
# weight gradient takes the side with the fewer channels as it is.
LAYOUT_COST = (5e-6, 8e-11)
# A pass of gates behind the convolution, which the engine has in its output stage: the call, numbers read and written.
GATES_COST = (1e-5, 2e-10)
# A pass of torch's over maps, such as an activation, or sources that are laid side by side: the call, numbers.
ELEMENTWISE_COST = (2e-6, 1.5e-10)


def get_costs(isa: str, dtype: torch.dtype, backward: bool) -> dict[str, tuple[float, ...]]:
    """The row of COSTS, without what takes very much longer."""
    slow, half = uses_im2col(isa, dtype), dtype == torch.float16
    costs = COSTS[cpu_profile(isa, dtype), "float32" if half or slow else str(dtype).removeprefix("torch."), backward]
    left_out = ("direct", "product") if slow else ("direct",) if is_prohibitively_slow(dtype, backward) else ()
    return {name: numbers for name, numbers in costs.items() if name not in left_out}


def estimate_seconds(costs: tuple[float, ...], terms: tuple[float, ...]) -> float:
    return sum(cost * term for cost, term in zip(costs, terms, strict=True))


@functools.lru_cache(maxsize=4096)
def select_fastest(
    isa: str, dtype: torch.dtype, backward: bool, batch: int, inputs: int, outputs: int, height: int, width: int,
    gated: bool = False, contiguous: bool = False, joined: bool = False, passes: int = 0,
) -> str:  # fmt: skip
    """The algorithm that costs least.

    dtype: that of the arithmetic, float32 or less; gated: gates follow, which engines have in their output stage;
    contiguous: TURN goes before; joined: of two sources, which "direct" lays side by side; passes: over the outputs,
    for residual, activation and sub-pixels, which engines do not need, nor planes forward."""
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
