# SPDX-License-Identifier: Apache-2.0
"""Baselines without training: interpolation in space and time, advection, and extrapolation nowcasts."""

from fastds.models.baselines.advection import advection, optical_flow, warp
from fastds.models.baselines.extrapolation import (
    blurred_persistence,
    compute_trajectories,
    extrapolation,
    persistence,
    pysteps_extrapolation,
)
from fastds.models.baselines.interpolation import bicubic, interpolate, trilinear
from fastds.models.baselines.motion import estimate_backward_flow

__all__ = [
    "advection", "bicubic", "blurred_persistence", "compute_trajectories", "estimate_backward_flow", "extrapolation",
    "interpolate", "optical_flow", "persistence", "pysteps_extrapolation", "trilinear", "warp",
]  # fmt: skip
