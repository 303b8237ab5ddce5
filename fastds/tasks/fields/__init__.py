# SPDX-License-Identifier: Apache-2.0
"""Downscaling of gridded fields to any finer grid, and queries at points."""
