# SPDX-License-Identifier: Apache-2.0
"""How 3x3 convolutions are computed: by the engine (Winograd transforms, or matrix tiles of the processor), plane by
plane, as one matrix product, directly by the library, as an implicit one on a GPU, or by what measures faster."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import check_choice
from fastds.ops.core.settings import ProcessSetting
from fastds.ops.impl.conv3x3 import triton_implicit_gemm
from fastds.ops.impl.conv3x3.costs import select_fastest

ALGORITHMS = ("auto", "winograd", "amx", "planes", "product", "direct", "implicit_gemm")
_algorithm = ProcessSetting("auto")
_assumed_height: ContextVar[int | None] = ContextVar("rows", default=None)


def current_algorithm() -> str:
    """The algorithm of the calls that name none."""
    return _algorithm.value


@contextmanager
def convolution(algorithm: str) -> Iterator[None]:
    """Chooses how every fastds.ops.conv3x3 inside the block is computed, in all threads of the process.

    Graphs compiled or exported before keep what they were traced with. Of overlapping blocks the one entered last
    counts.

    Args:
        algorithm: "auto", what measures faster for each shape; "winograd", the engine of fastds for every tensor on a
            CPU; "amx", the same with sums of products on the processor's matrix tiles, for bfloat16;
            "planes", sums of shifted planes, for few channels; "product", one matrix product over all pixels; "direct",
            torch's own convolution, whose numbers parity checks want; "implicit_gemm", on a GPU, the forward pass and
            what follows as one Triton kernel, the gradients by torch.

    Raises:
        ValueError: another name.
    """
    check_choice("algorithm", algorithm, ALGORITHMS)
    with _algorithm.set(algorithm):
        yield


@contextmanager
def assume_height(rows: int) -> Iterator[None]:
    """Inside the block "auto" decides, in this thread, as for maps of so many rows: bands of a field then have the bits
    of the whole."""
    before = _assumed_height.set(rows)
    try:
        yield
    finally:
        _assumed_height.reset(before)


def winograd_unsupported_reason(x: Tensor) -> str | None:
    """Why the engine cannot take tensors like x, or None."""
    if not x.is_cpu:
        return f"the engine runs on the CPU, x is on {x.device}"
    if x.dtype == torch.float64:
        return "the engine calculates in float32"
    if native.get_missing_reason() is None and not native.get_module().conv3x3_available():
        return "this build has no engine for the instruction set baseline"
    return native.get_missing_reason()


def amx_unsupported_reason(x: Tensor, dtype: torch.dtype) -> str | None:
    """Why the engine cannot convolve tensors like x in dtype on matrix tiles, or None."""
    if (x.dtype, dtype) != (torch.bfloat16, torch.bfloat16):
        return f"matrix tiles take and give torch.bfloat16, not {x.dtype if x.dtype != torch.bfloat16 else dtype}"
    if (reason := winograd_unsupported_reason(x)) is not None:
        return reason
    return None if native.get_module().conv3x3_amx_available() else "this processor has no matrix tiles (AMX)"


_UNSUPPORTED_REASONS = {"amx": amx_unsupported_reason, "implicit_gemm": triton_implicit_gemm.unsupported_reason}


def count_epilogue_passes(residual: Tensor | None, act: str, shuffle: int) -> int:
    """Passes over the outputs that an engine does not need: see costs.cheapest."""
    return (residual is not None) + (act != "none") + (shuffle > 1)


def select_algorithm(
    algorithm: str, x: Tensor, channels: int, outputs: int, dtype: torch.dtype, backward: bool, *,
    gated: bool = False, joined: bool = False, passes: int = 0,
) -> str:  # fmt: skip
    """The algorithm, of all but "auto", that computes a convolution of tensors like x.

    Args:
        dtype: that torch would calculate in.
        gated, joined, passes: what goes before and behind it, see costs.cheapest.

    Raises:
        RuntimeError: "winograd", "amx", "planes" or "implicit_gemm" is asked for, but cannot run.
    """
    if algorithm in ("direct", "product"):
        return algorithm
    if algorithm == "implicit_gemm" and backward:
        return "direct"
    reason = (
        _UNSUPPORTED_REASONS[algorithm](x, dtype)
        if algorithm in _UNSUPPORTED_REASONS
        else winograd_unsupported_reason(x)
    )
    if algorithm != "auto":
        if reason is not None:
            raise RuntimeError(f"conv3x3: algorithm '{algorithm}' was requested, but {reason}")
        return algorithm
    if reason is not None or (isa := native.get_module().isa()) == "baseline":
        return "direct"
    batch, _, height, width = x.shape
    contiguous = x.shape[1] > 1 and x.stride(1) != 1
    shape = batch, channels, outputs, _assumed_height.get() or height, width
    return select_fastest(isa, dtype, backward, *shape, gated, contiguous, joined, passes)
