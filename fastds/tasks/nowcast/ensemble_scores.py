# SPDX-License-Identifier: Apache-2.0
"""Scores of ensemble nowcasts by lead time: accumulated sums and tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastds.inference.tables import format_number, make_score_table
from fastds.metrics import EnsembleScores, rank_histogram, reliability_counts
from fastds.tasks.nowcast.windows import WET_RATE, count_in_windows

if TYPE_CHECKING:
    from rich.table import Table

RATES = (0.5, 2.0, 5.0)  # mm/h, for reliability and FSS
MIN_SHARE = (
    1e-3  # a forecast probability must have this fraction of the pixels to count for the largest reliability error
)
# Score -> label in the tables.
NAMES = {
    "crps": "CRPS mm/h", "crps_reliability": "CRPS, reliability", "crps_potential": "CRPS, potential",
    "spread_skill": "spread/skill", "outliers": "outliers", "flatness": "rank histogram from flat",
    "rain": "mean rain / truth's", "wet": "wet area / truth's",
}  # fmt: skip
BY_RATE = {
    "reliability": "reliability, largest error",
    "calibration": "reliability, mean error",
    "fss": "FSS",
    "csi": "CSI of mean",
    "csi_matched": "CSI of matched mean",
}
_MAIN = ("crps", "spread_skill", "outliers")  # scores that are printed by default
_MAX_COLUMNS = 8  # maximum number of lead times in a table


@dataclasses.dataclass(frozen=True)
class EnsembleRows:
    """Scores of an ensemble by lead time.

    Attributes:
        members: number M of members.
        leads: (n,) lead times in seconds.
        rows: score -> array. Shape (n,): crps (fair, mm/h), crps_ensemble, crps_reliability and crps_potential (of the
            members as they are, and its parts, mm/h), spread_skill, outliers (fraction of the truth outside all
            members), flatness (largest relative deviation of the rank histogram from a flat one), rain and wet (mean
            rain, and area of at least WET_RATE, of the members relative to the truth). Shape (n, RATES): reliability
            (largest difference between forecast probability and frequency, for probabilities of at least a fraction
            MIN_SHARE of the pixels), calibration (mean difference over all pixels), fss (of the probabilities), csi (of
            the ensemble mean), csi_matched (of the ensemble mean above the threshold that gives the mean area of the
            members).
        ranks: (n, M + 1), rank histogram of all pixels; ties, such as those of dry members, are broken at random.
        wet_ranks: (n, M + 1), rank histogram of the pixels where a member or the truth has rain; NaN without any.
    """

    members: int
    leads: np.ndarray
    rows: dict[str, np.ndarray]
    ranks: np.ndarray
    wet_ranks: np.ndarray

    def list_csv_rows(self, method: str) -> list[list[str]]:
        """Return the rows of a CSV file: method, lead time in minutes, score, rate in mm/h, value."""
        return [
            [method, f"{lead / 60:g}", f"ensemble {score}", label, f"{value:.6g}"]
            for score in (*NAMES, "crps_ensemble", *BY_RATE)
            for lead, values in zip(self.leads, self.rows[score].reshape(len(self.leads), -1), strict=True)
            for label, value in zip([f"{r:g}" for r in RATES] if score in BY_RATE else [""], values, strict=True)
        ] + [
            [method, f"{lead / 60:g}", f"ensemble {name}", f"{rank}", f"{share:.6g}"]
            for name, histograms in (("rank", self.ranks), ("rank of rain", self.wet_ranks))
            for lead, shares in zip(self.leads, histograms, strict=True)
            for rank, share in enumerate(shares)
        ]

    def tables(self) -> list[Table]:
        """Return the tables as they are printed."""
        table, chosen = self._make_table(NAMES)
        for score, name in BY_RATE.items():
            for column, rate in enumerate(RATES):
                table.add_row(name, f"{rate:g}", *map(format_number, self.rows[score][chosen, column]))
        return [table]

    def make_main_table(self, brier_skill: Mapping[str, np.ndarray]) -> Table:
        """Return the table that is printed by default.

        Args:
            brier_skill: rain rate in mm/h -> Brier skill (n,), which is added.
        """
        table, chosen = self._make_table(_MAIN)
        for rate, values in brier_skill.items():
            table.add_row("Brier skill", rate, *map(format_number, values[chosen]))
        return table

    def _make_table(self, scores: Iterable[str]) -> tuple[Table, np.ndarray]:
        """Return a table of scores without a rate, and the indices of its lead times."""
        every = -(-len(self.leads) // _MAX_COLUMNS)
        chosen = np.arange(every - 1, len(self.leads), every)
        heads = ("score", "mm/h", *(f"{self.leads[k] / 60:g}" for k in chosen))
        table = make_score_table(f"Ensemble of {self.members} members by lead in minutes", heads)
        for score in scores:
            table.add_row(NAMES[score], "", *map(format_number, self.rows[score][chosen]))
        return table, chosen

    def list_notes(self) -> list[str]:
        """Return the notes below the tables."""
        return [
            f"Of the ensemble: rain below {WET_RATE:g} mm/h counts as none; CRPS is fair and compares with the MAE of "
            "a single field in mm/h; its parts are those of the members as they are: reliability, which a calibration "
            "would remove, and potential; spread/skill: 1 is right, below 1 the members differ too little; outliers: "
            f"share of the truth outside all members, {2 / (self.members + 1):.3f} is right; rank histogram: its "
            "largest difference from flat; reliability: difference between forecast probability and frequency, largest "
            f"over probabilities that at least {MIN_SHARE:.1%} of the pixels have; FSS of the probabilities; matched "
            "mean: where the mean is highest, on the area that the members have."
        ]


class EnsembleSums:
    """Accumulated scores of an ensemble over initialization times.

    Args:
        members: number M of members.
        leads: lead times in seconds.

    Attributes:
        sums: name -> array (n, ...); arrays of several initialization times can be added.
    """

    def __init__(self, members: int, leads: ArrayLike):
        self.members, self.leads = members, np.asarray(leads, float)
        shapes: dict[str, tuple[int, ...]] = {"scores": (3,), "ranks": (members + 1,), "rain": (4,)}
        shapes |= {"bins": (members + 1, 3), "wet_ranks": (members + 1,)}
        shapes |= {"reliability": (len(RATES), members + 1, 2), "windows": (len(RATES), 2), "hits": (len(RATES), 4)}
        self.sums = {name: np.zeros((len(self.leads), *shape)) for name, shape in shapes.items()}

    def add(self, lead: int, members: np.ndarray, truth: np.ndarray) -> None:
        """Add one frame.

        Args:
            lead: index of the lead time.
            members: (M >= 2, h, w) in mm/h, NaN = missing.
            truth: (h, w) in mm/h, NaN = missing.
        """
        valid = torch.from_numpy(~(np.isnan(truth) | np.isnan(members).any(0)))
        if not valid.any():
            return
        x, y = (torch.from_numpy(np.where(part < WET_RATE, 0, part)) for part in (members, truth))
        scores = EnsembleScores()
        scores.add(x, torch.where(valid, y, torch.nan), torch.ones(y.shape))
        x, y = torch.where(valid, x, 0.0), torch.where(valid, y, 0.0)
        mean, sums = x.double().mean(0), self.sums
        wet = (x > 0).any(0) | (y > 0)
        x_wet, y_wet = x[:, wet], y[wet]
        if wet.any():
            sums["wet_ranks"][lead] += len(y_wet) * np.array(rank_histogram(x_wet, y_wet))
        parts = mean, y, (x > 0).double().mean(0), y > 0
        sums["scores"][lead] += scores.sums
        sums["ranks"][lead] += scores.ranks
        sums["bins"][lead] += scores.bins
        sums["rain"][lead] += [float(part.double().sum()) for part in parts]
        for column, rate in enumerate(RATES):
            sums["reliability"][lead, column] += reliability_counts(x_wet, y_wet, rate).numpy()
            sums["reliability"][lead, column, 0, 0] += int(valid.sum()) - len(y_wet)  # dry in all members and the truth
            happened = y >= rate
            events = mean >= rate, mean >= _find_threshold(mean, int((x >= rate).sum()) / self.members)
            hits = (part for event in events for part in (event & happened, event | happened))
            sums["hits"][lead, column] += [float(part.sum()) for part in hits]
            fields = torch.stack([(x >= rate).sum(0), happened.int() * self.members])
            p, t = count_in_windows(fields).double()
            sums["windows"][lead, column] += [float((p - t).square().sum()), float((p.square() + t.square()).sum())]

    def __iadd__(self, other: EnsembleSums) -> EnsembleSums:
        """Add the scores of other initialization times."""
        self.sums = {name: values + other.sums[name] for name, values in self.sums.items()}
        return self

    def rows(self) -> EnsembleRows:
        """Return the scores by lead time."""
        sums = self.sums
        parts = sums["scores"], sums["ranks"], sums["bins"]
        found = [_make_scores(*part) for part in zip(*parts, strict=True)]
        means, ranks = [scores.means() for scores in found], np.array([scores.rank_histogram() for scores in found])
        names = ("crps", "crps_ensemble", "crps_reliability", "crps_potential", "spread_skill", "outliers")
        rows = {name: np.array([mean[name] for mean in means]) for name in names}
        rows["flatness"] = np.abs(ranks * (self.members + 1) - 1).max(-1)
        points, happened = np.moveaxis(sums["reliability"], -1, 0)
        total = points.sum(-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.abs(happened / points - np.arange(self.members + 1) / self.members)
            rows["rain"], rows["wet"] = (sums["rain"][:, (0, 2)] / sums["rain"][:, (1, 3)]).T
            rows["csi"], rows["csi_matched"] = (sums["hits"][..., k] / sums["hits"][..., k + 1] for k in (0, 2))
            rows["fss"] = 1 - sums["windows"][..., 0] / sums["windows"][..., 1]
            rows["calibration"] = (np.where(points > 0, error, 0) * points).sum(-1) / total[..., 0]
        rows["reliability"] = np.where(points >= MIN_SHARE * total, error, 0).max(-1)
        with np.errstate(invalid="ignore"):
            wet_ranks = sums["wet_ranks"] / sums["wet_ranks"].sum(-1, keepdims=True)
        return EnsembleRows(self.members, self.leads, rows, ranks, wet_ranks)


def _find_threshold(field: torch.Tensor, count: float) -> float:
    """Return the threshold that `count` pixels of a field reach; infinity for count 0."""
    count = round(count)
    return float(field.flatten().kthvalue(field.numel() - count + 1).values) if count else math.inf


def _make_scores(sums: np.ndarray, ranks: np.ndarray, bins: np.ndarray) -> EnsembleScores:
    scores = EnsembleScores()
    scores.sums, scores.ranks, scores.bins = sums, ranks, bins
    return scores
