# SPDX-License-Identifier: Apache-2.0
"""Tables of the WGAN-GP study: scores next to the published ones, ranking, ensembles, scores by region."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastds.studies.common.bootstrap import Estimate
from fastds.studies.common.tables import ResultTable, compare_with_paper
from fastds.studies.wgan_gp.methods import METHODS, PAPER_RANKING, SCORES, get_published
from fastds.studies.wgan_gp.samples import Region

# Method -> score -> one number for each test sample (mean over the seeds).
Results = Mapping[str, Mapping[str, np.ndarray]]


def tabulate_scores(results: Results, labels: np.ndarray, parameters: Mapping[str, int]) -> ResultTable:
    """Tabulate scores as in the paper's tables 2 and 3; parameters: method -> number of parameters."""
    rows = []
    for name in METHODS:
        found = results.get(name)
        ours = (
            [Estimate.from_samples(found[s], labels) for s in SCORES]
            if found
            else ["not run"] + ["-"] * (len(SCORES) - 1)
        )
        size = f"{parameters[name]:,}" if name in parameters else "-"
        paper = ["-" if value is None else f"{value:.3f}" for value in get_published(name).values()]
        rows.append((name, size, *ours, *paper))
    names = [score.upper() for score in SCORES]
    heads = ("method", "parameters", *names, *(f"paper: {name}" for name in names))
    return ResultTable("Scores of one member, with 95 % intervals over days and tiles", heads, rows)


def tabulate_ranking(results: Results, labels: np.ndarray) -> ResultTable:
    """Tabulate the difference of each pair of the paper's ranking, by score."""
    rows = []
    for better, other in PAPER_RANKING:
        if better not in results or other not in results:
            continue
        for score in SCORES:
            ours = Estimate.from_samples(results[better][score] - results[other][score], labels)
            printed = [get_published(name)[score] for name in (better, other)]
            paper = None if None in printed else printed[0] - printed[1]
            rows.append((f"{better} less {other}", score.upper(), *compare_with_paper(ours, paper, 3)))
    title = "Differences of scores; agrees or opposite: the interval leaves out zero"
    return ResultTable(title, ("difference", "score", "paper", "ours", "verdict"), rows, sign="+")


def tabulate_ensembles(means: Results, labels: np.ndarray, members: int) -> ResultTable:
    """Tabulate the scores of ensemble means."""
    names = (*SCORES, "crps", "spread_skill")
    rows = [(name, *(Estimate.from_samples(found[s], labels) for s in names)) for name, found in means.items()]
    return ResultTable(f"Means of {members} members", ("method", *(name.upper() for name in names)), rows)


def tabulate_regions(results: Results, regions: list[Region]) -> ResultTable:
    """Tabulate the MSE by test region."""
    rows, start = [], 0
    for region in regions:
        stop = start + len(region)
        rows.append((region.name, *(f"{found['mse'][start:stop].mean():.2f}" for found in results.values())))
        start = stop
    return ResultTable("MSE by test region", ("region", *results), rows)


def tabulate_samples(regions: list[Region]) -> ResultTable:
    """Tabulate the test regions."""
    rows = [
        (r.name, str(len(r.days)), str(r.days.shape[1]), f"{r.days.shape[2]} x {r.days.shape[3]}", str(len(r.tiles)))
        for r in regions
    ]
    return ResultTable("Test regions", ("region", "days", "times a day", "points", "tiles"), rows)
