# SPDX-License-Identifier: Apache-2.0
"""Implementation of guided_deform_conv2d, whose offsets and mask logits are the channels of one tensor.

The kernels apply the sigmoid to the mask channels and add a base offset. On a GPU they are in CUDA C++ or Triton, and
avoid elementwise passes over large feature maps. On other devices fastds.nn.GuidedDeformConv2d computes the same
function by elementwise operations and deform_conv2d.
"""

import functools
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core import native, triton_loader
from fastds.ops.core.arguments import check_shape, check_tensor, to_float
from fastds.ops.core.backends import Backend, forced_backend
from fastds.ops.core.layout import (
    as_nhwc,
    empty_map,
    get_output_format,
    sum_per_channel,
    to_channels_last,
    to_memory_format,
)
from fastds.ops.core.registry import compute_vjp, define, needs_weight_grad
from fastds.ops.impl.deform_conv2d import two_passes
from fastds.ops.impl.deform_conv2d.launch_args import count_groups, make_dims, make_triton_problem
from fastds.ops.impl.deform_conv2d.op import cast_for_autocast, check
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference_deform_conv2d
from fastds.ops.impl.deform_conv2d.selection import (
    SAMPLING_KERNELS,
    can_use_shared_memory,
    rank_backward_kernels,
    rank_forward_kernels,
)


class GuidedCall(NamedTuple):
    """Arguments of guided_deform_conv2d."""

    input: Tensor
    raw: Tensor
    weight: Tensor
    bias: Tensor | None
    base_offset: Tensor | None
    offset_groups: int
    modulated: bool
    slope: float = 1.0

    def get_geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Return stride, padding and dilation that preserve the image size."""
        return (1, 1), (self.weight.shape[2] // 2, self.weight.shape[3] // 2), (1, 1)

    def split_raw(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return views of the offset and the mask channels of a tensor like raw; the mask is None if not modulated."""
        split = 2 * self.offset_groups * self.weight.shape[2] * self.weight.shape[3]
        return raw[:, :split], raw[:, split:] if self.modulated else None

    def make_problem(self, offset: Tensor):
        """Return the sizes for the Triton kernels."""
        return make_triton_problem(self.weight, *self.get_geometry(), *count_groups(self.input, offset, self.weight))

    def get_base(self) -> Tensor | None:
        """Return base_offset as the kernels read it."""
        return None if self.base_offset is None else self.base_offset.to(torch.float32).contiguous()


def _make_backward_call(input, raw, weight, base_offset, offset_groups, modulated) -> GuidedCall:
    return GuidedCall(input, raw, weight, None, base_offset, offset_groups, modulated)


def _check(*args) -> None:
    call = GuidedCall(*args)
    input, raw, weight, maps = call.input, call.raw, call.weight, (call.input.dtype, torch.float32)
    if not 0 < call.slope < float("inf"):
        raise ValueError(f"slope must be a finite number > 0, got {call.slope!r}")
    check_tensor("raw", raw, 4, maps, input.device, "input")
    check_tensor("weight", weight, 4, (input.dtype,), input.device, "input")
    channels = (3 if call.modulated else 2) * call.offset_groups * weight.shape[2] * weight.shape[3]
    if call.offset_groups < 1 or raw.shape[1] != channels:
        raise ValueError(f"raw has {raw.shape[1]} channels, expected {channels} for {call.offset_groups} offset groups")
    check(input, call.split_raw(raw)[0], weight, call.bias, *call.get_geometry(), None)
    if call.base_offset is not None:
        check_tensor("base_offset", call.base_offset, 4, maps, input.device, "input")
        check_shape("base_offset", call.base_offset, (input.shape[0], 2, *raw.shape[2:]))


def reference(*args) -> Tensor:
    """Compute the op by separate differentiable operations."""
    call = GuidedCall(*args)
    offset, mask = call.split_raw(call.raw)
    offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
    if call.base_offset is not None:
        pairs = offset.unflatten(1, (-1, 2)) + call.base_offset.to(offset.dtype).unsqueeze(1)
        offset = pairs.flatten(1, 2)
    mask = None if mask is None else mask.to(offset.dtype).sigmoid()
    upcast = call.input.to(offset.dtype)  # like the kernel, which does not round before the sum
    bias = None if call.bias is None else call.bias.to(offset.dtype)
    y = reference_deform_conv2d(upcast, offset, call.weight.to(offset.dtype), bias, *call.get_geometry(), mask)
    return F.leaky_relu(y, call.slope).to(call.input.dtype)


def _native_unsupported_reason(*args) -> str | None:
    call = GuidedCall(*args)
    reason = _get_native_reason(call, _FORWARD_KERNELS)
    if reason is not None:
        return reason
    if _get_native_kernel(call) is None:
        return "only maps whose tile fits shared memory (can_use_shared_memory), or for which another kernel runs"
    return None


def _get_native_reason(call: GuidedCall, functions: dict[str, str]) -> str | None:
    """Return the reason why no native kernel can run a call, or None; see native.unsupported_reason for `functions`."""
    reason = native.unsupported_reason(functions, call.input)
    if reason is None and call.modulated and call.raw.dtype != call.input.dtype:
        return f"raw has dtype {call.raw.dtype}, the kernel takes masks of {call.input.dtype}"
    return reason


def _get_native_kernel(call: GuidedCall) -> str | None:
    """Return the native kernel for a call, "window", "two passes" or "fused", or None for Triton."""
    offset, mask = call.split_raw(call.raw)
    best = rank_forward_kernels(call.input, offset, call.weight, call.bias, *call.get_geometry(), mask)[0].kernel
    if best in SAMPLING_KERNELS:
        return best
    fits = can_use_shared_memory(call.input, offset, call.weight, None, *call.get_geometry())
    return "window" if fits else None


def _forward_native(*args):
    call = GuidedCall(*args)
    x, weight, base = call.input, to_channels_last(call.weight), call.get_base()
    y = empty_map((x.shape[0], weight.shape[0], *call.raw.shape[2:]), x.dtype, x)
    if y.numel():
        offset, mask = call.split_raw(call.raw)
        bias = None if call.bias is None else call.bias.contiguous()
        dims = make_dims(x, offset, weight, mask, *call.get_geometry(), *count_groups(x, offset, weight))
        kernel = _get_native_kernel(call)
        if kernel in SAMPLING_KERNELS:
            SAMPLING_KERNELS[kernel](x, offset, mask, weight, bias, y, dims, base, call.modulated, call.slope)
            return to_memory_format(y, get_output_format(x))
        addresses = (native.get_address(t) for t in (x, offset, mask, weight, bias, y, base))
        launch = native.get_cuda_launch_arguments(x)
        native.get_module().deform_conv2d_guided_cuda(*addresses, call.modulated, call.slope, dims, *launch)
    return y


def _forward_triton(*args):
    call = GuidedCall(*args)
    input, weight = call.input, call.weight
    shape = (input.shape[0], weight.shape[0], *call.raw.shape[2:])
    y = empty_map(shape, input.dtype, input)
    offset, mask = call.split_raw(as_nhwc(call.raw))
    bias = None if call.bias is None else call.bias.contiguous()
    triton_loader.load_kernels("deform_conv2d").launch_forward(
        as_nhwc(input), offset, mask, to_channels_last(weight), bias, y, call.make_problem(offset),
        base=call.get_base(),
        sigmoid=call.modulated, slope=call.slope if call.slope != 1 else None,
    )  # fmt: skip
    return to_memory_format(y, get_output_format(input))


def _fake(*args):
    call = GuidedCall(*args)
    shape = (call.input.shape[0], call.weight.shape[0], *call.raw.shape[2:])
    return call.input.new_empty(shape).to(memory_format=get_output_format(call.input))


def _backward(compute, grad_y, *args):
    """Compute the requested gradients of input, raw, weight, bias and base_offset, without the activation.

    Args:
        compute: _compute_by_triton or _compute_in_two_passes.
        grad_y: gradient of the result.
        args: the other arguments of the op.
    """
    *given, needs_grad = args
    call = _make_backward_call(*given)
    if grad_y.numel() == 0:
        return [g.zero_() for g in _backward_fake(grad_y, *given, needs_grad)]
    raw, weight = call.raw, to_channels_last(call.weight)
    grad_y, x = to_channels_last(grad_y), as_nhwc(call.input)
    offset, mask = call.split_raw(as_nhwc(raw))
    grad_x: Any = empty_map(x.shape, torch.float32, x).zero_() if needs_grad[0] else None
    # The gradient of base_offset is a sum of grad_offset, which must then be float32.
    dtype = torch.float32 if needs_grad[4] else raw.dtype
    requested = needs_grad[1] or needs_grad[4]
    grad_raw: Any = empty_map(raw.shape, dtype, raw) if requested else None
    grad_offset: Any
    grad_offset, grad_mask = call.split_raw(grad_raw) if requested else (None, None)
    grad_weight = compute(call, grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, needs_grad[2])
    grads = []
    if needs_grad[0]:
        grads.append(grad_x.to(x.dtype))
    if needs_grad[1]:
        grads.append(grad_raw.to(raw.dtype))
    if needs_grad[2]:
        grads.append(grad_weight.to(weight.dtype))
    if needs_grad[3]:
        grads.append(sum_per_channel(grad_y).to(grad_y.dtype))
    if needs_grad[4]:
        grads.append(grad_offset.unflatten(1, (-1, 2)).sum(1).to(cast(Tensor, call.base_offset).dtype))
    return grads


def _compute_by_triton(call: GuidedCall, grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, needs_weight):
    """Add to grad_x, write grad_offset and grad_mask, and return the gradient of weight or None."""
    kernels, problem = triton_loader.load_kernels("deform_conv2d_backward"), call.make_problem(offset)
    options = {"base": call.get_base(), "sigmoid": call.modulated}
    kernels.launch_maps(grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, problem, **options)
    if not needs_weight:
        return None
    return kernels.compute_weight_gradient(grad_y, x, offset, mask, weight, problem, **options)


def _compute_in_two_passes(
    call: GuidedCall, grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, needs_weight
):
    """Add to grad_x, write grad_offset and grad_mask, and return the gradient of weight or None."""
    dims = make_dims(x, offset, weight, mask, *call.get_geometry(), *count_groups(x, offset, weight))
    return two_passes.compute_gradients(
        grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, dims, needs_weight,
        call.get_base(), call.modulated,
    )  # fmt: skip


def _two_passes_unsupported_reason(grad_y, *args) -> str | None:
    call, needs_grad = _make_backward_call(*args[:-1]), args[-1]
    reason = _get_native_reason(call, _BACKWARD_KERNELS)
    if reason is not None:
        return reason
    offset, mask = call.split_raw(call.raw)
    kernels = rank_backward_kernels(grad_y, call.input, offset, call.weight, *call.get_geometry(), mask, needs_grad)
    return None if kernels[0].kernel == "two passes" else "only calls for which the two passes are requested or fastest"


def _backward_fake(grad_y, *args):
    *given, needs_grad = args
    call = _make_backward_call(*given)
    return [
        grad_y.new_empty(call.weight.shape[0]) if like is None else torch.empty_like(like)
        for like, needed in zip((call.input, call.raw, call.weight, None, call.base_offset), needs_grad, strict=True)
        if needed
    ]


def _check_backward(grad_y, *args) -> None:
    call = _make_backward_call(*args[:-1])
    _check(*call)
    check_tensor("grad_y", grad_y, 4, (call.input.dtype,), call.input.device, "input")
    check_shape("grad_y", grad_y, (call.input.shape[0], call.weight.shape[0], *call.raw.shape[2:]))


def _backward_reference(grad_y, *args):
    *given, needs_grad = args
    call = _make_backward_call(*given)
    bias = call.weight.new_zeros(call.weight.shape[0])

    def formula(*tensors):
        return reference(*tensors, call.offset_groups, call.modulated, 1.0)

    tensors = (call.input, call.raw, call.weight, bias, call.base_offset)
    return compute_vjp(formula, tensors, (grad_y,), needs_grad)


class _GuidedDeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *args):
        call, y = GuidedCall(*args), run(*args)
        # The activation's output has the sign of its input, so that its gradient needs only y.
        ctx.save_for_backward(call.input, call.raw, call.weight, call.base_offset, None if call.slope == 1 else y)
        ctx.options, ctx.slope = (call.offset_groups, call.modulated), call.slope
        return y

    @staticmethod
    def backward(ctx, grad_y):
        *tensors, y = ctx.saved_tensors
        if y is not None:
            grad_y = torch.where(y >= 0, grad_y, ctx.slope * grad_y)
        needs_grad = list(ctx.needs_input_grad[1:6])
        needs_grad[2:4] = needs_weight_grad(ctx, tensors[2], grad_y, 3, 4)
        grads = iter(GUIDED_DEFORM_CONV2D_BACKWARD.call_unchecked(grad_y, *tensors, *ctx.options, needs_grad))
        return (None, *(next(grads) if needed else None for needed in needs_grad), None, None, None)


# "cpu": for the emulator in tests/gpuless
_FORWARD_KERNELS = dict.fromkeys(("cuda", "cpu"), "deform_conv2d_guided_cuda")
_BACKWARD_KERNELS = dict.fromkeys(("cuda", "cpu"), "deform_conv2d_scatter_cuda")
_INPUTS = "Tensor input, Tensor raw, Tensor weight"
_OPTIONS = "Tensor? base_offset, int offset_groups, bool modulated"

GUIDED_DEFORM_CONV2D = define(
    f"guided_deform_conv2d({_INPUTS}, Tensor? bias, {_OPTIONS}, float slope=1.0) -> Tensor",
    reference=reference,
    backends={
        "native": Backend(_forward_native, _native_unsupported_reason),
        "triton": Backend(_forward_triton, lambda input, *_: triton_loader.unsupported_reason(input)),
    },
    fake=_fake,
    check=_check,
    function=_GuidedDeformConv2d,
)

GUIDED_DEFORM_CONV2D_BACKWARD = define(
    f"guided_deform_conv2d_backward(Tensor grad_y, {_INPUTS}, {_OPTIONS}, bool[5] needs_grad) -> Tensor[]",
    reference=_backward_reference,
    backends={
        "native": Backend(functools.partial(_backward, _compute_in_two_passes), _two_passes_unsupported_reason),
        "triton": Backend(
            functools.partial(_backward, _compute_by_triton),
            lambda g, *args: triton_loader.atomic_unsupported_reason(g, args[-1][0]),
        ),
    },
    fake=_backward_fake,
    check=_check_backward,
)


def is_supported(input: Tensor) -> bool:
    """Return True if guided_deform_conv2d should run on tensors like `input`, False if separate operations should."""
    if forced_backend() not in (None, "triton"):
        return False
    deterministic = torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled()
    return input.device.type == "cuda" and triton_loader.unsupported_reason(input) is None and not deterministic


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
    """Apply a modulated deformable convolution of stride 1 with offsets and mask logits as channels of one tensor.

    [o | m] = raw;  y = leaky_relu(deform_conv2d(input, o + base_offset, weight, bias, mask=sigmoid(m)), slope)

    Args:
        input: (B, C, H, W), float32, float16 or bfloat16. input and raw are fastest in channels_last.
        raw: (B, 3GK, H, W), dtype of input or float32: 2GK offsets in pixels, pairs (dy, dx) for each group and tap,
            then GK logits of the mask, where K = k_h k_w. With modulated=False raw has only the 2GK offsets.
        weight: (O, C/groups, k_h, k_w), k odd, dtype of input.
        bias: (O,), dtype of input, or None.
        base_offset: (B, 2, H, W), (dy, dx) in pixels, added to every offset in float32, or None.
        offset_groups: int, G.
        modulated: bool, whether raw has logits of a mask.
        slope: float > 0, slope of a final leaky ReLU, 1 for none.

    Returns:
        (B, O, H, W), dtype of input.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or option is invalid.

    Gradients exist for input, raw, weight, bias and base_offset, to any order (the reference computes orders beyond the
    first). The gradient of input is added atomically, so that its last bits vary between runs. Under autocast input,
    weight and bias are cast to the autocast dtype.

    Source: see deform_conv2d; EDVR and Zooming Slow-Mo for the guidance by one tensor.
    """
    input, raw, weight, bias, _ = cast_for_autocast(input, raw, weight, bias, None)
    return GUIDED_DEFORM_CONV2D(
        input, raw, weight, bias, base_offset, offset_groups, modulated, to_float("slope", slope)
    )
