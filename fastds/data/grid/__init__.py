# SPDX-License-Identifier: Apache-2.0
"""Coordinates, times, units and variables of a file."""
