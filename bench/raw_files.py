# SPDX-License-Identifier: Apache-2.0
"""Conversion of raw files of weather services: `python -m bench.raw_files FOLDER`.

The script runs `fastds convert FILE OUT.nc` for every file in the folder and its subfolders and prints a table: the
detected format, the field, its size, longitude and latitude of the lower left and the upper right corner of the grid
(of the centres of the corner cells if latitudes are 2-D), and the seconds including the start of Python.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyproj
import xarray as xr

from fastds.data import open_dataset
from fastds.data.grid.grids import find_grid_mappings, find_latitude_longitude

HEADER = "file", "format", "field", "size", "lower left", "upper right", "seconds"


def format_corners(dataset: xr.Dataset, field: xr.DataArray) -> list[str]:
    """Return longitude and latitude of the lower left and the upper right corner of a field.

    The corners are those of the cells, or the centres of the corner cells if latitudes are 2-D.
    """
    latitude, longitude = find_latitude_longitude(field)
    y, x = (field[dim].values for dim in field.dims[-2:])
    if latitude is not None and latitude.ndim == 2:
        pairs = sorted(
            (float(b), float(a)) for a in latitude.values.flat[[0, -1]] for b in longitude.values.flat[[0, -1]]
        )
        return ["{:.2f}, {:.2f}".format(*pair) for pair in (pairs[0], pairs[-1])]
    edges = [(np.sort(v)[[0, -1]] + abs(v[1] - v[0]) * np.array([-0.5, 0.5])) for v in (x, y)]
    pairs = list(zip(*edges, strict=True))
    names = find_grid_mappings(dataset, field)
    if latitude is None and names:
        # Without the WKT, so that the grid mapping is tested by its CF attributes alone.
        crs = pyproj.CRS.from_cf({k: v for k, v in dataset[names[0]].attrs.items() if k != "crs_wkt"})
        scale = 1e3 if field[field.dims[-1]].attrs.get("units") == "km" else 1.0
        pairs = [pyproj.Proj(crs)(scale * a, scale * b, inverse=True) for a, b in pairs]
    return ["{:.2f}, {:.2f}".format(*pair) for pair in pairs]


def convert(file: pathlib.Path, name: str, folder: pathlib.Path) -> tuple[str, ...]:
    """Convert a file and return its row of the table.

    Args:
        file: the file.
        name: its name in the table.
        folder: folder for the output.

    Returns:
        Values of HEADER. A file that cannot be converted has the error message in place of the field.
    """
    target, began = folder / "out.nc", time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-m", "fastds", "convert", str(file), str(target)], capture_output=True, text=True
    )
    seconds = f"{time.perf_counter() - began:.1f}"
    if run.returncode:
        return name, "failed", run.stderr.strip().splitlines()[-1].replace(str(file), name), "", "", "", seconds
    with open_dataset(file) as read:
        form = read.encoding.get("format", "")
    with xr.open_dataset(target, engine="h5netcdf") as converted:
        field = max((converted[n] for n in converted.data_vars), key=lambda field: field.ndim)
        size = " x ".join(map(str, field.shape))
        return name, form, field.name, size, *format_corners(converted, field), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    root = parser.parse_args().folder
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            print(
                "| " + " | ".join(convert(file, str(file.relative_to(root)), pathlib.Path(folder))) + " |", flush=True
            )


if __name__ == "__main__":
    main()
