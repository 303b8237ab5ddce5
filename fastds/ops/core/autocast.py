# SPDX-License-Identifier: Apache-2.0
"""What autocast asks of an op's tensors."""

from functools import wraps

import torch
from torch import Tensor


def autocast_dtype(value) -> torch.dtype | None:
    """The dtype of the autocast that is on where a tensor lies (what is no tensor: on the CPU), else None.

    Asked of other devices, the meta device among them, torch raises.
    """
    kind = value.device.type if isinstance(value, Tensor) else "cpu"
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def cast(value, dtype: torch.dtype):
    """A floating-point tensor in dtype; float64, and what is no such tensor, as it is."""
    covered = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if covered else value


def autocast(tensors: tuple, wide: tuple[int, ...] = ()):
    """Under autocast: its dtype for the tensors, float32 for those whose positions `wide` names; float64 stays."""
    dtype = autocast_dtype(next((t for t in tensors if isinstance(t, Tensor)), None))
    if dtype is None:
        return tensors
    return [cast(t, torch.float32 if k in wide else dtype) for k, t in enumerate(tensors)]


def outside_autocast(function):
    """A function whose dtypes are chosen already: autocast, asked at its first argument, does not cast them again."""

    @wraps(function)
    def run(x, *args):
        if autocast_dtype(x) is None:
            return function(x, *args)
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args)

    return run
