# SPDX-License-Identifier: Apache-2.0
"""Writes files in the format of MeteoNet: reflectivity, probability and height in one npz archive."""

import datetime
from pathlib import Path

import numpy as np

from fastds.data import synthetic_event

FIRST = datetime.datetime(2018, 3, 1)


def make_radar(folder: Path, frames: int = 16, size: int = 64, seed: int = 3, part: int = 1) -> Path:
    """Write reflectivity_new_NW_2018_03.PART.npz with one missing corner, and its coordinate file."""
    field = synthetic_event(seed=seed, frames=frames, shape=(size, size)).reflectivity
    z = field.values
    echo = z > -9
    data = np.where(echo, np.rint(2 * z) * 5, -100)
    prob = np.where(echo, np.clip(np.rint(2 * z), 0, 99), -100)
    height = np.where(echo, 1000 + 10 * np.arange(size)[:, None] + 0 * z, -200)
    data[:, :2, :2] = -200
    dates = np.array([FIRST + datetime.timedelta(minutes=5 * k) for k in range(frames)], object)
    path = folder / f"reflectivity_new_NW_2018_03.{part}.npz"
    arrays = {"data": data, "prob": prob, "height": height}
    np.savez_compressed(path, dates=dates, miss_dates=dates[:0], **{k: v.astype("i2") for k, v in arrays.items()})
    lat, lon = np.meshgrid(50 - 0.01 * np.arange(size), -3 + 0.01 * np.arange(size), indexing="ij")
    np.savez(folder / "radar_coords_NW.npz", lats=lat, lons=lon)
    return path
