# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of the FC-ZSM study."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping

import numpy as np
import torch

from fastds import data as fd
from fastds.metrics.errors import CEILING_DBZ
from fastds.plot import save_png
from fastds.report import Chart, MapGrid, Maps, radar_style
from fastds.studies.common.bootstrap import Estimate, make_block_labels
from fastds.studies.common.figures import clear_below_floor, draw_radar_panel, draw_validation_curves
from fastds.studies.common.plan import COST_HEADS, format_cost
from fastds.studies.common.radar import EvaluationBlock
from fastds.studies.common.tables import ResultTable, compare_with_paper
from fastds.studies.fczsm.evaluation import FLOOR_DBZ, SCORES
from fastds.studies.fczsm.methods import FIGURES, METHODS, PAPER_RANKING, REDUCTIONS

# Method -> score -> one number for each test sample (mean over the seeds).
Results = Mapping[str, Mapping[str, np.ndarray]]
_HEADS = ("MSE", "MSE t2", "MSE t1, t3", "SSIM")


def tabulate_scores(
    results: Results, blocks: list[EvaluationBlock], sizes: Mapping[str, tuple[int, int]]
) -> ResultTable:
    """Tabulate scores as in tables 1 and 2 of the paper.

    Args:
        results: method -> scores of each sample.
        blocks: test samples.
        sizes: method -> width and number of parameters.
    """
    labels, rows = make_block_labels(block.blocks for block in blocks), []
    for name, method in METHODS.items():
        width, parameters = sizes.get(name, (0, 0))
        size = (str(width), f"{parameters:,}") if width else ("-", "-")
        found = results.get(name)
        ours = (
            [Estimate.from_samples(found[s], labels) for s in SCORES]
            if found
            else ["not run"] + ["-"] * (len(SCORES) - 1)
        )
        published = method.published
        paper = [f"{v:.3f}" for v in published] if published else ["-"] * len(SCORES)
        rows.append(
            (name, *size, *ours, _reduction(results, name), *paper, _percent(published and published[0], 2.452))
        )
    heads: tuple[str, ...] = ("method", "width", "parameters", *_HEADS, "reduction %")
    heads += tuple(f"paper: {head}" for head in (*_HEADS, "reduction %"))
    return ResultTable("Scores above 15 dBZ, MSE in dBZ^2, with 95 % intervals over blocks of time", heads, rows)


def tabulate_reductions(results: Results) -> ResultTable:
    """Tabulate the reductions of the MSE as in table 3.

    The network of Serifi et al. has only its published numbers.
    """
    rows = []
    for name in REDUCTIONS:
        found = "trilinear" in results and name in results
        ours = [f"{results[n]['mse_total'].mean():.3f}" for n in ("trilinear", name)] if found else ["-", "-"]
        baseline, error = REDUCTIONS[name]
        paper = f"{baseline:.3f}", f"{error:.3f}", _percent(error, baseline)
        rows.append((name, *ours, _reduction(results, name), *paper))
    heads = ("baseline", "MSE", "reduction %")
    return ResultTable(
        "Reduction of the MSE (table 3)", ("method", *heads, *(f"paper: {head}" for head in heads)), rows
    )


def tabulate_costs(found: Mapping[str, Mapping[str, float]], steps: Mapping[str, float]) -> ResultTable:
    """Tabulate the costs of networks, which the paper does not give.

    Args:
        found: method -> costs, see measure_cost.
        steps: method -> seconds of a training step, if measured.
    """
    rows = [(name, *format_cost(cost, steps.get(name), digits=1)) for name, cost in found.items()]
    title = "What the networks cost, of one sample and a batch of the training"
    return ResultTable(title, ("method", *COST_HEADS), rows)


def _reduction(results: Results, name: str) -> str:
    if name not in results or "trilinear" not in results:
        return "-"
    return _percent(results[name]["mse_total"].mean(), results["trilinear"]["mse_total"].mean())


def _percent(value: float | None, trilinear: float) -> str:
    return "-" if value is None or value == trilinear else f"{100 * (value / trilinear - 1):+.2f}"


def tabulate_ranking(results: Results, blocks: list[EvaluationBlock]) -> ResultTable:
    """Tabulate the difference in MSE of each pair of the ranking in the paper.

    Differences are a percentage of the MSE of trilinear interpolation.
    """
    labels, rows = make_block_labels(block.blocks for block in blocks), []
    for better, other in PAPER_RANKING:
        if better not in results or other not in results:
            continue
        unit = 100 / results["trilinear"]["mse_total"].mean()
        ours = Estimate.from_samples(unit * (results[better]["mse_total"] - results[other]["mse_total"]), labels)
        printed = [METHODS[name].published for name in (better, other)]
        one, two = printed
        paper = 100 * (one[0] - two[0]) / 2.452 if one and two else None
        rows.append((f"{better} less {other}", *compare_with_paper(ours, paper, 2)))
    title = "Differences of MSE, in % of trilinear's; agrees or opposite: the interval leaves out zero"
    return ResultTable(title, ("difference", "paper", "ours", "conclusion"), rows, digits=1, sign="+")


def tabulate_files(results: Results, blocks: list[EvaluationBlock]) -> ResultTable:
    """Tabulate the MSE by file."""
    rows, start = [], 0
    for block in blocks:
        stop = start + len(block.samples)
        rows.append((block.name, *(f"{found['mse_total'][start:stop].mean():.3f}" for found in results.values())))
        start = stop
    return ResultTable("MSE by file, dBZ^2", ("file", *results), rows)


TIMES = ("t1", "t2", "t3")
_LOSS = "validation MSE (dBZ$^2$)"
# Method -> (3, H, W) in dBZ.
Fields = Mapping[str, np.ndarray]


def _truth(sample: dict[str, torch.Tensor]) -> np.ndarray:
    """Return the truth (3, H, W) in dBZ, NaN at pixels that are not scored."""
    truth = fd.restore(sample["y"], FLOOR_DBZ, CEILING_DBZ)
    return torch.where(sample["valid"], truth, torch.nan)[:, 0].numpy()


def draw_maps(folder: pathlib.Path, fields: Fields, sample: dict, grid: MapGrid, title: str) -> None:
    """Write figures with maps of one sample, named after the figures of the paper.

    Args:
        folder: folder of the figures.
        fields: method -> (3, H, W) in dBZ.
        sample: the test sample.
        grid: grid of the maps.
        title: title of the figures.
    """
    truth = _truth(sample)
    first, last = fd.restore(sample["x"][:, 0], FLOOR_DBZ, CEILING_DBZ).numpy()
    drawn = {name: np.clip(z, FLOOR_DBZ, CEILING_DBZ) for name, z in fields.items()}
    for names, panel in FIGURES.values():
        chosen = {name: drawn[name] for name in dict.fromkeys(("trilinear", *names)) if name in drawn}
        if chosen:
            figure = draw_radar_panel(chosen, truth, TIMES, grid, title, FLOOR_DBZ, [first, None, last])
            save_png(figure, folder / f"figure-{panel}.png")


def make_charts(curves: Mapping[str, pathlib.Path]) -> dict[str, Chart]:
    """Make the validation curves as a dictionary from file name to chart.

    Args:
        curves: method -> validation log.
    """
    titles = {"07": "Figure 7: validation MSE of the networks", "10": "Figure 10: of the variants"}
    found = {}
    for number, (names, _) in FIGURES.items():
        trained = {name: curves[name] for name in names if name in curves}
        if trained:
            alt = f"Validation MSE by step of {', '.join(trained)}"
            draw = functools.partial(draw_validation_curves, trained, _LOSS)
            found[f"figure-{number}"] = Chart(titles[number], alt, draw)
    return found


def make_maps(grid: MapGrid, fields: Fields, sample: dict) -> Maps:
    """Make the maps of one sample for the page.

    Args:
        grid: grid of the maps.
        fields: method -> (3, H, W) in dBZ.
        sample: test sample with the truth.

    Returns:
        The maps, with the truth as the first method.
    """
    drawn = Maps(grid, ["truth", *fields], radar_style())
    shown = {name: clear_below_floor(z, FLOOR_DBZ) for name, z in {"truth": _truth(sample), **fields}.items()}
    for k, time in enumerate(TIMES):
        drawn.add(time, {name: z[k] for name, z in shown.items()})
    return drawn
