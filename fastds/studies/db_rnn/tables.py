# SPDX-License-Identifier: Apache-2.0
"""The tables of the study: scores beside the paper's, the paper's order, the ablation, scores by lead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fastds.studies.common.bootstrap import Estimate
from fastds.studies.common.tables import ResultTable, beside_paper
from fastds.studies.db_rnn.methods import ABLATION, METHODS, ORDER, ORDERED, SCORES, published
from fastds.studies.db_rnn.scores import Sums

_BY_LEAD = ("CSI 5", "CSI 10", "CSI 30")


def score_rows(
    title: str, names: Iterable[str], columns: Iterable[str], results: Mapping[str, Sums], labels: np.ndarray,
    sizes: Mapping[str, tuple[int, int]], digits: int = 3,
) -> ResultTable:  # fmt: skip
    """Scores of methods beside the paper's. columns: of SCORES; sizes: method -> width and parameters."""
    columns, rows = list(columns), []
    for name in names:
        width, parameters = sizes.get(name, (0, 0))
        size = (str(width), f"{parameters:,}") if width else ("-", "-")
        ours = ["not run"] + ["-"] * (len(columns) - 1)
        if name in results:
            ours = [Estimate.by(lambda w, n=name, s=score: results[n].mean(s, w), labels) for score in columns]
        paper = [published(name)[score] for score in columns]
        rows.append((name, *size, *ours, *("-" if v is None else f"{v:.{digits}f}" for v in paper)))
    heads = ("method", "width", "parameters", *columns, *(f"paper: {score}" for score in columns))
    return ResultTable(f"{title}, with 95 % intervals over blocks of time", heads, rows, digits)


def tables(
    results: Mapping[str, Sums], labels: np.ndarray, sizes: Mapping[str, tuple[int, int]], minutes: list[str]
) -> dict[str, ResultTable]:
    """All tables of scores by the names of their files. minutes: of the leads."""
    shown = [name for name in METHODS if name not in ABLATION]
    rows = [("csi", "CSI at rain rates in mm/h", shown, SCORES[:5], 3)]
    rows += [("hss", "HSS at rain rates in mm/h", shown, SCORES[5:10], 3)]
    rows += [("errors", "B-MSE and B-MAE of fields of 160 x 160 pixels", shown, SCORES[10:], 1)]
    rows += [("ablation", "Losses and discriminators of DB networks", list(ABLATION), ("CSI 10", "CSI 30"), 3)]
    made = {key: score_rows(title, names, columns, results, labels, sizes, d) for key, title, names, columns, d in rows}
    return {"csi": made.pop("csi"), "order": order_rows(results, labels), **made, "leads": lead_rows(results, minutes)}


def order_rows(results: Mapping[str, Sums], labels: np.ndarray) -> ResultTable:
    """Every step of the paper's order, by score."""
    rows = []
    for better, other in ORDER:
        if better not in results or other not in results:
            continue
        for score in ORDERED:
            pair = results[better], results[other]
            ours = Estimate.by(lambda w, p=pair, s=score: p[0].mean(s, w) - p[1].mean(s, w), labels)
            told = [published(name)[score] for name in (better, other)]
            paper = None if None in told else told[0] - told[1]
            rows.append((f"{better} less {other}", score, *beside_paper(ours, paper, 1 if score == "B-MAE" else 3)))
    title = "Differences of scores; agrees or opposite: the interval leaves out zero"
    return ResultTable(title, ("difference", "score", "paper", "ours", "verdict"), rows, digits=3, sign="+")


def lead_rows(results: Mapping[str, Sums], minutes: list[str]) -> ResultTable:
    """CSI by lead."""
    rows = []
    for name, sums in results.items():
        once = np.ones((1, sums.samples))
        rows += [(name, s, *(f"{v:.3f}" for v in sums.by_lead(s, once)[0])) for s in _BY_LEAD]
    return ResultTable("CSI by lead in minutes", ("method", "score", *minutes), rows)
