# SPDX-License-Identifier: Apache-2.0
"""Lagrangian nowcasting: advection along optical flow, and a network for growth and decay along the motion."""

import torch
from torch import Tensor, nn

from fastds.models.baselines.advection import warp
from fastds.models.baselines.boundary import fill_inflow, fill_missing
from fastds.models.baselines.extrapolation import compute_trajectories
from fastds.models.baselines.motion import estimate_backward_flow
from fastds.models.card import ModelCard
from fastds.models.db_rnn.network import DBRNN, MSRNN, NowcastModel
from fastds.models.inputs import check_input, check_samples

NETWORKS = {"MSRNN": MSRNN, "DBRNN": DBRNN}
_WET = 7 / 60  # 7 dBZ on the scale from 0 to 60 dBZ, about 0.1 mm/h


def match_intensities(y: Tensor, reference: Tensor, valid: Tensor, least: float) -> Tensor:
    """Give a smooth forecast the distribution of intensities of a reference frame (probability matching).

    The pixel with the n-th largest value of y gets the n-th largest value of the reference. If that value is below
    `least`, the pixel keeps its value of y, clipped to [0, least].

    Args:
        y: (B, n, 1, H, W), forecasts.
        reference: (B, 1, H, W), used for all n forecasts.
        valid: (B, 1, H, W) bool, the pixels that take part. Other pixels do not change.
        least: smallest matched value.

    Returns:
        (B, n, 1, H, W). Not differentiable; deterministic.

    Source: Ebert 2001, Ability of a Poor Man's Ensemble to Predict the Probability and Distribution of Precipitation.
    """
    out = y.clone()
    for fields, field, keep in zip(out, reference, valid, strict=True):
        values = field[keep].sort().values
        for target in fields:
            current = target[keep]
            matched = torch.empty_like(current)
            matched[current.argsort(stable=True)] = values
            target[keep] = torch.where(matched >= least, matched, current.clamp(0, least))
    return out


class LagrangianRNN(NowcastModel):
    """Recurrent network on Lagrangian coordinates. The DB-RNN paper does not contain this network.

    The m input frames x and the forecasts y are advected along optical flow before and after the network:

        d_k = compute_trajectories(estimate_backward_flow(x), ...)[k - 1], the displacement to the origin k steps before
        l_j(p) = x_j(p + d_{m-j}(p)), j < m;  l_m = x_m;  l_{t+1} = l_t + Out h_t
        y_k(p) = l_{m+k}(p + d_k(p))

    h_t is the hidden state of the network and Out its output layer. If match_above is given, `forecast` also gives
    l_{m+k} the intensities of l_m above match_above, see match_intensities. `forecast` fills the inflow in y_k, see
    fill_inflow. The output layers are initialised with zeros, so that an untrained model is an extrapolation along the
    flow.

    Args:
        network: "MSRNN" or "DBRNN".
        cell, hidden, cell_options: arguments of the network, see MSRNN.
        match_above: smallest intensity that `forecast` matches to the last frame, see match_intensities. The default is
            15 dBZ on the scale from 0 to 60 dBZ. None disables the matching.

    Shapes: forward(frames (B, m >= 2, 1, H, W) in [0, 1], steps=n) -> forecasts (B, n, 1, H, W), not clipped. Missing
    values (NaN) take the nearest value. Differentiable in the weights, and in frames for a given flow.
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
        """Forecast n frames.

        Args:
            frames: (B, m >= 2, 1, H, W) in [0, 1].
            steps: n.
            flow: (B, 2, H, W), see estimate_backward_flow. None computes it.

        Returns:
            (B, n, 1, H, W). Intensities are not matched to those of the input, and values are not clipped.
        """
        return self._roll(frames, steps, flow, matched=False)[0]

    def prepare_inputs(self, frames: Tensor, steps: int = 12, flow: Tensor | None = None) -> tuple:
        """Prepare the arguments of `forward`.

        Args:
            frames: (B, m >= 2, 1, H, W) in [0, 1], NaN where missing.
            steps: n.
            flow: (B, 2, H, W), see estimate_backward_flow. None computes it.

        Returns:
            The frames with missing values filled, steps, and the flow.

        Raises:
            ValueError: The frames have another shape.
        """
        self._check_frames(frames)
        return fill_missing(frames), steps, estimate_backward_flow(frames) if flow is None else flow

    @torch.no_grad()
    def forecast(self, frames: Tensor, steps: int, flow: Tensor | None = None, smooth: bool = False) -> Tensor:
        """Forecast the n frames after the input, clipped to [0, 1]. Not differentiable.

        Args:
            frames: (B, m >= 2, 1, H, W) in [0, 1], NaN where missing. If all frames are dry, the forecast is dry.
            steps: n.
            flow: (B, 2, H, W), see estimate_backward_flow. None computes it.
            smooth: True disables the matching of intensities.

        Returns:
            (B, n, 1, H, W).
        """
        matched = self.match_above is not None and not smooth
        y, paths = self._roll(frames, steps, flow, matched)
        y = fill_inflow(y, frames[:, -1], paths, _WET if matched else None).clamp(0, 1)
        return torch.where((frames > 0).flatten(1).any(1).view(-1, 1, 1, 1, 1), y, 0)  # NaN > 0 is False

    def _roll(self, frames: Tensor, steps: int, flow: Tensor | None, matched: bool) -> tuple[Tensor, Tensor]:
        """Forecast n frames.

        Returns:
            The forecasts, and the displacements (B, n, 2, H, W) to the origins of their air.
        """
        self._check_frames(frames)
        valid, known = ~frames[:, -1].isnan(), frames.shape[1]
        paths = compute_trajectories(estimate_backward_flow(frames) if flow is None else flow, max(steps, known - 1))
        frames = fill_missing(frames)
        advected = [warp(frames[:, j], paths[:, known - 2 - j]) for j in range(known - 1)]
        lagrangian = self.network.roll(torch.stack([*advected, frames[:, -1]], 1), steps)[-1][:, -steps:].to(
            frames.dtype
        )
        if matched:
            assert self.match_above is not None
            lagrangian = match_intensities(lagrangian, frames[:, -1], valid, self.match_above)
        return torch.stack([warp(lagrangian[:, k], paths[:, k]) for k in range(steps)], 1), paths[:, :steps]

    def _check_frames(self, frames: Tensor) -> None:
        check_input("frames", frames, self)
        if frames.dim() != 5 or frames.shape[1] < 2:
            raise ValueError(f"frames must have shape (B, m, 1, H, W) with m >= 2, got {tuple(frames.shape)}")
        check_samples("frames", frames)
