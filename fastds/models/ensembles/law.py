# SPDX-License-Identifier: Apache-2.0
"""The law of the errors of a forecast: the distribution of echo at a pixel, from what is known around it."""

import torch
from torch import Tensor, nn

from fastds.models.card import ModelCard
from fastds.models.ensembles.surroundings import FEATURES, WIDTHS

_MEAN, _WIDTH = 0, 2 + 3 * len(WIDTHS) + 1  # places of the forecast, and of what it misses in windows of WIDTHS[1]


class ErrorLaw(nn.Module):
    """z = m + s n with n standard normal; echo z dB above the floor where that is no less than the weakest there is, else
    none.

        (a, b) = perceptron(features);  m = f - 3 + 10 a;  s = sqrt(v + 4) exp(b), dB

    f is the forecast, v the variance of the echo around the pixel that the forecast lacks, see Surroundings. The last
    layer starts at zero. A few numbers of a pixel go in and none of its place, so that grids of any size and motion of
    any direction fit.

    Args: hidden: width of both hidden layers.
    Shapes: forward(features (FEATURES, ...)) -> m and s (...), dB above the floor.
    """

    def __init__(self, hidden: int = 24):
        super().__init__()
        self.config, self.card = {"hidden": hidden}, ModelCard()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 2)
        )  # fmt: skip
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.layers(features.flatten(1).t()).t().view(2, *features.shape[1:])
        lacking = (10 * features[_WIDTH]).square()
        return 20 * features[_MEAN] - 3 + 10 * a, (lacking + 4).sqrt() * b.clamp(-3, 3).exp()
