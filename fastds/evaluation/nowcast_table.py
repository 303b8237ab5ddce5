# SPDX-License-Identifier: Apache-2.0
"""The table of scores by threshold and lead that the evaluation of nowcasts returns."""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np

from fastds.data import RAIN_THRESHOLDS
from fastds.metrics import mean_of_defined

from .table import number_text, score_table, write_csv

# Wavelengths, cells.
BANDS = ((2.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0))
_BY_THRESHOLD = ("csi", "hss", "pod", "far", "fss")
_ERRORS = ("b_mse", "b_mae", "mse", "mae")
_COLUMNS = 8  # leads shown


@dataclasses.dataclass(frozen=True)
class NowcastTable:
    """Scores by method and lead.

    Attributes:
        rows: method -> score -> array. csi, hss, pod, far, fss (n, thresholds); b_mse, b_mae (n,), sums over the field
            on [0, 1]; mse (dBZ^2), mae (dBZ) (n,); power (n, bands): of the forecast over that of the truth by
            wavelength, BANDS in cells. NaN where a score is not defined.
        leads: (n,) seconds. z_r: (a, b) of the rain rates. starts, pixels: number of starts, of valid pixels a field.
    """

    rows: dict[str, dict[str, np.ndarray]]
    leads: np.ndarray
    z_r: tuple[float, float]
    starts: int
    pixels: int
    notes: tuple[str, ...] = ()

    def means(self, method: str, score: str) -> np.ndarray:
        """One score of a method averaged over leads: (thresholds,), (bands,) or a number; undefined leads left out."""
        return mean_of_defined(self.rows[method][score])

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write one line per method, lead, score and threshold (mm/h) or wavelength (cells), by a temporary name."""
        lines = []
        for method, row in self.rows.items():
            for score in (*_BY_THRESHOLD, "power", *_ERRORS):
                labels = RAIN_THRESHOLDS if score in _BY_THRESHOLD else [""]
                labels = [f"{low:g}-{high:g}" for low, high in BANDS] if score == "power" else labels
                for lead, values in zip(self.leads, row[score].reshape(len(self.leads), -1), strict=True):
                    lines += [
                        [method, f"{lead / 60:g}", score, label, f"{value:.6g}"]
                        for label, value in zip(labels, values, strict=True)
                    ]
        write_csv(path, ["method", "lead_min", "score", "at", "value"], lines)

    def print(self, console=None) -> None:
        """Print the tables with rich on a console (default: standard output)."""
        from rich.console import Console

        console = console or Console()
        console.print(self._skill())
        console.print(self._errors())
        for score, at in (("mse", None), ("csi", 0.5), ("csi", 2.0), ("csi", 5.0), ("fss", 2.0), ("power", None)):
            console.print(self._by_lead(score, at))
        console.print(
            f"{self.starts} starts, {self.pixels} valid cells a field on average, rain by Z = {self.z_r[0]:g} "
            f"R^{self.z_r[1]:g}. B-MSE, B-MAE: weighted sums over the field on the scale 0-60 dBZ = 0-1, as in the "
            "DB-RNN paper; FSS in windows of 9 cells.",
            style="dim",
        )
        for note in self.notes:
            console.print(note, style="dim")

    def _skill(self):
        heads = ("method", "score", *(f"{rate:g}" for rate in RAIN_THRESHOLDS))
        table = score_table("Scores at rain rates in mm/h, mean over leads", heads)
        for score in _BY_THRESHOLD:
            for number, method in enumerate(self.rows, 1):
                values = map(_text, self.means(method, score))
                table.add_row(method, score.upper(), *values, end_section=number == len(self.rows))
        return table

    def _errors(self):
        bands = (f"{low:g}-{high:g}" for low, high in BANDS)
        heads = ("method", "B-MSE", "B-MAE", "MSE dBZ²", *bands)
        table = score_table("Errors, and power over the truth's by wavelength in cells, mean over leads", heads)
        for method in self.rows:
            errors = (f"{self.means(method, score):.1f}" for score in ("b_mse", "b_mae", "mse"))
            table.add_row(method, *errors, *map(_text, self.means(method, "power")))
        return table

    def _by_lead(self, score: str, at: float | None):
        every = math.ceil(len(self.leads) / _COLUMNS)
        chosen = np.arange(every - 1, len(self.leads), every)
        title = {"mse": "MSE in dBZ²", "power": "Power at wavelengths of 2 to 4 cells over the truth's"}.get(
            score, f"{score.upper()} at {at} mm/h"
        )
        minutes = (f"{self.leads[k] / 60:g}" for k in chosen)
        table = score_table(f"{title} by lead in minutes", ("method", *minutes))
        column = 0 if at is None else RAIN_THRESHOLDS.index(at)
        for method, row in self.rows.items():
            values = row[score].reshape(len(self.leads), -1)[chosen, column]
            table.add_row(method, *(f"{v:.1f}" if score == "mse" else _text(v) for v in values))
        return table


def _text(value: float) -> str:
    """Three decimals without a leading zero, so that a row fits 80 columns."""
    text = number_text(value)
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
