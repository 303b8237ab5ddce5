# SPDX-License-Identifier: Apache-2.0
"""What the kernels of deform_conv2d are told of a call, and which of them takes it."""

import functools

import torch
from torch import Tensor

from fastds.ops.core import native, triton_loader


def count_groups(input: Tensor, offset: Tensor, weight: Tensor) -> tuple[int, int]:
    """Groups of the convolution and of the offsets, of checked arguments."""
    return input.shape[1] // weight.shape[1], offset.shape[1] // (2 * weight.shape[2] * weight.shape[3])


def make_dims(input, offset, weight, mask, stride, padding, dilation, groups, offset_groups, planar=False):
    """Sizes and element strides for _fastds; strides of a missing mask are never read."""
    mask_stride = (0, 0, 0, 0) if mask is None else mask.stride()
    return _make_dims(
        native.get_module(), input.dtype, input.shape, input.stride(), offset.dtype, offset.shape, offset.stride(),
        mask_stride, weight.shape, tuple(stride), tuple(padding), tuple(dilation), groups, offset_groups, planar,
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _make_dims(
    module, dtype, shape, x_stride, offset_dtype, offset_shape, offset_stride, mask_stride, weight_shape, stride,
    padding, dilation, groups, offset_groups, planar,
):  # fmt: skip
    """Kept, for it takes 9 us, a quarter of a small call."""

    def strides(name, stride):
        b, _, h, w = stride
        return {f"{name}_b": b, f"{name}_h": h, f"{name}_w": w}

    (batch, channels, height, width), (outputs, _, k_h, k_w) = shape, weight_shape
    return module.DeformConv2dDims(
        dtype=native.DTYPE_CODES[dtype], offset_dtype=native.DTYPE_CODES[offset_dtype],
        B=batch, C=channels, H=height, W=width, O=outputs, Ho=offset_shape[2], Wo=offset_shape[3], kh=k_h, kw=k_w,
        stride_h=stride[0], stride_w=stride[1], pad_h=padding[0], pad_w=padding[1],
        dil_h=dilation[0], dil_w=dilation[1], groups=groups, offset_groups=offset_groups, planar=planar,
        **strides("x", x_stride), **strides("offset", offset_stride), **strides("mask", mask_stride),
    )  # fmt: skip


def make_triton_problem(weight, stride, padding, dilation, groups, offset_groups):
    """Sizes of a call for fastds.kernels.deform_conv2d."""
    pairs = (tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation))
    return triton_loader.load_kernels("deform_conv2d").Problem(*pairs, groups, offset_groups)


def can_use_shared_memory(input, offset, weight, mask, stride, padding, dilation) -> bool:
    """Whether the forward in CUDA C++ takes its samples from a window of the map in shared memory: 16 bits, 16 to 64
    channels of a group, up to 608 terms of a sum, channels_last."""
    plain = type(input) in (Tensor, torch.nn.Parameter)  # a fake tensor has no address
    if native.get_missing_reason() is not None or not native.runs_on_cuda(input) or not plain:
        return False
    if input.stride(1) != 1 or offset.stride(1) != 1 or not hasattr(native.get_module(), "deform_conv2d_window_fits"):
        return False
    groups, offset_groups = count_groups(input, offset, weight)
    dims = make_dims(input, offset, weight, mask, stride, padding, dilation, groups, offset_groups)
    addresses = (native.get_address(t) for t in (input, offset, weight))
    return native.get_module().deform_conv2d_window_fits(*addresses, dims, native.get_cuda_launch_arguments(input)[0])


def prefers_triton(input, weight) -> bool:
    """Where Triton goes before CUDA C++: on a GPU with enough channels to fill a tensor core's tile.

    float32 goes as three products of tf32, which keep its accuracy.
    """
    if not input.is_cuda or input.dtype == torch.float64:
        return False
    return weight.shape[1] >= 16 and weight.shape[0] * weight.shape[1] >= 16 * input.shape[1]  # outputs of one group


def forward_prefers_triton(input, offset, weight, bias, stride, padding, dilation, mask) -> bool:
    """The same of the forward: on an H100 (1, 64, 200, 200) takes 84 to 91 us from a window, 97 to 125 by Triton."""
    geometry = (stride, padding, dilation)
    return prefers_triton(input, weight) and not can_use_shared_memory(input, offset, weight, mask, *geometry)
