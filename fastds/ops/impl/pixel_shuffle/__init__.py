# SPDX-License-Identifier: Apache-2.0
"""Pixel shuffle with bias and activation, and its adjoint."""
