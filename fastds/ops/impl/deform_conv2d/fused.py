# SPDX-License-Identifier: Apache-2.0
"""deform_conv2d in 16 bits on a GPU by one kernel whose warps either sample or multiply.

csrc/deform_conv2d/cuda_fused.cuh hands the samples to tensor cores in shared memory, so that no columns are in global
memory. The kernel takes any number of taps and outputs; each 128 outputs of a group compute the samples again.
"""

import torch

from fastds.ops.core import native
from fastds.ops.impl.deform_conv2d import sample_layout


def get_unsupported_reason(input, offset, weight, mask, stride, padding) -> str | None:
    """Return the reason why the kernel cannot compute a call, or None if it can.

    Args:
        input: (B, C, H, W), on a GPU.
        offset: (B, 2 * G * K, H', W'), in pixels, for G offset groups and K taps.
        weight: (O, C / groups, k_h, k_w).
        mask: (B, G * K, H', W') or None.
        stride: pair (rows, columns) in pixels.
        padding: pair (rows, columns) in pixels.
    """
    if native.get_missing_reason() is not None or not hasattr(native.get_module(), "deform_conv2d_fused_cuda"):
        return "fastds was not built with CUDA"
    if input.dtype not in (torch.float16, torch.bfloat16):
        return f"the fused kernel has no {input.dtype}"
    if (reason := sample_layout.get_unsupported_reason(input, offset, weight, mask, stride, padding)) is not None:
        return reason
    outputs, group_channels, k_h, k_w = weight.shape
    terms, outputs = group_channels * k_h * k_w, outputs * group_channels // input.shape[1]  # of a group
    if not native.get_module().deform_conv2d_fused_fits(terms, outputs, input.device.index or 0):
        return "the terms of a group do not fit in shared memory, or the GPU is older than compute capability 8.0"
    return None


def compute(x, offset, mask, weight, bias, y, dims, base=None, sigmoid: bool = False, slope: float = 1.0) -> None:
    """Write the result of deform_conv2d to y.

    Args:
        x: (B, C, H, W), for which get_unsupported_reason() is None, as for the other arguments.
        offset: (B, 2 * G * K, H', W').
        mask: (B, G * K, H', W') or None.
        weight: (O, C / groups, k_h, k_w), channels_last.
        bias: (O,), contiguous, or None.
        y: (B, O, H', W'), channels_last and dense.
        dims: sizes and strides from make_dims().
        base: (B, 2, H', W'), float32, contiguous, added to all offsets, or None.
        sigmoid: whether `mask` has logits.
        slope: negative slope of a leaky ReLU, 1 for none.
    """
    if weight.data_ptr() % 16:  # a view of other memory
        weight = weight.clone(memory_format=torch.channels_last)
    addresses = (native.get_address(t) for t in (x, offset, mask, weight, bias, y, base))
    launch = native.get_cuda_launch_arguments(x)
    native.get_module().deform_conv2d_fused_cuda(*addresses, sigmoid, slope, dims, *launch)
