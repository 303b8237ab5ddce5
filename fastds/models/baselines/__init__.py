# SPDX-License-Identifier: Apache-2.0
"""Untrained methods to beat: interpolation in time and space, and extrapolation in time, with and without motion."""

from fastds.models.baselines.advection import advection, optical_flow, warp
from fastds.models.baselines.extrapolation import (
    blurred_persistence,
    extrapolation,
    persistence,
    pysteps_extrapolation,
    trajectories,
)
from fastds.models.baselines.interpolation import bicubic, interpolate, trilinear

__all__ = [
    "advection", "bicubic", "blurred_persistence", "extrapolation", "interpolate", "optical_flow", "persistence",
    "pysteps_extrapolation", "trajectories", "trilinear", "warp",
]  # fmt: skip
