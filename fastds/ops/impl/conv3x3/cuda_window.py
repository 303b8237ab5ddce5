# SPDX-License-Identifier: Apache-2.0
"""3x3 convolutions of 16-bit maps on a GPU by one CUDA C++ kernel, csrc/conv3x3/cuda_window.cuh.

The kernel keeps a window of the map and the weights in shared memory. It reads the weight in channels_last memory, so
that no packed copy has to be kept up to date. The gradients are computed by the library.
"""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.gpu_measurements import describe_source
from fastds.ops.core.layout import as_nhwc, empty_map, to_contiguous
from fastds.ops.impl.conv3x3 import triton_implicit_gemm
from fastds.ops.impl.conv3x3.winograd import PADDING_CODES

PACK = 8  # channels of 16 bytes
MAX_IMAGE_BYTES = 2**31 - 1


def unsupported_reason(x: Tensor, dtype: torch.dtype) -> str | None:
    """Return the reason why this build and device have no such kernel for x, or None; see also get_call_reason."""
    return native.unsupported_reason({"cuda": "conv3x3_window_cuda"}, x)


def get_call_reason(x, weight, x2, residual, shuffle, out_dtype) -> str | None:
    """Return the reason why the kernel cannot compute a call, or None if it can.

    Args:
        x: (B, C1, H, W), for which unsupported_reason is None.
        weight: (O, C1 + C2, 3, 3).
        x2: (B, C2, H, W) or None.
        residual: (B, O, H, W) or None.
        shuffle: factor of the pixel shuffle, 1: none.
        out_dtype: dtype of the result.
    """
    if x.dtype not in triton_implicit_gemm.HALF_DTYPES or out_dtype != x.dtype:
        return f"the kernel has no {x.dtype} with results in {out_dtype}"
    if (reason := get_maps_reason((x, x2, residual))) is not None:
        return reason
    outputs = weight.shape[0]
    if outputs % (PACK * shuffle**2):
        return f"the channels of the result must be a multiple of {PACK}"
    if residual is not None and shuffle > 1:
        return "the kernel adds no residual before a pixel shuffle"
    if not native.get_module().conv3x3_window_fits(weight.shape[1], outputs, x.device.index or 0):
        return "the weights of 16 outputs do not fit in shared memory"
    return None


def get_maps_reason(maps) -> str | None:
    """Return the reason why a kernel with a window cannot read some of the maps, or None. None is an absent map."""
    for t in maps:
        if t is None:
            continue
        # A map with another channel stride is copied to dense memory.
        strides = _get_strides(t) if t.stride(1) == 1 else [0, t.shape[1] * t.shape[3], t.shape[1]]
        if t.shape[1] % PACK or (t.stride(1) == 1 and (any(s % PACK for s in strides) or _is_misaligned(t))):
            return f"the channels, strides and addresses must be multiples of {PACK} elements"
        if (t.shape[2] * strides[1] + t.shape[3] * strides[2]) * t.element_size() > MAX_IMAGE_BYTES:
            return "an image is larger than 32-bit positions reach"
    return None


def describe(x, weight, bias, x2, residual, act, slope, padding_mode, shuffle, out_dtype, algorithm) -> dict[str, str]:
    """Return the entry "kernels" of fastds.explain for a request of the kernel, which no GPU has measured."""
    if algorithm != "window" or unsupported_reason(x, out_dtype) is not None:
        return {}
    reason = get_call_reason(x, weight, x2, residual, shuffle, out_dtype)
    return {"kernels": f"window: {describe_source(False)}" if reason is None else f"as with 'auto': {reason}"}


def _get_strides(t: Tensor) -> list[int]:
    """Return the batch, row and pixel strides, 0 where there is one image, row or column."""
    return [t.stride(i) if t.shape[i] > 1 else 0 for i in (0, 2, 3)]


def _is_misaligned(t: Tensor) -> bool:
    """Return whether the address is no multiple of 16 bytes; False for tensors without memory."""
    return type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta and t.data_ptr() % 16 != 0


def forward(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype):
    """Compute conv3x3 by the kernel. get_call_reason must be None for the arguments.

    Args:
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, 3, 3).
        bias: (O,) or None.
        x2: (B, C2, H, W), second source, or None.
        residual: (B, O, H, W) or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle, 1: none.
        out_dtype: dtype of the result.

    Returns:
        (B, O / shuffle^2, shuffle * H, shuffle * W).
    """
    x, x2, residual = (None if t is None else as_nhwc(t) for t in (x, x2, residual))
    batch, _, height, width = x.shape
    out = empty_map((batch, weight.shape[0] // shuffle**2, height * shuffle, width * shuffle), out_dtype, x)
    weight, bias = to_tap_layout(weight, x.dtype), None if bias is None else to_contiguous(bias)
    native.get_module().conv3x3_window_cuda(
        *describe_convolution(x, x2, weight, bias, residual, padding_mode), out.data_ptr(),
        {"none": 1.0, "relu": 0.0}.get(act, negative_slope), shuffle, *native.get_cuda_launch_arguments(x),
    )  # fmt: skip
    return out


def describe_convolution(x, x2, weight, bias, residual, padding_mode: str = "zeros") -> tuple:
    """Return the arguments of a kernel with a window that describe its convolution (csrc/conv3x3/bind.h).

    The caller keeps references to the tensors until the kernel is started.

    Args:
        x: (B, C1, H, W), first source.
        x2: (B, C2, H, W), second source, or None.
        weight: (O, C1 + C2, 3, 3), result of to_tap_layout.
        bias: (O,), contiguous, or None.
        residual: (B, O, H, W) or None. Maps have channel stride 1.
        padding_mode: "zeros", "replicate" or "circular_x".
    """
    batch, _, height, width = x.shape
    return (
        (batch, height, width, height, width, 1, 1, *PADDING_CODES[padding_mode]),
        [describe_map(t) for t in (x, x2) if t is not None],
        (weight.data_ptr(), native.DTYPE_CODES[x.dtype], *weight.shape[:2], weight.stride(0), weight.stride(3)),
        native.get_address(bias), native.DTYPE_CODES[x.dtype if bias is None else bias.dtype],
        [] if residual is None else [describe_map(residual)],
    )  # fmt: skip


def to_tap_layout(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in dtype and channels_last memory, or a slice of its inputs, whose channels are aligned."""
    weight = triton_implicit_gemm.to_kernel_layout(weight, dtype)
    if (weight.stride(0) | weight.stride(3)) % PACK or _is_misaligned(weight):
        weight = weight.clone(memory_format=torch.channels_last)
    return weight


def describe_map(t: Tensor) -> tuple:
    """Describe a map as native.describe_map does."""
    return t.data_ptr(), native.DTYPE_CODES[t.dtype], t.shape[1], *_get_strides(t), 1
