# SPDX-License-Identifier: Apache-2.0
"""Forecasts of a file that nowcast wrote, start by start."""

from __future__ import annotations

import os

import numpy as np
import xarray as xr

from fastds.data import open_dataset, rate_to_reflectivity
from fastds.data.grid.times import to_seconds
from fastds.data.radar.reflectivity import z_r_law
from fastds.tasks.nowcast.output import PERIOD, QUANTITIES, REFERENCE


def is_forecast(dataset: xr.Dataset) -> bool:
    """Whether a dataset holds forecasts by their start and lead."""
    return REFERENCE in dataset.coords and PERIOD in dataset.coords


def is_forecast_file(path: str | os.PathLike) -> bool:
    """is_forecast of the file `path`; raises what open_dataset raises."""
    with open_dataset(path) as dataset:
        return is_forecast(dataset)


class Forecasts:
    """The forecasts of a dataset.

    Attributes: variable (DataArray); starts (S,) times; leads (n,) seconds; z_r (a, b); name of the model; factor,
    cells of the observations along a cell; floor and ceiling, dBZ, between which the model works.
    Raises: ValueError for a dataset that nowcast did not write.
    """

    def __init__(self, dataset: xr.Dataset):
        names = [name for name, _ in QUANTITIES.values() if name in dataset.data_vars]
        if not is_forecast(dataset) or not names or "fastds_coarsening" not in dataset.attrs:
            raise ValueError("the file holds no forecasts that fastds nowcast wrote")
        self.variable = dataset[names[0]]
        self.starts = dataset[REFERENCE].values.reshape(-1)
        leads = dataset[PERIOD].values
        self.leads = np.array([to_seconds(lead) for lead in leads]) if leads.dtype.kind == "m" else leads.astype(float)
        self.z_r, _ = z_r_law(dataset, self.variable)
        settings = dataset.attrs
        self.name, self.factor = str(settings["fastds_model"]), int(settings["fastds_coarsening"])
        self.floor, self.ceiling = float(settings["fastds_floor_dBZ"]), float(settings["fastds_ceiling_dBZ"])

    def fields(self, number: int) -> np.ndarray:
        """The forecasts (n, h, w) of one start in dBZ, NaN where missing."""
        part = self.variable if self.variable.ndim == 3 else self.variable[number]
        values = part.values.astype(np.float32)
        return values if self.variable.name == "reflectivity" else rate_to_reflectivity(values, self.z_r)
