# SPDX-License-Identifier: Apache-2.0
"""Untrained methods to beat: interpolation in time and space, with and without motion."""

from fastds.models.baselines.advection import advection, optical_flow, warp
from fastds.models.baselines.interpolation import interpolate
from fastds.models.baselines.trilinear import bicubic, trilinear

__all__ = ["advection", "bicubic", "interpolate", "optical_flow", "trilinear", "warp"]
