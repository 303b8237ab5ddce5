# SPDX-License-Identifier: Apache-2.0
"""conv3x3: 3x3 convolution with a fused epilogue: checks, gradients, registration and the public function.

The linear ops conv3x3, conv3x3_grad_x and conv3x3_grad_weight have each other as derivatives. conv3x3_backward fuses
the first-order gradients; a backward pass that is itself differentiated uses the three linear ops.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import (
    DTYPES,
    cast_floating,
    cast_unless_float32,
    check_choice,
    check_dense,
    check_filters,
    check_shape,
    check_slope,
    check_tensor,
    get_autocast_dtype,
    is_int,
    to_float,
)  # fmt: skip
from fastds.ops.core.backends import Backend
from fastds.ops.core.function_plans import call_function
from fastds.ops.core.plans import planned
from fastds.ops.core.registry import can_bypass_dispatcher, define, needs_weight_grad
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.conv3x3 import cuda_window, kernels, library, reference, shared_weight_grad
from fastds.ops.impl.conv3x3.algorithm import ALGORITHMS, count_epilogue_passes, current_algorithm, select_algorithm

__all__ = ["conv3x3"]

MAX_TORCH_ELEMENTS = 400  # size of an image that torch convolves in training, whatever the cost model says


def check(
    x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, algorithm, size=3, stride=1
) -> None:  # fmt: skip
    """Check the arguments of conv3x3 and of convolutions with filters of other sizes.

    The arguments are those of fastds.ops.conv3x3 unless described otherwise. x2, act and shuffle are named as in the
    schema of the op; error messages use the public names second_input, activation and upscale_factor.

    Args:
        x: first source.
        weight: (O, C1 + C2, size, size).
        bias: (O,) or None.
        x2: second source or None.
        residual: residual or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle.
        out_dtype: dtype of the result.
        algorithm: one of ALGORITHMS.
        size: taps along one side of the filters.
        stride: stride in pixels.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or option is invalid.
    """
    check_tensor("x", x, 4, DTYPES, None, "x")
    check_tensor("weight", weight, 4, (x.dtype, torch.float32), x.device, "x")
    batch, channels, height, width = x.shape
    if 0 in (channels, height, width):
        raise ValueError(f"x has shape {tuple(x.shape)}, expected at least one channel, row and column")
    if x2 is not None:
        check_tensor("second_input", x2, 4, (x.dtype,), x.device, "x")
        if x2.shape[1] < 1:
            raise ValueError("second_input has no channels, expected at least one")
        check_shape("second_input", x2, (batch, x2.shape[1], height, width))
        channels += x2.shape[1]
    outputs = weight.shape[0]
    if outputs < 1:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected at least one output channel")
    check_filters("weight", weight, (outputs, channels, size, size), "x" if x2 is None else "x and second_input")
    if bias is not None:
        check_tensor("bias", bias, 1, (weight.dtype,), x.device, "x")
        check_shape("bias", bias, (outputs,))
    if act not in reference.ACTIVATIONS:
        raise ValueError(f"activation must be None, 'relu' or 'leaky_relu', got {act!r}")
    check_slope(negative_slope)
    _check_options(padding_mode, algorithm)
    if not is_int(shuffle) or not 1 <= shuffle <= 8 or outputs % shuffle**2:
        raise ValueError(
            f"upscale_factor must be an int from 1 to 8 whose square divides {outputs} channels, got {shuffle!r}"
        )
    if out_dtype not in (x.dtype, torch.float32):
        raise ValueError(f"out_dtype must be the dtype of x, {x.dtype}, or torch.float32, got {out_dtype}")
    if residual is not None:
        check_tensor("residual", residual, 4, (out_dtype,), x.device, "x")
        check_shape("residual", residual, (batch, outputs, -(-height // stride), -(-width // stride)))


def _check_options(padding_mode, algorithm) -> None:
    if padding_mode not in reference.PADDING_MODES or algorithm not in ALGORITHMS:
        check_choice("padding_mode", padding_mode, reference.PADDING_MODES)
        check_choice("algorithm", algorithm, ALGORITHMS)


def _check_backward(
    grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, needs_grad, add_x, add_x2
):  # fmt: skip
    check(x, weight, None, x2, None, "none", negative_slope, padding_mode, shuffle, x.dtype, algorithm)
    expected = (x.shape[0], weight.shape[0] // shuffle**2, x.shape[2] * shuffle, x.shape[3] * shuffle)
    check_tensor("grad_y", grad_y, 4, (x.dtype, torch.float32), x.device, "x")
    check_shape("grad_y", grad_y, expected)
    if y is not None:
        check_tensor("y", y, 4, (grad_y.dtype,), x.device, "x")
        check_shape("y", y, expected)
    if needs_grad[3] and x2 is None:
        raise ValueError("needs_grad requests the gradient of x2, but x2 is None")
    _check_addends(x, x2, needs_grad, add_x, add_x2)


def _check_addends(x, x2, needs_grad, add_x, add_x2):
    """Check that an addend has the shape and dtype of a gradient that is requested."""
    for name, source, needed, addend in (("add_x", x, needs_grad[0], add_x), ("add_x2", x2, needs_grad[3], add_x2)):
        if addend is None:
            continue
        if not needed:
            raise ValueError(f"{name} is given, but the gradient it is to be added to is not requested")
        check_tensor(name, addend, 4, (x.dtype,), x.device, "x")
        check_shape(name, addend, tuple(source.shape))


def _check_grad_x(grad, weight, padding_mode, dtype, algorithm) -> None:
    check_tensor("grad", grad, 4, DTYPES, None, "grad")
    check_tensor("weight", weight, 4, DTYPES, grad.device, "grad")
    check_shape("weight", weight, (grad.shape[1], weight.shape[1], 3, 3))
    if 0 in grad.shape[1:] or weight.shape[1] < 1:
        raise ValueError(
            f"grad has shape {tuple(grad.shape)} and weight {tuple(weight.shape)}, expected at least one of everything"
        )
    _check_result_dtype(dtype)
    _check_options(padding_mode, algorithm)


def _check_result_dtype(dtype) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")


def _check_grad_weight(grad, x, x2, padding_mode, dtype, algorithm) -> None:
    check_tensor("x", x, 4, DTYPES, None, "x")
    check_tensor("grad", grad, 4, DTYPES, x.device, "x")
    check_shape("grad", grad, (x.shape[0], grad.shape[1], *x.shape[2:]))
    if x2 is not None:
        check_tensor("x2", x2, 4, (x.dtype,), x.device, "x")
        check_shape("x2", x2, (x.shape[0], x2.shape[1], *x.shape[2:]))
    for name, tensor in (("x", x), ("grad", grad), ("x2", x2)):
        if tensor is not None and 0 in tensor.shape[1:]:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected at least one channel, row and column")
    _check_result_dtype(dtype)
    _check_options(padding_mode, algorithm)


# ---- autograd


class _Conv3x3(torch.autograd.Function):
    """Autograd function of conv3x3."""

    @staticmethod
    def forward(ctx, run, *args):
        x, weight, _, x2, _, act, negative_slope, padding_mode, shuffle, _, algorithm = args
        y = run(*args)
        # The activation's output has the sign of its input, so that its gradient needs only y.
        ctx.save_for_backward(x, weight, x2, None if act == "none" else y)
        ctx.options = (negative_slope if act == "leaky_relu" else 0.0, padding_mode, shuffle, algorithm)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, weight, x2, y = ctx.saved_tensors
        needs_grad = list(ctx.needs_input_grad[1:6])
        needs_grad[1:3] = needs_weight_grad(ctx, weight, grad_y, 2, 3)
        if needs_grad[1] and y is None and ctx.options[1:3] == ("zeros", 1):
            needs_grad[1] = not shared_weight_grad.defer_to_shared_node(weight, grad_y, x, x2)
        arguments: Any = (grad_y, x, weight, x2, y, *ctx.options, needs_grad)
        grads = (compute_differentiable_gradients if torch.is_grad_enabled() else _compute_fused_gradients)(*arguments)
        return None, *grads, *6 * (None,)


def _compute_fused_gradients(grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, needs_grad):
    """Compute the gradients of x, weight, bias, x2 and residual by conv3x3_backward, or None where not needed."""
    args = (grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm)
    return compute_gradients(CONV3X3_BACKWARD, args, needs_grad, y is None and shuffle == 1)


def compute_gradients(backward, args, needs_grad, identity_epilogue: bool):
    """Compute the gradients of x, weight, bias, x2 and residual by a backward op, or None where not needed.

    Args:
        backward: the Op.
        args: arguments of the Op without the last, needs_grad. The first argument is the gradient of the result.
        needs_grad: five bools.
        identity_epilogue: bool, whether the gradient of the residual equals the gradient of the result.
    """
    requested = [*needs_grad[:4], needs_grad[4] and not identity_epilogue]
    found = iter(backward.call_unchecked(*args, requested) if any(requested) else ())
    grads = [next(found) if needed else None for needed in requested]
    if needs_grad[4] and identity_epilogue:
        grads[4] = args[0]
    return grads


def compute_differentiable_gradients(
    grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, needs_grad
):
    """Compute the gradients of x, weight, bias, x2 and residual with graphs; gradients that are not needed are None.

    Args:
        grad_y: gradient of the result.
        x: first source.
        weight: (O, C1 + C2, 3, 3).
        x2: second source or None.
        y: result if there is an activation, else None.
        negative_slope: float, slope of the activation for negative inputs.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle.
        algorithm: str, requested algorithm.
        needs_grad: five bools.
    """
    grad = reference.backpropagate_epilogue(grad_y, y, negative_slope, shuffle)
    grad_x = grad_x2 = grad_weight = None
    if needs_grad[0] or needs_grad[3]:
        both = CONV3X3_GRAD_X.call_unchecked(grad, weight, padding_mode, x.dtype, algorithm)
        grad_x, grad_x2 = (both, None) if x2 is None else both.split([x.shape[1], x2.shape[1]], 1)
    if needs_grad[1]:
        grad_weight = CONV3X3_GRAD_WEIGHT.call_unchecked(grad, x, x2, padding_mode, weight.dtype, algorithm)
    grad_bias = library.compute_bias_gradient(grad, weight.dtype) if needs_grad[2] else None
    return grad_x, grad_weight, grad_bias, grad_x2, grad if needs_grad[4] else None


def _convolve(x, weight, x2, padding_mode, out_dtype, algorithm):
    """Compute conv3x3 without bias and epilogue."""
    return CONV3X3.call_unchecked(x, weight, None, x2, None, "none", 0.0, padding_mode, 1, out_dtype, algorithm)


class _GradX(torch.autograd.Function):
    """Autograd function of conv3x3_grad_x."""

    @staticmethod
    def forward(ctx, run, grad, weight, padding_mode, dtype, algorithm):
        ctx.save_for_backward(grad, weight)
        ctx.options = (padding_mode, algorithm)
        return run(grad, weight, padding_mode, dtype, algorithm)

    @staticmethod
    def backward(ctx, cotangent):
        (grad, weight), (mode, algorithm) = ctx.saved_tensors, ctx.options
        grad_grad = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_grad = _convolve(cotangent, weight, None, mode, grad.dtype, algorithm)
        if ctx.needs_input_grad[2] and not (
            mode == "zeros" and shared_weight_grad.defer_to_shared_node(weight, grad, cotangent)
        ):
            grad_weight = CONV3X3_GRAD_WEIGHT.call_unchecked(grad, cotangent, None, mode, weight.dtype, algorithm)
        return None, grad_grad, grad_weight, None, None, None


class _GradWeight(torch.autograd.Function):
    """Autograd function of conv3x3_grad_weight."""

    @staticmethod
    def forward(ctx, run, grad, x, x2, padding_mode, dtype, algorithm):
        ctx.save_for_backward(grad, x, x2)
        ctx.options = (padding_mode, algorithm)
        return run(grad, x, x2, padding_mode, dtype, algorithm)

    @staticmethod
    def backward(ctx, cotangent):
        (grad, x, x2), (mode, algorithm) = ctx.saved_tensors, ctx.options
        grad_grad = grad_x = grad_x2 = None
        if ctx.needs_input_grad[1]:
            grad_grad = _convolve(x, cotangent, x2, mode, grad.dtype, algorithm)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            both = CONV3X3_GRAD_X.call_unchecked(grad, cotangent, mode, x.dtype, algorithm)
            grad_x, grad_x2 = (both, None) if x2 is None else both.split([x.shape[1], x2.shape[1]], 1)
        return None, grad_grad, grad_x, grad_x2, None, None, None


# ---- registration


def unsupported_reason(tensor: Tensor, *_) -> str | None:
    """Return the reason why the native module is missing if a CPU tensor needs it, otherwise None.

    Tensors on other devices are supported, because torch's library convolves them.
    """
    return native.get_missing_reason() if tensor.is_cpu else None


CONV3X3 = define(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? x2, Tensor? residual, str act, float negative_slope, "
    "str padding_mode, int shuffle, ScalarType out_dtype, str algorithm) -> Tensor",
    reference=reference.conv3x3,
    backends={"native": Backend(kernels.forward, unsupported_reason)},
    fake=kernels.forward_fake,
    check=check,
    function=_Conv3x3,
    describe=cuda_window.describe,
)
CONV3X3_BACKWARD = define(
    "conv3x3_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? x2, Tensor? y, float negative_slope, "
    "str padding_mode, int shuffle, str algorithm, bool[5] needs_grad, Tensor? add_x=None, Tensor? add_x2=None) "
    "-> Tensor[]",
    reference=reference.conv3x3_backward,
    backends={"native": Backend(kernels.backward, unsupported_reason)},
    fake=kernels.backward_fake,
    check=_check_backward,
)
CONV3X3_GRAD_X = define(
    "conv3x3_grad_x(Tensor grad, Tensor weight, str padding_mode, ScalarType dtype, str algorithm) -> Tensor",
    reference=reference.conv3x3_grad_x,
    backends={"native": Backend(kernels.grad_x, unsupported_reason)},
    fake=kernels.grad_x_fake,
    check=_check_grad_x,
    function=_GradX,
)
CONV3X3_GRAD_WEIGHT = define(
    "conv3x3_grad_weight(Tensor grad, Tensor x, Tensor? x2, str padding_mode, ScalarType dtype, str algorithm) "
    "-> Tensor",
    reference=reference.conv3x3_grad_weight,
    backends={"native": Backend(kernels.grad_weight, unsupported_reason)},
    fake=kernels.grad_weight_fake,
    check=_check_grad_weight,
    function=_GradWeight,
)


def cast_convolution_inputs(x, weight, bias, x2, residual, out_dtype):
    """Cast the arguments of a convolution under autocast.

    A float32 weight and bias stay float32, because the engine reads them in float32.

    Args:
        x: first source.
        weight: the filters.
        bias: bias or None.
        x2: second source or None.
        residual: residual or None.
        out_dtype: dtype of the result, None for the dtype of x.

    Returns:
        x, weight, bias, x2 and residual.
    """
    dtype = get_autocast_dtype(x)
    if dtype is None:
        return x, weight, bias, x2, residual
    weight = cast_unless_float32(weight, dtype)
    bias = cast_floating(bias, weight.dtype) if isinstance(weight, Tensor) else bias
    residual_dtype = out_dtype if isinstance(out_dtype, torch.dtype) else dtype
    return cast_floating(x, dtype), weight, bias, cast_floating(x2, dtype), cast_floating(residual, residual_dtype)


def _prefer_torch(x, weight, x2, residual, act, padding_mode, shuffle, out_dtype, algorithm) -> bool:
    """Return True if torch's convolution should run in place of the op.

    This is the case for some single small images on a CPU while gradients are recorded.
    """
    if not library.is_small_image(x) or x2 is not None or algorithm != "auto":
        return False
    if not (weight.dtype == out_dtype == x.dtype and x.is_cpu and padding_mode == "zeros"):
        return False
    trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not trained or native.get_missing_reason() is not None or not can_bypass_dispatcher(x, weight):
        return False
    if x.numel() <= MAX_TORCH_ELEMENTS:
        return True
    passes = count_epilogue_passes(residual, act, shuffle)
    return select_algorithm(algorithm, x, x.shape[1], weight.shape[0], x.dtype, True, passes=passes) == "direct"


@planned
def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    second_input: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.1,
    padding_mode: str = "zeros",
    upscale_factor: int = 1,
    out_dtype: torch.dtype | None = None,
    algorithm: str | None = None,
) -> Tensor:
    """Apply a 3x3 convolution of stride 1 and padding 1 with a fused epilogue.

    y = pixel_shuffle(activation(conv(concat(x, second_input), weight) + bias + residual))

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        weight: (O, C1 + C2, 3, 3), dtype of x or float32.
        bias: (O,), dtype of weight, or None.
        second_input: (B, C2, H, W), dtype of x, second source, or None. The concatenation is not materialized.
        residual: (B, O, H, W), dtype of the result, added before the activation, or None.
        activation: None, "relu" or "leaky_relu".
        negative_slope: float >= 0, slope of leaky_relu.
        padding_mode: values one pixel outside the image: "zeros", "replicate" (the outer rows and columns) or
            "circular_x" (columns wrap around, as longitudes do, and the outer rows are repeated).
        upscale_factor: int, r from 1 to 8: every r^2 channels become r x r pixels as in torch.nn.PixelShuffle. O must
            be a multiple of r^2.
        out_dtype: dtype of the result: None for the dtype of x, or float32.
        algorithm: "winograd", "amx" (matrix products on the AMX tiles of the processor, for bfloat16), "planes" (sums
            of shifted planes, for few channels), "product" (im2col), "direct" (torch's convolution), "implicit_gemm"
            (one Triton kernel on a GPU, with gradients by torch; float32 as three tf32 products), "window" (one CUDA
            C++ kernel on a GPU, for 16 bits and multiples of 8 channels, with gradients by torch; "auto" for other
            calls on a GPU), "auto" (the fastest by a cost model), or None for the algorithm of the enclosing
            fastds.use_conv_algorithm(...), which is "auto" outside of one.

    Returns:
        (B, O / r^2, r*H, r*W), out_dtype, channels_last. In training "auto" may use torch's convolution for a single
        float32 image of at most 20480 elements; the result then has the memory format of torch's result.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or option is invalid.
        RuntimeError: the algorithm cannot run, for example "winograd" or "planes" on a GPU or in float64, "amx" in
            another dtype than bfloat16 or on a processor without AMX, "implicit_gemm" on a CPU, in float64 or for an
            out_dtype other than the dtype of x, "window" on a CPU.

    "winograd" computes F(4x4, 3x3) in float32 for every dtype. Before the result is rounded to its dtype, the errors
    are at most 2e-5 of the output's standard deviation for inputs of unit variance. A NaN or an infinity affects up to
    all 16 outputs of the 4x4 tiles that read the value (most infinities become NaN), and a value much larger than its
    neighbours reduces their accuracy. Missing values should therefore be filled before the call.

    Gradients exist for x, weight, bias, second_input and residual, to any order. With "winograd", "amx" and "planes",
    results are deterministic and do not depend on the number of threads, bit for bit. Under autocast x, second_input
    and residual are cast to the autocast dtype (residual to out_dtype, if given); a float32 weight and bias stay
    float32.

    Source: Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks, with the interpolation points 0,
    +-sqrt(1/2), +-sqrt(2) and infinity.
    """
    if type(x) is Proxy:
        return record_op(conv3x3, locals())
    activation = "none" if activation is None else activation
    algorithm = current_algorithm() if algorithm is None else algorithm
    x, weight, bias, second_input, residual = cast_convolution_inputs(
        x, weight, bias, second_input, residual, out_dtype
    )
    out_dtype = out_dtype or (x.dtype if isinstance(x, Tensor) else None)
    slope = to_float("negative_slope", negative_slope)
    args = (
        x,
        weight,
        bias,
        second_input,
        residual,
        activation,
        slope,
        padding_mode,
        upscale_factor,
        out_dtype,
        algorithm,
    )
    check(*args)
    if _prefer_torch(x, weight, second_input, residual, activation, padding_mode, upscale_factor, out_dtype, algorithm):
        check_dense(CONV3X3.arguments, args)
        y = call_function(F.conv2d, x, weight, bias, 1, 1)  # stride 1, padding 1
        return call_function(library.apply_epilogue, y, residual, activation, slope, upscale_factor)
    return CONV3X3.call_unchecked(*args)
