# SPDX-License-Identifier: Apache-2.0
"""pixel_shuffle with fused bias and activation, and pixel_unshuffle, its adjoint."""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import (
    DTYPES,
    cast_for_autocast,
    check_shape,
    check_slope,
    check_tensor,
    is_int,
    to_float,
)
from fastds.ops.core.backends import Backend
from fastds.ops.core.layout import (
    CHANNELS_LAST,
    empty_map,
    get_output_format,
    sum_per_channel,
    to_contiguous,
    to_memory_format,
    transpose_matrix,
)
from fastds.ops.core.plans import planned
from fastds.ops.core.registry import define
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.pixel_shuffle import reference

__all__ = ["pixel_shuffle", "pixel_unshuffle"]

ACTIVATION_CODES = {"none": 0, "relu": 1, "leaky_relu": 2}  # csrc/pixel_shuffle/params.h
MAX_FACTOR = 8


def _check_factor(r, name: str) -> None:
    if not is_int(r) or not 1 <= r <= MAX_FACTOR:
        raise ValueError(f"{name} must be an int from 1 to {MAX_FACTOR}, got {r!r}")


def _check(x, r, bias, act, negative_slope) -> None:
    check_tensor("x", x, 4, DTYPES, None, "x")
    _check_factor(r, "upscale_factor")
    if x.shape[1] < 1 or x.shape[1] % (r * r):
        raise ValueError(f"x has {x.shape[1]} channels, expected a multiple of upscale_factor^2 = {r * r}")
    if bias is not None:
        check_tensor("bias", bias, 1, (x.dtype, torch.float32), x.device, "x")
        check_shape("bias", bias, (x.shape[1],))
    if act not in tuple(ACTIVATION_CODES):
        raise ValueError(f"activation must be None, 'relu' or 'leaky_relu', got {act!r}")
    check_slope(negative_slope)


def _check_fine(x, r) -> None:
    check_tensor("x", x, 4, DTYPES, None, "x")
    _check_factor(r, "downscale_factor")
    if x.shape[1] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected at least one channel")
    if x.shape[2] % r or x.shape[3] % r:
        raise ValueError(f"x has {x.shape[2]} x {x.shape[3]} pixels, expected multiples of downscale_factor = {r}")


def _check_backward(grad_y, y, r, negative_slope, bias_dtype, needs_grad) -> None:
    _check_fine(grad_y, r)
    if y is not None:
        check_tensor("y", y, 4, (grad_y.dtype,), grad_y.device, "grad_y")
        check_shape("y", y, tuple(grad_y.shape))
    check_slope(negative_slope)
    if bias_dtype not in DTYPES:
        raise ValueError(f"bias_dtype must be one of {', '.join(map(str, DTYPES))}, got {bias_dtype}")


# ---- native calls. A tensor whose address is passed stays referenced until the call returns.


def _get_compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _make_addend(x: Tensor, r: int, bias: Tensor | None, act: str, on_cuda: bool) -> Tensor | None:
    """Return the tensor (C,) that the kernel adds before the activation: the bias, or zeros without a bias.

    The result is None if there is neither bias nor activation.

    Args:
        x: (B, C, H, W), input.
        r: factor.
        bias: (C,) or None.
        act: "none", "relu" or "leaky_relu".
        on_cuda: bool, whether to order the values as CUDA kernels do, with the sub-pixel as the slowest index.
    """
    dtype = _get_compute_dtype(x.dtype)
    if bias is None:
        return None if act == "none" else torch.zeros(x.shape[1], dtype=dtype, device=x.device)
    bias = to_contiguous(bias if bias.dtype == dtype else bias.detach().to(dtype))
    return transpose_matrix(bias.view(-1, r * r)).view(-1) if on_cuda else bias


def _make_params(coarse_shape, dtype, r, act, negative_slope):
    """Return the PixelShuffleParams of a call."""
    batch, channels, height, width = coarse_shape
    sizes = (batch, channels // (r * r), height, width)
    return native.get_module().PixelShuffleParams(
        native.DTYPE_CODES[dtype], *sizes, r, ACTIVATION_CODES[act], negative_slope
    )


def _get_layout(like: Tensor) -> torch.memory_format:
    """Return the memory format of all maps of a call.

    It is contiguous on the CPU if `like` is contiguous, else channels_last.
    """
    return get_output_format(like) if like.is_cpu and not native.runs_on_cuda(like) else CHANNELS_LAST


def _forward(x, r, bias, act, negative_slope):
    """Run the native kernel. The arguments are those of pixel_shuffle, with act "none" instead of None."""
    y, layout = _fake(x, r, bias, act, negative_slope), _get_layout(x)
    coarse, on_cuda = to_memory_format(x, layout), native.runs_on_cuda(x)
    added = _make_addend(x, r, bias, act, on_cuda)
    params = _make_params(x.shape, x.dtype, r, act, negative_slope)
    addresses = (coarse.data_ptr(), native.get_address(added), y.data_ptr())
    if on_cuda:
        native.get_module().pixel_shuffle_forward_cuda(*addresses, params, *native.get_cuda_launch_arguments(x))
    else:
        planes = layout != CHANNELS_LAST
        native.get_module().pixel_shuffle_forward(*addresses, planes, params, native.get_threads())
    return y


def _fake(x, r, bias, act, negative_slope):
    batch, channels, height, width = x.shape
    shape = (batch, channels // (r * r), height * r, width * r)
    return empty_map(shape, x.dtype, x, _get_layout(x))


def _get_coarse_shape(fine_shape, r):
    batch, channels, height, width = fine_shape
    return batch, channels * r * r, height // r, width // r


def _backward(grad_y, y, r, negative_slope, bias_dtype, needs_grad):
    """Return the requested gradients of x and bias.

    Args:
        grad_y: gradient of the result.
        y: the result if there is an activation, else None.
        r: factor.
        negative_slope: float, slope of the activation for negative inputs.
        bias_dtype: dtype of the bias.
        needs_grad: two bools.
    """
    module, dtype, layout = native.get_module(), grad_y.dtype, _get_layout(grad_y if y is None else y)
    grad, result = (None if t is None else to_memory_format(t, layout) for t in (grad_y, y))
    shape, on_cuda = _get_coarse_shape(grad_y.shape, r), native.runs_on_cuda(grad_y)
    params = _make_params(shape, dtype, r, "none" if y is None else "leaky_relu", negative_slope)
    grad_x = sums = partials = None
    if needs_grad[0]:
        grad_x = empty_map(shape, dtype, grad_y, layout)
    if needs_grad[1]:
        sums = torch.empty(shape[1], dtype=_get_compute_dtype(dtype), device=grad_y.device)
        count = params.partials if on_cuda else params.cpu_partials
        partials = torch.empty((count, sums.numel()), dtype=sums.dtype, device=grad_y.device)
    addresses = [native.get_address(t) for t in (grad, result, grad_x, sums, partials)]
    if not on_cuda:
        module.pixel_shuffle_backward(*addresses, layout != CHANNELS_LAST, params, native.get_threads())
    elif grad_y.numel():
        module.pixel_shuffle_backward_cuda(*addresses, params, *native.get_cuda_launch_arguments(grad_y))
    elif sums is not None:
        sums.zero_()
    grads = [] if grad_x is None else [grad_x]
    if sums is None:
        return grads
    return [*grads, sums.to(bias_dtype)]


def _backward_fake(grad_y, y, r, negative_slope, bias_dtype, needs_grad):
    shape, device = _get_coarse_shape(grad_y.shape, r), grad_y.device
    layout = _get_layout(grad_y if y is None else y)
    grads = [empty_map(shape, grad_y.dtype, grad_y, layout)] if needs_grad[0] else []
    return [*grads, torch.empty(shape[1], dtype=bias_dtype, device=device)] if needs_grad[1] else grads


def _unshuffle(x, r):
    return _backward(x, None, r, 0.0, x.dtype, [True, False])[0]


def _unshuffle_fake(x, r):
    return _backward_fake(x, None, r, 0.0, x.dtype, [True, False])[0]


# ---- gradients


class _PixelShuffle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, x, r, bias, act, negative_slope):
        y = run(x, r, bias, act, negative_slope)
        # The activation's output has the sign of its input, so that its gradient needs only y.
        ctx.save_for_backward(None if act == "none" else y)
        bias_dtype = x.dtype if bias is None else bias.dtype
        ctx.options = (r, negative_slope if act == "leaky_relu" else 0.0, bias_dtype)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        (y,), (r, slope, bias_dtype) = ctx.saved_tensors, ctx.options
        needs_grad = [ctx.needs_input_grad[1], ctx.needs_input_grad[3]]
        if torch.is_grad_enabled():
            grad_x = PIXEL_UNSHUFFLE.call_unchecked(reference.backpropagate_activation(grad_y, y, slope), r)
            grad_bias = sum_per_channel(grad_x).to(bias_dtype) if needs_grad[1] else None
            return None, grad_x, None, grad_bias, None, None
        grads = iter(PIXEL_SHUFFLE_BACKWARD.call_unchecked(grad_y, y, r, slope, bias_dtype, needs_grad))
        grad_x, grad_bias = (next(grads) if needed else None for needed in needs_grad)
        return None, grad_x, None, grad_bias, None, None


class _PixelUnshuffle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, x, r):
        ctx.r = r
        return run(x, r)

    @staticmethod
    def backward(ctx, grad):
        return None, PIXEL_SHUFFLE.call_unchecked(grad, ctx.r, None, "none", 0.0), None


def _make_unsupported_reason(function):
    return lambda tensor, *_: native.unsupported_reason({"cpu": function, "cuda": f"{function}_cuda"}, tensor)


PIXEL_SHUFFLE = define(
    "pixel_shuffle(Tensor x, int r, Tensor? bias, str act, float negative_slope) -> Tensor",
    reference=reference.pixel_shuffle,
    backends={"native": Backend(_forward, _make_unsupported_reason("pixel_shuffle_forward"))},
    fake=_fake,
    check=_check,
    function=_PixelShuffle,
)
PIXEL_SHUFFLE_BACKWARD = define(
    "pixel_shuffle_backward(Tensor grad_y, Tensor? y, int r, float negative_slope, ScalarType bias_dtype, "
    "bool[2] needs_grad) -> Tensor[]",
    reference=reference.pixel_shuffle_backward,
    backends={"native": Backend(_backward, _make_unsupported_reason("pixel_shuffle_backward"))},
    fake=_backward_fake,
    check=_check_backward,
)
PIXEL_UNSHUFFLE = define(
    "pixel_unshuffle(Tensor x, int r) -> Tensor",
    reference=reference.pixel_unshuffle,
    backends={"native": Backend(_unshuffle, _make_unsupported_reason("pixel_shuffle_backward"))},
    fake=_unshuffle_fake,
    check=_check_fine,
    function=_PixelUnshuffle,
)


@planned
def pixel_shuffle(
    x: Tensor,
    upscale_factor: int,
    bias: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.1,
) -> Tensor:
    """Rearrange every r^2 channels to r x r pixels, with fused bias and activation.

    y[b, c, r*h + i, r*w + j] = activation(x[b, c*r*r + i*r + j, h, w] + bias[c*r*r + i*r + j])

    Args:
        x: (B, C*r^2, H, W), float32, bfloat16, float16 or float64; any strides.
        upscale_factor: int, r, 1 to 8.
        bias: (C*r^2,), dtype of x or float32, in the unit of x, or None.
        activation: None, "relu" or "leaky_relu".
        negative_slope: float >= 0, slope of leaky_relu.

    Returns:
        (B, C, r*H, r*W), dtype of x. It is contiguous on the CPU if x is contiguous, else channels_last. The channel
        order is that of torch.nn.PixelShuffle.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or option is invalid.

    Gradients exist for x and bias, to any order. Results are deterministic and do not depend on the number of threads,
    bit for bit. Under autocast x is cast to the autocast dtype; a float32 bias stays float32.

    Source: Shi et al. 2016 (ESPCN), equation 4.
    """
    if type(x) is Proxy:
        return record_op(pixel_shuffle, locals())
    x, bias = cast_for_autocast((x, bias), keep_float32=(1,))
    activation = "none" if activation is None else activation
    return PIXEL_SHUFFLE(x, upscale_factor, bias, activation, to_float("negative_slope", negative_slope))


@planned
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """Rearrange blocks of r x r pixels to r^2 channels, which is the inverse and the adjoint of pixel_shuffle.

    y[b, c*r*r + i*r + j, h, w] = x[b, c, r*h + i, r*w + j]

    Args:
        x: (B, C, r*H, r*W), float32, bfloat16, float16 or float64; any strides.
        downscale_factor: int, r, 1 to 8.

    Returns:
        (B, C*r^2, H, W), dtype of x. It is contiguous on the CPU if x is contiguous, else channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape or the factor is invalid.

    Gradients exist for x, to any order. Results are deterministic. Under autocast x is cast to the autocast dtype.
    """
    if type(x) is Proxy:
        return record_op(pixel_unshuffle, locals())
    return PIXEL_UNSHUFFLE(*cast_for_autocast((x,)), downscale_factor)
