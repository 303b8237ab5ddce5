# SPDX-License-Identifier: Apache-2.0
"""Figures of the DB-RNN study: maps of one forecast, scores by lead time, and validation curves."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from fastds import data as fd
from fastds.data.samples.radar_windows import NOWCAST_CEILING_DBZ, NOWCAST_FLOOR_DBZ
from fastds.plot import draw_panels_by_lead, save_png
from fastds.report import Chart, MapGrid, Maps, radar_style
from fastds.studies.common.figures import clear_below_floor, draw_radar_panel, draw_validation_curves
from fastds.studies.db_rnn.methods import ABLATION, CELLS, FUTURE
from fastds.studies.db_rnn.published import RATES
from fastds.studies.db_rnn.scores import ScoreSums
from fastds.studies.db_rnn.tables import compute_long_scores

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
    """Make the line charts, file name -> chart.

    Args:
        curves: method -> validation log.
        results: method -> scores.
        minutes: lead times.
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
    """Make the chart of long forecasts (figure 8), if there are any; counted: method -> contingency tables, see
    compute_long_scores."""
    if not counted:
        return {}
    scores = {name: compute_long_scores(found) for name, found in counted.items()}
    panels = {f"{kind} at 10 mm/h": {name: one[kind] for name, one in scores.items()} for kind in ("HSS", "POD")}
    draw = functools.partial(draw_panels_by_lead, [60 * float(h) for h in hours], panels)
    return {"figure-08": Chart("Long forecasts by lead", f"HSS and POD by lead of {', '.join(scores)}", draw)}


def make_maps(grid: MapGrid, fields: Mapping[str, np.ndarray], sample: dict, minutes: list[str]) -> Maps:
    """Make the maps of forecasts of one sample for the page."""
    truth = np.where(sample["valid"][:, 0].numpy(), to_dbz(sample["y"]), np.nan)
    drawn = Maps(grid, ["truth", *fields], radar_style())
    shown = {name: clear_below_floor(z, _ECHO_DBZ) for name, z in {"truth": truth, **fields}.items()}
    for k in range(FUTURE):
        drawn.add(f"+{minutes[k]} min", {name: z[k] for name, z in shown.items()})
    return drawn
