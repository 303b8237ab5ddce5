# SPDX-License-Identifier: Apache-2.0
"""Launch arguments of the kernels of deform_conv2d."""

import functools

from torch import Tensor

from fastds.ops.core import native, triton_loader


def count_groups(input: Tensor, offset: Tensor, weight: Tensor) -> tuple[int, int]:
    """Return the numbers of convolution groups and offset groups of checked arguments.

    Args:
        input: (B, C, H, W).
        offset: (B, 2 * G * K, H', W'), in pixels, for G offset groups and K taps.
        weight: (O, C / groups, k_h, k_w).

    Returns:
        (groups, G).
    """
    return input.shape[1] // weight.shape[1], offset.shape[1] // (2 * weight.shape[2] * weight.shape[3])


def make_dims(input, offset, weight, mask, stride, padding, dilation, groups, offset_groups, planar=False):
    """Return the sizes and element strides of a call for _fastds.

    Args:
        input: (B, C, H, W).
        offset: (B, 2 * offset_groups * K, H', W').
        weight: (O, C / groups, k_h, k_w).
        mask: (B, offset_groups * K, H', W') or None, whose strides are then not read.
        stride: pair (rows, columns) in pixels.
        padding: pair (rows, columns) in pixels.
        dilation: pair (rows, columns) in pixels.
        groups: number of convolution groups.
        offset_groups: number of offset groups.
        planar: bool, whether offset, mask and result are contiguous instead of channels_last.
    """
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
    """Build the DeformConv2dDims object. It is cached, because building it takes a large part of a small call."""

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
    """Return the sizes of a call for fastds.kernels.deform_conv2d.

    Args:
        weight: (O, C / groups, k_h, k_w).
        stride: pair (rows, columns) in pixels.
        padding: pair (rows, columns) in pixels.
        dilation: pair (rows, columns) in pixels.
        groups: number of convolution groups.
        offset_groups: number of offset groups.
    """
    pairs = (tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation))
    return triton_loader.load_kernels("deform_conv2d").Problem(*pairs, groups, offset_groups)
