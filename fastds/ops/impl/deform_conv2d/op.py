# SPDX-License-Identifier: Apache-2.0
"""Modulated deformable convolution: validation, native calls, gradients, registration and the public function.

The native kernel works on NHWC memory: a tensor whose channel stride is 1 (channels_last, or a channel slice of a wider
channels_last map) is read in place, any other is copied first. Gradients come back in channels_last.
"""

import torch
from torch import Tensor

from fastds.ops.core import native, triton_loader
from fastds.ops.core.arguments import DTYPES, autocast_dtype, cast, check_shape, check_tensor, is_count
from fastds.ops.core.backends import Backend
from fastds.ops.core.layout import CHANNELS_LAST, channel_sums, dense, empty_map, laid_out, nhwc, output_format, plain
from fastds.ops.core.registry import define, reached, vector_jacobian
from fastds.ops.core.tracing import Proxy, record
from fastds.ops.impl.deform_conv2d.calls import (
    dims_of,
    forward_prefers_triton,
    group_counts,
    prefers_triton,
    triton_problem,
)
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference

__all__ = ["deform_conv2d"]

_FORWARD = {"cpu": "deform_conv2d_forward", "cuda": "deform_conv2d_forward_cuda"}
_BACKWARD = {"cpu": "deform_conv2d_backward", "cuda": "deform_conv2d_backward_weight_cuda"}


_END = 1 << 24  # pixels: float32, in which positions are, counts them one by one up to here


def _pair(value) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _check_pair(name: str, pair, least: int) -> None:
    first, second = pair if len(pair) == 2 else (None, None)
    if type(first) is type(second) is int and least <= first < _END and least <= second < _END:
        return  # a third of the time
    if len(pair) != 2 or not all(is_count(v) and least <= v < _END for v in pair):
        given = pair[0] if len(pair) == 2 and pair[0] == pair[1] else tuple(pair)
        raise ValueError(f"{name} must be an int or a pair of ints from {least} to {_END - 1}, got {given!r}")


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Output length along one axis, in pixels."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def check(input, offset, weight, bias, stride, padding, dilation, mask) -> None:
    """Refuses what the kernel cannot take."""
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
    h_out = output_size(height, k_h, stride[0], padding[0], dilation[0])
    w_out = output_size(width, k_w, stride[1], padding[1], dilation[1])
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


def autocast(input, offset, weight, bias, mask):
    """Casts what autocast covers; the offset keeps its dtype, float32 where that would be the other 16-bit dtype."""
    dtype = autocast_dtype(input)
    if dtype is None:
        return input, offset, weight, bias, mask
    if isinstance(offset, Tensor) and offset.dtype != dtype:
        offset = cast(offset, torch.float32)
    return cast(input, dtype), offset, cast(weight, dtype), cast(bias, dtype), cast(mask, dtype)


def _forward_native(input, offset, weight, bias, stride, padding, dilation, mask):
    groups, offset_groups = group_counts(input, offset, weight)
    shape, layout = (input.shape[0], weight.shape[0], *offset.shape[2:]), output_format(input)
    cuda = native.runs_on_cuda(input)
    # The kernel reads and writes planes then, but for input: where its offsets lie so, which are most of what it reads.
    planar = not cuda and CHANNELS_LAST not in (layout, output_format(offset))
    y = input.new_empty(shape) if planar else empty_map(shape, input.dtype, input)
    if y.numel():
        # Every tensor that gives its address stays bound to a name until the call returns.
        rows = plain if planar else nhwc
        x, offset, mask = nhwc(input), rows(offset), None if mask is None else rows(mask)
        weight, bias = dense(weight) if cuda else plain(weight), None if bias is None else plain(bias)
        dims = dims_of(x, offset, weight, mask, stride, padding, dilation, groups, offset_groups, planar)
        module = native.module()
        addresses = (native.address(t) for t in (x, offset, mask, weight, bias, y))
        if cuda:
            module.deform_conv2d_forward_cuda(*addresses, dims, *native.cuda_launch(input))
        else:
            module.deform_conv2d_forward(*addresses, dims, torch.get_num_threads())
    return laid_out(y, layout)


def _forward_triton(input, offset, weight, bias, stride, padding, dilation, mask):
    groups, offset_groups = group_counts(input, offset, weight)
    shape, layout = (input.shape[0], weight.shape[0], *offset.shape[2:]), output_format(input)
    y = empty_map(shape, input.dtype, input)
    problem = triton_problem(weight, stride, padding, dilation, groups, offset_groups)
    x, offset, mask = nhwc(input), nhwc(offset), None if mask is None else nhwc(mask)
    weight, bias = dense(weight), None if bias is None else bias.contiguous()
    triton_loader.kernels("deform_conv2d").launch_forward(x, offset, mask, weight, bias, y, problem)
    return laid_out(y, layout)


def _forward_fake(input, offset, weight, bias, stride, padding, dilation, mask):
    shape = (input.shape[0], weight.shape[0], *offset.shape[2:])
    return input.new_empty(shape).to(memory_format=output_format(input))


def _empty_gradients(input, offset, weight, mask, wanted):
    """Gradients of input, offset, weight, bias and mask in this order, None where not wanted."""
    bias = (weight.shape[0],)
    shapes = (input.shape, offset.shape, weight.shape, bias, None if mask is None else mask.shape)
    dtypes = (input.dtype, offset.dtype, *3 * (input.dtype,))
    layouts = [torch.contiguous_format if i in (2, 3) else CHANNELS_LAST for i in range(5)]
    return [
        torch.empty(shape, dtype=dtype, device=input.device, memory_format=layout) if want else None
        for shape, dtype, layout, want in zip(shapes, dtypes, layouts, wanted, strict=True)
    ]


def _check_backward(grad_y, input, offset, weight, stride, padding, dilation, mask, wanted) -> None:
    check(input, offset, weight, None, stride, padding, dilation, mask)
    check_tensor("grad_y", grad_y, 4, (input.dtype,), input.device, "input")
    check_shape("grad_y", grad_y, (input.shape[0], weight.shape[0], *offset.shape[2:]))
    if wanted[4] and mask is None:
        raise ValueError("wanted asks for the gradient of mask, but mask is None")


def _backward_native(grad_y, input, offset, weight, stride, padding, dilation, mask, wanted):
    groups, offset_groups = group_counts(input, offset, weight)
    grads = _empty_gradients(input, offset, weight, mask, wanted)
    if grad_y.numel() == 0:
        return [grad.zero_() for grad in grads if grad is not None]
    grad_y = dense(grad_y)
    x, offset, mask, weight = nhwc(input), nhwc(offset), None if mask is None else nhwc(mask), plain(weight)
    cuda = native.runs_on_cuda(input)
    if cuda and mask is not None and torch.are_deterministic_algorithms_enabled():
        mask = dense(mask)  # its largest value is searched
    dims = dims_of(x, offset, weight, mask, stride, padding, dilation, groups, offset_groups)
    if cuda:
        _backward_cuda(grad_y, x, offset, mask, weight, grads, dims)
        return [grad for grad in grads if grad is not None]
    module, threads = native.module(), torch.get_num_threads()
    workspace = torch.empty(module.deform_conv2d_workspace(dims), dtype=torch.uint8, device=input.device)
    grad_x, grad_offset, grad_weight, grad_bias, grad_mask = grads
    tensors = (grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, grad_weight, grad_bias, workspace)
    module.deform_conv2d_backward(*(native.address(t) for t in tensors), dims, threads)
    return [grad for grad in grads if grad is not None]


def _backward_triton(grad_y, input, offset, weight, stride, padding, dilation, mask, wanted):
    groups, offset_groups = group_counts(input, offset, weight)
    grads = _empty_gradients(input, offset, weight, mask, wanted)
    if grad_y.numel() == 0:
        return [grad.zero_() for grad in grads if grad is not None]
    kernels = triton_loader.kernels("deform_conv2d_backward")
    problem = triton_problem(weight, stride, padding, dilation, groups, offset_groups)
    grad_y = dense(grad_y)
    x, offset, mask = nhwc(input), nhwc(offset), None if mask is None else nhwc(mask)
    weight = dense(weight)
    if wanted[0]:  # the additions are in float32 in every dtype
        grads[0] = torch.zeros_like(grads[0], dtype=torch.float32)
    kernels.launch_maps(grad_y, x, offset, mask, weight, grads[0], grads[1], grads[4], problem)
    if wanted[0]:
        grads[0] = grads[0].to(input.dtype)
    if wanted[2]:
        grads[2] = plain(kernels.weight_gradient(grad_y, x, offset, mask, weight, problem).to(weight.dtype))
    if wanted[3]:
        grads[3] = channel_sums(grad_y).to(grad_y.dtype)
    return [grad for grad in grads if grad is not None]


def _backward_cuda(grad_y, x, offset, mask, weight, grads, dims):
    """Fills grads, the list of _empty_gradients; every workspace comes from torch, so that CUDA graphs can own it."""
    module, launch = native.module(), native.cuda_launch(x)
    grad_x, grad_offset, grad_weight, grad_bias, grad_mask = grads
    inputs = (grad_y, x, offset, mask)
    if grad_x is not None or grad_offset is not None or grad_mask is not None:
        weight, sums, workspace = weight.flatten(2).permute(2, 0, 1).contiguous(), grad_x, None  # (K, O, C/groups)
        if grad_x is not None and torch.are_deterministic_algorithms_enabled():
            size = module.deform_conv2d_ordered_workspace(dims)
            workspace = torch.zeros(size, dtype=torch.uint8, device=x.device)
        elif grad_x is not None:  # atomic additions, in float32 or better
            wide = torch.float64 if grad_x.dtype == torch.float64 else torch.float32
            sums = grad_x.zero_() if grad_x.dtype == wide else torch.zeros_like(grad_x, dtype=wide)
        tensors = (*inputs, weight, sums, grad_offset, grad_mask, workspace)
        module.deform_conv2d_backward_samples_cuda(*(native.address(t) for t in tensors), dims, *launch)
        if sums is not grad_x:
            grad_x.copy_(sums)
    if grad_weight is not None:
        size = module.deform_conv2d_weight_workspace(dims)
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        tensors = (*inputs, grad_weight, workspace)
        module.deform_conv2d_backward_weight_cuda(*(native.address(t) for t in tensors), dims, *launch)
    if grad_bias is not None:
        grad_bias.copy_(channel_sums(grad_y))


def _backward_fake(grad_y, input, offset, weight, stride, padding, dilation, mask, wanted):
    return [grad for grad in _empty_gradients(input, offset, weight, mask, wanted) if grad is not None]


def _backward_reference(grad_y, input, offset, weight, stride, padding, dilation, mask, wanted):
    """The gradients by autograd on the reference formula, recomputed from the inputs: differentiable to any order."""
    bias = weight.new_zeros(weight.shape[0])

    def formula(input, offset, weight, bias, mask):
        return reference(input, offset, weight, bias, stride, padding, dilation, mask)

    return vector_jacobian(formula, (input, offset, weight, bias, mask), (grad_y,), wanted)


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *args):
        input, offset, weight, _, *ctx.geometry, mask = args
        ctx.save_for_backward(input, offset, weight, mask)
        return run(*args)

    @staticmethod
    def backward(ctx, grad_y):
        input, offset, weight, mask = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[i] for i in (1, 2, 3, 4, 8)]
        wanted[2:4] = reached(ctx, weight, grad_y, 3, 4)
        arguments = (grad_y, input, offset, weight, *ctx.geometry, mask, wanted)
        grads = iter(DEFORM_CONV2D_BACKWARD.trusted(*arguments))
        grad_x, grad_offset, grad_weight, grad_bias, grad_mask = (next(grads) if want else None for want in wanted)
        return None, grad_x, grad_offset, grad_weight, grad_bias, None, None, None, grad_mask


_INPUTS = "Tensor input, Tensor offset, Tensor weight"
_DEFAULTS = "int[2] stride=1, int[2] padding=0, int[2] dilation=1"
_SIZES = "int[2] stride, int[2] padding, int[2] dilation"

DEFORM_CONV2D = define(
    f"deform_conv2d({_INPUTS}, Tensor? bias=None, {_DEFAULTS}, Tensor? mask=None) -> Tensor",
    reference=reference,
    backends={
        "native": Backend(_forward_native, lambda input, *_: native.refusal(_FORWARD, input)),
        "triton": Backend(
            _forward_triton,
            lambda input, *_: triton_loader.refusal(input),
            forward_prefers_triton,
        ),
    },
    fake=_forward_fake,
    check=check,
    function=_DeformConv2d,
)

DEFORM_CONV2D_BACKWARD = define(
    f"deform_conv2d_backward(Tensor grad_y, {_INPUTS}, {_SIZES}, Tensor? mask, bool[5] wanted) -> Tensor[]",
    reference=_backward_reference,
    backends={
        "native": Backend(_backward_native, lambda grad_y, *_: native.refusal(_BACKWARD, grad_y)),
        "triton": Backend(
            _backward_triton,
            lambda grad_y, *args: triton_loader.atomic_refusal(grad_y, args[-1][0]),
            lambda grad_y, input, offset, weight, *_: prefers_triton(input, weight),
        ),
    },
    fake=_backward_fake,
    check=_check_backward,
)


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
    """Modulated deformable convolution (DCNv2): every tap reads the input at a position of its own.

    y[b,o,i,j] = bias[o] + sum_{c,k} weight[o,c,k] * mask[b,g(c)*K+k,i,j]
                 * S(input[b,c], i*s_h - p_h + k_h*d_h + offset[b,(g(c)*K+k)*2,i,j],
                                 j*s_w - p_w + k_w*d_w + offset[b,(g(c)*K+k)*2+1,i,j])

    S is bilinear over a zero border: 0 where y <= -1, y >= H, x <= -1 or x >= W; a corner outside counts 0.
    g(c) = c // (C/G). A NaN or infinite offset makes its sample 0. Argument order and numbers are those of
    torchvision.ops.deform_conv2d.

    Args:
        input: (B, C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        offset: (B, 2*G*K, H', W'), pixels, pairs (dy, dx) per group and tap; dtype of input or float32.
        weight: (O, C/groups, k_h, k_w), dtype of input, as are bias and mask.
        bias: (O,) or None.
        stride: s, pixels, >= 1, as padding and dilation below 2^24.
        padding: p, pixels of zeros on each side, >= 0.
        dilation: d, pixels between taps, >= 0; 0 leaves K free points placed by the offset alone.
        mask: (B, G*K, H', W') factors of the samples, or None for 1.

    Returns:
        (B, O, H', W'), dtype of input; contiguous when input is contiguous, else channels_last.

    Gradients: input, offset, weight, bias and mask, to any order (beyond the first by the reference formula). At an
    integer position the derivative is that of the cell to its right; outside it is 0. Deterministic, and independent of
    the number of threads, bit for bit; only on a GPU the gradient of input adds atomically, unless
    torch.use_deterministic_algorithms(True): then in fixed point by CUDA C++. jvp and vmap run on the reference.
    Sums are in float32 (float64 for float64), positions in float32 or better. Under autocast input, weight, bias and
    mask take its dtype, offset keeps its own.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device, stride, padding or dilation that does not fit.

    Source: Zhu et al. 2019, Deformable ConvNets v2, equation 1; Dai et al. 2017.
    """
    if type(input) is Proxy:
        return record(deform_conv2d, locals())
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    input, offset, weight, bias, mask = autocast(input, offset, weight, bias, mask)
    return DEFORM_CONV2D(input, offset, weight, bias, stride, padding, dilation, mask)
