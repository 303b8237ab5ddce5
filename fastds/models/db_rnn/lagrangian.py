# SPDX-License-Identifier: Apache-2.0
"""Nowcasting in the frame of the moving air: optical flow carries the echo, the network learns growth and decay."""

import torch
from torch import Tensor, nn

from fastds.models.baselines.advection import optical_flow, warp
from fastds.models.baselines.extrapolation import fill_missing, trajectories
from fastds.models.baselines.rims import from_outside, trusted_motion
from fastds.models.card import ModelCard
from fastds.models.db_rnn.network import DBRNN, MSRNN, NowcastModel
from fastds.models.inputs import check_input, check_samples

NETWORKS = {"MSRNN": MSRNN, "DBRNN": DBRNN}
_SHARES = (1 / 6, 5 / 6)  # of the flows of the last pairs of frames in the mean
_WET = 7 / 60  # 7 dBZ, 0.1 mm/h


def backward_flow(frames: Tensor) -> Tensor:
    """Displacement (B, 2, H, W) from each pixel to where its echo was one step before, pixels: the weighted mean of the
    optical flows of the last two pairs of frames (B, m >= 2, 1, H, W) in [0, 1], NaN where missing, as trusted_motion
    takes it near the rim of the last frame.
    """
    flows = optical_flow(fill_missing(frames[:, -(len(_SHARES) + 1) :]))[:, :, 1]
    shares = flows.new_tensor(_SHARES[-flows.shape[1] :]).view(-1, 1, 1, 1)
    flow = (flows * (shares / shares.sum())).sum(1)  # not a product, which autocast would round
    return trusted_motion(flow, ~frames[:, -1, 0].isnan())


def match_intensities(y: Tensor, reference: Tensor, valid: Tensor, least: float) -> Tensor:
    """Give a forecast the distribution of another field (probability matching), so that it is not too smooth.

    The pixel with the n-th highest value of y gets the n-th highest of reference. Where that is below `least`, y stays,
    between 0 and least.

    Args:
        y: (B, n, 1, H, W). reference: (B, 1, H, W), the same for all n. valid: (B, 1, H, W) bool, pixels that take
            part; others stay. least: see above.

    Returns:
        (B, n, 1, H, W). Not differentiable; deterministic.

    Source: Ebert 2001, Ability of a Poor Man's Ensemble to Predict the Probability and Distribution of Precipitation.
    """
    out = y.clone()
    for fields, field, keep in zip(out, reference, valid, strict=True):
        values = field[keep].sort().values
        for target in fields:
            own = target[keep]
            matched = torch.empty_like(own)
            matched[own.argsort(stable=True)] = values
            target[keep] = torch.where(matched >= least, matched, own.clamp(0, least))
    return out


class LagrangianRNN(NowcastModel):
    """A network of the family between two moves along the optical flow (an option beyond the paper).

        d_k = trajectories(backward_flow(x), ...)[k - 1], where what is at p was k steps ago, less p
        l_j(p) = x_j(p + d_{m-j}(p)), j < m;  l_m = x_m;  l_{t+1} = l_t + Out h_t, of a residual network
        y_k(p) = l_{m+k}(p + d_k(p)); forecast() gives l_{m+k} the distribution of l_m before, see match_above, and y_k
        what is expected from outside the observed area, see from_outside

    The output layers start at zero: without training the forecast is extrapolation along this flow.

    Args:
        network: "MSRNN" or "DBRNN".
        cell, hidden, cell_options: of the network, see MSRNN.
        match_above: forecasts take the distribution of the last field from this value on, see match_intensities; the
            default is 15 dBZ between 0 and 60. None: they stay as smooth as least squared error makes them.

    Shapes: forward(frames (B, m, 1, H, W) in [0, 1], steps=n) -> forecasts (B, n, 1, H, W), not clipped; m >= 2.
    Missing values (NaN) take the nearest value. Differentiable in the weights, and in frames for a given flow.
    """

    def __init__(
        self,
        network: str = "MSRNN",
        cell: str = "convlstm",
        hidden: int = 24,
        cell_options: dict | None = None,
        match_above: float | None = 0.25,
    ):
        super().__init__()
        if network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
        self.config = {"network": network, "cell": cell, "hidden": hidden, "cell_options": dict(cell_options or {})}
        self.config["match_above"] = self.match_above = match_above
        self.card = ModelCard()
        self.network = NETWORKS[network](cell, hidden, cell_options, residual=True)
        for name, parameter in self.network.named_parameters():
            if name.split(".")[-2] == "output" and "cells" not in name:
                nn.init.zeros_(parameter)

    def forward(self, frames: Tensor, steps: int = 12, flow: Tensor | None = None) -> Tensor:
        """Forecast n frames; flow (B, 2, H, W) as backward_flow gives it, None computes it."""
        return self._roll(frames, steps, flow, matched=False)[0]

    def with_flow(self, frames: Tensor, steps: int = 12, flow: Tensor | None = None) -> tuple:
        """The arguments of forward, missing values filled, with the flow that it would compute."""
        self._check_frames(frames)
        return fill_missing(frames), steps, backward_flow(frames) if flow is None else flow

    @torch.no_grad()
    def forecast(self, frames: Tensor, steps: int, flow: Tensor | None = None, smooth: bool = False) -> Tensor:
        """The n frames after the known ones, matched to the last known one unless `smooth`, clipped to [0, 1];
        arguments as forward. Known frames without any echo give forecasts without any. Not differentiable.
        """
        matched = self.match_above is not None and not smooth
        y, paths = self._roll(frames, steps, flow, matched)
        y = from_outside(y, frames[:, -1], paths, _WET if matched else None).clamp(0, 1)
        return torch.where((frames > 0).flatten(1).any(1).view(-1, 1, 1, 1, 1), y, 0)  # NaN > 0 is False

    def _roll(self, frames: Tensor, steps: int, flow: Tensor | None, matched: bool) -> tuple[Tensor, Tensor]:
        """Forecasts, and the displacements (B, n, 2, H, W) of their air."""
        self._check_frames(frames)
        valid, known = ~frames[:, -1].isnan(), frames.shape[1]
        paths = trajectories(backward_flow(frames) if flow is None else flow, max(steps, known - 1))
        frames = fill_missing(frames)
        moved = [warp(frames[:, j], paths[:, known - 2 - j]) for j in range(known - 1)]
        still = self.network.roll(torch.stack([*moved, frames[:, -1]], 1), steps)[-1][:, -steps:].to(frames.dtype)
        if matched:
            still = match_intensities(still, frames[:, -1], valid, self.match_above)
        return torch.stack([warp(still[:, k], paths[:, k]) for k in range(steps)], 1), paths[:, :steps]

    def _check_frames(self, frames: Tensor) -> None:
        check_input("frames", frames, self)
        if frames.dim() != 5 or frames.shape[1] < 2:
            raise ValueError(f"frames must have shape (B, m, 1, H, W) with m >= 2, got {tuple(frames.shape)}")
        check_samples("frames", frames)
