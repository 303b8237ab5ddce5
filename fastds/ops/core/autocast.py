# SPDX-License-Identifier: Apache-2.0
"""What autocast asks of an op's tensors."""

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
