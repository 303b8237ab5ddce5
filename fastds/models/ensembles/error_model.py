# SPDX-License-Identifier: Apache-2.0
"""Parametric error model of a reflectivity field: the distribution at a pixel, given local features."""

from typing import Any

import torch
from torch import Tensor, nn

from fastds.models.card import ModelCard
from fastds.models.ensembles.forecast_features import FEATURES, WIDTHS

_MEAN, _WIDTH = 0, 2 + 3 * len(WIDTHS) + 1  # index of the forecast and of its missing variance in windows of WIDTHS[1]

_LOW, _HIGH = -1.0, 1.5  # h(n) = n between these values of n


class ErrorModel(nn.Module):
    """Distribution of reflectivity at a pixel: z = m + s h(n) with standard normal n.

    The value z is in dB above the floor. A pixel is dry if z is below the detection threshold.

        (a, b, c, d) = perceptron(features);  m = f - 3 + 10 a;  s = sqrt(v + 4) exp(b);  g, e = softplus((c, d) - 1.5)
        h(n) = n                                            for -1 <= n <= 1.5
        h(n) = 1.5 + (n - 1.5) / (1 + g (n - 1.5))          above: compresses the upper tail
        h(n) = -1 + (1 + e) (n + 1)                         below: steepens the lower tail, as rain areas end abruptly

    Here f is the field, and v estimates the variance around the pixel that is missing in the field, see
    ForecastFeatures for nowcasts and DownscalingFeatures for downscaled fields. b is clipped to -3 ... 3. The last
    layer is initialised with zeros.
    The features are local and do not include the position, so that the model applies to grids of any size and to motion
    in any direction.

    Args:
        hidden: width of both hidden layers.
        features: number of input features. Feature 0 is f in units of 20 dB.
        lacking: index of the feature sqrt(v) in units of 10 dB. The defaults are those of ForecastFeatures.

    Shapes: forward(features (F, ...)) -> m, s, g and e, each (...); m and s in dB.
    """

    def __init__(self, hidden: int = 24, features: int = FEATURES, lacking: int = _WIDTH):
        super().__init__()
        self.config, self.card = {"hidden": hidden, "features": features, "lacking": lacking}, ModelCard()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 4)
        )  # fmt: skip
        last: Any = self.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        a, b, c, d = self.layers(features.flatten(1).t()).t().reshape(4, *features.shape[1:])
        lacking = (10 * features[self.config["lacking"]]).square()
        s = (lacking + 4).sqrt() * b.clamp(-3, 3).exp()
        return 20 * features[_MEAN] - 3 + 10 * a, s, *nn.functional.softplus(torch.stack([c, d]) - 1.5)


def quadrature(count: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights for means over a standard normal variable.

    Args:
        count: number of nodes.

    Returns:
        Nodes (count,) from -3.6 to 3.6 and weights (count,) with sum one.
    """
    nodes = torch.linspace(-3.6, 3.6, count)
    return nodes, torch.softmax(-nodes.square() / 2, 0)


def sample_reflectivity(parameters: tuple[Tensor, ...], noise: Tensor) -> Tensor:
    """Compute z = m + s h(n) of an error model from standard normal noise n.

    Args:
        parameters: m, s, g and e of the error model.
        noise: n. Shapes broadcast.

    Returns:
        Reflectivity in dB above the floor. Values below the detection threshold stand for dry pixels.
    """
    m, s, g, e = parameters
    above, below = (noise - _HIGH).clamp(min=0), (_LOW - noise).clamp(min=0)
    return m + s * (noise.clamp(_LOW, _HIGH) + above / (1 + g * above) - (1 + e) * below)
