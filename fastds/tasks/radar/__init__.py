# SPDX-License-Identifier: Apache-2.0
"""Downscaling of radar fields to twice the resolution in space and time (FC-ZSM)."""
