# SPDX-License-Identifier: Apache-2.0
"""Input checks that all networks share."""

import torch
from torch import Tensor, nn

from fastds._suggestions import add_article


def check_input(name: str, x: Tensor, model: nn.Module) -> None:
    """Check that the input of a network is a tensor whose dtype fits the weights.

    Args:
        name: name of the argument in messages.
        x: the input.
        model: network whose first parameter gives the expected dtype.

    Raises:
        TypeError: If x is no floating-point tensor, or if only one of x and the weights is float64. Autocast does not
            convert float64, the default dtype of NumPy.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is {add_article(type(x).__name__)}, expected a Tensor")
    weights = next(model.parameters()).dtype
    if not x.is_floating_point() or (x.dtype == torch.float64) != (weights == torch.float64):
        raise TypeError(f"{name} has dtype {x.dtype}, expected {weights} as the weights have")


def check_samples(name: str, x: Tensor) -> None:
    """Raise ValueError if a batch has no sample."""
    if x.shape[0] < 1:
        raise ValueError(f"{name} has no sample, expected one or more, got shape {tuple(x.shape)}")
