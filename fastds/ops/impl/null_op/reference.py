# SPDX-License-Identifier: Apache-2.0
"""Reference of null_op in PyTorch: differentiable to any order, exact in float64."""

from torch import Tensor


def null_op(x: Tensor) -> Tensor:
    """Return a copy of x."""
    return x.contiguous().clone()
