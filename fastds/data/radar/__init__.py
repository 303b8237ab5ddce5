# SPDX-License-Identifier: Apache-2.0
"""Reflectivity, rain and the preparation of radar fields."""
