# SPDX-License-Identifier: Apache-2.0
"""Scores of nowcasts by rain rate and lead time: accumulated sums and tables."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastds.data import RAIN_THRESHOLDS, normalised_rates, prepare, reflectivity_to_rate
from fastds.data.samples.radar_windows import NOWCAST_CEILING_DBZ, NOWCAST_FLOOR_DBZ
from fastds.inference.tables import ScoreTables, format_count, format_number, make_score_table, write_csv
from fastds.metrics import NowcastScores, mean_of_defined
from fastds.metrics.fields import compute_band_powers
from fastds.tasks.nowcast.ensemble_scores import EnsembleRows
from fastds.tasks.nowcast.windows import WET_RATE, count_in_windows
from fastds.tasks.probability.scores import ProbabilityTable

if TYPE_CHECKING:
    from rich.table import Table

# wavelengths in cells
BANDS = ((2.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0))
_BY_THRESHOLD = ("csi", "hss", "pod", "far", "csi_near", "fss")
_NAMES = {"csi_near": "CSI near"}
# Score -> rain rates in mm/h of its table by lead time.
_BY_LEAD = {"csi": RAIN_THRESHOLDS, "csi_near": (2.0, 10.0, 30.0), "fss": (2.0, 10.0, 30.0)}
_ERRORS = ("b_mse", "b_mae", "mse", "mae")
# Ratios of forecast and truth, 1 without bias.
_BIASES = {"wet": "Wet area", "rain": "Mean rain"}
# Score -> rain rates in mm/h of the table that is printed by default.
_MAIN = {"csi": (0.5, 2.0, 10.0), "fss": (2.0, 10.0)}
_MAX_COLUMNS = 8  # maximum number of lead times in a table


@dataclasses.dataclass(frozen=True, repr=False)
class NowcastTable(ScoreTables):
    """Scores by method and lead time.

    Attributes:
        rows: method -> score -> array, NaN for a score that is not defined. csi, hss, pod, far, fss (n, thresholds).
            csi_near (n, thresholds): CSI of events in windows of WINDOW x WINDOW cells. b_mse, b_mae (n,): sums over
            the field on the scale [0, 1]. mse (dBZ^2), mae (dBZ) (n,). wet, rain (n,): area of at least WET_RATE, and
            mean rain, relative to the truth. power (n, bands): power relative to the truth by wavelength, BANDS in
            cells.
        leads: (n,) lead times in seconds.
        z_r: a and b of Z = a R^b.
        starts: number of initialization times.
        pixels: mean number of valid pixels in a field.
        counts: method -> (starts, n, thresholds, 4): TP, FN, FP and TN of each initialization time.
        notes: further notes below the tables.
        ensemble: scores of the ensemble, or None. With an ensemble, the last two rows are its mean and one member.
        shares: scores of the shares of members that reach a rate as probabilities, or None.
    """

    rows: dict[str, dict[str, np.ndarray]]
    leads: np.ndarray
    z_r: tuple[float, float]
    starts: int
    pixels: int
    counts: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    ensemble: EnsembleRows | None = None
    shares: ProbabilityTable | None = None

    def means(self, method: str, score: str) -> np.ndarray:
        """Return a score of a method averaged over lead times, without undefined values.

        The result has the shape (thresholds,) or (bands,), or is a number.
        """
        return mean_of_defined(self.rows[method][score])

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write one line per method, lead time, score and threshold (mm/h) or wavelength (cells), atomically."""
        lines: list[list[str]] = []
        for method, row in self.rows.items():
            for score in (*_BY_THRESHOLD, "power", *_ERRORS, *_BIASES):
                labels: Sequence[Any] = RAIN_THRESHOLDS if score in _BY_THRESHOLD else [""]
                labels = [f"{low:g}-{high:g}" for low, high in BANDS] if score == "power" else labels
                for lead, values in zip(self.leads, row[score].reshape(len(self.leads), -1), strict=True):
                    lines += [
                        [method, f"{lead / 60:g}", score, label, f"{value:.6g}"]
                        for label, value in zip(labels, values, strict=True)
                    ]
        if self.ensemble is not None:
            lines += self.ensemble.list_csv_rows(list(self.rows)[-2])
        if self.shares is not None:
            lines += [
                [method, lead, f"ensemble {score}", threshold.removesuffix(" mm/h"), value]
                for method, lead, threshold, score, probability, value in self.shares.list_csv_rows()
                if not probability
            ]
        write_csv(path, ["method", "lead_min", "score", "at", "value"], lines)

    @property
    def title(self) -> str:
        """Heading of the HTML page."""
        return "Scores of forecasts"

    def main_tables(self) -> list[Table]:
        """Return the tables that are printed by default."""
        tables = []
        if self.ensemble is not None and self.shares is not None:
            found = zip(self.shares.thresholds, self.shares.rows["brier_skill"], strict=True)
            skill = {name.removesuffix(" mm/h"): values for name, values in found}
            tables.append(self.ensemble.make_main_table(skill))
        return [*tables, self._make_main_table()]

    def _make_main_table(self) -> Table:
        rates = [(score, rate) for score, rates in _MAIN.items() for rate in rates]
        heads = ("method", "MSE dBZ²", *(f"{_format_name(score)} {rate:g}" for score, rate in rates))
        title = "Main scores, CSI and FSS at rain rates in mm/h, mean over leads"
        table = make_score_table(title, (*heads, "wet area", "mean rain"))
        for method in self.rows:
            skills = (self.means(method, score)[RAIN_THRESHOLDS.index(rate)] for score, rate in rates)
            biases = (float(self.means(method, score)) for score in _BIASES)
            mse = f"{self.means(method, 'mse'):.1f}"
            table.add_row(method, mse, *map(format_number, [*skills, *biases]))
        return table

    def tables(self) -> list[Table]:
        """Return all tables."""
        skills = {
            score: {f"{rate:g}": (score, RAIN_THRESHOLDS.index(rate)) for rate in rates}
            for score, rates in _BY_LEAD.items()
        }
        return [
            *([] if self.ensemble is None else self.ensemble.tables()),
            *([] if self.shares is None else self.shares.tables()),
            self._make_skill_table(),
            self._make_error_table(),
            self._make_lead_table("MSE in dBZ²", None, {"": ("mse", 0)}),
            *(self._make_lead_table(f"{name} / truth's", None, {"": (score, 0)}) for score, name in _BIASES.items()),
            *(self._make_lead_table(_format_name(score), "mm/h", columns) for score, columns in skills.items()),
            self._make_lead_table("Power over the truth's at wavelengths", "cells", {"2-4": ("power", 0)}),
        ]

    def list_notes(self) -> list[str]:
        """Return the notes below the tables."""
        text = (
            f"{format_count(self.starts, 'start')}, {self.pixels} valid cells a field on average, rain by "
            f"Z = {self.z_r[0]:g} R^{self.z_r[1]:g}. B-MSE, B-MAE: weighted sums over the field on the scale "
            "0-60 dBZ = 0-1, as in the DB-RNN paper; FSS, and CSI of events nearby, in windows of 9 cells. Wet area: "
            f"at least {WET_RATE:g} mm/h."
        )
        return [text, *([] if self.ensemble is None else self.ensemble.list_notes()), *self.notes]

    def _make_skill_table(self) -> Table:
        heads = ("method", "score", *(f"{rate:g}" for rate in RAIN_THRESHOLDS))
        table = make_score_table("Scores at rain rates in mm/h, mean over leads", heads)
        for score in _BY_THRESHOLD:
            for number, method in enumerate(self.rows, 1):
                values = map(format_number, self.means(method, score))
                table.add_row(method, _format_name(score), *values, end_section=number == len(self.rows))
        return table

    def _make_error_table(self) -> Table:
        bands = (f"{low:g}-{high:g}" for low, high in BANDS)
        heads = ("method", "B-MSE", "B-MAE", "MSE dBZ²", *bands)
        table = make_score_table("Errors, and power over the truth's by wavelength in cells, mean over leads", heads)
        for method in self.rows:
            errors = (f"{self.means(method, score):.1f}" for score in ("b_mse", "b_mae", "mse"))
            table.add_row(method, *errors, *map(format_number, self.means(method, "power")))
        return table

    def _make_lead_table(self, title: str, head: str | None, columns: dict[str, tuple[str, int]]) -> Table:
        """Make a table by lead time.

        Args:
            title: title of the table.
            head: heading of the label column; None: no label column.
            columns: label of each section -> (score, column of its array). Sections without values are left out.
        """
        every = math.ceil(len(self.leads) / _MAX_COLUMNS)
        chosen = np.arange(every - 1, len(self.leads), every)
        minutes = (f"{self.leads[k] / 60:g}" for k in chosen)
        heads = ("method", *([head] if head else []), *minutes)
        table = make_score_table(f"{title} by lead in minutes", heads)
        for label, (score, column) in columns.items():
            values = {m: row[score].reshape(len(self.leads), -1)[chosen, column] for m, row in self.rows.items()}
            if all(np.isnan(v).all() for v in values.values()):
                continue
            for number, (method, shown) in enumerate(values.items(), 1):
                texts = (f"{v:.1f}" if score == "mse" else format_number(v) for v in shown)
                section = number == len(values)
                table.add_row(method, *([label] if head else []), *texts, end_section=section)
        return table


def compute_csi_difference(ours: np.ndarray, theirs: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Return the difference in CSI between two methods, averaged over lead times, and its 95 % confidence interval.

    The interval is computed by bootstrap over initialization times. Initialization times of one event are not
    independent, so that the interval does not hold for other events.

    Args:
        ours: counts (starts, n, thresholds, 4) of NowcastTable.
        theirs: counts of the other method for the same initialization times.
        draws: number of bootstrap samples.
        seed: random seed of the bootstrap.

    Returns:
        (3, thresholds): difference, lower and upper end of the interval.

    Raises:
        ValueError: the counts have different shapes.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"both counts must have the same starts and leads, got {ours.shape} and {theirs.shape}")
    drawn = np.random.default_rng(seed).integers(len(ours), size=(draws, len(ours)))
    drawn = np.concatenate([np.arange(len(ours))[None], drawn])
    ours, theirs = (_compute_mean_csi(counts, drawn) for counts in (ours, theirs))
    difference = ours - theirs
    return np.stack([difference[0], *np.nanquantile(difference[1:], (0.025, 0.975), axis=0)])


def _compute_mean_csi(counts: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the CSI (draws, thresholds), averaged over lead times, of bootstrap samples `drawn` (draws, starts)."""
    tp, fn, fp, _ = np.moveaxis(counts[drawn].sum(1, dtype=float), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean_of_defined(np.moveaxis(tp / (tp + fn + fp), 1, 0))


def _format_name(score: str) -> str:
    return _NAMES.get(score, score.upper())


@dataclasses.dataclass(frozen=True)
class ComparedFields:
    """Fields of one initialization time on the forecasts' grid, NaN = missing.

    Attributes:
        number: index of the initialization time.
        before: observed frames before it (k, h, w) in dBZ.
        after: observed frames after it (n, h, w) in dBZ.
        made: method -> forecast (n, h, w) in dBZ.
        members: ensemble members (M, n, h, w) in mm/h, or None.
    """

    number: int
    before: np.ndarray
    after: np.ndarray
    made: dict[str, np.ndarray]
    members: np.ndarray | None


class Comparison:
    """Accumulated scores of several methods against the same truth.

    Args:
        methods: names of the methods.
        leads: lead times in seconds.
        z_r: a and b of Z = a R^b.
    """

    def __init__(self, methods: Sequence[str], leads: ArrayLike, z_r: tuple[float, float]):
        self.leads, self.z_r = np.asarray(leads, float), z_r
        self.thresholds = normalised_rates(RAIN_THRESHOLDS, z_r, NOWCAST_FLOOR_DBZ, NOWCAST_CEILING_DBZ)
        self.scores = {name: NowcastScores(self.thresholds, len(self.leads)) for name in methods}
        self.counts: dict[Any, Any] = {name: [] for name in methods}
        shape = len(self.leads), len(self.thresholds), 4
        self.windows = {name: np.zeros(shape) for name in methods}
        self.rain = {name: np.zeros((2, len(self.leads), 2)) for name in methods}
        self.power: dict[Any, Any] = {name: [] for name in methods}
        self.starts = 0

    def add(self, truth: np.ndarray, fields: dict[str, np.ndarray]) -> None:
        """Add the forecasts of one initialization time: truth (n, h, w) in dBZ, NaN = missing, and fields by method."""
        self.starts += 1
        valid = torch.from_numpy(~np.isnan(truth))
        x = torch.from_numpy(prepare(truth, NOWCAST_FLOOR_DBZ, NOWCAST_CEILING_DBZ))
        rain = _sum_rain(truth, valid.numpy(), self.z_r)
        events = [self._count_events(*parts) for parts in zip(x, valid, strict=True)]
        power = np.array([compute_band_powers(field, BANDS) for field in x])
        power[power == 0] = np.nan
        for name, z in fields.items():
            y = torch.from_numpy(prepare(np.where(valid, z, np.nan), NOWCAST_FLOOR_DBZ, NOWCAST_CEILING_DBZ))
            before = self.scores[name].counts.copy()
            self.scores[name].add(y[None], x[None], valid[None])
            self.counts[name].append(self.scores[name].counts - before)
            self.rain[name] += [_sum_rain(z, valid.numpy(), self.z_r), rain]
            for lead, happened in enumerate(events):
                self.windows[name][lead] += _sum_windows(self._count_events(y[lead], valid[lead]), happened)
            self.power[name].append([compute_band_powers(field, BANDS) for field in y] / power)

    def _count_events(self, field: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Count the valid pixels of each window where a field (h, w) reaches each threshold: (thresholds, h, w)."""
        events = torch.stack([(field >= threshold) & valid for threshold in self.thresholds])
        return count_in_windows(events).to(torch.int16)  # int16 holds the squares of up to 81 counts

    def __iadd__(self, other: Comparison) -> Comparison:
        """Add the scores of other initialization times of the same methods and lead times."""
        self.starts += other.starts
        for name in self.scores:
            self.scores[name] += other.scores[name]
            self.counts[name] += other.counts[name]
            self.windows[name] = self.windows[name] + other.windows[name]
            self.rain[name] = self.rain[name] + other.rain[name]
            self.power[name] += other.power[name]
        return self

    def table(
        self,
        notes: Sequence[str] = (),
        ensemble: EnsembleRows | None = None,
        shares: ProbabilityTable | None = None,
    ) -> NowcastTable:
        """Return the scores of all methods by lead time."""
        rows = {}
        for name, scores in self.scores.items():
            row = scores.by_frame()
            row["mse"] = row["mse"] * (NOWCAST_CEILING_DBZ - NOWCAST_FLOOR_DBZ) ** 2
            row["mae"] = row["mae"] * (NOWCAST_CEILING_DBZ - NOWCAST_FLOOR_DBZ)
            difference, total, hits, union = np.moveaxis(self.windows[name], -1, 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                row["fss"], row["csi_near"] = 1.0 - difference / total, hits / union
                (row["wet"], row["rain"]) = (self.rain[name][0] / self.rain[name][1]).T
            row["power"] = mean_of_defined(np.array(self.power[name]))
            rows[name] = row
        pixels = round(next(iter(self.scores.values())).pixels.mean() / max(self.starts, 1))
        counts = {name: np.array(parts) for name, parts in self.counts.items()}
        return NowcastTable(rows, self.leads, self.z_r, self.starts, pixels, counts, tuple(notes), ensemble, shares)


def _sum_rain(z: np.ndarray, valid: np.ndarray, z_r: tuple[float, float]) -> np.ndarray:
    """Return (n, 2) of fields z (n, h, w) in dBZ: numbers of pixels of at least WET_RATE, and sums of rain in mm/h.

    No echo counts as no rain; echo above the ceiling counts as the ceiling.
    """
    rain = reflectivity_to_rate(np.minimum(z, NOWCAST_CEILING_DBZ), z_r, NOWCAST_FLOOR_DBZ)
    rain = np.where(valid, rain, 0.0)
    return np.stack([(rain >= WET_RATE).sum((1, 2)), rain.sum((1, 2), dtype=float)], -1)


def _sum_windows(p: torch.Tensor, t: torch.Tensor) -> np.ndarray:
    """Return (thresholds, 4) of event counts p and t (thresholds, h, w) in windows.

    The columns are the sums of (p - t)^2 and of p^2 + t^2, and the numbers of windows with events in both and in
    either.
    """
    parts = (p - t).square(), p.square() + t.square(), (p > 0) & (t > 0), (p > 0) | (t > 0)
    return torch.stack([part.sum((1, 2)) for part in parts], -1).numpy()
