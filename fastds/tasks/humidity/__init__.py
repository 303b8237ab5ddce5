# SPDX-License-Identifier: Apache-2.0
"""Downscaling of relative humidity to ensembles of finer fields (WGAN-GP)."""
