# SPDX-License-Identifier: Apache-2.0
"""3x3 convolution with everything that follows it: validation, choice of algorithm, gradients, registration.

Three linear ops are closed under differentiation: conv3x3, conv3x3_grad_x and conv3x3_grad_weight. conv3x3_backward is
their fused sum for first-order gradients; where the backward itself is differentiated, the three are used.
"""

import torch
from torch import Tensor

from fastds import _native
from fastds._registry import Backend, call, define, without_gradients
from fastds.convolution import checked, current
from fastds.ops import _direct, _winograd
from fastds.ops._autocast import autocast_dtype, cast
from fastds.ops._weight_gradients import weight_gradients_wanted
from fastds.reference import conv3x3 as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_CL = torch.channels_last


def _check_tensor(name: str, tensor, dims: int, dtypes: tuple, device) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a Tensor")
    if tensor.dtype not in dtypes:
        raise TypeError(
            f"{name} has dtype {tensor.dtype}, expected {' or '.join(str(d) for d in dict.fromkeys(dtypes))}"
        )
    if tensor.dim() != dims:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {dims} dimension{'s' if dims > 1 else ''}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on device {tensor.device}, expected {device}, the device of x")


def _check_shape(name: str, tensor, expected: tuple) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")


def check(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype) -> None:
    """Refuses what the op cannot take."""
    _check_tensor("x", x, 4, DTYPES, None)
    _check_tensor("weight", weight, 4, (x.dtype, torch.float32), x.device)
    batch, channels, height, width = x.shape
    if min(channels, height, width) < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected at least one channel, row and column")
    if x2 is not None:
        _check_tensor("x2", x2, 4, (x.dtype,), x.device)
        if x2.shape[1] < 1:
            raise ValueError("x2 has no channels, expected at least one")
        _check_shape("x2", x2, (batch, x2.shape[1], height, width))
        channels += x2.shape[1]
    outputs = weight.shape[0]
    if outputs < 1:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected at least one output channel")
    _check_shape("weight", weight, (outputs, channels, 3, 3))
    if bias is not None:
        _check_tensor("bias", bias, 1, (weight.dtype,), x.device)
        _check_shape("bias", bias, (outputs,))
    if act not in reference.ACTIVATIONS:
        raise ValueError(f"act must be None, 'relu' or 'leaky_relu', got {act!r}")
    if not 0 <= negative_slope < float("inf"):
        raise ValueError(f"negative_slope must be a finite number >= 0, got {negative_slope!r}")
    if padding_mode not in reference.PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(reference.PADDING_MODES)}, got {padding_mode!r}")
    if not isinstance(shuffle, int) or not 1 <= shuffle <= 8 or outputs % shuffle**2:
        raise ValueError(f"shuffle must be an int from 1 to 8 whose square divides {outputs} channels, got {shuffle!r}")
    if out_dtype not in (x.dtype, torch.float32):
        raise ValueError(f"out_dtype must be the dtype of x, {x.dtype}, or torch.float32, got {out_dtype}")
    if residual is not None:
        _check_tensor("residual", residual, 4, (out_dtype,), x.device)
        _check_shape("residual", residual, (batch, outputs, height, width))


# ---- choice


def winograd_refusal(x: Tensor) -> str | None:
    """Why the engine cannot take tensors like x, or None."""
    if x.device.type != "cpu":
        return f"the engine runs on the CPU, x is on {x.device}"
    if x.dtype == torch.float64:
        return "the engine calculates in float32"
    if _native.missing() is None and not _native.native().conv3x3_available():
        return "this build has no engine for the instruction set baseline"
    return _native.missing()


def winograd_pays(x: Tensor, channels: int, outputs: int, out_dtype: torch.dtype, backward: bool) -> bool:
    """The measured rule of "auto", on two AVX-512 cores against oneDNN.

    A field of few tiles does not pay for reading 36 matrices of channels x outputs. Beyond that the engine wins from 8
    input channels in float32 and from 16 on both sides in the 16-bit types, whose library kernels have twice the rate;
    in the backward pass everywhere in float32 and from 8 on both sides in the 16-bit types.
    """
    if _native.native().isa() == "baseline":
        return False
    batch, _, height, width = x.shape
    tiles = batch * -(-height // 4) * -(-width // 4)
    if 8192 * tiles < channels * outputs:
        return False
    if torch.float32 in (x.dtype, out_dtype):
        return backward or channels >= 8
    return min(channels, outputs) >= (8 if backward else 16)


def _use_winograd(algorithm, x, channels, outputs, out_dtype, backward) -> bool:
    if algorithm == "direct":
        return False
    reason = winograd_refusal(x)
    if algorithm == "winograd":
        if reason is not None:
            raise RuntimeError(f"conv3x3: algorithm 'winograd' was asked for, but {reason}")
        return True
    return reason is None and winograd_pays(x, channels, outputs, out_dtype, backward)


# ---- forward


def _forward(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, algorithm):
    check(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype)
    return _run(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, algorithm)


def _run(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, algorithm):
    args = (x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype)
    if x.shape[0] == 0:
        return _forward_fake(*args, algorithm)
    winograd = _use_winograd(algorithm, x, weight.shape[1], weight.shape[0], out_dtype, False)
    return _winograd.forward(*args) if winograd else _direct.forward(*args)


def _forward_fake(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, algorithm):
    batch, _, height, width = x.shape
    shape = (batch, weight.shape[0] // shuffle**2, height * shuffle, width * shuffle)
    return torch.empty(shape, dtype=out_dtype, device=x.device, memory_format=_CL)


# ---- gradients


def _grad_x(grad, weight, padding_mode, dtype, algorithm):
    if grad.shape[0] == 0:
        return _grad_x_fake(grad, weight, padding_mode, dtype, algorithm)
    if not _use_winograd(algorithm, grad, weight.shape[1], weight.shape[0], dtype, True):
        return _direct.grad_x(grad, weight, padding_mode, dtype)
    options = (padding_mode, 1, None, 0.0, [weight.shape[1]], dtype, [None])
    return _engine_grad_x(_direct.dense(grad), weight, *options)[0]


def _engine_grad_x(grad, weight, padding_mode, shuffle, sign, slope, channels, dtype, added, in_place=False):
    args = (grad, weight, padding_mode, shuffle, sign, slope, channels, dtype)
    return _winograd.grad_sources(*args, reference.fold, reference.fold_rows, added, in_place)


def _grad_x_fake(grad, weight, padding_mode, dtype, algorithm):
    batch, _, height, width = grad.shape
    return torch.empty((batch, weight.shape[1], height, width), dtype=dtype, device=grad.device, memory_format=_CL)


def _grad_weight(grad, x, x2, padding_mode, dtype, algorithm):
    if grad.shape[0] == 0:
        return _grad_weight_fake(grad, x, x2, padding_mode, dtype, algorithm).zero_()
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    if not _use_winograd(algorithm, x, channels, grad.shape[1], dtype, True):
        return _direct.grad_weight(grad, x, x2, padding_mode, dtype)
    sources = [_winograd.nhwc(t) for t in (x, x2) if t is not None]
    return _winograd.grad_weight(_direct.dense(grad), sources, padding_mode, 1, None, 0.0, dtype, False)[0]


def _grad_weight_fake(grad, x, x2, padding_mode, dtype, algorithm):
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    return torch.empty((grad.shape[1], channels, 3, 3), dtype=dtype, device=grad.device)


def backward(
    grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted, add_x=None, add_x2=None,
    in_place=False,
):  # fmt: skip
    """Engine: x and weight gradients read grad_y and y as they are, the bias gradient comes with that of the weight.

    add_x and add_x2 are added to the gradients of x and x2; in_place: which then take their place.
    """
    args = (grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted)
    _check_addends(x, x2, wanted, add_x, add_x2)
    if grad_y.shape[0] == 0:
        return [g.zero_() for g in _backward_fake(*args)]
    channels = weight.shape[1]
    winograd = _use_winograd(algorithm, x, channels, weight.shape[0], grad_y.dtype, True)
    grads = (_backward_winograd if winograd else _backward_direct)(*args, add_x, add_x2, in_place)
    return [g for g, want in zip(grads, wanted, strict=True) if want]


def _check_addends(x, x2, wanted, add_x, add_x2):
    """What is to be added to a gradient has its shape and dtype, and the gradient is wanted."""
    for name, source, want, addend in (("add_x", x, wanted[0], add_x), ("add_x2", x2, wanted[3], add_x2)):
        if addend is None:
            continue
        if not want:
            raise ValueError(f"{name} is given, but the gradient it is to be added to is not wanted")
        _check_tensor(name, addend, 4, (x.dtype,), x.device)
        _check_shape(name, addend, tuple(source.shape))


def _backward_direct(*args):
    *args, add_x, add_x2, _ = args
    grads = _direct.backward(*args)
    for k, addend in ((0, add_x), (3, add_x2)):
        if addend is not None:
            grads[k] = grads[k].add_(addend)
    return grads


def _backward_winograd(
    grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted, add_x, add_x2, in_place
):  # fmt: skip
    grad = _direct.dense(grad_y)
    residual = grad_x = grad_x2 = grad_weight = grad_bias = None
    if wanted[4]:
        residual = _direct.dense(reference.pre_gradient(grad, y, negative_slope, shuffle))
    sign = None if y is None else _direct.dense(y)
    slope = negative_slope
    if wanted[0] or wanted[3]:
        split = x.shape[1]
        channels = [c for c, want in ((split, wanted[0]), (weight.shape[1] - split, wanted[3])) if want]
        part = weight if len(channels) == 2 or x2 is None else weight[:, :split] if wanted[0] else weight[:, split:]
        added = [addend for addend, want in ((add_x, wanted[0]), (add_x2, wanted[3])) if want]
        parts = iter(_engine_grad_x(grad, part, padding_mode, shuffle, sign, slope, channels, x.dtype, added, in_place))
        grad_x, grad_x2 = (next(parts) if wanted[i] else None for i in (0, 3))
    if wanted[1]:
        sources = [_winograd.nhwc(t) for t in (x, x2) if t is not None]
        grad_weight, grad_bias = _winograd.grad_weight(
            grad, sources, padding_mode, shuffle, sign, slope, weight.dtype, wanted[2]
        )
    elif wanted[2]:
        grad_bias = _direct.bias_gradient(reference.pre_gradient(grad, y, slope, shuffle), weight.dtype)
    return grad_x, grad_weight, grad_bias, grad_x2, residual


def _backward_fake(grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted, *added):
    batch, _, height, width = x.shape
    device = x.device

    def image(channels, dtype):
        return torch.empty((batch, channels, height, width), dtype=dtype, device=device, memory_format=_CL)

    makers = (
        lambda: image(x.shape[1], x.dtype),
        lambda: torch.empty(weight.shape, dtype=weight.dtype, device=device),
        lambda: torch.empty(weight.shape[:1], dtype=weight.dtype, device=device),
        lambda: image(x2.shape[1], x.dtype),
        lambda: image(weight.shape[0], grad_y.dtype),
    )
    return [make() for make, want in zip(makers, wanted, strict=True) if want]


# ---- autograd


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, algorithm):
        args = (x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, algorithm)
        y = without_gradients(CONV3X3, *args)
        # The sign of an activation's output is that of its input: nothing else of the epilogue is kept.
        ctx.save_for_backward(x, weight, x2, None if act == "none" else y)
        ctx.options = (negative_slope if act == "leaky_relu" else 0.0, padding_mode, shuffle, algorithm)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, weight, x2, y = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:5])
        if not weight_gradients_wanted():
            wanted[1] = wanted[2] = False
        grads = (differentiable_gradients if torch.is_grad_enabled() else _fused_gradients)(
            grad_y, x, weight, x2, y, *ctx.options, wanted
        )
        return *grads, *6 * (None,)


def _fused_gradients(grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted):
    options = (negative_slope, padding_mode, shuffle, algorithm)
    plain = y is None and shuffle == 1  # then residual's gradient is grad_y itself
    asked = [*wanted[:4], wanted[4] and not plain]
    grads = iter(call(CONV3X3_BACKWARD, grad_y, x, weight, x2, y, *options, asked) if any(asked) else ())
    grads = [next(grads) if want else None for want in asked]
    if wanted[4] and plain:
        grads[4] = grad_y
    return grads


def differentiable_gradients(grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted):
    """Of x, weight, bias, x2 and residual, None where not wanted, with graphs of their own."""
    grad = reference.pre_gradient(grad_y, y, negative_slope, shuffle)
    grad_x = grad_x2 = grad_weight = None
    if wanted[0] or wanted[3]:
        both = call(CONV3X3_GRAD_X, grad, weight, padding_mode, x.dtype, algorithm)
        grad_x, grad_x2 = (both, None) if x2 is None else both.split([x.shape[1], x2.shape[1]], 1)
    if wanted[1]:
        grad_weight = call(CONV3X3_GRAD_WEIGHT, grad, x, x2, padding_mode, weight.dtype, algorithm)
    grad_bias = _direct.bias_gradient(grad, weight.dtype) if wanted[2] else None
    return grad_x, grad_weight, grad_bias, grad_x2, grad if wanted[4] else None


def _linear(x, weight, x2, padding_mode, out_dtype, algorithm):
    return call(CONV3X3, x, weight, None, x2, None, "none", 0.0, padding_mode, 1, out_dtype, algorithm)


class _GradX(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, weight, padding_mode, dtype, algorithm):
        ctx.save_for_backward(grad, weight)
        ctx.options = (padding_mode, algorithm)
        return without_gradients(CONV3X3_GRAD_X, grad, weight, padding_mode, dtype, algorithm)

    @staticmethod
    def backward(ctx, along):
        (grad, weight), (mode, algorithm) = ctx.saved_tensors, ctx.options
        grad_grad = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_grad = _linear(along, weight, None, mode, grad.dtype, algorithm)
        if ctx.needs_input_grad[1]:
            grad_weight = call(CONV3X3_GRAD_WEIGHT, grad, along, None, mode, weight.dtype, algorithm)
        return grad_grad, grad_weight, None, None, None


class _GradWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, x, x2, padding_mode, dtype, algorithm):
        ctx.save_for_backward(grad, x, x2)
        ctx.options = (padding_mode, algorithm)
        return without_gradients(CONV3X3_GRAD_WEIGHT, grad, x, x2, padding_mode, dtype, algorithm)

    @staticmethod
    def backward(ctx, along):
        (grad, x, x2), (mode, algorithm) = ctx.saved_tensors, ctx.options
        grad_grad = grad_x = grad_x2 = None
        if ctx.needs_input_grad[0]:
            grad_grad = _linear(x, along, x2, mode, grad.dtype, algorithm)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            both = call(CONV3X3_GRAD_X, grad, along, mode, x.dtype, algorithm)
            grad_x, grad_x2 = (both, None) if x2 is None else both.split([x.shape[1], x2.shape[1]], 1)
        return grad_grad, grad_x, grad_x2, None, None, None


# ---- registration


def _refusal(tensor, *_):
    """The op runs wherever torch's own convolution does; only a CPU without the native module is worth a warning."""
    return _native.missing() if tensor.device.type == "cpu" else None


CONV3X3 = define(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? x2, Tensor? residual, str act, float negative_slope, "
    "str padding_mode, int shuffle, ScalarType out_dtype, str algorithm) -> Tensor",
    reference=reference.conv3x3,
    backends={"native": Backend(_forward, _refusal)},
    fake=_forward_fake,
    function=_Conv3x3,
    short=True,
)
CONV3X3_BACKWARD = define(
    "conv3x3_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? x2, Tensor? y, float negative_slope, "
    "str padding_mode, int shuffle, str algorithm, bool[5] wanted, Tensor? add_x=None, Tensor? add_x2=None) "
    "-> Tensor[]",
    reference=reference.conv3x3_backward,
    backends={"native": Backend(backward, _refusal)},
    fake=_backward_fake,
    short=True,
)
CONV3X3_GRAD_X = define(
    "conv3x3_grad_x(Tensor grad, Tensor weight, str padding_mode, ScalarType dtype, str algorithm) -> Tensor",
    reference=reference.conv3x3_grad_x,
    backends={"native": Backend(_grad_x, _refusal)},
    fake=_grad_x_fake,
    function=_GradX,
    short=True,
)
CONV3X3_GRAD_WEIGHT = define(
    "conv3x3_grad_weight(Tensor grad, Tensor x, Tensor? x2, str padding_mode, ScalarType dtype, str algorithm) "
    "-> Tensor",
    reference=reference.conv3x3_grad_weight,
    backends={"native": Backend(_grad_weight, _refusal)},
    fake=_grad_weight_fake,
    function=_GradWeight,
    short=True,
)


def _autocast(x, weight, bias, x2, residual, out_dtype):
    """Images take the autocast dtype; a float32 weight and bias stay so: the engine wants them in float32."""
    dtype = autocast_dtype(x)
    if dtype is None:
        return x, weight, bias, x2, residual
    if isinstance(weight, Tensor) and weight.dtype != torch.float32:
        weight = cast(weight, dtype)
    bias = cast(bias, weight.dtype) if isinstance(weight, Tensor) else bias
    return cast(x, dtype), weight, bias, cast(x2, dtype), cast(residual, out_dtype or dtype)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    x2: Tensor | None = None,
    residual: Tensor | None = None,
    act: str | None = None,
    negative_slope: float = 0.1,
    padding_mode: str = "zeros",
    shuffle: int = 1,
    out_dtype: torch.dtype | None = None,
    algorithm: str | None = None,
) -> Tensor:
    """3x3 convolution, stride 1, same size, with what follows it in the same pass.

    y = shuffle(act(conv(concat(x, x2), weight) + bias + residual))

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        weight: (O, C1 + C2, 3, 3), dtype of x or float32.
        bias: (O,), dtype of weight, or None.
        x2: (B, C2, H, W), dtype of x, second source of a concatenation that is never made, or None.
        residual: (B, O, H, W), dtype of the result, added before the activation, or None.
        act: None, "relu" or "leaky_relu".
        negative_slope: of leaky_relu, >= 0.
        padding_mode: what stands one pixel outside the field: "zeros", "replicate" (its outer rows and columns) or
            "circular_x" (columns wrap, as longitude does; outer rows are repeated).
        shuffle: r, 1 to 8: the channels become r x r sub-pixels as in torch.nn.PixelShuffle; r^2 divides O.
        out_dtype: dtype of x (None) or float32.
        algorithm: "winograd", "direct" (torch's convolution), "auto" (what measures faster), or None for that of the
            enclosing fastds.convolution(...), "auto" without one.

    Returns:
        (B, O / r^2, r*H, r*W), out_dtype, channels_last.

    The engine computes F(4x4, 3x3) in float32 for every dtype: errors are at most 2e-5 of the output's standard
    deviation on unit-variance input. A NaN or an infinity reaches up to all 16 outputs of the 4x4 tiles that read it
    (most infinities as NaN), and a value that dwarfs its neighbours costs them digits there: fill missing values.

    Gradients: x, weight, bias, x2 and residual, to any order. Deterministic, and independent of the number of threads,
    bit for bit, where the engine runs. Under autocast x, x2 and residual take its dtype; weight and bias stay float32.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or option that does not fit.
        RuntimeError: "winograd" for tensors outside a CPU or in float64.

    Source: Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks; 0, +-sqrt(1/2), +-sqrt(2)
    and infinity as its points.
    """
    act = "none" if act is None else act
    algorithm = current() if algorithm is None else checked(algorithm)
    x, weight, bias, x2, residual = _autocast(x, weight, bias, x2, residual, out_dtype)
    out_dtype = out_dtype or (x.dtype if isinstance(x, Tensor) else None)
    check(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype)
    slope = float(negative_slope)
    return call(CONV3X3, x, weight, bias, x2, residual, act, slope, padding_mode, shuffle, out_dtype, algorithm)
