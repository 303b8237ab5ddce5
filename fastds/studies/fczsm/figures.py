# SPDX-License-Identifier: Apache-2.0
"""The figures of the study after the paper's 7 to 12: curves of the loss, fields and their differences."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from fastds import data as fd
from fastds.metrics.errors import CEILING_DBZ
from fastds.plot import field_panel, save_png, training_curves
from fastds.report import Chart, MapGrid, Maps, radar_style
from fastds.studies.common.radar import path_of
from fastds.studies.fczsm.config import DataConfig
from fastds.studies.fczsm.methods import FIGURES
from fastds.studies.fczsm.samples import TestBlock
from fastds.studies.fczsm.scores import FLOOR_DBZ

TIMES = ("t1", "t2", "t3")
# Method -> (3, H, W) dBZ.
Fields = Mapping[str, np.ndarray]


def most_echo(blocks: list[TestBlock]) -> tuple[TestBlock, dict[str, torch.Tensor]]:
    """The test sample whose fields are drawn, and its block: that with the largest share of echo."""
    samples = [(block, sample) for block in blocks for sample in block.samples]
    return max(samples, key=lambda found: float((found[1]["y"] > 0).float().mean()))


def _truth(sample: dict[str, torch.Tensor]) -> np.ndarray:
    """(3, H, W) dBZ, NaN outside what counts."""
    truth = fd.restore(sample["y"], FLOOR_DBZ, CEILING_DBZ)
    return torch.where(sample["valid"], truth, torch.nan)[:, 0].numpy()


def _shown(z: np.ndarray) -> np.ndarray:
    """Reflectivity as it is drawn: at the floor, within the lattice of 0.5 dBZ, there is no echo."""
    return np.where(z < FLOOR_DBZ + 0.5, 0.0, z)


def draw_figures(
    folder: pathlib.Path, curves: Mapping[str, pathlib.Path], fields: Fields, sample: dict, grid: MapGrid, title: str
) -> None:
    """Write figure-NUMBER.png by the paper's numbers. curves: method -> CSV; fields: of the sample, on a grid, titled
    so."""
    truth = _truth(sample)
    first, last = (_shown(z) for z in fd.restore(sample["x"][:, 0], FLOOR_DBZ, CEILING_DBZ).numpy())
    drawn = {name: np.where(np.isnan(truth), np.nan, np.clip(z, FLOOR_DBZ, CEILING_DBZ)) for name, z in fields.items()}
    for number, (names, panel) in FIGURES.items():
        trained = [name for name in names if name in curves]
        if trained:
            save_png(_loss({name: curves[name] for name in trained}), folder / f"figure-{number}.png")
        chosen = {name: drawn[name] for name in dict.fromkeys(("trilinear", *names)) if name in drawn}
        if chosen:
            save_png(_panel(chosen, truth, [first, None, last], grid, title), folder / f"figure-{panel}.png")


def _panel(fields: Fields, truth: np.ndarray, inputs: list[np.ndarray | None], grid: MapGrid, title: str) -> Figure:
    """The truth and the fields of each time, and their differences beside them."""

    def from_south(maps: Iterable[np.ndarray | None]) -> list[np.ndarray | None]:  # first row at the bottom
        return [None if z is None else grid.up(z)[::-1] for z in maps]

    rows = {"truth": from_south(_shown(truth)), **{name: from_south(_shown(z)) for name, z in fields.items()}}
    differences = {name: from_south(z - truth) for name, z in fields.items()}
    inputs = from_south(inputs)
    return field_panel(rows, TIMES, differences=differences, inputs=inputs, unit="pixels", title=title)


def _loss(curves: Mapping[str, pathlib.Path]) -> Figure:
    figure = training_curves(curves, ("error",))
    axes = figure.axes[0]
    axes.set_ylabel("validation MSE (dBZ$^2$)")
    for line, name in zip(axes.lines, curves, strict=True):
        line.set_label(name)
    axes.legend(fontsize=8)
    return figure


def charts(curves: Mapping[str, pathlib.Path]) -> list[Chart]:
    """The curves for a page."""
    titles = {"07": "Figure 7: validation MSE of the networks", "10": "Figure 10: of the variants"}
    found = []
    for number, (names, _) in FIGURES.items():
        trained = {name: curves[name] for name in names if name in curves}
        if trained:
            alt = f"Validation MSE by step of {', '.join(trained)}"
            found.append(Chart(titles[number], alt, functools.partial(_loss, trained)))
    return found


def grid_of(config: DataConfig, block: TestBlock) -> MapGrid:
    """Where the window of a block lies."""
    with fd.open_dataset(path_of(config, block.name)) as dataset:
        return MapGrid.of(fd.to_reflectivity(dataset, config.var).raw[..., *block.window])


def maps(grid: MapGrid, fields: Fields, sample: dict) -> Maps:
    """Fields of the sample for a page."""
    drawn = Maps(grid, ["truth", *fields], radar_style())
    shown = {name: _shown(z) for name, z in {"truth": _truth(sample), **fields}.items()}
    for k, time in enumerate(TIMES):
        drawn.add(time, {name: z[k] for name, z in shown.items()})
    return drawn
