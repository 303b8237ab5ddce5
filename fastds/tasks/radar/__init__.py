# SPDX-License-Identifier: Apache-2.0
"""Radar fields to twice the resolution (FC-ZSM)."""
