# SPDX-License-Identifier: Apache-2.0
"""Scores of exceedance probabilities by threshold and lead time: accumulated sums and tables."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastds.inference.tables import ScoreTables, format_count, format_number, make_score_table, write_csv
from fastds.metrics import (
    compute_brier_scores,
    compute_roc_area,
    compute_roc_curve,
    merge_classes,
    resample_tallies,
    tally_probabilities,
)
from fastds.metrics.probabilities import CELLS, EVENTS, PROBABILITY

if TYPE_CHECKING:
    from rich.table import Table

CLASSES = 100  # steps of the tallies from 0 to 1
# Score -> heading, printed always and with --all-scores.
NAMES = {"brier": "Brier score", "brier_skill": "Brier skill", "roc_area": "ROC area"}
FURTHER_NAMES = {
    "reliability": "reliability",
    "resolution": "resolution",
    "uncertainty": "uncertainty",
    "frequency": "observed frequency",
    "mean_probability": "mean probability",
}
_WITH_INTERVALS = ("brier_skill", "roc_area")
_MAX_COLUMNS = 8  # maximum number of lead times in a table
_FEW_STARTS = 5  # with fewer initialization times, blocks of the domain are resampled
_BLOCKS = 4  # blocks of the domain along each axis
_MAX_PARTS = 200  # maximum number of parts of the sample; more initialization times are grouped
_QUANTILES = 0.025, 0.975


@dataclasses.dataclass(frozen=True)
class ComparedProbabilities:
    """Probabilities of one initialization time and the observed fields.

    Attributes:
        number: index of the initialization time.
        probabilities: (thresholds, n, h, w), NaN = missing.
        after: observed field (h, w) in dBZ, NaN = missing, at each lead time, or None where the truth has none.
    """

    number: int
    probabilities: np.ndarray
    after: list[np.ndarray | None]


class ProbabilitySums:
    """Accumulated tallies of probabilities.

    The tallies of parts of the sample are separate, for intervals by bootstrap. A part is an initialization time, some
    of them if there are more than 200, or a block of the domain if there are fewer than 5.

    Args:
        thresholds: number of thresholds.
        leads: number of lead times.

    Attributes:
        parts: number of the part -> tallies (thresholds, leads, classes, 5), see fastds.metrics.tally_probabilities.
        missing: (leads, 3), numbers of cells, of those missing in the forecast, and of those missing in the truth only.
        starts: number of initialization times with at least one lead time.
        absent: number of lead times of initialization times that the truth lacks.
    """

    def __init__(self, thresholds: int, leads: int):
        self.shape = thresholds, leads, CLASSES + 1, 5
        self.parts: dict[int, np.ndarray] = {}
        self.missing, self.starts, self.absent = np.zeros((leads, 3)), 0, 0

    def add(self, number: int, of: int, lead: int, probability: np.ndarray, events: np.ndarray, z: np.ndarray) -> None:
        """Add a field.

        Args:
            number: index of the initialization time.
            of: number of initialization times.
            lead: index of the lead time.
            probability: (thresholds, h, w) from 0 to 1, NaN where missing.
            events: (thresholds, h, w) bool.
            z: (h, w), the observed field, NaN where missing.
        """
        there, observed = ~np.isnan(probability).any(0), ~np.isnan(z)
        valid = there & observed
        self.missing[lead] += valid.size, valid.size - there.sum(), there.sum() - valid.sum()
        if of >= _FEW_STARTS:
            blocks = {number if of <= _MAX_PARTS else number * _MAX_PARTS // of: valid}
        else:
            blocks = {number * _BLOCKS**2 + k: valid & block for k, block in enumerate(_split_domain(valid.shape))}
        for part, cells in blocks.items():
            if not cells.any():
                continue
            tallies = self.parts.setdefault(part, np.zeros(self.shape))
            for k, (p, event) in enumerate(zip(probability, events, strict=True)):
                tallies[k, lead] += tally_probabilities(p[cells], event[cells], CLASSES)

    def __iadd__(self, other: ProbabilitySums) -> ProbabilitySums:
        """Add the tallies of other initialization times."""
        for part, tallies in other.parts.items():
            self.parts[part] = self.parts[part] + tallies if part in self.parts else tallies
        self.missing, self.starts = self.missing + other.missing, self.starts + other.starts
        self.absent += other.absent
        return self

    def total(self) -> np.ndarray:
        """Return the tallies (thresholds, leads, classes, 5) of the whole sample."""
        return sum(self.parts.values(), np.zeros(self.shape))


def _split_domain(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return the masks (h, w) of the blocks of the domain."""
    rows, columns = (np.arange(size) * _BLOCKS // size for size in shape)
    number = rows[:, None] * _BLOCKS + columns
    return [number == k for k in range(_BLOCKS**2)]


@dataclasses.dataclass(frozen=True, repr=False)
class ProbabilityTable(ScoreTables):
    """Scores of exceedance probabilities by threshold and lead time.

    Attributes:
        rows: score -> (thresholds, leads), NaN where it is not defined: brier, brier_skill, roc_area, reliability,
            resolution, uncertainty, within, frequency, mean_probability, cells, see fastds.metrics.compute_brier_scores
            and compute_roc_area.
        intervals: brier_skill, roc_area -> (2, thresholds, leads), ends of the 95 % confidence interval; empty without
            intervals.
        diagrams: (thresholds, leads, 11, 5), tallies of the classes of the reliability diagram.
        bars: (2, thresholds, leads, 11), ends of the 95 % confidence intervals of the frequencies in these classes; NaN
            without intervals.
        curves: (2, thresholds, leads, classes + 1), hit rates and false alarm rates of the ROC curve.
        thresholds: names of the events, such as "5 mm/h".
        leads: (n,) lead times in seconds.
        has_leads: whether the lead times are known; otherwise the only one stands for all times.
        method: name of the model.
        starts: number of initialization times, or of times without initialization times.
        cells: number of cells of all fields.
        left_out: number of cells that are missing in the forecast, and number of those missing in the truth only.
        notes: further notes below the tables.
    """

    rows: dict[str, np.ndarray]
    intervals: dict[str, np.ndarray]
    diagrams: np.ndarray
    bars: np.ndarray
    curves: np.ndarray
    thresholds: Sequence[str]
    leads: np.ndarray
    has_leads: bool
    method: str
    starts: int
    cells: int
    left_out: tuple[int, int]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, sums: ProbabilitySums, thresholds: Sequence[str], leads: np.ndarray, has_leads: bool, method: str,
        notes: Sequence[str] = (),
    ) -> ProbabilityTable:  # fmt: skip
        """Compute the scores from accumulated tallies.

        Args:
            sums: the tallies.
            thresholds: see the attributes.
            leads: see the attributes.
            has_leads: see the attributes.
            method: see the attributes.
            notes: see the attributes.
        """
        total = sums.total()
        rows = compute_brier_scores(total) | {"roc_area": compute_roc_area(total)}
        diagrams = merge_classes(total)
        bars = np.full((2, *diagrams.shape[:-1]), np.nan)
        intervals = (
            {} if len(sums.parts) < 2 else {name: np.full((2, *total.shape[:2]), np.nan) for name in _WITH_INTERVALS}
        )
        parts = np.array(list(sums.parts.values())) if intervals else np.zeros(0)
        for place in np.ndindex(*total.shape[:2]) if intervals else ():
            drawn = resample_tallies(parts[(slice(None), *place)])
            found = {"brier_skill": compute_brier_scores(drawn)["brier_skill"], "roc_area": compute_roc_area(drawn)}
            for name, values in found.items():
                intervals[name][(slice(None), *place)] = _find_interval(values)
            merged = merge_classes(drawn)
            with np.errstate(divide="ignore", invalid="ignore"):
                bars[(slice(None), *place)] = _find_interval(merged[..., EVENTS] / merged[..., CELLS])
        few = sums.starts < _FEW_STARTS
        over = f"{len(sums.parts)} blocks of the domain, as there are few starts" if few else "the starts"
        left_out = sums.missing[:, 1:].sum(0)
        return cls(
            rows, intervals, diagrams, bars, np.stack(compute_roc_curve(total)), tuple(thresholds), leads, has_leads,
            method, sums.starts, int(sums.missing[:, 0].sum()), (int(left_out[0]), int(left_out[1])),
            (*notes, *[f"95 % intervals by bootstrap over {over}."] * bool(intervals)),
        )  # fmt: skip

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write all scores, their intervals, and the points of the diagrams, one per line, atomically."""
        header = ["method", "lead_min", "threshold", "score", "probability", "value"]
        write_csv(path, header, self.list_csv_rows())

    def list_csv_rows(self) -> list[list[str]]:
        """Return the rows of the CSV file; `probability` is that of a class, and empty for a score."""
        lines: list[list[str]] = []
        for t, threshold in enumerate(self.thresholds):
            for n, lead in enumerate(self.leads):
                start = [self.method, f"{lead / 60:g}" if self.has_leads else "", threshold]
                for score, values in self.rows.items():
                    lines.append([*start, score, "", f"{values[t, n]:.9g}"])
                for score, ends in self.intervals.items():
                    for end, values in zip(("low", "high"), ends, strict=True):
                        lines.append([*start, f"{score} {end}", "", f"{values[t, n]:.9g}"])
                for score, points in self.get_reliability(t, n).items():
                    if score != "probability" and score != "frequency":
                        labels = [f"{p:.4g}" for p in self.get_reliability(t, n)["probability"]]
                        lines += [
                            [*start, f"diagram {score}", p, f"{v:.9g}"] for p, v in zip(labels, points, strict=True)
                        ]
                for score, rates in zip(("hit rate", "false alarm rate"), self.curves[:, t, n], strict=True):
                    steps = np.linspace(1, 0, CLASSES + 1)
                    lines += [
                        [*start, f"ROC {score}", f"{p:.4g}", f"{v:.9g}"] for p, v in zip(steps, rates[1:], strict=True)
                    ]
        return lines

    def get_reliability(self, threshold: int, lead: int) -> dict[str, Any]:
        """Return a reliability diagram, see fastds.plot.draw_reliability_diagram.

        Args:
            threshold: index of the threshold.
            lead: index of the lead time.
        """
        tally = self.diagrams[threshold, lead]
        used = tally[:, CELLS] > 0
        cells = tally[used, CELLS]
        low, high = self.bars[:, threshold, lead, used]
        return {
            "probability": tally[used, PROBABILITY] / cells, "observed": tally[used, EVENTS] / cells, "cells": cells,
            "low": low, "high": high, "frequency": self.rows["frequency"][threshold, lead],
        }  # fmt: skip

    @property
    def title(self) -> str:
        """Heading of the HTML page."""
        return "Scores of probabilities"

    def main_tables(self) -> list[Table]:
        """Return the tables that are printed by default."""
        return [self._make_table(NAMES, "Probabilities")]

    def tables(self) -> list[Table]:
        """Return all tables."""
        return [
            *self.main_tables(),
            self._make_table(FURTHER_NAMES, "Parts of the Brier score, frequency and mean probability"),
            *([self._make_interval_table()] if self.intervals else []),
        ]

    def list_notes(self) -> list[str]:
        """Return the notes below the tables."""
        count, (missing, unobserved) = sum(self.left_out), self.left_out
        part = f"{count} of {self.cells} cells left out: {missing} missing in the forecast, {unobserved} in the truth"
        return [
            f"{format_count(self.starts, 'start' if self.has_leads else 'time')}; {part}. Brier score: 0 is perfect; "
            "Brier skill: 1 is perfect, 0 is that of the observed frequency of the sample as forecast; ROC area: 1 is "
            "perfect, 0.5 is no discrimination. Brier score = reliability - resolution + uncertainty, by classes of 1 "
            "% of the probability.",
            *self.notes,
        ]

    def _select_leads(self) -> np.ndarray:
        every = -(-len(self.leads) // _MAX_COLUMNS)
        return np.arange(every - 1, len(self.leads), every)

    def _make_heads(self, first: Sequence[str]) -> tuple[str, ...]:
        chosen = self._select_leads()
        return (*first, *([f"{self.leads[k] / 60:g}" for k in chosen] if self.has_leads else ["all"]))

    def _make_table(self, names: dict[str, str], title: str) -> Table:
        by = " by lead in minutes" if self.has_leads else ""
        table, chosen = make_score_table(f"{title}{by}", self._make_heads(("score", "at least"))), self._select_leads()
        for number, (score, name) in enumerate(names.items(), 1):
            for t, threshold in enumerate(self.thresholds):
                texts = (format_score(score, value) for value in self.rows[score][t, chosen])
                last = t + 1 == len(self.thresholds) and number < len(names)
                table.add_row(name, threshold, *texts, end_section=last)
        return table

    def _make_interval_table(self) -> Table:
        heads = self._make_heads(("score", "at least"))
        table, chosen = make_score_table("95 % confidence intervals", heads), self._select_leads()
        for score in _WITH_INTERVALS:
            for t, threshold in enumerate(self.thresholds):
                low, high = self.intervals[score][:, t, chosen]
                cells = (f"{format_number(a)} to {format_number(b)}" for a, b in zip(low, high, strict=True))
                table.add_row(NAMES[score], threshold, *cells)
        return table


def format_score(score: str, value: float) -> str:
    """Format a score: parts of the Brier score, which are small for rare events, with five decimals."""
    if score in ("brier", "reliability", "resolution", "uncertainty"):
        return "-" if np.isnan(value) else f"{value:.5f}"
    return format_number(value)


def _find_interval(values: np.ndarray) -> np.ndarray:
    """Return the ends (2, ...) of the 95 % interval of bootstrap samples (draws, ...); NaN where a sample is NaN."""
    ends = np.full((2, *values.shape[1:]), np.nan)
    defined = np.isfinite(values).all(0)
    if defined.any():
        ends[:, defined] = np.quantile(values[:, defined], _QUANTILES, axis=0)
    return ends
