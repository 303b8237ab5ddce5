# SPDX-License-Identifier: Apache-2.0
"""Modulated deformable convolution: checks, native calls, gradients, registration and the public function.

The native kernel reads NHWC memory. A tensor whose channel stride is 1 (channels_last, or a channel slice of a larger
channels_last tensor) is read in place; other tensors are copied, except contiguous offsets and masks of a contiguous
input on a CPU. The gradients of input, offset and mask are channels_last.
"""

import torch
from torch import Tensor

from fastds.ops.core import native, triton_loader
from fastds.ops.core.arguments import DTYPES, cast_floating, check_shape, check_tensor, get_autocast_dtype, is_int
from fastds.ops.core.backends import Backend
from fastds.ops.core.layout import (
    CHANNELS_LAST,
    as_nhwc,
    empty_map,
    get_output_format,
    sum_per_channel,
    to_channels_last,
    to_contiguous,
    to_memory_format,
)
from fastds.ops.core.plans import planned
from fastds.ops.core.registry import compute_vjp, define, needs_weight_grad
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.deform_conv2d import two_passes
from fastds.ops.impl.deform_conv2d.launch_args import count_groups, make_dims, make_triton_problem
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from fastds.ops.impl.deform_conv2d.selection import (
    SAMPLING_KERNELS,
    backward_prefers_triton,
    backward_uses_two_passes,
    describe_backward,
    describe_forward,
    forward_prefers_triton,
    select_native_forward,
)

__all__ = ["deform_conv2d"]

_FORWARD_KERNELS = {"cpu": "deform_conv2d_forward", "cuda": "deform_conv2d_forward_cuda"}
_BACKWARD_KERNELS = {"cpu": "deform_conv2d_backward", "cuda": "deform_conv2d_backward_weight_cuda"}


_MAX_PIXELS = 1 << 24  # float32, the dtype of positions, represents all integers up to here


def _pair(value) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _check_pair(name: str, pair, least: int) -> None:
    """Raise ValueError unless `pair` has two ints from `least` to 2^24 - 1."""
    first, second = pair if len(pair) == 2 else (None, None)
    if type(first) is type(second) is int and least <= first < _MAX_PIXELS and least <= second < _MAX_PIXELS:
        return  # fast path for ints: three times faster than the generic check
    if len(pair) != 2 or not all(is_int(v) and least <= v < _MAX_PIXELS for v in pair):
        given = pair[0] if len(pair) == 2 and pair[0] == pair[1] else tuple(pair)
        raise ValueError(f"{name} must be an int or a pair of ints from {least} to {_MAX_PIXELS - 1}, got {given!r}")


def get_output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return the output length along one axis.

    Args:
        size: input length in pixels.
        kernel: taps.
        stride: pixels.
        padding: pixels.
        dilation: pixels between taps.
    """
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def check(input, offset, weight, bias, stride, padding, dilation, mask) -> None:
    """Check the arguments of fastds.ops.deform_conv2d.

    Args:
        input: (B, C, H, W).
        offset: (B, 2 * G * K, H', W'), in pixels, for G offset groups and K taps.
        weight: (O, C / groups, k_h, k_w).
        bias: (O,) or None.
        stride: pair (rows, columns) in pixels.
        padding: pair (rows, columns) in pixels.
        dilation: pair (rows, columns) in pixels.
        mask: (B, G * K, H', W') or None.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device, stride, padding or dilation is invalid.
    """
    check_tensor("input", input, 4, DTYPES, None, "input")
    check_tensor("offset", offset, 4, (input.dtype, torch.float32), input.device, "input")
    check_tensor("weight", weight, 4, (input.dtype,), input.device, "input")
    batch, channels, height, width = input.shape
    out_channels, group_channels, k_h, k_w = weight.shape
    taps = k_h * k_w
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 0)):
        _check_pair(name, pair, least)
    if 0 in (channels, height, width):
        raise ValueError(f"input has shape {tuple(input.shape)}, expected at least one channel, row and column")
    if min(weight.shape) < 1 or channels % group_channels:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, expected (O, C/groups, rows, columns) "
            f"with C/groups a divisor of input's {channels} channels"
        )
    groups = channels // group_channels
    if out_channels % groups:
        raise ValueError(f"weight has {out_channels} output channels, expected a multiple of its {groups} groups")
    offset_groups = offset.shape[1] // (2 * taps)
    if offset.shape[1] % (2 * taps) or offset_groups < 1 or channels % offset_groups:
        raise ValueError(
            f"offset has {offset.shape[1]} channels, expected 2 * {taps} taps * offset groups "
            f"with offset groups a divisor of input's {channels} channels"
        )
    h_out = get_output_size(height, k_h, stride[0], padding[0], dilation[0])
    w_out = get_output_size(width, k_w, stride[1], padding[1], dilation[1])
    if h_out < 1 or w_out < 1:
        raise ValueError(f"output would have size {h_out} x {w_out}: the kernel is larger than the padded input")
    check_shape("offset", offset, (batch, 2 * offset_groups * taps, h_out, w_out))
    if mask is not None:
        check_tensor("mask", mask, 4, (input.dtype,), input.device, "input")
        check_shape("mask", mask, (batch, offset_groups * taps, h_out, w_out))
    if bias is not None:
        check_tensor("bias", bias, 1, (input.dtype,), input.device, "input")
        if bias.shape[0] != out_channels:
            raise ValueError(f"bias has {bias.shape[0]} values, expected {out_channels}, one per output channel")


def cast_for_autocast(input, offset, weight, bias, mask):
    """Cast the tensors under autocast.

    An offset of another dtype than the autocast dtype is cast to float32 if it is floating-point.

    Args:
        input: (B, C, H, W).
        offset: (B, 2 * G * K, H', W'), in pixels, for G offset groups and K taps.
        weight: (O, C / groups, k_h, k_w).
        bias: (O,) or None.
        mask: (B, G * K, H', W') or None.

    Returns:
        input, offset, weight, bias and mask.
    """
    dtype = get_autocast_dtype(input)
    if dtype is None:
        return input, offset, weight, bias, mask
    if isinstance(offset, Tensor) and offset.dtype != dtype:
        offset = cast_floating(offset, torch.float32)
    return (
        cast_floating(input, dtype),
        offset,
        cast_floating(weight, dtype),
        cast_floating(bias, dtype),
        cast_floating(mask, dtype),
    )


def _forward_native(input, offset, weight, bias, stride, padding, dilation, mask):
    """Run the native kernel: see deform_conv2d for the arguments."""
    groups, offset_groups = count_groups(input, offset, weight)
    shape, layout = (input.shape[0], weight.shape[0], *offset.shape[2:]), get_output_format(input)
    cuda = native.runs_on_cuda(input)
    # If `planar` is true, the kernel reads offset and mask and writes y in contiguous memory. The offsets must be
    # contiguous, because they are most of the memory that is read.
    planar = not cuda and CHANNELS_LAST not in (layout, get_output_format(offset))
    y = input.new_empty(shape) if planar else empty_map(shape, input.dtype, input)
    if y.numel():
        # A tensor whose address is passed stays referenced until the call returns.
        to_layout = to_contiguous if planar else as_nhwc
        x, offset, mask = as_nhwc(input), to_layout(offset), None if mask is None else to_layout(mask)
        weight, bias = (
            to_channels_last(weight) if cuda else to_contiguous(weight),
            None if bias is None else to_contiguous(bias),
        )
        dims = make_dims(x, offset, weight, mask, stride, padding, dilation, groups, offset_groups, planar)
        module = native.get_module()
        addresses = (native.get_address(t) for t in (x, offset, mask, weight, bias, y))
        geometry = (stride, padding, dilation)
        kernel = select_native_forward(x, offset, weight, bias, *geometry, mask) if cuda else None
        if kernel in SAMPLING_KERNELS:
            SAMPLING_KERNELS[kernel](x, offset, mask, weight, bias, y, dims)
        elif cuda:
            module.deform_conv2d_forward_cuda(*addresses, dims, *native.get_cuda_launch_arguments(input))
        else:
            module.deform_conv2d_forward(*addresses, dims, native.get_threads())
    return to_memory_format(y, layout)


def _forward_triton(input, offset, weight, bias, stride, padding, dilation, mask):
    """Run the Triton kernel: see deform_conv2d for the arguments."""
    groups, offset_groups = count_groups(input, offset, weight)
    shape, layout = (input.shape[0], weight.shape[0], *offset.shape[2:]), get_output_format(input)
    y = empty_map(shape, input.dtype, input)
    problem = make_triton_problem(weight, stride, padding, dilation, groups, offset_groups)
    x, offset, mask = as_nhwc(input), as_nhwc(offset), None if mask is None else as_nhwc(mask)
    weight, bias = to_channels_last(weight), None if bias is None else bias.contiguous()
    triton_loader.load_kernels("deform_conv2d").launch_forward(x, offset, mask, weight, bias, y, problem)
    return to_memory_format(y, layout)


def _forward_fake(input, offset, weight, bias, stride, padding, dilation, mask):
    shape = (input.shape[0], weight.shape[0], *offset.shape[2:])
    return input.new_empty(shape).to(memory_format=get_output_format(input))


def _empty_gradients(input, offset, weight, mask, needs_grad):
    """Allocate the gradients of input, offset, weight, bias and mask, or None where not needed."""
    bias = (weight.shape[0],)
    shapes = (input.shape, offset.shape, weight.shape, bias, None if mask is None else mask.shape)
    dtypes = (input.dtype, offset.dtype, *3 * (input.dtype,))
    layouts = [torch.contiguous_format if i in (2, 3) else CHANNELS_LAST for i in range(5)]
    return [
        torch.empty(shape, dtype=dtype, device=input.device, memory_format=layout) if needed else None
        for shape, dtype, layout, needed in zip(shapes, dtypes, layouts, needs_grad, strict=True)
    ]


def _check_backward(grad_y, input, offset, weight, stride, padding, dilation, mask, needs_grad) -> None:
    check(input, offset, weight, None, stride, padding, dilation, mask)
    check_tensor("grad_y", grad_y, 4, (input.dtype,), input.device, "input")
    check_shape("grad_y", grad_y, (input.shape[0], weight.shape[0], *offset.shape[2:]))
    if needs_grad[4] and mask is None:
        raise ValueError("needs_grad requests the gradient of mask, but mask is None")


def _backward_native(grad_y, input, offset, weight, stride, padding, dilation, mask, needs_grad):
    """Return the requested gradients of input, offset, weight, bias and mask by the native kernels."""
    groups, offset_groups = count_groups(input, offset, weight)
    grads = _empty_gradients(input, offset, weight, mask, needs_grad)
    if grad_y.numel() == 0:
        return [grad.zero_() for grad in grads if grad is not None]
    grad_y = to_channels_last(grad_y)
    x, offset, mask = as_nhwc(input), as_nhwc(offset), None if mask is None else as_nhwc(mask)
    cuda = native.runs_on_cuda(input)
    if cuda and mask is not None and torch.are_deterministic_algorithms_enabled():
        mask = to_channels_last(mask)  # dense, because the kernel searches its largest value
    dims = make_dims(x, offset, weight, mask, stride, padding, dilation, groups, offset_groups)
    if cuda and backward_uses_two_passes(grad_y, x, offset, weight, stride, padding, dilation, mask, needs_grad):
        _backward_two_passes(grad_y, x, offset, mask, to_channels_last(weight), grads, dims)
        return [grad for grad in grads if grad is not None]
    weight = to_contiguous(weight)
    if cuda:
        _backward_cuda(grad_y, x, offset, mask, weight, grads, dims)
        return [grad for grad in grads if grad is not None]
    module, threads = native.get_module(), native.get_threads()
    workspace = torch.empty(module.deform_conv2d_workspace(dims), dtype=torch.uint8, device=input.device)
    grad_x, grad_offset, grad_weight, grad_bias, grad_mask = grads
    tensors = (grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, grad_weight, grad_bias, workspace)
    module.deform_conv2d_backward(*(native.get_address(t) for t in tensors), dims, threads)
    return [grad for grad in grads if grad is not None]


def _backward_triton(grad_y, input, offset, weight, stride, padding, dilation, mask, needs_grad):
    """Return the requested gradients of input, offset, weight, bias and mask by the Triton kernels."""
    groups, offset_groups = count_groups(input, offset, weight)
    grads = _empty_gradients(input, offset, weight, mask, needs_grad)
    if grad_y.numel() == 0:
        return [grad.zero_() for grad in grads if grad is not None]
    kernels = triton_loader.load_kernels("deform_conv2d_backward")
    problem = make_triton_problem(weight, stride, padding, dilation, groups, offset_groups)
    grad_y = to_channels_last(grad_y)
    x, offset, mask = as_nhwc(input), as_nhwc(offset), None if mask is None else as_nhwc(mask)
    weight = to_channels_last(weight)
    if needs_grad[0]:  # the kernel adds in float32 for every dtype
        grads[0] = torch.zeros_like(grads[0], dtype=torch.float32)
    kernels.launch_maps(grad_y, x, offset, mask, weight, grads[0], grads[1], grads[4], problem)
    if needs_grad[0]:
        grads[0] = grads[0].to(input.dtype)
    if needs_grad[2]:
        grads[2] = to_contiguous(
            kernels.compute_weight_gradient(grad_y, x, offset, mask, weight, problem).to(weight.dtype)
        )
    if needs_grad[3]:
        grads[3] = sum_per_channel(grad_y).to(grad_y.dtype)
    return [grad for grad in grads if grad is not None]


def _backward_cuda(grad_y, x, offset, mask, weight, grads, dims):
    """Compute the gradients in the list `grads` of _empty_gradients.

    All workspaces are allocated by torch, so that CUDA graphs can capture the call.

    Args:
        grad_y: gradient of the result, channels_last.
        x: input. x, offset and mask have channel stride 1.
        offset: offsets.
        mask: mask or None.
        weight: contiguous weight.
        grads: outputs; gradients that are not needed are None.
        dims: sizes and strides from make_dims.
    """
    module, launch = native.get_module(), native.get_cuda_launch_arguments(x)
    grad_x, grad_offset, grad_weight, grad_bias, grad_mask = grads
    inputs = (grad_y, x, offset, mask)
    if grad_x is not None or grad_offset is not None or grad_mask is not None:
        weight, sums, workspace = weight.flatten(2).permute(2, 0, 1).contiguous(), grad_x, None  # (K, O, C/groups)
        if grad_x is not None and torch.are_deterministic_algorithms_enabled():
            size = module.deform_conv2d_ordered_workspace(dims)
            workspace = torch.zeros(size, dtype=torch.uint8, device=x.device)
        else:
            sums = _make_sums(grad_x)
        tensors: tuple = (*inputs, weight, sums, grad_offset, grad_mask, workspace)
        module.deform_conv2d_backward_samples_cuda(*(native.get_address(t) for t in tensors), dims, *launch)
        if sums is not grad_x:
            grad_x.copy_(sums)
    if grad_weight is not None:
        size = module.deform_conv2d_weight_workspace(dims)
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        tensors = (*inputs, grad_weight, workspace)
        module.deform_conv2d_backward_weight_cuda(*(native.get_address(t) for t in tensors), dims, *launch)
    if grad_bias is not None:
        grad_bias.copy_(sum_per_channel(grad_y))


def _backward_two_passes(grad_y, x, offset, mask, weight, grads, dims):
    """Compute the gradients in the list `grads`; see _backward_cuda for the arguments. The weight is channels_last."""
    grad_x, grad_offset, grad_weight, grad_bias, grad_mask = grads
    sums = _make_sums(grad_x)
    weight_sums = two_passes.compute_gradients(
        grad_y, x, offset, mask, weight, sums, grad_offset, grad_mask, dims, grad_weight is not None
    )
    if sums is not grad_x:
        grad_x.copy_(sums)
    if grad_weight is not None:
        grad_weight.copy_(weight_sums)
    if grad_bias is not None:
        grad_bias.copy_(sum_per_channel(grad_y))


def _make_sums(grad_x):
    """Return zeros for atomic additions, in float32 or better, or None for None. They are grad_x itself if possible."""
    if grad_x is None:
        return None
    sum_dtype = torch.float64 if grad_x.dtype == torch.float64 else torch.float32
    return grad_x.zero_() if grad_x.dtype == sum_dtype else torch.zeros_like(grad_x, dtype=sum_dtype)


def _backward_fake(grad_y, input, offset, weight, stride, padding, dilation, mask, needs_grad):
    return [grad for grad in _empty_gradients(input, offset, weight, mask, needs_grad) if grad is not None]


def _backward_reference(grad_y, input, offset, weight, stride, padding, dilation, mask, needs_grad):
    """Compute the gradients by autograd on the reference; they are differentiable to any order."""
    bias = weight.new_zeros(weight.shape[0])

    def formula(input, offset, weight, bias, mask):
        return reference(input, offset, weight, bias, stride, padding, dilation, mask)

    return compute_vjp(formula, (input, offset, weight, bias, mask), (grad_y,), needs_grad)


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *args):
        input, offset, weight, _, *ctx.geometry, mask = args
        ctx.save_for_backward(input, offset, weight, mask)
        return run(*args)

    @staticmethod
    def backward(ctx, grad_y):
        input, offset, weight, mask = ctx.saved_tensors
        needs_grad = [ctx.needs_input_grad[i] for i in (1, 2, 3, 4, 8)]
        needs_grad[2:4] = needs_weight_grad(ctx, weight, grad_y, 3, 4)
        arguments = (grad_y, input, offset, weight, *ctx.geometry, mask, needs_grad)
        grads = iter(DEFORM_CONV2D_BACKWARD.call_unchecked(*arguments))
        grad_x, grad_offset, grad_weight, grad_bias, grad_mask = (
            next(grads) if needed else None for needed in needs_grad
        )
        return None, grad_x, grad_offset, grad_weight, grad_bias, None, None, None, grad_mask


_INPUTS = "Tensor input, Tensor offset, Tensor weight"
_DEFAULTS = "int[2] stride=1, int[2] padding=0, int[2] dilation=1"
_SIZES = "int[2] stride, int[2] padding, int[2] dilation"

DEFORM_CONV2D = define(
    f"deform_conv2d({_INPUTS}, Tensor? bias=None, {_DEFAULTS}, Tensor? mask=None) -> Tensor",
    reference=reference,
    backends={
        "native": Backend(_forward_native, lambda input, *_: native.unsupported_reason(_FORWARD_KERNELS, input)),
        "triton": Backend(
            _forward_triton,
            lambda input, *_: triton_loader.unsupported_reason(input),
            forward_prefers_triton,
        ),
    },
    fake=_forward_fake,
    check=check,
    function=_DeformConv2d,
    describe=describe_forward,
)

DEFORM_CONV2D_BACKWARD = define(
    f"deform_conv2d_backward(Tensor grad_y, {_INPUTS}, {_SIZES}, Tensor? mask, bool[5] needs_grad) -> Tensor[]",
    reference=_backward_reference,
    backends={
        "native": Backend(_backward_native, lambda grad_y, *_: native.unsupported_reason(_BACKWARD_KERNELS, grad_y)),
        "triton": Backend(
            _backward_triton,
            lambda grad_y, *args: triton_loader.atomic_unsupported_reason(grad_y, args[-1][0]),
            backward_prefers_triton,
        ),
    },
    fake=_backward_fake,
    check=_check_backward,
    describe=describe_backward,
)


@planned
def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Apply a modulated deformable convolution (DCNv2), in which each tap reads the input at its own position.

    y[b,o,i,j] = bias[o] + sum_{c,k} weight[o,c,k] * mask[b,g(c)*K+k,i,j]
                 * S(input[b,c], i*s_h - p_h + k_h*d_h + offset[b,(g(c)*K+k)*2,i,j],
                                 j*s_w - p_w + k_w*d_w + offset[b,(g(c)*K+k)*2+1,i,j])

    S is bilinear interpolation with zeros outside: S is 0 where y <= -1, y >= H, x <= -1 or x >= W, and corners outside
    the image count as 0. K is the number of taps, G the number of offset groups and g(c) = c // (C/G). The sample at a
    NaN or infinite offset is 0. The order of the arguments and, up to rounding errors, the results are those of
    torchvision.ops.deform_conv2d.

    Args:
        input: (B, C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        offset: (B, 2*G*K, H', W'), pixels, pairs (dy, dx) for each group and tap; dtype of input or float32.
        weight: (O, C/groups, k_h, k_w), dtype of input.
        bias: (O,), dtype of input, or None.
        stride: int or pair, s, pixels, 1 to 2^24 - 1.
        padding: int or pair, p, pixels of zeros on each side, 0 to 2^24 - 1.
        dilation: int or pair, d, pixels between taps, 0 to 2^24 - 1. With 0 the offsets alone place the K points.
        mask: (B, G*K, H', W'), dtype of input, factors of the samples, or None for 1.

    Returns:
        (B, O, H', W'), dtype of input, contiguous if input is contiguous, else channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device, stride, padding or dilation is invalid.

    Gradients exist for input, offset, weight, bias and mask, to any order (the reference computes orders beyond the
    first). At an integer position, the derivative with respect to the offset is the derivative towards larger
    coordinates; outside the image it is 0. On a CPU results are deterministic and do not depend on the number of
    threads, bit for bit. On a GPU the gradient of input is summed by atomic additions, so that its last bits vary. With
    torch.use_deterministic_algorithms(True), CUDA C++ sums it in fixed point, so that it is deterministic. jvp and vmap
    run on the reference. Sums are computed in float32 (float64 for float64), positions in float32 or better. Under
    autocast input, weight, bias and mask are cast to the autocast dtype; offset is cast to float32 unless it has the
    autocast dtype.

    Source: Zhu et al. 2019, Deformable ConvNets v2, equation 1; Dai et al. 2017.
    """
    if type(input) is Proxy:
        return record_op(deform_conv2d, locals())
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    input, offset, weight, bias, mask = cast_for_autocast(input, offset, weight, bias, mask)
    return DEFORM_CONV2D(input, offset, weight, bias, stride, padding, dilation, mask)
