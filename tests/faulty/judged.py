# SPDX-License-Identifier: Apache-2.0
"""Compares what fastds reads from a random file with the expected values."""

import contextlib
import io
import re
import traceback
import warnings
from pathlib import Path

import numpy as np
import xarray as xr

from fastds.cli import main
from fastds.data import open_dataset

from .drawn import Drawn

OUTCOMES = ("right", "refused", "unclear", "traceback", "wrong")
_POINTS = 3


def judge(drawn: Drawn, rng: np.random.Generator, folder: Path) -> tuple[str, str]:
    """Open a file, convert it and run one more command; return an outcome of OUTCOMES and a message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = [("open", lambda: _open(drawn, rng)), ("convert", lambda: _convert(drawn, rng, folder))]
        steps.append(
            [("check", lambda: _check(drawn)), ("downscale", lambda: _downscale(drawn, rng, folder))][rng.integers(2)]
        )
        for name, step in steps:
            outcome, message = step()
            if outcome == "refused" and drawn.refused and re.search(drawn.refused, message):
                return "right", ""
            if outcome != "right":
                return outcome, f"{name}: {message}"
    return "right", ""


def _open(drawn: Drawn, rng: np.random.Generator) -> tuple[str, str]:
    try:
        with open_dataset(drawn.path) as dataset:
            loaded = dataset.load()
    except (ValueError, OSError, ImportError) as error:
        return _refused(drawn, str(error))
    except BaseException:
        return "traceback", traceback.format_exc().splitlines()[-1]
    return ("right", "") if drawn.damaged else compare(drawn, loaded, rng)


def _refused(drawn: Drawn, message: str) -> tuple[str, str]:
    named = Path(str(drawn.path)).name.replace("*", "") in message or str(Path(drawn.path).parent) in message
    clear = named and "\n" not in message.strip()
    return ("refused" if clear else "unclear"), message


def _command(words: list[str]) -> tuple[int | str, str]:
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            status: int | str = main(words)
        except BaseException:
            return "traceback", traceback.format_exc().splitlines()[-1]
    return status, stderr.getvalue()


def _failed(drawn: Drawn, status: int | str, message: str) -> tuple[str, str]:
    if status == "traceback" or "internal error" in message:
        return "traceback", message
    last = message.strip().splitlines()[-1] if message.strip() else ""
    return ("refused" if last.startswith("fastds ") else "unclear"), message


def _convert(drawn: Drawn, rng: np.random.Generator, folder: Path) -> tuple[str, str]:
    target = folder / ("out.zarr" if rng.random() < 0.3 else "out.nc")
    status, message = _command(["convert", str(drawn.path), str(target), "--to", "cf"])
    if status != 0:
        return _failed(drawn, status, message)
    if drawn.damaged:
        return "right", ""
    with xr.open_dataset(target, engine="zarr" if target.suffix == ".zarr" else "netcdf4") as found:
        return compare(drawn, found.load(), rng)


def _check(drawn: Drawn) -> tuple[str, str]:
    status, message = _command(["check", str(drawn.path)])
    return ("right", "") if status in (0, 2) and "internal error" not in message else _failed(drawn, status, message)


def _downscale(drawn: Drawn, rng: np.random.Generator, folder: Path) -> tuple[str, str]:
    target = folder / "fine.nc"
    words = ["--scale", "2", "--model", "bilinear", "--threads", "1", "--var", drawn.var]
    status, message = _command(["downscale", str(drawn.path), str(target), *words])
    if status != 0:
        return _failed(drawn, status, message)
    if drawn.damaged:
        return "right", ""
    with xr.open_dataset(target, engine="netcdf4") as found:
        return compare_fine(drawn, found.load(), rng)


def compare(drawn: Drawn, found: xr.Dataset, rng: np.random.Generator) -> tuple[str, str]:
    """Compare times, and values and missing cells at random points.

    The minimum, the maximum and the number of missing cells of the field are compared, too.
    """
    wrong = _check_times(drawn, found)
    for name, (expected, tolerance) in ({drawn.var: (drawn.values, drawn.tolerance)} | drawn.others).items():
        wrong = wrong or _check_field(drawn, found, name, expected, tolerance, rng)
    return ("wrong", wrong) if wrong else ("right", "")


def _check_field(
    drawn: Drawn, found: xr.Dataset, name: str, expected: np.ndarray, tolerance: float, rng: np.random.Generator
) -> str:
    """Describe the error of a field, or return ""."""
    if name not in found:
        return f"variable {name} is not among {list(found.data_vars)}"
    field = _in_order(found[name], drawn.inner)
    values = without_fill(field.values.reshape(-1, *field.shape[-2:])).astype(float)
    if values.size != expected.size:
        return f"{values.shape} in place of {expected.shape}"
    if np.isnan(values).sum() != np.isnan(expected).sum():
        return f"{np.isnan(values).sum()} missing in place of {np.isnan(expected).sum()} in {name}"
    for end in (np.nanmin, np.nanmax):
        if abs(end(values) - end(expected)) > tolerance:
            return f"{end.__name__} {end(values)} in place of {end(expected)}"
    lon, lat = places(found, field)
    if np.nanmax(np.abs(lat)) > 90:
        return f"a latitude is {lat.flat[np.nanargmax(np.abs(lat))]}"
    for _ in range(_POINTS):
        row, column = (int(rng.integers(size)) for size in expected.shape[1:])
        if np.isnan(drawn.latitude[row, column]):
            continue
        i, j, distance = nearest(lon, lat, drawn.longitude[row, column], drawn.latitude[row, column])
        if distance > 0.02 * drawn.cell:
            return f"no point within {distance / drawn.cell:.3g} cells of row {row}, column {column}"
        if not np.allclose(values[:, i, j], expected[:, row, column], rtol=0, atol=tolerance, equal_nan=True):
            return f"{values[:, i, j]} in place of {expected[:, row, column]} at row {row}, column {column}"
    return ""


def compare_fine(drawn: Drawn, found: xr.Dataset, rng: np.random.Generator) -> tuple[str, str]:
    """Check at random points that fine values lie between those of the surrounding coarse cells."""
    field = _in_order(found[drawn.var], drawn.inner)
    values = field.values.astype(float).reshape(-1, *field.shape[-2:])
    lon, lat = places(found, field)
    for _ in range(_POINTS):
        row, column = (int(rng.integers(1, size - 1)) for size in drawn.values.shape[1:])
        if _across_a_gap(drawn, row, column):
            continue
        around = drawn.values[:, row - 1 : row + 2, column - 1 : column + 2]
        if np.isnan(drawn.latitude[row - 1 : row + 2, column - 1 : column + 2]).any() or np.isnan(around).any():
            continue
        i, j, distance = nearest(lon, lat, drawn.longitude[row, column], drawn.latitude[row, column])
        if distance > 0.8 * drawn.cell * (2 if drawn.how.get("projection") else 1):
            return "wrong", f"the nearest fine point lies {distance / drawn.cell:.3g} cells off"
        fine = values[:, i, j]
        slack = drawn.tolerance + 1e-3 * np.ptp(around) + 1e-5 * np.abs(around).max()
        if (fine < around.min((1, 2)) - slack).any() or (fine > around.max((1, 2)) + slack).any():
            return "wrong", f"fine {fine} outside {around.min((1, 2))} to {around.max((1, 2))}"
    return "right", ""


def _across_a_gap(drawn: Drawn, row: int, column: int) -> bool:
    """Return True if the neighbouring columns are far away, as between two parts of the longitudes."""
    east = (np.diff(drawn.longitude[row]) + 180) % 360 - 180
    return bool(np.abs(east[column - 1 : column + 1]).max() > 1.5 * np.nanmedian(np.abs(east)))


def without_fill(values: np.ndarray) -> np.ndarray:
    """Mask undeclared fill values, as a reader does."""
    from fastds.data.fill_values import mask_undeclared_fills

    return np.stack([mask_undeclared_fills(field) for field in values])


def _in_order(field: xr.DataArray, inner: np.ndarray | None) -> xr.DataArray:
    """Order a field by time, levels or members (in the drawn order), rows and columns."""
    rows = next((d for d in field.dims if d in ("latitude", "y")), field.dims[-2])
    columns = next((d for d in field.dims if d in ("longitude", "x")), field.dims[-1])
    leading = sorted((d for d in field.dims if d not in (rows, columns)), key=lambda d: d != "time")
    if inner is not None and len(leading) > 1:
        field = field.sel({leading[-1]: inner})
    return field.transpose(*leading, rows, columns)


def _check_times(drawn: Drawn, found: xr.Dataset) -> str:
    """Describe the error of the times and their bounds, or return ""."""
    if drawn.seconds is None:
        return ""
    if "time" not in found:
        return "there is no time"
    times = np.atleast_1d(found["time"].values)
    if len(times) != len(drawn.seconds):
        return f"{len(times)} times in place of {len(drawn.seconds)}"
    if drawn.first and _text(times[0]) != drawn.first:
        return f"the first time is {_text(times[0])} in place of {drawn.first}"
    off = np.abs(_since(times, times[0]) - drawn.seconds).max()
    if off > 0.01:
        return f"times are {off:g} s off"
    bounds = found["time"].attrs.get("bounds") or found["time"].encoding.get("bounds")
    if drawn.bounds is None or bounds not in found:
        return ""
    off = np.abs(_since(found[bounds].values, times[0]) - drawn.bounds).max()
    return f"bounds of times are {off:g} s off" if off > 0.05 else ""


def _text(time: object) -> str:
    return str(time)[:16].replace(" ", "T")


def _since(times: np.ndarray, first: object) -> np.ndarray:
    """Return seconds after the first time, in any calendar."""
    if times.dtype.kind == "M":
        return (times - first) / np.timedelta64(1, "s")
    return np.array([(time - first).total_seconds() for time in times.flat]).reshape(times.shape)


def places(found: xr.Dataset, field: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Compute longitudes and latitudes (H, W) of a field from its metadata alone."""
    y, x = field.dims[-2:]
    for lon, lat in (("lon", "lat"), ("longitude", "latitude")):
        if lat in found.variables and found[lat].ndim == 2:
            return found[lon].transpose(y, x).values, found[lat].transpose(y, x).values
    if x == "longitude":
        return np.meshgrid(found[x].values.astype(float), found[y].values.astype(float))
    import pyproj

    mapping = found[field.attrs.get("grid_mapping") or field.encoding.get("grid_mapping") or "crs"]
    attributes = mapping.attrs
    crs = pyproj.CRS.from_wkt(attributes["crs_wkt"]) if "crs_wkt" in attributes else pyproj.CRS.from_cf(attributes)
    axes = [found[dim].values for dim in (x, y)]  # in the units of the CRS, as other software takes them
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*np.meshgrid(*axes))


def nearest(lon: np.ndarray, lat: np.ndarray, longitude: float, latitude: float) -> tuple[int, int, float]:
    """Return row, column and distance (in degrees of latitude) of the nearest point."""
    east = (lon - longitude + 180) % 360 - 180
    distance = np.hypot(east * np.cos(np.deg2rad(latitude)), lat - latitude)
    i, j = np.unravel_index(np.nanargmin(distance), distance.shape)
    return int(i), int(j), float(distance[i, j])
