# SPDX-License-Identifier: Apache-2.0
"""How good a downscaled radar field is: squared errors, structure, hits, scales."""

from fastds.metrics.errors import EVALUATION_FLOORS, interior, mse_total, radar_errors, ssim
from fastds.metrics.skill import csi, fss
from fastds.metrics.spectra import spectral_ratio

__all__ = ["EVALUATION_FLOORS", "csi", "fss", "interior", "mse_total", "radar_errors", "spectral_ratio", "ssim"]
