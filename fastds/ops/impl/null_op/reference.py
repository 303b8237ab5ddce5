# SPDX-License-Identifier: Apache-2.0
"""Reference of null_op in PyTorch: differentiable to any order, exact in float64."""

from torch import Tensor


def null_op(x: Tensor, other: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Return scale * x + other."""
    y = scale * x.contiguous()
    return y if other is None else y + other
