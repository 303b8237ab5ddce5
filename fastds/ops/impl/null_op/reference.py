# SPDX-License-Identifier: Apache-2.0
"""null_op in plain PyTorch: differentiable to any order, exact in float64."""

from torch import Tensor


def null_op(x: Tensor) -> Tensor:
    """y = x, a new tensor."""
    return x.contiguous().clone()
