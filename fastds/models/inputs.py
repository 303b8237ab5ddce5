# SPDX-License-Identifier: Apache-2.0
"""What every network asks of its input beside its shape."""

import torch
from torch import Tensor, nn

from fastds._suggestions import add_article


def check_input(name: str, x: Tensor, model: nn.Module) -> None:
    """TypeError for what is no floating-point tensor, and for float64 with other weights or the reverse, which no
    autocast casts: numpy's numbers are float64."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is {add_article(type(x).__name__)}, expected a Tensor")
    weights = next(model.parameters()).dtype
    if not x.is_floating_point() or (x.dtype == torch.float64) != (weights == torch.float64):
        raise TypeError(f"{name} has dtype {x.dtype}, expected {weights} as the weights have")


def check_samples(name: str, x: Tensor) -> None:
    """ValueError for a batch without a sample, of networks that go through samples one by one."""
    if x.shape[0] < 1:
        raise ValueError(f"{name} has no sample, expected one or more, got shape {tuple(x.shape)}")
