# SPDX-License-Identifier: Apache-2.0
"""Radar data: reflectivity, rain, preparation for networks, pixel codes and synthetic events."""
