# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of the WGAN-GP study."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastds.plot import draw_daily_series
from fastds.report import Chart
from fastds.studies.common.bootstrap import Estimate
from fastds.studies.common.figures import draw_validation_curves
from fastds.studies.common.tables import ResultTable, compare_with_paper
from fastds.studies.wgan_gp.evaluation import Region
from fastds.studies.wgan_gp.methods import METHODS, PAPER_RANKING, SCORES, get_published

# Method -> score -> one number for each test sample (mean over the seeds).
Results = Mapping[str, Mapping[str, np.ndarray]]


def tabulate_scores(results: Results, labels: np.ndarray, parameters: Mapping[str, int]) -> ResultTable:
    """Tabulate scores as in tables 2 and 3 of the paper.

    Args:
        results: method -> score -> one number for each sample.
        labels: (samples, 2), see make_sample_labels.
        parameters: method -> number of parameters.
    """
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
    """Tabulate the difference in each score for each pair of the ranking in the paper."""
    rows = []
    for better, other in PAPER_RANKING:
        if better not in results or other not in results:
            continue
        for score in SCORES:
            ours = Estimate.from_samples(results[better][score] - results[other][score], labels)
            printed = [get_published(name)[score] for name in (better, other)]
            paper = None if printed[0] is None or printed[1] is None else printed[0] - printed[1]
            rows.append((f"{better} less {other}", score.upper(), *compare_with_paper(ours, paper, 3)))
    title = "Differences of scores; agrees or opposite: the interval leaves out zero"
    return ResultTable(title, ("difference", "score", "paper", "ours", "conclusion"), rows, sign="+")


def tabulate_ensembles(means: Results, labels: np.ndarray, members: int) -> ResultTable:
    """Tabulate the scores of ensemble means.

    Args:
        means: method -> score -> one number for each test sample.
        labels: day and tile of each test sample.
        members: number of ensemble members.

    Returns:
        The table.
    """
    names = (*SCORES, "crps", "spread_skill")
    rows: list[Sequence] = [
        (name, *(Estimate.from_samples(found[s], labels) for s in names)) for name, found in means.items()
    ]
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


_INDICATORS = {
    "mse": "MSE (squared %)", "mae": "MAE (%)", "ssim": "SSIM", "psnr": "PSNR (dB)", "acc": "ACC", "tcc": "TCC"
}  # fmt: skip


def average_by_day(values: np.ndarray, regions: list[Region]) -> list[float]:
    """Average one number per sample over the tiles of each day."""
    found, start = [], 0
    for region in regions:
        part = np.reshape(values[start : start + len(region)], (len(region.days), len(region.tiles)))
        found += part.mean(1).tolist()
        start += len(region)
    return found


def make_charts(
    curves: Mapping[str, pathlib.Path], results: Mapping[str, Mapping[str, np.ndarray]], regions: list[Region]
) -> dict[str, Chart]:
    """Make the line charts.

    Args:
        curves: method -> validation log.
        results: method -> score -> one number for each sample.
        regions: test regions.

    Returns:
        A dictionary from file name to chart.
    """
    found, days = {}, list(range(1, sum(len(region.days) for region in regions) + 1))
    if curves:
        draw = functools.partial(draw_validation_curves, curves, "validation CRPS of two members (%)")
        found["figure-08"] = Chart("Figure 8: validation error", f"Validation error of {', '.join(curves)}", draw)
        for score, label in _INDICATORS.items():
            options: dict[str, Any] = {"column": f"val_{score}_one", "log_y": False}
            draw = functools.partial(draw_validation_curves, curves, f"validation {label}", **options)
            alt = f"Validation {label} of {', '.join(curves)}"
            found[f"figure-08-{score}"] = Chart(f"Figure 8: validation {label} of one member", alt, draw)
    shown = [name for name in results if not name.endswith("misaligned")]
    for score, label in _INDICATORS.items():
        lines = {name: average_by_day(results[name][score], regions) for name in shown}
        draw = functools.partial(draw_daily_series, days, lines, label)
        found[f"figure-09-{score}"] = Chart(f"Figure 9: {label} by day", f"{label} of {', '.join(lines)}", draw)
    return found
