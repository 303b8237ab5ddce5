# SPDX-License-Identifier: Apache-2.0
"""Raw files of weather services by one command each, from file to map: `python -m bench.raw_files FOLDER`.

Every file of the folder goes through `fastds convert FILE OUT.nc` once. The table has the format that was recognised,
the field, its size, the outer corners of the map in degrees, and the seconds with the start of Python.
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
from fastds.data.grid.grids import grid_mappings, latitude_longitude

HEADS = "file", "format", "field", "size", "lower left", "upper right", "seconds"


def corners(dataset: xr.Dataset, field: xr.DataArray) -> list[str]:
    """Longitude and latitude of the lower left and the upper right outer corner."""
    latitude, longitude = latitude_longitude(field)
    y, x = (field[dim].values for dim in field.dims[-2:])
    if latitude is not None and latitude.ndim == 2:
        pairs = sorted(
            (float(b), float(a)) for a in latitude.values.flat[[0, -1]] for b in longitude.values.flat[[0, -1]]
        )
        return ["{:.2f}, {:.2f}".format(*pair) for pair in (pairs[0], pairs[-1])]
    edges = [(np.sort(v)[[0, -1]] + abs(v[1] - v[0]) * np.array([-0.5, 0.5])) for v in (x, y)]
    pairs = list(zip(*edges, strict=True))
    names = grid_mappings(dataset, field)
    if latitude is None and names:
        # As written, without WKT: what other programs see.
        crs = pyproj.CRS.from_cf({k: v for k, v in dataset[names[0]].attrs.items() if k != "crs_wkt"})
        scale = 1e3 if field[field.dims[-1]].attrs.get("units") == "km" else 1.0
        pairs = [pyproj.Proj(crs)(scale * a, scale * b, inverse=True) for a, b in pairs]
    return ["{:.2f}, {:.2f}".format(*pair) for pair in pairs]


def line(file: pathlib.Path, name: str, folder: pathlib.Path) -> tuple[str, ...]:
    """The row of a file; what refuses it in place of its field."""
    target, began = folder / "out.nc", time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-m", "fastds", "convert", str(file), str(target)], capture_output=True, text=True
    )
    seconds = f"{time.perf_counter() - began:.1f}"
    if run.returncode:
        return name, "refused", run.stderr.strip().splitlines()[-1].replace(str(file), name), "", "", "", seconds
    with open_dataset(file) as read:
        form = read.encoding.get("format", "")
    with xr.open_dataset(target, engine="h5netcdf") as made:
        field = max((made[n] for n in made.data_vars), key=lambda field: field.ndim)
        size = " x ".join(map(str, field.shape))
        return name, form, field.name, size, *corners(made, field), seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    root = parser.parse_args().folder
    print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            print("| " + " | ".join(line(file, str(file.relative_to(root)), pathlib.Path(folder))) + " |", flush=True)


if __name__ == "__main__":
    main()
