# SPDX-License-Identifier: Apache-2.0
"""Charts of radar fields, accumulated over frames: errors by intensity, and power spectra."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch

from fastds.metrics import error_sums, power_spectrum
from fastds.plot import draw_errors_by_intensity, spectra
from fastds.report.charts import Chart

_EDGES = np.arange(5.0, 65.0, 5.0)  # class edges in dBZ
_MIN_PIXELS = 30  # minimum number of pixels of a class that is drawn
_FLOOR = 5.0  # dBZ, floor of the spectra


class Curves:
    """Sums over frames, by method.

    Args:
        spacing: grid spacing in km; None: wavelengths are in pixels.
    """

    def __init__(self, spacing: float | None):
        self.spacing = spacing
        self.errors: dict[str, np.ndarray] = {}
        self.spectra: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add_errors(self, fields: Mapping[str, torch.Tensor], truth: torch.Tensor, valid: torch.Tensor) -> None:
        """Add the errors of fields.

        Args:
            fields: method -> dBZ, in the shape of truth.
            truth: dBZ.
            valid: mask of the scored pixels.
        """
        for name, field in fields.items():
            self.errors[name] = self.errors.get(name, 0) + error_sums(field, truth, valid, _EDGES)

    def add_spectra(self, fields: Mapping[str, torch.Tensor]) -> None:
        """Add the power spectra of fields.

        Args:
            fields: method -> (H, W) in dBZ, NaN where missing.
        """
        for name, field in fields.items():
            self.spectra.setdefault(name, []).append(power_spectrum(field, _FLOOR))

    def charts(self, of_spectra: str = "") -> list[Chart]:
        """Make the charts for which data were added.

        Args:
            of_spectra: description of the fields whose spectra are drawn.
        """
        return [*self._errors(), *self._spectra(of_spectra)]

    def _errors(self) -> list[Chart]:
        bias, rmse = {}, {}
        for name, sums in self.errors.items():
            pixels, error, square = np.where(sums[:, :1] >= _MIN_PIXELS, sums, np.nan).T
            bias[name], rmse[name] = error / pixels, np.sqrt(square / pixels)
        if not any(np.isfinite(values).any() for values in bias.values()):
            return []
        draw = functools.partial(draw_errors_by_intensity, (_EDGES[:-1] + _EDGES[1:]) / 2, bias, rmse)
        alt = "; ".join(f"{name}: {_format_range(rmse[name])} dB rms" for name in rmse)
        return [Chart("Error by intensity of the truth", f"Mean and rms error in classes of 5 dBZ. {alt}", draw)]

    def _spectra(self, of: str) -> list[Chart]:
        curves = {}
        for name, found in self.spectra.items():
            wavenumber, power = found[0][0], np.mean([power for _, power in found], axis=0)
            curves[name] = wavenumber / (self.spacing or 1.0), power
        if not any((power > 0).any() for _, power in curves.values()):
            return []
        draw = functools.partial(spectra, curves, unit="pixels" if self.spacing is None else "km")
        alt = f"Power by wavelength of {', '.join(curves)}, {of}".rstrip(", ")
        return [Chart(f"Power spectra{', ' * bool(of)}{of}", alt, draw)]


def _format_range(values: np.ndarray) -> str:
    return f"{np.nanmin(values):.1f} to {np.nanmax(values):.1f}" if np.isfinite(values).any() else "no"
