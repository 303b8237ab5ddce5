# SPDX-License-Identifier: Apache-2.0
"""Coordinates, times, units, variables and metadata of a dataset."""
