# SPDX-License-Identifier: Apache-2.0
"""How good a downscaled field is: squared errors, structure, hits, scales."""

from fastds.metrics.errors import EVALUATION_FLOORS, interior, mse_total, radar_errors, ssim
from fastds.metrics.fields import detail_ratio, latitude_weights, psnr
from fastds.metrics.skill import csi, fss
from fastds.metrics.spectra import spectral_ratio

__all__ = [
    "EVALUATION_FLOORS",
    "csi",
    "detail_ratio",
    "fss",
    "interior",
    "latitude_weights",
    "mse_total",
    "psnr",
    "radar_errors",
    "spectral_ratio",
    "ssim",
]
