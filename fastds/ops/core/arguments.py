# SPDX-License-Identifier: Apache-2.0
"""Checks of tensors, their dtypes under autocast, and the words of errors."""

from functools import wraps
from numbers import Integral, Real

import torch
from torch import Tensor

from fastds._suggestions import add_article

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of every op, unless it says otherwise


def check_tensor(
    name: str, tensor, dims: int | tuple[int, ...] | None, dtypes: tuple, device: torch.device | None, main: str
) -> None:
    """Refuses what is no tensor of the right kind.

    Args:
        name: of the argument.
        tensor: what was given for it.
        dims: allowed numbers of dimensions; None: any.
        dtypes: allowed dtypes.
        device: that of the argument `main`, or None for any.
        main: name of the argument whose device counts.

    Raises:
        TypeError: no Tensor, or another dtype.
        ValueError: another device or number of dimensions.
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
    """ValueError unless the tensor has the expected shape."""
    if tensor.shape != expected:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")


def check_filters(name: str, weight: Tensor, expected: tuple, source: str) -> None:
    """check_shape of a convolution's weight; where the number of input channels alone is another, it begins with those
    of `source`, the names of the maps."""
    if weight.shape == expected:
        return
    outputs, channels, *kernel = expected
    if (weight.shape[0], *weight.shape[2:]) == (outputs, *kernel):
        verb = "have" if " and " in source else "has"
        said = f"{source} {verb} {channels} channels, {name} takes {weight.shape[1]}: "
        raise ValueError(f"{said}{name} has shape {tuple(weight.shape)}, expected {tuple(expected)}")
    check_shape(name, weight, expected)


def check_dense(names, values) -> None:
    """TypeError for a tensor whose values do not lie in memory as a kernel reads them."""
    for name, value in zip(names, values, strict=False):
        if isinstance(value, list):
            check_dense([f"{name}[{i}]" for i in range(len(value))], value)
        if isinstance(value, Tensor) and (value.layout is not torch.strided or value.is_nested):
            kind = "a nested tensor" if value.is_nested else f"a tensor of layout {value.layout}"
            raise TypeError(f"{name} is {kind}, expected a dense one")


def check_choice(name: str, value, allowed: tuple[str, ...]) -> None:
    """ValueError unless the value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def is_count(value) -> bool:
    """Whether the value is an int; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_counts(**values) -> None:
    """ValueError unless all values are integers of 1 or more, numpy's among them."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an int >= 1, got {value!r}")


def number(name: str, value) -> float:
    """The value as a float; TypeError where it is no number."""
    if type(value) is float:
        return value
    if not isinstance(value, Real):
        raise TypeError(f"{name} is {add_article(type(value).__name__)}, expected a number")
    return float(value)


def check_slope(negative_slope: float) -> None:
    """ValueError unless leaky_relu can have the slope."""
    if not 0 <= negative_slope < float("inf"):
        raise ValueError(f"negative_slope must be a finite number >= 0, got {negative_slope!r}")


def autocast_dtype(value) -> torch.dtype | None:
    """The dtype of the autocast that is on where a tensor lies (what is no tensor: on the CPU), else None.

    Asked of other devices, the meta device among them, torch raises.
    """
    if not torch._C._is_any_autocast_enabled():
        return None
    kind = value.device.type if isinstance(value, Tensor) else "cpu"
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def cast(value, dtype: torch.dtype):
    """A floating-point tensor in dtype; float64, and what is no such tensor, as it is."""
    covered = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if covered else value


def cast_either(value, dtype: torch.dtype):
    """What may be in dtype or in float32 under autocast: these stay, the other 16-bit dtype is cast; float64, and no
    tensor, stay."""
    return value if isinstance(value, Tensor) and value.dtype == torch.float32 else cast(value, dtype)


def autocast(tensors: tuple, wide: tuple[int, ...] = (), either: tuple[int, ...] = ()):
    """Under autocast: its dtype for the tensors, float32 for those whose positions `wide` names; float64 stays.

    Those whose positions `either` names, weights, biases and what a kernel reads once, may stay in float32.
    """
    dtype = autocast_dtype(next((t for t in tensors if isinstance(t, Tensor)), None))
    if dtype is None:
        return tensors
    return [
        cast_either(t, dtype) if k in either else cast(t, torch.float32 if k in wide else dtype)
        for k, t in enumerate(tensors)
    ]


def outside_autocast(function):
    """A function whose dtypes are chosen already: autocast, asked at its first argument, does not cast them again."""

    @wraps(function)
    def run(x, *args):
        if autocast_dtype(x) is None:
            return function(x, *args)
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args)

    return run
