# SPDX-License-Identifier: Apache-2.0
"""Convolutions by one Triton kernel on a GPU: an implicit GEMM over one or two sources with a fused epilogue.

The gradients are computed by the library.
"""

import torch
from torch import Tensor

from fastds.ops.core import triton_loader
from fastds.ops.core.backends import forced_backend
from fastds.ops.core.layout import as_nhwc, empty_map, to_contiguous

HALF_DTYPES = (torch.float16, torch.bfloat16)


def unsupported_reason(x: Tensor, dtype: torch.dtype) -> str | None:
    """Return the reason why the kernel cannot convolve tensors like x with results in dtype, or None if it can."""
    if x.dtype != dtype:
        return f"the kernel returns the dtype of x, {x.dtype}, not {dtype}"
    return triton_loader.unsupported_reason(x)


def is_faster(x, weight, bias, x2, residual, act, shuffle, out_dtype) -> bool:
    """Return True if the kernel is expected to be faster than cuDNN with separate passes, for 16-bit tensors.

    The rule is an estimate for an H200. The kernel reaches 330 TFLOP/s and cuDNN 450 TFLOP/s, so that the products of a
    pixel take 2 k^2 C O / 1.2e15 s longer in the kernel. The kernel saves the epilogue after cuDNN's convolution, which
    moves 4 O bytes for a pixel, and a concatenation, which moves 4 C bytes, at 3.3 TB/s. The result is False for
    float32, which cuDNN computes with tf32, and inside fastds.use_backend("native").

    Args:
        x: (B, C1, H, W). All arguments have passed the checks of the op.
        weight: (O, C1 + C2, k, k).
        bias: (O,) or None.
        x2: (B, C2, H, W) or None.
        residual: tensor with the shape of the convolution's output, or None.
        act: None or "none", "relu" or "leaky_relu".
        shuffle: factor of the pixel shuffle, 1: none.
        out_dtype: dtype of the result.
    """
    if x.dtype not in HALF_DTYPES or forced_backend() == "native" or unsupported_reason(x, out_dtype) is not None:
        return False
    outputs, inputs, size, _ = weight.shape
    has_epilogue = shuffle > 1 or act not in (None, "none") or bias is not None or residual is not None
    saved_elements = outputs * has_epilogue + inputs * (x2 is not None)  # elements of a pixel
    return size**2 * inputs * outputs <= 747 * saved_elements


def forward(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, stride=1):
    """Compute a convolution by the kernel. unsupported_reason must be None for the arguments.

    Args:
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, k, k).
        bias: (O,) or None.
        x2: (B, C2, H, W), second source, or None.
        residual: tensor with the shape of the convolution's output, or None.
        act: None or "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle, 1: none.
        out_dtype: dtype of the result.
        stride: stride in pixels.

    Returns:
        (B, O / shuffle^2, shuffle * ceil(H / stride), shuffle * ceil(W / stride)).
    """
    height, width = (-(-n // stride) * shuffle for n in x.shape[2:])
    out = empty_map((x.shape[0], weight.shape[0] // shuffle**2, height, width), out_dtype, x)
    x, x2, residual = (None if t is None else as_nhwc(t) for t in (x, x2, residual))
    triton_loader.load_kernels("implicit_gemm").launch(
        x, x2, to_kernel_layout(weight, x.dtype), None if bias is None else to_contiguous(bias), residual, out,
        stride=stride,
        padding_mode=padding_mode, slope={"relu": 0.0, "leaky_relu": negative_slope}.get(act), shuffle=shuffle,
    )  # fmt: skip
    return out


def to_kernel_layout(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in dtype and in the memory order of channels_last.

    A slice of the inputs of a channels_last weight is not copied, although it is not dense.
    """
    outputs, inputs, size, _ = weight.shape
    output_stride, input_stride, row_stride, tap_stride = weight.stride()
    expected_tap_stride = tap_stride if size > 1 else output_stride
    is_ordered = size == 1 or (
        row_stride == size * expected_tap_stride and (output_stride == size**2 * expected_tap_stride or outputs == 1)
    )
    if weight.dtype == dtype and is_ordered and (input_stride == 1 or inputs == 1) and not weight.is_neg():
        return weight
    weight = weight.to(dtype, memory_format=torch.channels_last)  # casts and permutes in one operation
    return weight.contiguous(memory_format=torch.channels_last).resolve_neg()
