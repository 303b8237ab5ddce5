# SPDX-License-Identifier: Apache-2.0
"""What fastds makes of a drawn file, compared with what was drawn."""

import contextlib
import io
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
    """Outcome of OUTCOMES and what was found: of opening the file, converting it, and one more command."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = [("open", lambda: _open(drawn, rng)), ("convert", lambda: _convert(drawn, rng, folder))]
        steps.append(
            [("check", lambda: _check(drawn)), ("downscale", lambda: _downscale(drawn, rng, folder))][rng.integers(2)]
        )
        for name, step in steps:
            outcome, said = step()
            if outcome != "right":
                return outcome, f"{name}: {said}"
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


def _refused(drawn: Drawn, said: str) -> tuple[str, str]:
    named = Path(str(drawn.path)).name.replace("*", "") in said or str(Path(drawn.path).parent) in said
    clear = named and "\n" not in said.strip()
    return ("refused" if clear else "unclear"), said


def _command(words: list[str]) -> tuple[int | str, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status: int | str = main(words)
        except BaseException:
            return "traceback", traceback.format_exc().splitlines()[-1]
    return status, said.getvalue()


def _failed(drawn: Drawn, status: int | str, said: str) -> tuple[str, str]:
    if status == "traceback" or "internal error" in said:
        return "traceback", said
    last = said.strip().splitlines()[-1] if said.strip() else ""
    return ("refused" if last.startswith("fastds ") else "unclear"), said


def _convert(drawn: Drawn, rng: np.random.Generator, folder: Path) -> tuple[str, str]:
    target = folder / ("out.zarr" if rng.random() < 0.3 else "out.nc")
    status, said = _command(["convert", str(drawn.path), str(target), "--to", "cf"])
    if status != 0:
        return _failed(drawn, status, said)
    if drawn.damaged:
        return "right", ""
    with xr.open_dataset(target, engine="zarr" if target.suffix == ".zarr" else "netcdf4") as found:
        return compare(drawn, found.load(), rng)


def _check(drawn: Drawn) -> tuple[str, str]:
    status, said = _command(["check", str(drawn.path)])
    return ("right", "") if status in (0, 2) and "internal error" not in said else _failed(drawn, status, said)


def _downscale(drawn: Drawn, rng: np.random.Generator, folder: Path) -> tuple[str, str]:
    target = folder / "fine.nc"
    words = ["--scale", "2", "--model", "bilinear", "--threads", "1", "--var", drawn.var]
    status, said = _command(["downscale", str(drawn.path), str(target), *words])
    if status != 0:
        return _failed(drawn, status, said)
    if drawn.damaged:
        return "right", ""
    with xr.open_dataset(target, engine="netcdf4") as found:
        return compare_fine(drawn, found.load(), rng)


def compare(drawn: Drawn, found: xr.Dataset, rng: np.random.Generator) -> tuple[str, str]:
    """Values, missing cells and times at drawn points, and the ends and missing cells of all."""
    if drawn.var not in found:
        return "wrong", f"variable {drawn.var} is not among {list(found.data_vars)}"
    field = _in_order(found[drawn.var])
    values = without_fill(field.values.reshape(-1, *field.shape[-2:])).astype(float)
    if values.size != drawn.values.size:
        return "wrong", f"{values.shape} in place of {drawn.values.shape}"
    wanted = drawn.values
    if np.isnan(values).sum() != np.isnan(wanted).sum():
        return "wrong", f"{np.isnan(values).sum()} missing in place of {np.isnan(wanted).sum()}"
    for end in (np.nanmin, np.nanmax):
        if abs(end(values) - end(wanted)) > drawn.tolerance:
            return "wrong", f"{end.__name__} {end(values)} in place of {end(wanted)}"
    times = _check_times(drawn, found)
    if times:
        return "wrong", times
    lon, lat = places(found, field)
    if np.nanmax(np.abs(lat)) > 90:
        return "wrong", f"a latitude is {lat.flat[np.nanargmax(np.abs(lat))]}"
    for _ in range(_POINTS):
        row, column = (int(rng.integers(size)) for size in wanted.shape[1:])
        if np.isnan(drawn.latitude[row, column]):
            continue
        i, j, distance = nearest(lon, lat, drawn.longitude[row, column], drawn.latitude[row, column])
        if distance > 0.02 * drawn.cell:
            return "wrong", f"no point within {distance / drawn.cell:.3g} cells of row {row}, column {column}"
        if not np.allclose(values[:, i, j], wanted[:, row, column], rtol=0, atol=drawn.tolerance, equal_nan=True):
            return "wrong", f"{values[:, i, j]} in place of {wanted[:, row, column]} at row {row}, column {column}"
    return "right", ""


def compare_fine(drawn: Drawn, found: xr.Dataset, rng: np.random.Generator) -> tuple[str, str]:
    """Fine values stay within those of the cells around them, at the drawn places."""
    field = _in_order(found[drawn.var])
    values = field.values.astype(float).reshape(-1, *field.shape[-2:])
    lon, lat = places(found, field)
    for _ in range(_POINTS):
        row, column = (int(rng.integers(1, size - 1)) for size in drawn.values.shape[1:])
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


def without_fill(values: np.ndarray) -> np.ndarray:
    """Undeclared fill values, which a copy keeps, as missing: what reads the copy takes them so again."""
    from fastds.data.undeclared import without_undeclared

    return np.stack([without_undeclared(field) for field in values])


def _in_order(field: xr.DataArray) -> xr.DataArray:
    rows = next((d for d in field.dims if d in ("latitude", "y")), field.dims[-2])
    columns = next((d for d in field.dims if d in ("longitude", "x")), field.dims[-1])
    return field.transpose(..., rows, columns)


def _check_times(drawn: Drawn, found: xr.Dataset) -> str:
    if drawn.seconds is None or "time" not in found:
        return ""
    times = np.atleast_1d(found["time"].values)
    if len(times) != len(drawn.seconds):
        return f"{len(times)} times in place of {len(drawn.seconds)}"
    since = np.array(
        [
            (t - times[0]) / np.timedelta64(1, "s") if times.dtype.kind == "M" else (t - times[0]).total_seconds()
            for t in times
        ]
    )
    off = np.abs(since - drawn.seconds).max()
    return f"times are {off:g} s off" if off > 0.01 else ""


def places(found: xr.Dataset, field: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes (H, W) of a field by its metadata alone."""
    y, x = field.dims[-2:]
    if "lat" in found.variables and found["lat"].ndim == 2:
        return found["lon"].transpose(y, x).values, found["lat"].transpose(y, x).values
    if x == "longitude":
        return np.meshgrid(found[x].values.astype(float), found[y].values.astype(float))
    import pyproj

    mapping = found[field.attrs.get("grid_mapping") or field.encoding.get("grid_mapping") or "crs"]
    crs = pyproj.CRS.from_wkt(mapping.attrs["crs_wkt"])
    axes = [found[dim].values for dim in (x, y)]  # in the units of the CRS, as other software takes them
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*np.meshgrid(*axes))


def nearest(lon: np.ndarray, lat: np.ndarray, longitude: float, latitude: float) -> tuple[int, int, float]:
    """Row, column and distance in degrees of latitude of the nearest point."""
    east = (lon - longitude + 180) % 360 - 180
    distance = np.hypot(east * np.cos(np.deg2rad(latitude)), lat - latitude)
    i, j = np.unravel_index(np.nanargmin(distance), distance.shape)
    return int(i), int(j), float(distance[i, j])
