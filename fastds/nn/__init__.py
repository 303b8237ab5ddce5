# SPDX-License-Identifier: Apache-2.0
"""Modules around the ops."""

from fastds.nn.deform_conv2d import DeformConv2d, GuidedDeformConv2d

__all__ = ["DeformConv2d", "GuidedDeformConv2d"]
