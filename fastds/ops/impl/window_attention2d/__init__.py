# SPDX-License-Identifier: Apache-2.0
"""Attention of every pixel over a window around it."""
