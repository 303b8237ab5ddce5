# SPDX-License-Identifier: Apache-2.0
"""The law of the errors of a field of echo: its distribution at a pixel, from what is known around it."""

import torch
from torch import Tensor, nn

from fastds.models.card import ModelCard
from fastds.models.ensembles.surroundings import FEATURES, WIDTHS

_MEAN, _WIDTH = 0, 2 + 3 * len(WIDTHS) + 1  # places of the forecast, and of what it misses in windows of WIDTHS[1]

_LOW, _HIGH = -1.0, 1.5  # between them h(n) = n


class ErrorLaw(nn.Module):
    """z = m + s h(n) with n standard normal; echo z dB above the floor where that is no less than the weakest there is,
    else none.

        (a, b, c, d) = perceptron(features);  m = f - 3 + 10 a;  s = sqrt(v + 4) exp(b);  g, e = softplus(c, d - 1.5)
        h(n) = n for -1 <= n <= 1.5;  above 1.5 + (n - 1.5) / (1 + g (n - 1.5)): heavy rain has an end;  below
        -1 + (1 + e) (n + 1): echo ends suddenly

    f is the field, v the variance of the echo around the pixel that it lacks, see Surroundings for forecasts and
    detail.py for downscaled fields. The last layer starts at zero. A few numbers of a pixel go in and none of its
    place, so that grids of any size and motion of any direction fit.

    Args: hidden: width of both hidden layers. features: how many go in, 20 dB of f the first. lacking: place of the
        root of v among them, in 10 dB. Defaults: those of Surroundings.
    Shapes: forward(features (F, ...)) -> m, s, g and e (...), the first two in dB.
    """

    def __init__(self, hidden: int = 24, features: int = FEATURES, lacking: int = _WIDTH):
        super().__init__()
        self.config, self.card = {"hidden": hidden, "features": features, "lacking": lacking}, ModelCard()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 4)
        )  # fmt: skip
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        a, b, c, d = self.layers(features.flatten(1).t()).t().reshape(4, *features.shape[1:])
        lacking = (10 * features[self.config["lacking"]]).square()
        s = (lacking + 4).sqrt() * b.clamp(-3, 3).exp()
        return 20 * features[_MEAN] - 3 + 10 * a, s, *nn.functional.softplus(torch.stack([c, d]) - 1.5)


def quadrature(count: int) -> tuple[Tensor, Tensor]:
    """So many values of n, and their weights in a mean over standard normal n."""
    nodes = torch.linspace(-3.6, 3.6, count)
    return nodes, torch.softmax(-nodes.square() / 2, 0)


def echo(law: tuple[Tensor, ...], noise: Tensor) -> Tensor:
    """z of numbers n, dB above the floor; law: m, s, g and e; shapes broadcast."""
    m, s, g, e = law
    above, below = (noise - _HIGH).clamp(min=0), (_LOW - noise).clamp(min=0)
    return m + s * (noise.clamp(_LOW, _HIGH) + above / (1 + g * above) - (1 + e) * below)
