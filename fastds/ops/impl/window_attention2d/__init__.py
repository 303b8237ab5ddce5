# SPDX-License-Identifier: Apache-2.0
"""Attention of each pixel to a window around it."""
