# SPDX-License-Identifier: Apache-2.0
"""Latitude-longitude fields to any grid (INR)."""
