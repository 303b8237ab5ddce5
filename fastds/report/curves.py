# SPDX-License-Identifier: Apache-2.0
"""Curves of radar fields, summed method by method: errors by intensity and power spectra."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch

from fastds.metrics import error_sums, power_spectrum
from fastds.plot import draw_errors_by_intensity, spectra
from fastds.report.charts import Chart

_EDGES = np.arange(5.0, 65.0, 5.0)  # dBZ
_FEWEST = 30  # pixels of a class that is drawn
_FLOOR = 5.0  # dBZ, of the spectra


class Curves:
    """Sums over fields. Args: spacing: of their grid in km; None: wavelengths are told in pixels."""

    def __init__(self, spacing: float | None):
        self.spacing = spacing
        self.errors: dict[str, np.ndarray] = {}
        self.spectra: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add_errors(self, fields: Mapping[str, torch.Tensor], truth: torch.Tensor, valid: torch.Tensor) -> None:
        """Errors of fields, method -> the shape of truth and valid, dBZ."""
        for name, field in fields.items():
            self.errors[name] = self.errors.get(name, 0) + error_sums(field, truth, valid, _EDGES)

    def add_spectra(self, fields: Mapping[str, torch.Tensor]) -> None:
        """Power of fields, method -> (H, W), dBZ, NaN = missing."""
        for name, field in fields.items():
            self.spectra.setdefault(name, []).append(power_spectrum(field, _FLOOR))

    def charts(self, of_spectra: str = "") -> list[Chart]:
        """Those there is something to draw of; of_spectra: which fields they are of."""
        return [*self._errors(), *self._spectra(of_spectra)]

    def _errors(self) -> list[Chart]:
        bias, rmse = {}, {}
        for name, sums in self.errors.items():
            pixels, error, square = np.where(sums[:, :1] >= _FEWEST, sums, np.nan).T
            bias[name], rmse[name] = error / pixels, np.sqrt(square / pixels)
        if not any(np.isfinite(values).any() for values in bias.values()):
            return []
        draw = functools.partial(draw_errors_by_intensity, (_EDGES[:-1] + _EDGES[1:]) / 2, bias, rmse)
        alt = "; ".join(f"{name}: {_range(rmse[name])} dB rms" for name in rmse)
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


def _range(values: np.ndarray) -> str:
    return f"{np.nanmin(values):.1f} to {np.nanmax(values):.1f}" if np.isfinite(values).any() else "no"
