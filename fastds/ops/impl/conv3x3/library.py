# SPDX-License-Identifier: Apache-2.0
"""Convolutions and their gradients by the library that torch uses: oneDNN on a CPU, cuDNN on a GPU.

On a GPU, Triton kernels apply the epilogue or compute the whole convolution where that is supported and faster.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core import native, onednn, triton_loader
from fastds.ops.core.arguments import get_autocast_dtype, without_autocast
from fastds.ops.core.function_plans import call_function
from fastds.ops.core.layout import (
    CHANNELS_LAST,
    MIN_NATIVE_ELEMENTS,
    empty_map,
    sum_per_channel,
    to_channels_last,
    to_contiguous,
)
from fastds.ops.core.registry import has_active_transforms, is_batched, is_intercepted
from fastds.ops.impl.conv3x3 import reference, triton_implicit_gemm
from fastds.ops.impl.conv3x3.algorithm import current_algorithm
from fastds.ops.impl.conv3x3.costs import MAX_SMALL_IMAGE_ELEMENTS, has_amx_kernels

MAX_SMALL_GRADIENT_ELEMENTS = 16384  # for larger maps, a call of torch takes a small part of the time
_ADDED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the native kernel in add_
MAX_FLIPPED_OUTPUTS = 16  # outputs of a group, see _is_flipped_convolution_faster


def _to_onednn_layout(x: Tensor) -> Tensor:
    """Return x in channels_last, with strides from which torch chooses channels_last for the result.

    For a tensor with one channel, the strides are set explicitly, because they may fit both memory formats. Reordering
    the input instead of the result is much faster for few input channels. float64 tensors are returned unchanged,
    because oneDNN does not convolve them.
    """
    if x.dtype == torch.float64:
        return x
    x = to_channels_last(x)
    batch, channels, height, width = x.shape
    return x if channels > 1 else x.view(batch, height, width, 1).permute(0, 3, 1, 2)


def _pad_input(x: Tensor, size: int, padding_mode: str) -> tuple[Tensor, int]:
    """Return x, padded unless the mode is "zeros", and the width of the zero padding that the convolution must add."""
    return (x, size // 2) if padding_mode == "zeros" else (reference.pad(x, padding_mode), 0)


def _should_permute_weight(weight: Tensor, dtype: torch.dtype) -> bool:
    """Return True if the weight should be copied to channels_last before the call of oneDNN.

    oneDNN would reorder the weight more slowly.
    """
    return weight.numel() >= MIN_NATIVE_ELEMENTS and weight.is_cpu and dtype != torch.float64


class LibraryConvolution(NamedTuple):
    """Settings of a library convolution, which depend on the properties of the tensors but not on their values."""

    permutes_input: bool  # copy x to channels_last
    permutes_weight: bool  # copy the weight to channels_last
    caches_filters: bool  # use cached filters that are reordered for oneDNN
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]  # padding, stride, dilation, groups

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve x; the result has the dtype of x and is differentiable unless filters are cached."""
        if get_autocast_dtype(x) is not None:  # autocast would cast again
            with torch.autocast(x.device.type, enabled=False):
                return self(x, weight, bias)
        if self.permutes_input:
            x = _to_onednn_layout(x)
        bias = None if bias is None else bias.to(x.dtype)
        if self.caches_filters and not (weight.is_neg() or is_batched(x)):
            return onednn.convolve(x, onednn.get_cached_filters(weight, x, *self.geometry), bias, *self.geometry)
        weight = weight.to(x.dtype)
        padding, stride, dilation, groups = self.geometry
        return F.conv2d(
            x, to_channels_last(weight) if self.permutes_weight else weight, bias, stride, padding, dilation, groups
        )

    def call_noted(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve x as __call__ does, by a function that a plan can repeat (see function_plans.py)."""
        copies = self.permutes_input or self.permutes_weight or self.caches_filters
        is_uniform = x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)
        if copies or not is_uniform or get_autocast_dtype(x) is not None:
            return call_function(self.__call__, x, weight, bias)
        padding, stride, dilation, groups = self.geometry
        return call_function(F.conv2d, x, weight, bias, stride, padding, dilation, groups)


def plan_convolution(
    x: Tensor, weight: Tensor, padding: int, trained: bool, stride: int = 1, groups: int = 1
) -> LibraryConvolution:
    """Return the settings of a library convolution.

    Filters are cached only if gradients are not needed and no compiler or tracer observes the call.

    Args:
        x: (B, C, H, W), input.
        weight: (O, C / groups, k, k).
        padding: zero padding in pixels.
        trained: bool, whether gradients are needed, see is_training_call.
        stride: stride in pixels.
        groups: number of groups.
    """
    permutes_input = x.dtype != torch.float64 and not (
        x.is_contiguous(memory_format=CHANNELS_LAST) and x.stride(1) == 1
    )
    permutes_weight = _should_permute_weight(weight, x.dtype)
    if permutes_input and permutes_weight and is_small_image(x):  # copying the weight would take longer than it saves
        permutes_input = permutes_weight = False
    caches_filters = not trained and _can_cache_filters(x, weight)
    geometry = (padding,) * 2, (stride,) * 2, (1, 1), groups
    return LibraryConvolution(permutes_input, permutes_weight, caches_filters, geometry)


def is_training_call(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return True if the result must be differentiable or the weight changes before the next call.

    Args:
        x: input of the convolution.
        weight: filters.
        bias: bias or None.
    """
    if not torch.is_grad_enabled():
        return x.requires_grad and weight.requires_grad  # also inside an autograd.Function, where gradients are off
    return x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)


def is_small_image(x: Tensor) -> bool:
    """Return True if torch convolves x without oneDNN: a single small float32 image."""
    return x.dtype == torch.float32 and x.shape[0] == 1 and x.numel() <= MAX_SMALL_IMAGE_ELEMENTS


def _can_cache_filters(x: Tensor, weight: Tensor) -> bool:
    if x.numel() == 0 or not onednn.can_cache_filters(weight, x):
        return False
    return not (is_small_image(x) or torch.compiler.is_compiling() or is_intercepted(x, weight))


def activate_(y: Tensor, act: str | None, negative_slope: float = 0.1) -> Tensor:
    """Apply an activation in place.

    Args:
        y: any tensor.
        act: None or "none" for no activation, "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
    """
    if act == "leaky_relu":
        return F.leaky_relu_(y, negative_slope)
    return F.relu_(y) if act == "relu" else y


def convolve(x, weight, bias, x2, residual, act, negative_slope, shuffle, stride, convolve_one=None):
    """Compute shuffle(act(conv(concat(x, x2), weight) + bias + residual)).

    On a GPU, one Triton kernel computes the result if that is expected to be faster. Otherwise, two sources are
    convolved separately and added, so that no concatenation is materialized or saved for the backward pass. Except
    under functorch transforms, the epilogue then overwrites the output of the convolution.

    Args:
        x: (B, C1, H, W).
        weight: (O, C1 + C2, k, k), k odd.
        bias: (O,) or None.
        x2: (B, C2, H, W) or None.
        residual: tensor with the shape of the convolution's output, or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
        shuffle: factor of the pixel shuffle, 1: none.
        stride: stride in pixels.
        convolve_one: function(source, weight, bias) that convolves one source. None: the library.

    Returns:
        the result, channels_last.
    """
    split, in_one_pass = x.shape[1], can_fuse_epilogue(x)
    in_one_kernel = in_one_pass and current_algorithm() in ("auto", "implicit_gemm", "window")
    if in_one_kernel and triton_implicit_gemm.is_faster(x, weight, bias, x2, residual, act, shuffle, x.dtype):
        args = (x, weight, bias, x2, residual, act, negative_slope, "zeros", shuffle, x.dtype, stride)
        return triton_implicit_gemm.forward(*args)

    def convolve_source(source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if source.is_cpu and not (is_small_image(source) or has_active_transforms() or torch.compiler.is_compiling()):
            return conv2d(source, weight, bias, 1, stride)
        bias = None if bias is None else bias.to(source.dtype)
        return F.conv2d(source, weight.to(source.dtype), bias, stride, weight.shape[-1] // 2)

    convolution = convolve_one or convolve_source
    y = convolution(x, weight if x2 is None else weight[:, :split], None if in_one_pass else bias)
    second = None if x2 is None else convolution(x2, weight[:, split:], None)
    if in_one_pass:
        return apply_fused_epilogue(y, bias, second, residual, act, negative_slope, shuffle)
    if has_active_transforms():  # vmap supports neither in-place operations nor memory formats here
        y = y if second is None else y + second
        return reference.to_channels_last(reference.apply_epilogue(y, residual, act, negative_slope, shuffle))
    # For one input channel oneDNN chooses the memory format of y, which need not be channels_last.
    y = to_channels_last(y if second is None else y.add_(second))
    return apply_epilogue(y, residual, act, negative_slope, shuffle)


def can_fuse_epilogue(x: Tensor) -> bool:
    """Return True if a Triton kernel can apply the epilogue to a convolution of x.

    This needs a GPU that Triton supports and excludes calls with gradients, tracing, compilation or transforms.
    """
    if not x.is_cuda or torch.is_grad_enabled() or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    return (
        not (has_active_transforms() or torch.compiler.is_compiling()) and triton_loader.unsupported_reason(x) is None
    )


def apply_fused_epilogue(
    y: Tensor,
    bias: Tensor | None,
    second: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    negative_slope: float,
    shuffle: int,
) -> Tensor:
    """Compute shuffle(act(y + second + residual + bias)) by one Triton kernel.

    Args:
        y: (B, O, H, W), output of the convolution. It is overwritten if shuffle is 1.
        bias: (O,) or None.
        second: output of the convolution of the second source, or None.
        residual: (B, O, H, W) or None.
        act: None or "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
        shuffle: factor r of the pixel shuffle, 1: none.

    Returns:
        (B, O / r^2, r H, r W), channels_last.
    """
    y = to_channels_last(y)  # a copy unless dense: autograd forbids writing to some views
    second, residual = (None if z is None else to_channels_last(z.expand_as(y)) for z in (second, residual))
    slopes: dict[Any, float] = {"relu": 0.0, "leaky_relu": negative_slope}
    slope = slopes.get(act)
    if shuffle == 1 and slope is None and bias is second is residual is None:
        return y
    batch, channels, height, width = y.shape
    out = (
        y if shuffle == 1 else empty_map((batch, channels // shuffle**2, height * shuffle, width * shuffle), y.dtype, y)
    )
    triton_loader.load_kernels("conv3x3").apply_epilogue(y, out, bias, second, residual, slope, shuffle)
    return out


def apply_epilogue(y: Tensor, residual: Tensor | None, act: str | None, negative_slope: float, shuffle: int) -> Tensor:
    """Compute shuffle(act(y + residual)), overwriting y.

    Args:
        y: (B, O, H, W), channels_last.
        residual: (B, O, H, W) or None.
        act: None or "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
        shuffle: factor of the pixel shuffle, 1: none.
    """
    if residual is not None:
        y = y.add_(residual)
    y = activate_(y, act, negative_slope)
    return y if shuffle == 1 else to_channels_last(F.pixel_shuffle(y, shuffle))


@without_autocast
def forward(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype):
    """Compute conv3x3 by the library, see fastds.ops.conv3x3.

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
    bias, in_one_pass = None if bias is None else bias.to(out_dtype), can_fuse_epilogue(x)
    source, padding = _pad_input(_concatenate(x, x2).to(out_dtype), 3, padding_mode)
    convolution = plan_convolution(source, weight, padding, is_training_call(x, weight, bias))
    y = convolution(source, weight, None if in_one_pass else bias)
    if in_one_pass:
        return apply_fused_epilogue(y, bias, None, residual, act, negative_slope, shuffle)
    return apply_epilogue(to_channels_last(y), residual, act, negative_slope, shuffle)


def _concatenate(x, x2):
    """Return both sources as one tensor. Two convolutions and their sum would take longer."""
    return x if x2 is None else torch.cat([to_channels_last(x), to_channels_last(x2)], 1)


def compute_bias_gradient(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient (O,) of the bias in dtype."""
    return sum_per_channel(grad).to(dtype)


def _is_flipped_convolution_faster(grad: Tensor, weight: Tensor, groups: int) -> bool:
    """Return True if the gradient of x is faster as a forward convolution with flipped filters.

    For few output channels, oneDNN fills an AMX tile with several taps in the forward pass, but pads it with zeros in
    the backward pass.
    """
    return grad.is_cpu and weight.shape[0] // groups < MAX_FLIPPED_OUTPUTS and has_amx_kernels(grad.dtype)


def _flip_filters(weight: Tensor, groups: int) -> Tensor:
    """Return the filters of the adjoint convolution: rotated by 180 degrees, with inputs and outputs exchanged."""
    outputs, inputs, *size = weight.shape
    parts = weight.reshape(groups, outputs // groups, inputs, *size).flip(3, 4).transpose(1, 2)
    return parts.reshape(groups * inputs, outputs // groups, *size)


def _compute_gradients(grad, x, weight, padding_mode, needs_x, needs_weight, needs_bias=False, groups=1):
    """Compute gradients of input, weight and bias by the library, in the dtype of x; None for those not needed.

    Args:
        grad: gradient of the convolution's output.
        x: input.
        weight: the filters.
        padding_mode: "zeros", "replicate" or "circular_x".
        needs_x: bool, whether the gradient of x is needed.
        needs_weight: bool, whether the gradient of the weight is needed.
        needs_bias: bool, whether the gradient of the bias is needed.
        groups: number of groups.
    """
    source, padding = _pad_input(x, weight.shape[-1], padding_mode)
    source, grad, weight = _to_onednn_layout(source), _to_onednn_layout(grad.to(x.dtype)), weight.to(x.dtype)
    flipped = needs_x and _is_flipped_convolution_faster(grad, weight, groups)
    if needs_x and not flipped:
        weight = to_channels_last(weight) if _should_permute_weight(weight, weight.dtype) else weight
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, source, weight, weight.shape[:1], [1, 1], [padding] * 2, [1, 1], False, [0, 0], groups,
        [needs_x and not flipped, needs_weight, needs_bias],
    )  # fmt: skip
    if flipped:
        grad_x = F.conv2d(grad, _flip_filters(weight, groups), padding=weight.shape[-1] - 1 - padding, groups=groups)
    if needs_x:
        grad_x = to_channels_last(grad_x if padding_mode == "zeros" else reference.fold(grad_x, padding_mode))
    return grad_x, grad_weight, grad_bias


def conv2d(x, weight, bias, groups, stride=1):
    """Apply a differentiable grouped convolution of any odd kernel size.

    The input is copied to channels_last, in which torch is much faster for grouped convolutions, except for small
    images and float64. torch chooses the memory format of the result.

    Args:
        x: (B, C, H, W).
        weight: (O, C / groups, k, k).
        bias: (O,) or None.
        groups: number of groups.
        stride: stride in pixels.
    """
    trained = is_training_call(x, weight, bias)
    return plan_convolution(x, weight, weight.shape[-1] // 2, trained, stride, groups)(x, weight, bias)


@without_autocast
def conv2d_backward(grad, x, weight, groups, needs_x, needs_weight):
    """Compute the gradients of x and weight of a convolution with zero padding.

    Args:
        grad: (B, O, H, W), gradient of the result.
        x: (B, C, H, W).
        weight: (O, C / groups, k, k).
        groups: number of groups.
        needs_x: bool, whether to compute the gradient of x.
        needs_weight: bool, whether to compute the gradient of the weight.

    Returns:
        The gradients of x and weight; a gradient that is not needed is None.
    """
    grad_x, grad_weight, _ = _compute_gradients(grad, x, weight, "zeros", needs_x, needs_weight, groups=groups)
    return grad_x, to_contiguous(grad_weight.to(weight.dtype)) if needs_weight else None


@without_autocast
def grad_x(grad, weight, padding_mode, dtype):
    """Compute the gradient of the concatenated input from the gradient of the output before the epilogue.

    Args:
        grad: (B, O, H, W), gradient of the output before the epilogue.
        weight: (O, C, 3, 3).
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the gradient.

    Returns:
        (B, C, H, W).
    """
    batch, _, height, width = grad.shape
    like = empty_map((batch, weight.shape[1], height, width), dtype, grad)
    return _compute_gradients(grad, like, weight, padding_mode, True, False)[0]


@without_autocast
def grad_weight(grad, x, x2, padding_mode, dtype):
    """Compute the gradient of the weight from the gradient of the output before the epilogue.

    Args:
        grad: (B, O, H, W), gradient of the output before the epilogue.
        x: (B, C1, H, W), first source.
        x2: (B, C2, H, W), second source, or None.
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the gradient.

    Returns:
        (O, C1 + C2, 3, 3).
    """
    source = _concatenate(x, x2)
    like = torch.empty((1, 1, 1, 1), dtype=x.dtype, device=grad.device).expand(grad.shape[1], source.shape[1], 3, 3)
    return to_contiguous(_compute_gradients(grad, source, like, padding_mode, False, True)[1].to(dtype))


def backpropagate_epilogue(grad_y: Tensor, y: Tensor | None, negative_slope: float, shuffle: int) -> Tensor:
    """Compute reference.backpropagate_epilogue by operations that record no autograd graph.

    Args:
        grad_y: gradient of the result.
        y: the result if there is an activation, else None.
        negative_slope: float, slope of the activation for negative inputs.
        shuffle: factor of the pixel shuffle, 1: none.
    """
    if y is not None:
        grad_y = _backpropagate_activation(grad_y, y, negative_slope)
    return reference.unshuffle_pixels(grad_y, shuffle) if shuffle > 1 else grad_y


def _backpropagate_activation(grad_y: Tensor, y: Tensor, negative_slope: float) -> Tensor:
    """Return the gradient of an activation's input.

    A native kernel computes it for small maps, because a plan can repeat its call.

    Args:
        grad_y: gradient of the activation's output y.
        y: the output.
        negative_slope: float, slope of the activation for negative inputs.
    """
    is_small = grad_y.is_cpu and 0 < grad_y.numel() <= MAX_SMALL_GRADIENT_ELEMENTS
    is_dense = grad_y.is_contiguous() or grad_y.is_contiguous(memory_format=CHANNELS_LAST)
    is_equal = grad_y.stride() == y.stride() and grad_y.dtype == y.dtype == torch.float32
    can_read = is_small and is_dense and is_equal and not (grad_y.is_neg() or y.is_neg())
    if not can_read or native.get_missing_reason() is not None or is_intercepted(grad_y, y) or is_batched(grad_y):
        return torch.ops.aten.leaky_relu_backward(grad_y, y, negative_slope, True)
    result = torch.empty_strided(grad_y.shape, grad_y.stride(), dtype=grad_y.dtype)
    addresses = grad_y.data_ptr(), y.data_ptr(), result.data_ptr()
    native.get_module().backpropagate_activation(grad_y.numel(), negative_slope, *addresses)
    return result


def add_(y: Tensor, addend: Tensor) -> Tensor:
    """Add a tensor to y in place and return y.

    A native kernel adds small maps, because a plan can repeat its call.

    Args:
        y: (B, C, H, W), dense, written.
        addend: tensor of the same shape and dtype.
    """
    is_small = y.is_cpu and 0 < y.numel() <= MAX_SMALL_GRADIENT_ELEMENTS and y.shape == addend.shape
    is_dense = y.is_contiguous(memory_format=CHANNELS_LAST) and y.dtype == addend.dtype
    can_read = is_small and is_dense and y.dtype in _ADDED_DTYPES and not y.is_neg()
    if not can_read or native.get_missing_reason() is not None or is_intercepted(y, addend) or is_batched(addend):
        return y.add_(addend)
    addend = to_channels_last(addend)
    native.get_module().add_elements(native.DTYPE_CODES[y.dtype], y.numel(), addend.data_ptr(), y.data_ptr())
    return y


@without_autocast
def backward(grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, needs_grad):
    """Compute the gradients of x, weight, bias, x2 and residual; gradients that are not needed are None.

    Args:
        grad_y: gradient of the result.
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, 3, 3).
        x2: (B, C2, H, W), second source, or None.
        y: result if there is an activation, else None.
        negative_slope: float, slope of the activation for negative inputs.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle, 1: none.
        algorithm: not used.
        needs_grad: five bools, one for each gradient.

    Returns:
        The five gradients, in the order above.
    """
    grad, needs_source = backpropagate_epilogue(grad_y, y, negative_slope, shuffle), needs_grad[0] or needs_grad[3]
    settings = (padding_mode, needs_source, needs_grad[1], needs_grad[2])
    grad_source, grad_weight, grad_bias = _compute_gradients(grad, _concatenate(x, x2), weight, *settings)
    grad_x = grad_x2 = None
    if needs_source:
        grad_x, grad_x2 = (to_channels_last(part) for part in grad_source.tensor_split([x.shape[1]], 1))
    if needs_grad[1]:
        grad_weight = to_contiguous(grad_weight.to(weight.dtype))
    if needs_grad[2]:
        grad_bias = grad_bias.to(weight.dtype)
    return [grad_x, grad_weight, grad_bias, grad_x2, to_channels_last(grad) if needs_grad[4] else None]
