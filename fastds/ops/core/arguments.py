# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that every op makes, in one wording: "x has dtype ..., expected ..."."""

import torch
from torch import Tensor

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
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a Tensor")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(d) for d in dict.fromkeys(dtypes))
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected {expected}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on device {tensor.device}, expected {device}, the device of {main}")
    if dims is None:
        return
    dims = (dims,) if isinstance(dims, int) else dims
    if tensor.dim() not in dims:
        plural = "dimension" if dims == (1,) else "dimensions"
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {' or '.join(map(str, dims))} {plural}")


def check_shape(name: str, tensor: Tensor, expected: tuple) -> None:
    """ValueError unless the tensor has the expected shape."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")


def check_choice(name: str, value, allowed: tuple[str, ...]) -> None:
    """ValueError unless the value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_slope(negative_slope: float) -> None:
    """ValueError unless leaky_relu can have the slope."""
    if not 0 <= negative_slope < float("inf"):
        raise ValueError(f"negative_slope must be a finite number >= 0, got {negative_slope!r}")
