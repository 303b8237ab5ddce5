# SPDX-License-Identifier: Apache-2.0
"""Figures of the FC-ZSM study, after the paper's figures 7 to 12: validation curves, maps and their differences."""

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
from fastds.studies.common.figures import clear_below_floor, draw_radar_panel, draw_validation_curves
from fastds.studies.fczsm.methods import FIGURES
from fastds.studies.fczsm.scores import FLOOR_DBZ

TIMES = ("t1", "t2", "t3")
_LOSS = "validation MSE (dBZ$^2$)"
# Method -> (3, H, W) in dBZ.
Fields = Mapping[str, np.ndarray]


def _truth(sample: dict[str, torch.Tensor]) -> np.ndarray:
    """Return the truth (3, H, W) in dBZ, NaN at pixels that are not scored."""
    truth = fd.restore(sample["y"], FLOOR_DBZ, CEILING_DBZ)
    return torch.where(sample["valid"], truth, torch.nan)[:, 0].numpy()


def draw_maps(folder: pathlib.Path, fields: Fields, sample: dict, grid: MapGrid, title: str) -> None:
    """Write figure-NUMBER.png, with the paper's numbers.

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
    """Make the validation curves, file name -> chart; curves: method -> validation log."""
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
    """Make the maps of one sample for the page."""
    drawn = Maps(grid, ["truth", *fields], radar_style())
    shown = {name: clear_below_floor(z, FLOOR_DBZ) for name, z in {"truth": _truth(sample), **fields}.items()}
    for k, time in enumerate(TIMES):
        drawn.add(time, {name: z[k] for name, z in shown.items()})
    return drawn
