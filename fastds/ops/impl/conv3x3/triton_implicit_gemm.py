# SPDX-License-Identifier: Apache-2.0
"""conv3x3, and convolutions of other sizes, as one Triton kernel on a GPU: an implicit matrix product over one or two
sources with all that follows. The gradients are the library's."""

import torch
from torch import Tensor

from fastds.ops.core import triton_loader
from fastds.ops.core.backends import forced_backend
from fastds.ops.core.layout import as_nhwc, empty_map, to_contiguous

HALF_DTYPES = (torch.float16, torch.bfloat16)


def unsupported_reason(x: Tensor, dtype: torch.dtype) -> str | None:
    """Why the kernel cannot convolve tensors like x in dtype, or None."""
    if x.dtype != dtype:
        return f"the kernel gives the dtype of x, {x.dtype}, not {dtype}"
    return triton_loader.unsupported_reason(x)


def is_faster(x, weight, bias, x2, residual, act, shuffle, out_dtype) -> bool:
    """Whether "auto" takes the kernel for checked arguments: in 16 bits, where the passes that it saves take longer
    than cuDNN is ahead.

    Estimates, of which an H200 bore out one, 64 -> 64 with a residual, 19 us for 21: 330 TFLOP/s for the kernel, which
    reads its pixels once per tap, and 450 for cuDNN, so that a pixel takes 2 k^2 C O / 1.2e15 seconds longer; the pass
    behind cuDNN's convolution moves 4 O bytes of it, a concatenation before it 4 C, at 3.3 TB/s. float32 is left to
    cuDNN's tf32; fastds.backend("native") leaves all to it.
    """
    if x.dtype not in HALF_DTYPES or forced_backend() == "native" or unsupported_reason(x, out_dtype) is not None:
        return False
    outputs, inputs, size, _ = weight.shape
    has_epilogue = shuffle > 1 or act not in (None, "none") or bias is not None or residual is not None
    saved_elements = outputs * has_epilogue + inputs * (x2 is not None)  # numbers of a pixel
    return size**2 * inputs * outputs <= 747 * saved_elements


def forward(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, stride=1):
    """The convolution by the kernel, to which refusal(x, out_dtype) has no objection."""
    height, width = (-(-n // stride) * shuffle for n in x.shape[2:])
    out = empty_map((x.shape[0], weight.shape[0] // shuffle**2, height, width), out_dtype, x)
    x, x2, residual = (None if t is None else as_nhwc(t) for t in (x, x2, residual))
    triton_loader.load_kernels("implicit_gemm").launch(
        x, x2, _to_kernel_layout(weight, x.dtype), None if bias is None else to_contiguous(bias), residual, out,
        stride=stride,
        padding_mode=padding_mode, slope={"relu": 0.0, "leaky_relu": negative_slope}.get(act), shuffle=shuffle,
    )  # fmt: skip
    return out


def _to_kernel_layout(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as the kernel reads it: a slice of the inputs of a channels_last one is not copied."""
    outputs, inputs, size, _ = weight.shape
    output_stride, input_stride, row_stride, tap_stride = weight.stride()
    expected_tap_stride = tap_stride if size > 1 else output_stride
    is_ordered = size == 1 or (
        row_stride == size * expected_tap_stride and (output_stride == size**2 * expected_tap_stride or outputs == 1)
    )
    if weight.dtype == dtype and is_ordered and (input_stride == 1 or inputs == 1) and not weight.is_neg():
        return weight
    weight = weight.to(dtype, memory_format=torch.channels_last)  # one pass for both
    return weight.contiguous(memory_format=torch.channels_last).resolve_neg()
