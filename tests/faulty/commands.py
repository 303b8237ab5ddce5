# SPDX-License-Identifier: Apache-2.0
"""Lists the commands that read fields and runs one of them."""

import contextlib
import io
import shutil
from pathlib import Path

import numpy as np
import xarray as xr

from fastds.cli import main
from fastds.data import coarsen_dataset, save_dataset, synthetic_event
from fastds.models import load_card

USUAL = {"r": 50.0, "t": 270.0, "u": 5.0, "z": 5e4}


def good_files(folder: Path) -> dict[str, tuple[Path, xr.Dataset]]:
    """Write valid files of reflectivity and of the fields that inr-small reads.

    The file coarse.nc has the reflectivity at half the resolution.

    Returns:
        A dictionary from the kind of file to its path and contents.
    """
    event = synthetic_event(5, 12, (64, 64))[["reflectivity"]]
    event["reflectivity"].attrs.pop("grid_mapping", None)
    latitude = ("latitude", np.linspace(70.0, 20.0, 40), {"standard_name": "latitude", "units": "degrees_north"})
    longitude = ("longitude", np.linspace(0.0, 143.0, 144), {"standard_name": "longitude", "units": "degrees_east"})
    rng, fields = np.random.default_rng(0), {}
    for variable in load_card("inr-small").input_variables:
        values = USUAL[variable["name"]] * (1 + 0.01 * rng.standard_normal((6, 40, 144)))
        attrs = {"standard_name": variable["standard_name"], "units": variable["units"]}
        fields[variable["name"]] = (("time", "latitude", "longitude"), values, attrs)
    times = np.datetime64("2020-01-01", "ns") + np.arange(6) * np.timedelta64(6, "h")
    grid = xr.Dataset(fields, coords={"time": times, "latitude": latitude, "longitude": longitude})
    (folder / "points.csv").write_text("name,lat,lon\nA,50,10\n")
    save_dataset(event, folder / "radar.nc")
    save_dataset(coarsen_dataset(event), folder / "coarse.nc")
    save_dataset(grid, folder / "fields.nc")
    return {"radar": (folder / "radar.nc", event), "fields": (folder / "fields.nc", grid)}


def commands(base: str, path: Path) -> dict[str, list[str]]:
    """Return the commands that read a kind of file, by name.

    Args:
        base: kind of file, "radar" or "fields".
        path: file to read. Outputs are written to its folder.
    """
    folder, source = path.parent, str(path)
    out = str(folder / "out.nc")
    training = ["--max-steps=1", "--progress=false", "--data.batch-size=2", "--data.epoch-samples=2"]
    training += ["--output", str(folder / "out"), "--data.path", source]
    coarse, fine = str(folder / "coarse.nc"), str(folder / "radar.nc")
    if base == "radar":
        return {
            "downscale": ["downscale", source, out, "--model", "fczsm-small"],
            "nowcast": ["nowcast", source, out, "--model", "extrapolation"],
            "truth": ["downscale", coarse, out, "--model", "fczsm-small", "--truth", source],
            "evaluate": ["evaluate", source, fine],
            "train radar": ["train", "radar", *training, "--data.crop=16"],
            "train nowcast": ["train", "nowcast", *training, "--data.known=2", "--data.future=1", "--data.crop=24"],
        }
    return {
        "downscale": ["downscale", source, out, "--model", "inr-small", "--scale", "1.5"],
        "query": ["query", source, "--points", str(folder / "points.csv"), "--output", str(folder / "out.csv")],
        "humidity": ["downscale", source, out, "--model", "wgan-gp-small-x2", "--var", "r"],
        "train fields": ["train", "fields", *training, "--data.crop=12"],
        "train humidity": ["train", "humidity", *training, "--data.crop=8", "--data.steps=2"],
    }


def run(words: list[str], folder: Path) -> tuple[int | str, list[str], list[str]]:
    """Run a command and remove the files that it wrote.

    Returns:
        The exit status or the unhandled exception, the lines on standard error, and the names of the new files.
    """
    before, stderr = set(folder.rglob("*")), io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(words)
        except BaseException as error:  # what no command should let through
            status = f"{type(error).__name__}: {error}"
    left = sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before)
    for path in (folder / name for name in left):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return status, stderr.getvalue().splitlines(), left
