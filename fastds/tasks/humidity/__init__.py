# SPDX-License-Identifier: Apache-2.0
"""Ensembles of fine relative humidity (WGAN-GP)."""
