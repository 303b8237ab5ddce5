# SPDX-License-Identifier: Apache-2.0
"""Scores of downscaled radar fields: accumulated sums over pairs of input frames, and tables."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
from collections.abc import Callable
from itertools import starmap
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastds.data import coarsen, coarsen_mask
from fastds.data.radar.preparation import CEILING_DBZ
from fastds.inference.scoring import ScoreSums
from fastds.inference.tables import ScoreTables, format_number, make_score_table, write_csv
from fastds.metrics import EVALUATION_FLOORS, EnsembleScores, fss, radar_errors, spectral_ratio
from fastds.tasks.radar.pairs import SPACE_FACTOR, Pair, average_above

if TYPE_CHECKING:
    from rich.table import Table

THRESHOLDS_DBZ = (15.0, 30.0, 40.0)
FSS_WINDOW = 9
FINE_BAND = (2.0, 4.0)
# SSIM and FSS need packages of the extra "verify"; without them the table has "-" and a note.
HAS_TORCHMETRICS, HAS_SCORES = (importlib.util.find_spec(name) is not None for name in ("torchmetrics", "scores"))
# scores of an ensemble, see fastds.metrics.EnsembleScores
_ENSEMBLE = ("crps", "crps_reliability", "crps_potential", "spread_skill", "outliers")


class MethodScores:
    """Accumulated scores of one method over pairs of input frames."""

    def __init__(self):
        self.count, self.pixels = 0, 0
        self.weighted = ScoreSums()  # key -> (2,): weighted sum and weight
        self.values = ScoreSums()  # key -> list of values
        self.hits = np.zeros((len(THRESHOLDS_DBZ), 2))
        self.recoarsened = np.zeros(2)
        self.ensembles = ScoreSums()  # floor -> EnsembleScores

    def add(self, pair: Pair, prediction: torch.Tensor | None, method: Callable | None) -> None:
        """Add a pair.

        Args:
            pair: pair of input frames.
            prediction: (f + 1, H, W) in dBZ, or members (M, f + 1, H, W), whose mean is scored; None: the baseline.
            method: function of the baseline; None: the prediction.
        """
        if not pair.valid.any():
            return
        self.count += 1
        self.pixels += int(pair.valid.sum())
        high, low = sorted(EVALUATION_FLOORS, reverse=True)
        if prediction is None:
            assert method is not None
            fields = {floor: pair.baseline(method, floor) for floor in (high, low)}
        elif prediction.ndim == pair.truth.ndim:
            fields = dict.fromkeys((high, low), prediction)
        else:
            fields = {floor: average_above(prediction, floor) for floor in (high, low)}
            self._add_ensemble(pair, prediction)
        for floor, values in fields.items():
            self._add_errors(pair, values, floor)
        self._add_skill(pair, fields[low])
        self._add_detail(pair, fields[high], high)

    def __iadd__(self, other: MethodScores) -> MethodScores:
        """Add the scores of other pairs."""
        self.count, self.pixels = self.count + other.count, self.pixels + other.pixels
        self.hits, self.recoarsened = self.hits + other.hits, self.recoarsened + other.recoarsened
        self.weighted += other.weighted
        self.values += other.values
        self.ensembles += other.ensembles
        return self

    def _add_ensemble(self, pair: Pair, members: torch.Tensor) -> None:
        """Add the ensemble scores, and the absolute error of the ensemble mean, above each floor."""
        for floor in EVALUATION_FLOORS:
            scores = self.ensembles.setdefault(floor, EnsembleScores())
            for fields, truth in zip(members.unbind(1), pair.truth, strict=True):
                x, y = (z.clamp(floor, CEILING_DBZ) for z in (fields, torch.where(pair.valid, truth, torch.nan)))
                scores.add(x, y, torch.ones(y.shape))
                error = (x.mean(0) - y)[pair.valid].abs().double()
                self._add_weighted(f"mae_{floor:g}", error.mean().item(), error.numel())

    def _add_errors(self, pair: Pair, fields: torch.Tensor, floor: float) -> None:
        last = len(pair.truth) - 1
        pixels = int(pair.valid.sum())
        for middle in range(1, last) if last else (0,):
            order = [0, middle, last]
            errors = radar_errors(fields[order], pair.truth[order], pair.valid, floor, with_ssim=HAS_TORCHMETRICS)
            for key in ("mse_total", "mse_t2", "mse_t13", "ssim"):
                if not np.isnan(errors[key]) and (last or key != "mse_t2"):
                    self._add_weighted(f"{key}_{floor:g}", errors[key], pixels)

    def _add_skill(self, pair: Pair, fields: torch.Tensor) -> None:
        valid = pair.valid
        for i, q in enumerate(THRESHOLDS_DBZ):
            p, t = ((z >= q) & valid for z in (fields, pair.truth))
            self.hits[i] += [(p & t).sum().item(), (p | t).sum().item()]
            if HAS_SCORES:
                score = fss(fields, pair.truth, q, FSS_WINDOW, valid.expand(fields.shape))
                self.values.setdefault(f"fss_{q:g}", []).append(score)

    def _add_detail(self, pair: Pair, fields: torch.Tensor, floor: float) -> None:
        truth = torch.where(pair.valid, pair.truth, float("nan"))
        self.values.setdefault("spectrum", []).append(spectral_ratio(fields, truth, floor, (FINE_BAND,))[FINE_BAND])
        outer = coarsen(fields[[0, -1]], SPACE_FACTOR, floor=floor)
        keep = coarsen_mask(pair.valid, SPACE_FACTOR).expand(outer.shape)
        error = (outer - pair.coarse.clamp(floor, CEILING_DBZ))[keep].double()
        self.recoarsened += [error.square().sum().item(), error.numel()]

    def _add_weighted(self, key: str, value: float, pixels: int) -> None:
        self.weighted += ScoreSums({key: np.array([value * pixels, pixels])})

    def means(self) -> dict[str, float]:
        """Return the scores over all pairs; NaN for scores that are not defined."""
        nan = float("nan")
        out = {}
        for floor in EVALUATION_FLOORS:
            for key in ("mse_total", "mse_t2", "mse_t13", "ssim"):
                total, weight = self.weighted.get(f"{key}_{floor:g}", (nan, 1))
                out[f"{key}_{floor:g}"] = float(total / weight)
        for (hits, events), q in zip(self.hits, THRESHOLDS_DBZ, strict=True):
            out[f"csi_{q:g}"] = hits / events if events else nan
        for key in (*(f"fss_{q:g}" for q in THRESHOLDS_DBZ), "spectrum"):
            values = [v for v in self.values.get(key, []) if not np.isnan(v)]
            out[key] = float(np.mean(values)) if values else nan
        total, count = self.recoarsened
        out["recoarsened_rmse"] = float(np.sqrt(total / count)) if count else nan
        for floor, scores in self.ensembles.items():
            means = scores.means()
            out |= {f"{key}_{floor:g}": means[key] for key in _ENSEMBLE}
            total, weight = self.weighted[f"mae_{floor:g}"]
            out[f"mae_{floor:g}"] = float(total / weight)
        return out


@dataclasses.dataclass(frozen=True, repr=False)
class EvaluationTable(ScoreTables):
    """Scores by method, method -> column -> value.

    Columns for each floor f in dBZ: mse_total_f, mse_t2_f, mse_t13_f (dBZ^2), ssim_f. For each threshold q in dBZ:
    csi_q, fss_q. spectrum: power at wavelengths of 2 to 4 pixels relative to the truth. recoarsened_rmse: difference in
    dBZ between the averaged output and the input, at input times. t2 denotes frames between the input times, t13 frames
    at the input times. The row of an ensemble mean also has, for each floor, crps_f (fair), crps_reliability_f,
    crps_potential_f and mae_f of the mean in dB, spread_skill_f and outliers_f.

    Attributes:
        rows: the scores.
        pairs: number of pairs of input frames.
        pixels: mean number of valid fine pixels in a frame.
        notes: further notes below the tables.
        single: whether there is a single time, and thus no t2; total is then the mean at that time.
    """

    rows: dict[str, dict[str, float]]
    pairs: int
    pixels: int
    notes: tuple[str, ...] = ()
    single: bool = False

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write one line per method, atomically."""
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row))
        lines = ([name, *(f"{row.get(c, math.nan):.6g}" for c in columns)] for name, row in self.rows.items())
        write_csv(path, ["method", *columns], lines)

    @property
    def title(self) -> str:
        """Heading of the HTML page."""
        return "Errors of downscaled radar fields"

    def tables(self) -> list[Table]:
        """Return the tables as they are printed."""
        drawn = {name: row for name, row in self.rows.items() if f"crps_{EVALUATION_FLOORS[0]:g}" in row}
        return [
            *map(self._make_error_table, EVALUATION_FLOORS),
            self._make_skill_table(),
            *starmap(_make_ensemble_table, drawn.items()),
        ]

    def list_notes(self) -> list[str]:
        """Return the notes below the tables."""
        text = (
            f"{self.pairs} pairs of input frames, {self.pixels} valid fine pixels a frame on average. t2: mean between "
            "the input times; t1, t3: mean at them; total: (t2 + 2 (t1, t3)) / 3. "
        )
        if self.single:
            text = f"One time, {self.pixels} valid fine pixels. "
        text += (
            f"FSS in windows of {FSS_WINDOW} pixels; detail: power at wavelengths of 2 to 4 pixels over the truth's; "
            "refit: rms of the output averaged back minus the input."
        )
        return [text, *self.notes]

    def _make_error_table(self, floor: float) -> Table:
        key = f"{floor:g}"
        table = make_score_table(
            f"Errors above {key} dBZ", ("method", "MSE total dBZ²", "vs trilinear", "MSE t2", "MSE t1, t3", "SSIM")
        )
        reference = self.rows["trilinear"][f"mse_total_{key}"]
        for name, row in self.rows.items():
            total = row[f"mse_total_{key}"]
            change = f"{100 * (total / reference - 1):+.1f} %" if reference > 0 else "-"
            numbers = [row[f"{c}_{key}"] for c in ("mse_t2", "mse_t13", "ssim")]
            table.add_row(
                name, format_number(total), "" if name == "trilinear" else change, *map(format_number, numbers)
            )
        return table

    def _make_skill_table(self) -> Table:
        heads = [
            (f"{score} {q:g}" if q == THRESHOLDS_DBZ[0] else f"{q:g}")
            for score in ("CSI", "FSS")
            for q in THRESHOLDS_DBZ
        ]
        title = "Skill at " + ", ".join(f"{q:g}" for q in THRESHOLDS_DBZ) + " dBZ, detail, fit to the input"
        table = make_score_table(title, ("method", *heads, "detail", "refit dB"))
        keys = [f"{score}_{q:g}" for score in ("csi", "fss") for q in THRESHOLDS_DBZ] + ["spectrum", "recoarsened_rmse"]
        for name, row in self.rows.items():
            table.add_row(name, *(format_number(row[k]) for k in keys))
        return table


def _make_ensemble_table(name: str, row: dict[str, float]) -> Table:
    """Return the table of ensemble scores from the row of the ensemble mean."""
    heads = ("above", "CRPS dB", "MAE of mean dB", "spread/skill", "outliers")
    table = make_score_table(f"Distribution of {name}", heads)
    for floor in EVALUATION_FLOORS:
        keys = ("crps", "mae", "spread_skill", "outliers")
        table.add_row(f"{floor:g} dBZ", *(format_number(row[f"{key}_{floor:g}"]) for key in keys))
    return table
