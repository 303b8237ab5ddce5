# SPDX-License-Identifier: Apache-2.0
"""Gridded fields and the scores of files."""

import numpy as np
import xarray as xr

from fastds.cli import main


def region(values=None, rows=12, columns=15):
    """Return a dataset of temperature on a grid of 2 degrees that starts at 10 N, 100 E."""
    lat, lon = 10.0 + 2.0 * np.arange(rows), 100.0 + 2.0 * np.arange(columns)
    values = 220.0 + lat[:, None] + 0.5 * lon if values is None else values
    axes = (("latitude", lat, "degrees_north"), ("longitude", lon, "degrees_east"))
    return xr.Dataset(
        {"t2m": (("latitude", "longitude"), values.astype("f4"), {"units": "K", "standard_name": "air_temperature"})},
        {name: (name, v, {"units": units, "standard_name": name}) for name, v, units in axes},
    )


KELVIN = {"units": "K", "standard_name": "air_temperature"}
TIMES = np.datetime64("2020-01-01", "ns") + np.arange(4) * np.timedelta64(6, "h")


def fields(values, latitude, longitude, name="t", attrs=KELVIN, times=TIMES):
    """Return a dataset of values (T, H, W)."""
    values = np.asarray(values, "f4")
    coords = {
        "time": times[: len(values)],
        "latitude": ("latitude", np.asarray(latitude, float), {"units": "degrees_north"}),
        "longitude": ("longitude", np.asarray(longitude, float), {"units": "degrees_east"}),
    }
    return xr.Dataset({name: (("time", "latitude", "longitude"), values, attrs)}, coords)


def run(line):
    """Run the command `fastds LINE`."""
    return main(line.split())


def smooth(rows=16, columns=20, times=3, seed=0, step=1.0):
    """Return waves south of 40 N and east of 10 E."""
    g = np.random.default_rng(seed)
    y, x = np.arange(rows)[:, None] / 5, np.arange(columns) / 6
    waves = [250 + 8 * np.sin(y + 0.3 * k) * np.cos(x) + g.normal(size=(rows, columns)) for k in range(times)]
    return fields(waves, 40 - step * np.arange(rows), 10 + step * np.arange(columns))


def means_of_blocks(dataset, r=2, name="t"):
    """Return the means of blocks of r x r cells."""
    z = dataset[name].values
    t, h, w = z.shape
    z = z[:, : h - h % r, : w - w % r].reshape(t, h // r, r, w // r, r).mean((2, 4))
    axes = [dataset[d].values[: n - n % r].reshape(-1, r).mean(1) for d, n in (("latitude", h), ("longitude", w))]
    return fields(z, *axes, name, dataset[name].attrs, dataset.time.values)
