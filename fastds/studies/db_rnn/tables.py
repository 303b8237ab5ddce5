# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of the DB-RNN study."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from fastds import data as fd
from fastds.data.samples.radar_windows import NOWCAST_CEILING_DBZ, NOWCAST_FLOOR_DBZ
from fastds.metrics.nowcasts import contingency_scores
from fastds.plot import draw_panels_by_lead, save_png
from fastds.report import Chart, MapGrid, Maps, radar_style
from fastds.studies.common.bootstrap import Estimate
from fastds.studies.common.figures import clear_below_floor, draw_radar_panel, draw_validation_curves
from fastds.studies.common.plan import COST_HEADS, format_cost
from fastds.studies.common.tables import ResultTable, compare_with_paper
from fastds.studies.db_rnn.evaluation import ScoreSums
from fastds.studies.db_rnn.methods import (
    ABLATION,
    ABLATION_ROWS,
    ABSENT,
    CELLS,
    COMPLEXITY,
    FUTURE,
    METHODS,
    PAPER_RANKING,
    RANKED_SCORES,
    RATES,
    SCORES,
    get_published,
)

# Table -> (title, columns, decimals).
_KINDS = {
    "csi": ("CSI at rain rates in mm/h", SCORES[:5], 3),
    "hss": ("HSS at rain rates in mm/h", SCORES[5:10], 3),
    "pod": ("POD at rain rates in mm/h", SCORES[10:15], 3),
    "errors": ("B-MSE and B-MAE of fields of 160 x 160 pixels", SCORES[-2:], 1),
}
_ALL_FRAMES = "all nine forecasts, those of known fields included, as in the paper's tables"


def tabulate_scores(
    title: str, names: Iterable[str], columns: Iterable[str], results: Mapping[str, ScoreSums], labels: np.ndarray,
    sizes: Mapping[str, tuple[int, int]], digits: int = 3, data: str = "hko-7",
) -> ResultTable:  # fmt: skip
    """Tabulate scores of methods next to the published ones.

    Args:
        title: title of the table.
        names: methods.
        columns: scores, of SCORES.
        results: method -> scores.
        labels: block of time of each sample.
        sizes: method -> width and number of parameters.
        digits: decimals of all scores except B-MSE and B-MAE, which have one.
        data: data set of the paper, see get_published.
    """
    columns, rows = list(columns), []
    for name in names:
        width, parameters = sizes.get(name, (0, 0))
        size = (str(width), f"{parameters:,}") if width else ("-", "-")
        ours: list[str | Estimate] = ["not run", *["-"] * (len(columns) - 1)]
        if name in ABSENT:
            ours[0] = "not in fastds"
        if name in results:
            ours = [Estimate.from_statistic(functools.partial(results[name].mean, score), labels) for score in columns]
        paper = [(get_published(name, data)[score], _digits(score, digits)) for score in columns]
        rows.append((name, *size, *ours, *("-" if v is None else f"{v:.{d}f}" for v, d in paper)))
    heads = ("method", "width", "parameters", *columns, *(f"paper: {score}" for score in columns))
    return ResultTable(f"{title}, with 95 % intervals over blocks of time", heads, rows, digits)


def _digits(score: str, others: int) -> int:
    return 1 if score in SCORES[-2:] else others


def make_tables(
    results: Mapping[str, ScoreSums],
    whole: Mapping[str, ScoreSums],
    labels: np.ndarray,
    sizes: Mapping[str, tuple[int, int]],
    minutes: list[str],
    data: str = "hko-7",
) -> dict[str, ResultTable]:
    """Make all tables of scores.

    Args:
        results: method -> scores of the forecast frames.
        whole: method -> scores of all frames that networks output.
        labels: block of time of each sample.
        sizes: method -> width and number of parameters.
        minutes: lead times.
        data: data set of the paper, see get_published.

    Returns:
        A dictionary from file name to table.
    """
    shown = [name for name in METHODS if name not in ABLATION]
    made = {}
    for key, (title, columns, digits) in _KINDS.items():
        names = [*shown, *ABSENT] if key == "csi" and data == "hko-7" else shown
        made[key] = tabulate_scores(title, names, columns, results, labels, sizes, digits, data)
    made |= {"order": tabulate_ranking(results, labels, data)}
    title, columns = "Losses and discriminators of DB networks", ("CSI 10", "CSI 30", "B-MAE")
    made["ablation"] = tabulate_scores(title, ABLATION_ROWS, columns, results, labels, sizes)
    for key, (title, columns, digits) in _KINDS.items():
        names = [name for name in shown if name in whole]
        if names:
            title = f"{title}, {_ALL_FRAMES}"
            made[f"{key}-all-frames"] = tabulate_scores(title, names, columns, whole, labels, sizes, digits, data)
    return {"csi": made.pop("csi"), "order": made.pop("order"), **made, "leads": tabulate_leads(results, minutes)}


def _subtract_means(one: ScoreSums, other: ScoreSums, score: str, weights: np.ndarray) -> np.ndarray:
    return one.mean(score, weights) - other.mean(score, weights)


def tabulate_ranking(results: Mapping[str, ScoreSums], labels: np.ndarray, data: str = "hko-7") -> ResultTable:
    """Tabulate the difference in each score for each pair of the ranking in the paper.

    Args:
        results: method -> scores. Pairs with a method that is missing here are left out.
        labels: block of time of each sample.
        data: data set of the paper, see get_published.

    Returns:
        The table.
    """
    rows: list[tuple[str | Estimate, ...]] = []
    for better, other in PAPER_RANKING:
        if better not in results or other not in results:
            continue
        for score in RANKED_SCORES:
            pair = results[better], results[other]
            ours = Estimate.from_statistic(functools.partial(_subtract_means, *pair, score), labels)
            printed = [get_published(name, data)[score] for name in (better, other)]
            paper = None if printed[0] is None or printed[1] is None else printed[0] - printed[1]
            rows.append(
                (f"{better} less {other}", score, *compare_with_paper(ours, paper, 1 if score == "B-MAE" else 3))
            )
    title = "Differences of scores; agrees or opposite: the interval leaves out zero"
    return ResultTable(title, ("difference", "score", "paper", "ours", "conclusion"), rows, digits=3, sign="+")


def tabulate_leads(results: Mapping[str, ScoreSums], minutes: list[str]) -> ResultTable:
    """Tabulate all scores by lead time."""
    rows = []
    for name, sums in results.items():
        once = np.ones((1, sums.samples))
        rows += [(name, s, *(f"{v:.{_digits(s, 3)}f}" for v in sums.by_lead(s, once)[0])) for s in SCORES]
    return ResultTable("Scores by lead in minutes", ("method", "score", *minutes), rows)


def compute_long_scores(tables_of: np.ndarray) -> dict[str, np.ndarray]:
    """Compute HSS and POD (leads,) of long forecasts as means over seeds.

    Args:
        tables_of: contingency tables (seeds, samples, leads, 4).
    """
    found = contingency_scores(np.asarray(tables_of, float).sum(1))
    return {kind: found[kind.lower()].mean(0) for kind in ("HSS", "POD")}


def tabulate_long_scores(results: Mapping[str, np.ndarray], hours: list[str]) -> ResultTable:
    """Tabulate the scores of long forecasts (figure 8).

    Args:
        results: method -> contingency tables, see compute_long_scores.
        hours: lead times.
    """
    rows = []
    for name, counted in results.items():
        scores = compute_long_scores(counted)
        rows += [(name, f"{kind} 10", *(f"{v:.3f}" for v in values)) for kind, values in scores.items()]
    return ResultTable("Long forecasts by lead in hours (figure 8)", ("method", "score", *hours), rows)


def tabulate_complexity(found: Mapping[str, Mapping[str, float]], steps: Mapping[str, float]) -> ResultTable:
    """Tabulate the costs of networks next to table V.

    Args:
        found: method -> costs, see measure_cost.
        steps: method -> seconds of a training step, if measured.
    """
    rows = []
    for name, cost in found.items():
        paper = COMPLEXITY.get(name)
        printed = (
            ("-",) * 4 if paper is None else (f"{paper[0]:.2f}", f"{paper[1]:.1f}", f"{paper[2]:.2f}", f"{paper[3]}")
        )
        rows.append((name, *format_cost(cost, steps.get(name), digits=2), *printed))
    paper_names = "parameters, 1e6", "multiply-adds, 1e9", "memory, GB", "hours"
    heads = ("method", *COST_HEADS, *(f"paper: {name}" for name in paper_names))
    return ResultTable("What the networks cost (table V)", heads, rows)


_DRAWN = (0, 2, 4)  # indices of the lead times that are drawn
_ECHO_DBZ = 5.0  # lower end of the colour scale
_ERROR = "validation error (1: persistence)"
# Score -> rain rates in mm/h of its panels (figure 4).
_CURVES = {"CSI": RATES, "HSS": RATES[:4]}


def to_dbz(x: torch.Tensor) -> np.ndarray:
    """Convert normalised frames (n, 1, H, W) to reflectivity (n, H, W) in dBZ."""
    return fd.restore(x, NOWCAST_FLOOR_DBZ, NOWCAST_CEILING_DBZ)[:, 0].numpy()


def group_methods(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the methods into figures by cell; extrapolation is in each group."""
    kinds = {cell: [f"MS-{cell}", f"MS-{cell}-S", f"DB-{cell}"] for cell in CELLS}
    kinds |= {"others": ["persistence", "SimVP", "MS-LSTM", "PredRNN-V2"], "ablation": list(ABLATION)}
    found = {kind: [name for name in group if name in names] for kind, group in kinds.items()}
    return {kind: ["extrapolation", *group] for kind, group in found.items() if group}


def draw_maps(
    folder: pathlib.Path, fields: Mapping[str, np.ndarray], sample: dict, minutes: list[str], grid: MapGrid, title: str
) -> None:
    """Write figure-maps-GROUP.png, maps of forecasts from one start.

    Args:
        folder: folder of the figures.
        fields: method -> (n, H, W) in dBZ.
        sample: the test sample.
        minutes: lead times.
        grid: grid of the maps.
        title: title of the figures.
    """
    truth = np.where(sample["valid"][:, 0].numpy(), to_dbz(sample["y"]), np.nan)
    times = [f"+{minutes[k]} min" for k in _DRAWN]
    for kind, names in group_methods(fields).items():
        chosen = {name: fields[name][list(_DRAWN)] for name in names}
        figure = draw_radar_panel(chosen, truth[list(_DRAWN)], times, grid, title, _ECHO_DBZ)
        save_png(figure, folder / f"figure-maps-{kind}.png")


def make_line_charts(
    curves: Mapping[str, pathlib.Path], results: Mapping[str, ScoreSums], minutes: list[str]
) -> dict[str, Chart]:
    """Make the line charts.

    Args:
        curves: method -> validation log.
        results: method -> scores.
        minutes: lead times.

    Returns:
        A dictionary from file name to chart.
    """
    found, leads = {}, [float(m) for m in minutes]
    for kind, names in group_methods(results).items():
        chosen = {name: curves[name] for name in names if name in curves}
        if chosen:
            draw = functools.partial(draw_validation_curves, chosen, _ERROR)
            alt = f"Validation error by step of {', '.join(chosen)}"
            found[f"figure-validation-{kind}"] = Chart(f"Validation error, {kind}", alt, draw)
        for score, rates in _CURVES.items():
            panels = {f"{score} at {rate} mm/h": _collect_by_lead(results, names, f"{score} {rate}") for rate in rates}
            draw = functools.partial(draw_panels_by_lead, leads, panels)
            alt = f"{score} by lead of {', '.join(names)}, at {', '.join(rates)} mm/h"
            found[f"figure-04-{kind}-{score}"] = Chart(f"{score} by lead, {kind}", alt, draw)
    return found


def _collect_by_lead(results: Mapping[str, ScoreSums], names: Iterable[str], score: str) -> dict[str, np.ndarray]:
    return {name: results[name].by_lead(score, np.ones((1, results[name].samples)))[0] for name in names}


def make_long_charts(counted: Mapping[str, np.ndarray], hours: list[str]) -> dict[str, Chart]:
    """Make the chart of long forecasts (figure 8), if there are any.

    Args:
        counted: method -> contingency tables, see compute_long_scores.
        hours: lead times.

    Returns:
        A dictionary from file name to chart, which may be empty.
    """
    if not counted:
        return {}
    scores = {name: compute_long_scores(found) for name, found in counted.items()}
    panels = {f"{kind} at 10 mm/h": {name: one[kind] for name, one in scores.items()} for kind in ("HSS", "POD")}
    draw = functools.partial(draw_panels_by_lead, [60 * float(h) for h in hours], panels)
    return {"figure-08": Chart("Long forecasts by lead", f"HSS and POD by lead of {', '.join(scores)}", draw)}


def make_maps(grid: MapGrid, fields: Mapping[str, np.ndarray], sample: dict, minutes: list[str]) -> Maps:
    """Make the maps of forecasts of one sample for the page.

    Args:
        grid: grid of the maps.
        fields: method -> forecasts (n, H, W) in dBZ.
        sample: test sample with y and valid.
        minutes: lead times.

    Returns:
        The maps, with the truth as the first method.
    """
    truth = np.where(sample["valid"][:, 0].numpy(), to_dbz(sample["y"]), np.nan)
    drawn = Maps(grid, ["truth", *fields], radar_style())
    shown = {name: clear_below_floor(z, _ECHO_DBZ) for name, z in {"truth": truth, **fields}.items()}
    for k in range(FUTURE):
        drawn.add(f"+{minutes[k]} min", {name: z[k] for name, z in shown.items()})
    return drawn
