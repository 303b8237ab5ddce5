# SPDX-License-Identifier: Apache-2.0
"""Checks of op arguments, and casts of arguments under autocast."""

from collections.abc import Sequence
from functools import wraps
from numbers import Integral, Real

import torch
from torch import Tensor

from fastds._suggestions import add_article
from fastds.ops.core.function_plans import call_function

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # default of all ops


def check_tensor(
    name: str, tensor, dims: int | tuple[int, ...] | None, dtypes: tuple, device: torch.device | None, main: str
) -> None:
    """Check type, dtype, device and number of dimensions of a tensor argument.

    Args:
        name: str, name of the argument in error messages.
        tensor: value of the argument.
        dims: allowed number of dimensions, or a tuple of them. None: any.
        dtypes: allowed dtypes.
        device: required device. None: any.
        main: str, name of the argument that determines the device.

    Raises:
        TypeError: the value is not a Tensor, or its dtype is not allowed.
        ValueError: the device or the number of dimensions differs.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {add_article(type(tensor).__name__)}, expected a Tensor")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(d) for d in dict.fromkeys(dtypes))
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected {expected}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on device {tensor.device}, expected {device}, the device of {main}")
    if dims is None or tensor.dim() == dims:
        return
    dims = (dims,) if isinstance(dims, int) else dims
    if tensor.dim() not in dims:
        plural = "dimension" if dims == (1,) else "dimensions"
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {' or '.join(map(str, dims))} {plural}")


def check_shape(name: str, tensor: Tensor, expected: tuple) -> None:
    """Check the shape of a tensor argument.

    Args:
        name: str, name of the argument in error messages.
        tensor: value of the argument.
        expected: required shape.

    Raises:
        ValueError: the shape differs.
    """
    if tensor.shape != expected:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")


def check_filters(name: str, weight: Tensor, expected: tuple, source: str) -> None:
    """Check the shape of a convolution's weight.

    Args:
        name: str, name of the argument in error messages.
        weight: the filters.
        expected: required shape (outputs, input channels, *kernel).
        source: str, names of the inputs in error messages, such as "x and x2".

    Raises:
        ValueError: the shape differs.
    """
    if weight.shape == expected:
        return
    outputs, channels, *kernel = expected
    if (weight.shape[0], *weight.shape[2:]) == (outputs, *kernel):
        verb = "have" if " and " in source else "has"
        mismatch = f"{source} {verb} {channels} channels, {name} takes {weight.shape[1]}: "
        raise ValueError(f"{mismatch}{name} has shape {tuple(weight.shape)}, expected {tuple(expected)}")
    check_shape(name, weight, expected)


def check_dense(names, values) -> None:
    """Raise TypeError if a value is a sparse or nested tensor or a list with one, because kernels need strided memory.

    Args:
        names: names of the arguments in error messages.
        values: values of the arguments.
    """
    for name, value in zip(names, values, strict=False):
        if isinstance(value, list):
            check_dense([f"{name}[{i}]" for i in range(len(value))], value)
        if isinstance(value, Tensor) and (value.layout is not torch.strided or value.is_nested):
            kind = "a nested tensor" if value.is_nested else f"a tensor of layout {value.layout}"
            raise TypeError(f"{name} is {kind}, expected a dense one")


def check_choice(name: str, value, allowed: tuple[str, ...]) -> None:
    """Check that the value of an argument is one of the allowed values.

    Args:
        name: str, name of the argument in error messages.
        value: value of the argument.
        allowed: allowed values.

    Raises:
        ValueError: the value is not allowed.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def is_int(value) -> bool:
    """Return True if the value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_positive_ints(**values) -> None:
    """Raise ValueError unless all values are integers >= 1, of Python or numpy.

    Args:
        **values: value of each argument by its name in error messages.
    """
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an int >= 1, got {value!r}")


def to_float(name: str, value) -> float:
    """Return the value of argument `name` as a float, or raise TypeError if it is not a number."""
    if type(value) is float:
        return value
    if not isinstance(value, Real):
        raise TypeError(f"{name} is {add_article(type(value).__name__)}, expected a number")
    return float(value)


def check_slope(negative_slope: float) -> None:
    """Raise ValueError unless negative_slope is finite and >= 0."""
    if not 0 <= negative_slope < float("inf"):
        raise ValueError(f"negative_slope must be a finite number >= 0, got {negative_slope!r}")


def get_autocast_dtype(value) -> torch.dtype | None:
    """Return the autocast dtype of the device of a tensor, or None if autocast is off on that device.

    For a value that is not a tensor the device is the CPU. The result is None for devices other than CPU and CUDA, for
    some of which torch.is_autocast_enabled raises an error.
    """
    if not torch._C._is_any_autocast_enabled():
        return None
    kind = value.device.type if isinstance(value, Tensor) else "cpu"
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def cast_floating(value, dtype: torch.dtype):
    """Cast a floating-point tensor to dtype; return float64 tensors and all other values unchanged."""
    covered = isinstance(value, Tensor) and value.is_floating_point() and value.dtype not in (torch.float64, dtype)
    return call_function(_cast, value, dtype) if covered else value


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype)


def cast_unless_float32(value, dtype: torch.dtype):
    """Cast a 16-bit floating-point tensor to dtype; return float32, float64 and all other values unchanged."""
    return value if isinstance(value, Tensor) and value.dtype == torch.float32 else cast_floating(value, dtype)


def cast_for_autocast(tensors: tuple, float32: tuple[int, ...] = (), keep_float32: Sequence[int] = ()):
    """Cast tensors as autocast does if autocast is on for the device of the first tensor. Keep float64 tensors.

    Args:
        tensors: tuple of tensors and other values.
        float32: positions of tensors that are cast to float32 instead of the autocast dtype.
        keep_float32: positions of tensors that are not cast if they are float32, such as weights, biases and other
            tensors that a kernel reads once.

    Returns:
        sequence of the tensors, cast where needed, and the other values.
    """
    dtype = get_autocast_dtype(next((t for t in tensors if isinstance(t, Tensor)), None))
    if dtype is None:
        return tensors
    return [
        cast_unless_float32(t, dtype)
        if k in keep_float32
        else cast_floating(t, torch.float32 if k in float32 else dtype)
        for k, t in enumerate(tensors)
    ]


def without_autocast(function):
    """Decorate a function so that it runs with autocast disabled on the device of its first argument.

    This is for functions whose arguments have their final dtypes already, which autocast would change.
    """

    @wraps(function)
    def run(x, *args):
        if get_autocast_dtype(x) is None:
            return function(x, *args)
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args)

    return run
