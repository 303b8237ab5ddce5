# SPDX-License-Identifier: Apache-2.0
"""What every op asks of a tensor argument."""

import torch
from torch import Tensor


def check_tensor(name: str, tensor, dims: int | tuple, dtypes: tuple, device: torch.device | None, main: str) -> None:
    """Raise TypeError unless it is a Tensor of one of dtypes, ValueError for another device than that of the argument
    `main` (None: any) or another number of dimensions."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a Tensor")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(d) for d in dict.fromkeys(dtypes))
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected {expected}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on device {tensor.device}, expected {device}, the device of {main}")
    dims = (dims,) if isinstance(dims, int) else dims
    if tensor.dim() not in dims:
        plural = "dimension" if dims == (1,) else "dimensions"
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {' or '.join(map(str, dims))} {plural}")
