# SPDX-License-Identifier: Apache-2.0
"""RADOLAN composites of the German weather service in their binary format."""

import datetime
import importlib.util
import os
import pathlib
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.formats.contents import Contents

_END = b"\x03"
_BYTES = {"RX", "WX"}  # reflectivity, one byte a pixel; the others two
_RAIN = {"RW", "RY", "RZ", "RV", "YW", "SF"}
# uint8 codes.
_CLUTTER, _NO_DATA = 249, 250
# Bits of uint16 codes above the 12 of the value.
_NO_DATA_BIT, _NEGATIVE_BIT, _CLUTTER_BIT, _VALUE_BITS = 0x2000, 0x4000, 0x8000, 0x0FFF
# Rows and columns: km from the lower left corner to the reference point 9 E, 51 N (rows, columns).
_GRIDS = {(900, 900): (450, 450), (1100, 900): (550, 370), (1200, 1100): (600, 470), (1500, 1400): (800, 600)}
_SPHERE = {"earth_radius": 6370040.0}
_WGS84 = {"semi_major_axis": 6378137.0, "inverse_flattening": 298.257223563}
_FIRST_ON_WGS84 = 5  # version of the format


def open_radolan(paths: str | os.PathLike | Iterable[str | os.PathLike], *, forecasts: bool = False) -> xr.Dataset:
    """Read RADOLAN files of one product into a Dataset, rows from north to south, sorted by time.

    Reflectivity (RX, WX) is z = code / 2 - 32.5 dBZ. Rain (RW, RY, RZ, RV, YW, SF) is amounts over the interval of the
    product: the low twelve bits times the precision of the header, in mm (kg m-2). Pixels without data and clutter are
    missing. Coordinates are those of the format description: polar stereographic, true at 60 N, 1 km, on a sphere of
    6370.04 km, since version 5 of the format on WGS 84.

    Args:
        paths: a file or a list of them: plain, .gz, .bz2, or .tar, .tar.gz, .tar.bz2 with several inside.
        forecasts: take forecasts (RV), too, at the times they stand for; False: only observations, of lead 0.
    Returns: xarray.Dataset with `reflectivity` or `rainfall_amount` (time, y, x), as to_reflectivity takes it; of
        several files lazy where dask is installed, but for those in a .tar. Warns (UserWarning) about forecasts that
        are left out.
    Raises: FileNotFoundError; ValueError for other content, unknown products or grids, files that do not go together,
        and nothing but forecasts.
    Source: DWD, RADOLAN/RADVOR composite format, version 2.5.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    later = len(paths) > 1 and importlib.util.find_spec("dask") is not None
    fields = [field for path in paths for field in _fields(pathlib.Path(path), later)]
    if not fields:
        raise ValueError("no RADOLAN file was given")
    fields = fields if forecasts else _observations(fields)
    kinds = {(header["product"], header["shape"], header["earth"], header["precision"]) for header, _ in fields}
    if len(kinds) > 1:
        said = ", ".join(f"{product} {rows} x {columns} ({on})" for product, (rows, columns), on, _ in sorted(kinds))
        raise ValueError(
            f"files of one product and grid are expected, got {said}; a pattern such as FOLDER/raa01-rx* takes "
            "some of a folder"
        )
    fields.sort(key=lambda field: field[0]["time"])
    times = np.array([header["time"] for header, _ in fields], "datetime64[ns]")
    return _dataset(fields[0][0], times, np.stack([values for _, values in fields]))


def _fields(path: pathlib.Path, later: bool) -> Iterator[tuple[dict[str, Any], Any]]:
    """Header and values of every composite in a path; later: the values of a file of one are read again when they are
    asked for."""
    for name, data in _contents(path):
        header, values = _decode(name, data)
        if later and name == path.name:  # those in a .tar have the names of both
            import dask
            import dask.array as da

            values = da.from_delayed(dask.delayed(_values)(path), values.shape, values.dtype)
        yield header, values


def _values(path: pathlib.Path) -> np.ndarray:
    """The values of a file of one composite."""
    return _decode(*next(_contents(path)))[1]


def _observations(fields: list[tuple[dict[str, Any], np.ndarray]]) -> list[tuple[dict[str, Any], np.ndarray]]:
    """The fields of lead 0."""
    leads = sorted({header["lead"] for header, _ in fields} - {0})
    kept = [field for field in fields if field[0]["lead"] == 0]
    asked = "fastds.data.open_radolan(..., forecasts=True) takes them"
    found = f"RADOLAN forecasts, {leads[0]} to {leads[-1]} min ahead" if leads else ""
    if not kept:
        raise ValueError(f"the files hold nothing but {found}, and no observation; {asked}")
    if leads:
        warnings.warn(f"{len(fields) - len(kept)} {found}, are left out; {asked}", UserWarning, stacklevel=3)
    return kept


def is_radolan(path: str | os.PathLike) -> bool:
    """True for a composite, plain or compressed, and for an archive whose first file is one."""
    try:
        name, data = next(_contents(pathlib.Path(path), most=1000))
    except (OSError, ValueError, StopIteration):
        return False
    try:
        return _header(name, data.decode("latin-1")) is not None
    except ValueError:  # a composite of a product or grid that is not known
        return True


def _contents(path: pathlib.Path, most: int = -1) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the files in a path, the first `most` bytes of each."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.isfile():
                        yield f"{path.name}/{member.name}", archive.extractfile(member).read(most)
            return
        with Contents(path).open() as stream:
            yield path.name, stream.read(most)
    except (EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error


def _decode(name: str, data: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """The header of a composite and its values (rows, columns) from north to south, float32, NaN where missing."""
    text, end, body = data[:1000].partition(_END)
    header = _header(name, text.decode("latin-1")) if end else None
    if header is None:
        raise ValueError(f"{name} is no RADOLAN composite: it has no header of that format")
    body = data[len(text) + 1 :]
    one_byte = header["product"] in _BYTES
    rows, columns = header["shape"]
    if len(body) != rows * columns * (1 if one_byte else 2):
        raise ValueError(f"{name} is truncated or damaged: {len(body)} bytes of data for {rows} x {columns} pixels")
    codes = np.frombuffer(body, "u1" if one_byte else "<u2").reshape(rows, columns)[::-1]
    if one_byte:
        return header, np.where(codes >= _CLUTTER, np.nan, codes * 0.5 - 32.5).astype(np.float32)
    values = (codes & _VALUE_BITS) * header["precision"] * np.where(codes & _NEGATIVE_BIT, -1.0, 1.0)
    return header, np.where(codes & (_NO_DATA_BIT | _CLUTTER_BIT), np.nan, values).astype(np.float32)


def _header(name: str, text: str) -> dict[str, Any] | None:
    """Product, time, grid, earth, precision and interval; None where the text is no header."""
    start = re.match(r"([A-Z]{2})(\d{2})(\d{2})(\d{2})\d{5}(\d{2})(\d{2})BY", text)
    grid, precision, interval = (re.search(p, text) for p in (r"GP *(\d+)x *(\d+)", r"PR +E([+-]\d+)", r"INT *(\d+)"))
    if not (start and grid and precision and interval):
        return None
    product, day, hour, minute, month, year = start[1], *map(int, start.groups()[1:])
    if product not in _BYTES | _RAIN:
        raise ValueError(f"{name} holds the product {product}; known are {', '.join(sorted(_BYTES | _RAIN))}")
    shape = int(grid[1]), int(grid[2])
    if shape not in _GRIDS:
        raise ValueError(f"{name} has a grid of {shape[0]} x {shape[1]}; known are {', '.join(map(str, _GRIDS))}")
    lead, version = re.search(r"VV *(\d+)", text), re.search(r"VS *(\d+)", text)
    try:
        time = datetime.datetime(2000 + year, month, day, hour, minute)
    except ValueError as error:
        raise ValueError(f"{name} has no time in its header that can be read: {error}") from error
    return {
        "product": product,
        "time": time + datetime.timedelta(minutes=int(lead[1]) if lead else 0),
        "lead": int(lead[1]) if lead else 0,
        "shape": shape,
        "earth": "WGS 84" if version and int(version[1]) >= _FIRST_ON_WGS84 else "sphere",
        "precision": float(10.0 ** int(precision[1])),
        "minutes": int(interval[1]),
    }


def _dataset(header: dict[str, Any], times: np.ndarray, values: np.ndarray) -> xr.Dataset:
    earth = _WGS84 if header["earth"] == "WGS 84" else _SPHERE
    y, x = _coordinates(header["shape"], earth)
    mapping = {
        "grid_mapping_name": "polar_stereographic",
        "latitude_of_projection_origin": 90.0,
        "straight_vertical_longitude_from_pole": 10.0,
        "standard_parallel": 60.0,
        **earth,
        "false_easting": 0.0,
        "false_northing": 0.0,
    }
    if header["product"] in _BYTES:
        name, attrs = "reflectivity", {"standard_name": "equivalent_reflectivity_factor", "units": "dBZ"}
        attrs["no_echo_value"] = -32.5
    else:
        name, attrs = "rainfall_amount", {"standard_name": "rainfall_amount", "units": "kg m-2"}
        attrs["cell_methods"] = f"time: sum (interval: {header['minutes']} min)"
        attrs |= {"zr_a": 256.0, "zr_b": 1.42}
    title = f"DWD RADOLAN {header['product']}"
    return xr.Dataset(
        {name: (("time", "y", "x"), values, {**attrs, "grid_mapping": "crs"}), "crs": ((), np.int32(0), mapping)},
        {
            "time": ("time", times, {"standard_name": "time"}),
            "y": ("y", y, {"standard_name": "projection_y_coordinate", "units": "m"}),
            "x": ("x", x, {"standard_name": "projection_x_coordinate", "units": "m"}),
        },
        {"Conventions": "CF-1.8", "title": title, "institution": "Deutscher Wetterdienst (DWD)"},
    )


def _coordinates(shape: tuple[int, int], earth: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Centres y (rows, north to south) and x (columns) of the cells in metres."""
    distance, angle = _distance_from_pole(51.0, earth), np.deg2rad(9.0 - 10.0)
    down, left = _GRIDS[shape]
    corner = -distance * np.cos(angle) - 1e3 * down, distance * np.sin(angle) - 1e3 * left
    y, x = (start + 1e3 * (0.5 + np.arange(size)) for start, size in zip(corner, shape, strict=True))
    return y[::-1], x


def _distance_from_pole(latitude: float, earth: dict[str, float]) -> float:
    """In metres on a polar stereographic map, true at 60 N (Snyder, Map Projections, 1987, 15-9, 21-34)."""
    radius = earth.get("semi_major_axis") or earth["earth_radius"]
    flattening = 1.0 / earth["inverse_flattening"] if "inverse_flattening" in earth else 0.0
    eccentricity = np.sqrt(flattening * (2.0 - flattening))

    def t(degrees: float) -> float:
        sine = eccentricity * np.sin(np.deg2rad(degrees))
        return np.tan(np.deg2rad(45.0 - degrees / 2.0)) * ((1.0 + sine) / (1.0 - sine)) ** (eccentricity / 2.0)

    m = np.cos(np.deg2rad(60.0)) / np.sqrt(1.0 - (eccentricity * np.sin(np.deg2rad(60.0))) ** 2)
    return radius * m * t(latitude) / t(60.0)
