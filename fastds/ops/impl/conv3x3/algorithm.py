# SPDX-License-Identifier: Apache-2.0
"""Algorithm selection for 3x3 convolutions.

The algorithms are "winograd" and "amx" (native engine), "planes" (native, few channels), "product" (im2col), "direct"
(oneDNN or cuDNN), "implicit_gemm" (Triton), "window" (CUDA C++, only on request until a GPU has measured it) and
"auto", which selects one of the others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from fastds.ops.core import native, plans
from fastds.ops.core.arguments import check_choice
from fastds.ops.core.settings import ProcessSetting
from fastds.ops.impl.conv3x3 import cuda_window, triton_implicit_gemm
from fastds.ops.impl.conv3x3.costs import select_fastest

ALGORITHMS = ("auto", "winograd", "amx", "planes", "product", "direct", "implicit_gemm", "window")
_algorithm = ProcessSetting("auto")
_assumed_height: ContextVar[int | None] = ContextVar("rows", default=None)


def current_algorithm() -> str:
    """Return the algorithm of calls that do not name one."""
    return _algorithm.value


@contextmanager
def use_conv_algorithm(algorithm: str) -> Iterator[None]:
    """Set the algorithm of 3x3 convolutions inside the block, in all threads.

    The algorithm applies to calls of fastds.ops.conv3x3 without the argument `algorithm`, to recurrent cells and to
    convolutions of other sizes as fastds.ops.conv2d describes. An exported graph uses the algorithm of
    its trace; a function compiled by torch.compile is traced again for each algorithm. If blocks overlap, the block
    that was entered last determines the algorithm.

    Args:
        algorithm: str, one of
            "auto": the algorithm that a cost model expects to be fastest for each shape;
            "winograd": Winograd transforms in the native engine, on a CPU;
            "amx": matrix products on the AMX tiles of the processor, for bfloat16;
            "planes": sums of shifted planes, for few channels;
            "product": im2col and one matrix product over all pixels;
            "direct": torch's convolution, for comparison with results of torch;
            "implicit_gemm": one Triton kernel on a GPU, with gradients by torch;
            "window": one CUDA C++ kernel on a GPU, for a convolution or a step of a recurrent cell in 16 bits, with
            multiples of 8 channels that fit in shared memory, and with gradients by torch; "auto" for other calls on a
            GPU. No GPU has measured it yet.

    Raises:
        ValueError: another name.
    """
    check_choice("algorithm", algorithm, ALGORITHMS)
    with _algorithm.set(algorithm):
        yield


@contextmanager
def assume_height(rows: int) -> Iterator[None]:
    """Make "auto" select the algorithm as for images with `rows` rows, in this thread and inside the block.

    If an image is computed in bands of rows, all bands then use the algorithm of the whole image, so that the result
    has the same bits.
    """
    before = _assumed_height.set(rows)
    try:
        with plans.suspended():
            yield
    finally:
        _assumed_height.reset(before)


def winograd_unsupported_reason(x: Tensor) -> str | None:
    """Return the reason why the native engine cannot convolve tensors like x, or None if it can."""
    if not x.is_cpu:
        return f"the engine runs on the CPU, x is on {x.device}"
    if x.dtype == torch.float64:
        return "the engine computes in float32"
    if native.get_missing_reason() is None and not native.get_module().conv3x3_available():
        return "this build has no engine for the instruction set 'baseline'"
    return native.get_missing_reason()


def amx_unsupported_reason(x: Tensor, dtype: torch.dtype) -> str | None:
    """Return the reason why the native engine cannot convolve x on AMX tiles with results in dtype, or None."""
    if (x.dtype, dtype) != (torch.bfloat16, torch.bfloat16):
        return f"AMX tiles compute in torch.bfloat16 only, not {x.dtype if x.dtype != torch.bfloat16 else dtype}"
    if (reason := winograd_unsupported_reason(x)) is not None:
        return reason
    return None if native.get_module().conv3x3_amx_available() else "this processor has no AMX tiles"


_UNSUPPORTED_REASONS = {
    "amx": amx_unsupported_reason,
    "implicit_gemm": triton_implicit_gemm.unsupported_reason,
    "window": cuda_window.unsupported_reason,
}


def count_epilogue_passes(residual: Tensor | None, act: str, shuffle: int) -> int:
    """Return the number of elementwise passes over the result that algorithms without a fused epilogue need.

    Args:
        residual: the residual or None.
        act: "none", "relu" or "leaky_relu".
        shuffle: factor of the pixel shuffle, 1: none.
    """
    return (residual is not None) + (act != "none") + (shuffle > 1)


def select_algorithm(
    algorithm: str, x: Tensor, channels: int, outputs: int, dtype: torch.dtype, backward: bool, *,
    gated: bool = False, joined: bool = False, passes: int = 0,
) -> str:  # fmt: skip
    """Select the algorithm for a convolution of tensors like x.

    Args:
        algorithm: str, requested algorithm, "auto" for the fastest.
        x: (B, ., H, W), tensor that gives device, dtype, strides and image size.
        channels: input channels of all sources.
        outputs: output channels.
        dtype: dtype in which torch would compute.
        backward: bool, whether gradients are computed.
        gated: bool, whether the gates of a recurrent cell are applied to the result.
        joined: bool, whether there are two sources.
        passes: number of elementwise passes after the convolution, see count_epilogue_passes.

    Returns:
        name of an algorithm other than "auto".

    Raises:
        RuntimeError: "winograd", "amx", "planes", "implicit_gemm" or "window" is requested but cannot run.
    """
    if algorithm in ("direct", "product"):
        return algorithm
    if algorithm in ("implicit_gemm", "window") and backward:
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
