# SPDX-License-Identifier: Apache-2.0
"""deform_conv2d guided by a raw map: offsets and mask of one convolution, sigmoid and base offset inside the kernel.

Triton alone has it as one kernel: on a GPU it saves the sigmoid's and the base offset's passes over the largest maps of
the network. Elsewhere fastds.nn.GuidedDeformConv2d composes the same from deform_conv2d.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core import triton_loader as _triton
from fastds.ops.core.backends import forced
from fastds.ops.core.registry import Backend, call, define, vector_jacobian, without_gradients
from fastds.ops.impl.deform_conv2d.op import _autocast, _check_tensor, _nhwc, _output_format, check, triton_problem
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference_deform_conv2d

_CL = torch.channels_last


def _geometry(weight):
    """Stride, padding and dilation that keep the size of the field."""
    return (1, 1), (weight.shape[2] // 2, weight.shape[3] // 2), (1, 1)


def _split(raw, weight, offset_groups, modulated):
    """Views of the offset and the mask part of a raw map."""
    split = 2 * offset_groups * weight.shape[2] * weight.shape[3]
    return raw[:, :split], raw[:, split:] if modulated else None


def _check(input, raw, weight, bias, base_offset, offset_groups, modulated, slope):
    """Refuses what the kernel cannot take; returns the groups of the convolution."""
    if not 0 < slope < float("inf"):
        raise ValueError(f"slope must be a finite number > 0, got {slope!r}")
    _check_tensor("raw", raw, 4, (input.dtype, torch.float32), input.device)
    _check_tensor("weight", weight, 4, (input.dtype,), input.device)
    maps = (3 if modulated else 2) * offset_groups * weight.shape[2] * weight.shape[3]
    if offset_groups < 1 or raw.shape[1] != maps:
        raise ValueError(f"raw has {raw.shape[1]} channels, expected {maps} for {offset_groups} offset groups")
    groups, _, _, _ = check(input, _split(raw, weight, offset_groups, False)[0], weight, bias, *_geometry(weight), None)
    if base_offset is not None:
        _check_tensor("base_offset", base_offset, 4, (input.dtype, torch.float32), input.device)
        expected = (input.shape[0], 2, *raw.shape[2:])
        if tuple(base_offset.shape) != expected:
            raise ValueError(f"base_offset has shape {tuple(base_offset.shape)}, expected {expected}")
    return groups


def _base(base_offset):
    return None if base_offset is None else base_offset.to(torch.float32).contiguous()


def _reference(input, raw, weight, bias, base_offset, offset_groups, modulated, slope):
    offset, mask = _split(raw, weight, offset_groups, modulated)
    offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
    if base_offset is not None:
        pairs = offset.unflatten(1, (-1, 2)) + base_offset.to(offset.dtype).unsqueeze(1)
        offset = pairs.flatten(1, 2)
    mask = None if mask is None else mask.to(offset.dtype).sigmoid()
    wide = input.to(offset.dtype)  # as the kernel: nothing is rounded between the maps and the sum
    bias = None if bias is None else bias.to(offset.dtype)
    y = reference_deform_conv2d(wide, offset, weight.to(offset.dtype), bias, *_geometry(weight), mask)
    return F.leaky_relu(y, slope).to(input.dtype)


def _forward(input, raw, weight, bias, base_offset, offset_groups, modulated, slope):
    groups = _check(input, raw, weight, bias, base_offset, offset_groups, modulated, slope)
    shape = (input.shape[0], weight.shape[0], *raw.shape[2:])
    y = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=_CL)
    offset, mask = _split(_nhwc(raw), weight, offset_groups, modulated)
    weight, bias = weight.contiguous(memory_format=_CL), None if bias is None else bias.contiguous()
    _triton.kernels("deform_conv2d").launch_forward(
        _nhwc(input), offset, mask, weight, bias, y, triton_problem(weight, *_geometry(weight), groups, offset_groups),
        base=_base(base_offset), sigmoid=modulated, slope=slope if slope != 1 else None,
    )  # fmt: skip
    return y.contiguous(memory_format=_output_format(input))


def _fake(input, raw, weight, bias, base_offset, offset_groups, modulated, slope):
    _check(input, raw, weight, bias, base_offset, offset_groups, modulated, slope)
    return input.new_empty((input.shape[0], weight.shape[0], *raw.shape[2:])).to(memory_format=_output_format(input))


def _backward(grad_y, input, raw, weight, base_offset, offset_groups, modulated, wanted):
    """Gradients of input, raw, weight, bias and base_offset, in this order, of those that are wanted; no activation."""
    groups = _check(input, raw, weight, None, base_offset, offset_groups, modulated, 1.0)
    kernels = _triton.kernels("deform_conv2d_backward")
    problem = triton_problem(weight, *_geometry(weight), groups, offset_groups)
    if grad_y.numel() == 0:
        return [
            g.zero_() for g in _backward_fake(grad_y, input, raw, weight, base_offset, offset_groups, modulated, wanted)
        ]
    grad_y = grad_y.contiguous(memory_format=_CL)
    x, base = _nhwc(input), _base(base_offset)
    offset, mask = _split(_nhwc(raw), weight, offset_groups, modulated)
    weight = weight.contiguous(memory_format=_CL)
    grad_x = torch.zeros(input.shape, dtype=torch.float32, device=x.device).to(memory_format=_CL) if wanted[0] else None
    # grad_base is a sum of grad_offset, and takes it in float32.
    dtype = torch.float32 if wanted[4] else raw.dtype
    asked = wanted[1] or wanted[4]
    grad_raw = torch.empty(raw.shape, dtype=dtype, device=x.device, memory_format=_CL) if asked else None
    grad_offset, grad_mask = _split(grad_raw, weight, offset_groups, modulated) if asked else (None, None)
    options = {"base": base, "sigmoid": modulated}
    kernels.launch_maps(grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, problem, **options)
    grads = []
    if wanted[0]:
        grads.append(grad_x.to(input.dtype))
    if wanted[1]:
        grads.append(grad_raw.to(raw.dtype))
    if wanted[2]:
        grads.append(kernels.weight_gradient(grad_y, x, offset, mask, weight, problem, **options).to(weight.dtype))
    if wanted[3]:
        grads.append(grad_y.sum((0, 2, 3), dtype=torch.float32).to(grad_y.dtype))
    if wanted[4]:
        grads.append(grad_offset.unflatten(1, (-1, 2)).sum(1).to(base_offset.dtype))
    return grads


def _backward_fake(grad_y, input, raw, weight, base_offset, offset_groups, modulated, wanted):
    shapes = [input, raw, weight, None, base_offset]
    return [
        grad_y.new_empty(weight.shape[0]) if like is None else torch.empty_like(like)
        for like, want in zip(shapes, wanted, strict=True)
        if want
    ]


def _backward_reference(grad_y, input, raw, weight, base_offset, offset_groups, modulated, wanted):
    bias = grad_y.new_zeros(weight.shape[0])

    def formula(*tensors):
        return _reference(*tensors, offset_groups, modulated, 1.0)

    return vector_jacobian(formula, (input, raw, weight, bias, base_offset), (grad_y,), wanted)


class _GuidedDeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, raw, weight, bias, base_offset, offset_groups, modulated, slope):
        args = (input, raw, weight, bias, base_offset, offset_groups, modulated, slope)
        y = without_gradients(GUIDED_DEFORM_CONV2D, *args)
        # The sign of the activation's output is that of its input.
        ctx.save_for_backward(input, raw, weight, base_offset, None if slope == 1 else y)
        ctx.options, ctx.slope = (offset_groups, modulated), slope
        return y

    @staticmethod
    def backward(ctx, grad_y):
        *tensors, y = ctx.saved_tensors
        if y is not None:
            grad_y = torch.where(y >= 0, grad_y, ctx.slope * grad_y)
        wanted = [ctx.needs_input_grad[i] for i in range(5)]
        grads = iter(call(GUIDED_DEFORM_CONV2D_BACKWARD, grad_y, *tensors, *ctx.options, wanted))
        return (*(next(grads) if want else None for want in wanted), None, None, None)


def _refuses_backward(grad_y, wanted):
    if wanted[0] and torch.are_deterministic_algorithms_enabled():
        return "its gradient of input adds atomically, and torch.use_deterministic_algorithms is on"
    return _triton.refusal(grad_y)


_INPUTS = "Tensor input, Tensor raw, Tensor weight"
_OPTIONS = "Tensor? base_offset, int offset_groups, bool modulated"

GUIDED_DEFORM_CONV2D = define(
    f"guided_deform_conv2d({_INPUTS}, Tensor? bias, {_OPTIONS}, float slope=1.0) -> Tensor",
    reference=_reference,
    backends={"triton": Backend(_forward, lambda input, *_: _triton.refusal(input))},
    fake=_fake,
    function=_GuidedDeformConv2d,
)

GUIDED_DEFORM_CONV2D_BACKWARD = define(
    f"guided_deform_conv2d_backward(Tensor grad_y, {_INPUTS}, {_OPTIONS}, bool[5] wanted) -> Tensor[]",
    reference=_backward_reference,
    backends={"triton": Backend(_backward, lambda grad_y, *args: _refuses_backward(grad_y, args[-1]))},
    fake=_backward_fake,
)


def runs(input: Tensor) -> bool:
    """Whether the one kernel takes the input; else the caller composes the op from deform_conv2d."""
    if forced() not in (None, "triton"):
        return False
    deterministic = torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled()
    return input.device.type == "cuda" and _triton.refusal(input) is None and not deterministic


def guided_deform_conv2d(
    input: Tensor,
    raw: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    base_offset: Tensor | None,
    offset_groups: int,
    modulated: bool,
    slope: float = 1.0,
) -> Tensor:
    """Modulated deformable convolution, size kept, of a raw offset and mask map.

    [o | m] = raw;  y = leaky_relu(deform_conv2d(input, o + base_offset, weight, bias, mask=sigmoid(m)), slope)

    Args:
        input: (B, C, H, W), float32, float16 or bfloat16; fastest in channels_last, as raw.
        raw: (B, 3GK, H, W), the 2GK offsets in pixels, pairs (dy, dx) per group and tap, then GK values whose sigmoid
            is the mask; 2GK channels with modulated=False. dtype of input, or float32.
        weight: (O, C/groups, k_h, k_w), k odd; bias: (O,) or None; dtype of input.
        base_offset: (B, 2, H, W), (dy, dx) in pixels, added to every offset in float32, or None.
        offset_groups: G.
        modulated: raw has a mask part.
        slope: of the leaky ReLU, > 0; 1 is none.

    Returns:
        (B, O, H, W), dtype of input.

    Gradients: input (added atomically: its last bits change from run to run), raw, weight, bias, base_offset; to any
    order, beyond the first by the reference formula. Under autocast input, weight and bias take its dtype.

    Raises:
        TypeError, ValueError: as deform_conv2d; raw or base_offset of another shape or dtype; slope not positive.

    Source: as deform_conv2d; EDVR and Zooming Slow-Mo for the guide.
    """
    input, raw, weight, bias, _ = _autocast(input, raw, weight, bias, None)
    args = (input, raw, weight, bias, base_offset, offset_groups, modulated, float(slope))
    _check(*args)
    return call(GUIDED_DEFORM_CONV2D, *args)
