# SPDX-License-Identifier: Apache-2.0
"""Networks for tests of downscaling: a stub, and a small FC-ZSM with random weights."""

import numpy as np
import torch
from torch import nn

from fastds import models
from fastds.models.baselines import trilinear

FLOOR, CEILING, NO_ECHO = 15.0, 70.0, -32.0


def give_card(model, **values):
    card = models.ModelCard(name="stub", floor_dbz=FLOOR, ceiling_dbz=CEILING, space_factor=2, time_factor=2)
    for key, value in values.items():
        setattr(card, key, value)
    model.card = card
    return model


class Stub(nn.Module):
    """A model that returns trilinear interpolation plus a constant, or a constant for each of three frames."""

    def __init__(self, add=0.0, constants=None):
        super().__init__()
        self.config = {"scale": 2, "num_features": 8, "in_channels": 1, "static_channels": 0}
        self.weight = nn.Parameter(torch.tensor(add))
        self.constants = constants
        give_card(self)

    def forward(self, x, static=None, flow=None):
        y = trilinear(x, 2)
        if self.constants is not None:
            return torch.tensor(self.constants)[None, :, None, None, None].expand(y.shape)
        return y + self.weight


def awake(model):
    """Set the zero-initialised weights of an FC-ZSM (first offsets, last convolution) to random numbers."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conv_offset_mask" in name or "last" in name:
                parameter.normal_(0, 0.02)
    return model.eval()


def fill(coarse, z):
    """Replace all frames of a dataset by z in dBZ."""
    return coarse.assign(reflectivity=coarse.reflectivity.copy(data=np.broadcast_to(z, coarse.reflectivity.shape)))
