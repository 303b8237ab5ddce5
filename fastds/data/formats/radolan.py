# SPDX-License-Identifier: Apache-2.0
"""Reader of RADOLAN composites of the German weather service (DWD) in their binary format."""

import datetime
import importlib.util
import os
import pathlib
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, cast

import numpy as np
import xarray as xr

from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe

_END = b"\x03"
_ONE_BYTE_PRODUCTS = {"RX", "WX"}  # reflectivity; other products have two bytes a pixel
_RAIN_PRODUCTS = {"RW", "RY", "RZ", "RV", "YW", "SF"}
# Codes of products with one byte a pixel.
_CLUTTER, _NO_DATA = 249, 250
# Bits of codes with two bytes a pixel: three flags and the 12 bits of the value.
_NO_DATA_BIT, _NEGATIVE_BIT, _CLUTTER_BIT, _VALUE_BITS = 0x2000, 0x4000, 0x8000, 0x0FFF
# (rows, columns) -> distance in km (along rows, along columns) from the lower left corner to the point 9 E, 51 N.
_GRID_ORIGINS = {(900, 900): (450, 450), (1100, 900): (550, 370), (1200, 1100): (600, 470), (1500, 1400): (800, 600)}
_SPHERE = {"earth_radius": 6370040.0}
_WGS84 = {"semi_major_axis": 6378137.0, "inverse_flattening": 298.257223563}
_FIRST_ON_WGS84 = 5  # first version of the format that uses WGS 84


def open_radolan(paths: str | os.PathLike | Iterable[str | os.PathLike], *, forecasts: bool = False) -> xr.Dataset:
    """Read RADOLAN files of one product into a Dataset, rows from north to south, sorted by time.

    Reflectivity (RX, WX) is z = code / 2 - 32.5 dBZ. Rain (RW, RY, RZ, RV, YW, SF) is the amount over the interval of
    the product in mm (kg m-2): the low twelve bits of a code times the precision in the header, negative if the sign
    bit is set. Pixels without data and clutter are missing. Warns (UserWarning) about forecasts that are left out.

    The grid is polar stereographic, true at 60 N, with cells of 1 km, on a sphere of radius 6370.04 km, or on WGS 84
    since version 5 of the format.

    Args:
        paths: A file or a list of files: uncompressed, .gz, .bz2, or archives .tar, .tar.gz, .tar.bz2 of several files.
        forecasts: If True, include forecasts (RV) at their valid times; if False, observations (lead time 0) only.

    Returns:
        xarray.Dataset with `reflectivity` or `rainfall_amount` (time, y, x). It is lazy for several files if dask is
        installed, except for files in a .tar archive.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file has other contents, an unknown product or grid; files differ in product or grid; there are
            only forecasts.

    Source: DWD, RADOLAN/RADVOR composite format, version 2.5.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    later = len(paths) > 1 and importlib.util.find_spec("dask") is not None
    fields = [field for path in paths for field in _iterate_composites(pathlib.Path(path), later)]
    if not fields:
        raise ValueError("no RADOLAN file was given")
    fields = fields if forecasts else _select_observations(fields)
    kinds = {(header["product"], header["shape"], header["earth"], header["precision"]) for header, _ in fields}
    if len(kinds) > 1:
        found = ", ".join(f"{product} {rows} x {columns} ({on})" for product, (rows, columns), on, _ in sorted(kinds))
        raise ValueError(
            f"files of one product and grid are expected, got {found}; a pattern such as FOLDER/raa01-rx* takes "
            "some of a folder"
        )
    fields.sort(key=lambda field: field[0]["time"])
    times = np.array([header["time"] for header, _ in fields], "datetime64[ns]")
    return _make_dataset(fields[0][0], times, np.stack([values for _, values in fields]))


def _iterate_composites(path: pathlib.Path, later: bool) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield header and values of every composite in a file or archive.

    Args:
        path: File.
        later: If True, the values of a file with one composite are a dask array that reads the file again.
    """
    for name, data in _iterate_members(path):
        header, values = _decode_composite(name, data)
        if later and name == path.name:  # members of an archive are named ARCHIVE/MEMBER
            import dask
            import dask.array as da

            values = da.from_delayed(dask.delayed(_read_values)(path), values.shape, values.dtype)
        yield header, values


def _read_values(path: pathlib.Path) -> np.ndarray:
    """Read the values of a file with one composite."""
    return _decode_composite(*next(_iterate_members(path)))[1]


def _select_observations(fields: list[tuple[dict[str, Any], np.ndarray]]) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Return the fields of lead time 0, with a warning about the others.

    Raises:
        ValueError: All fields are forecasts.
    """
    leads = sorted({header["lead"] for header, _ in fields} - {0})
    selected = [field for field in fields if field[0]["lead"] == 0]
    hint = "fastds.data.open_radolan(..., forecasts=True) takes them"
    found = f"RADOLAN forecasts, {leads[0]} to {leads[-1]} min ahead" if leads else ""
    if not selected:
        raise ValueError(f"the files hold nothing but {found}, and no observation; {hint}")
    if leads:
        warnings.warn(f"{len(fields) - len(selected)} {found}, are left out; {hint}", UserWarning, stacklevel=3)
    return selected


def matches(probe: FileProbe) -> bool:
    """Return True for a RADOLAN composite, also compressed, and for an archive whose first file is one."""
    try:
        name, data = next(_iterate_members(probe.path, most=1000))
    except (OSError, ValueError, StopIteration):
        return False
    try:
        return _parse_header(name, data.decode("latin-1")) is not None
    except ValueError:  # a composite of an unknown product or grid
        return True


def read(probe: FileProbe) -> xr.Dataset:
    """Read a file, see `open_radolan`."""
    return open_radolan(probe.path)


def _iterate_members(path: pathlib.Path, most: int = -1) -> Iterator[tuple[str, bytes]]:
    """Yield the names and the first `most` bytes (-1: all) of the files in a path."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.isfile():
                        yield f"{path.name}/{member.name}", cast(IO[bytes], archive.extractfile(member)).read(most)
            return
        with FileProbe(path).open() as stream:
            yield path.name, stream.read(most)
    except (EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error


def _decode_composite(name: str, data: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """Decode a composite into its header and values (rows, columns).

    Values are float32, NaN where missing, from north to south.
    """
    text, end, body = data[:1000].partition(_END)
    header = _parse_header(name, text.decode("latin-1")) if end else None
    if header is None:
        raise ValueError(f"{name} is no RADOLAN composite: it has no header of that format")
    body = data[len(text) + 1 :]
    one_byte = header["product"] in _ONE_BYTE_PRODUCTS
    rows, columns = header["shape"]
    if len(body) != rows * columns * (1 if one_byte else 2):
        raise ValueError(f"{name} is truncated or damaged: {len(body)} bytes of data for {rows} x {columns} pixels")
    codes = np.frombuffer(body, "u1" if one_byte else "<u2").reshape(rows, columns)[::-1]
    if one_byte:
        return header, np.where(codes >= _CLUTTER, np.nan, codes * 0.5 - 32.5).astype(np.float32)
    values = (codes & _VALUE_BITS) * header["precision"] * np.where(codes & _NEGATIVE_BIT, -1.0, 1.0)
    return header, np.where(codes & (_NO_DATA_BIT | _CLUTTER_BIT), np.nan, values).astype(np.float32)


def _parse_header(name: str, text: str) -> dict[str, Any] | None:
    """Parse the header of a composite: product, time, lead time, grid, earth model, precision and interval.

    Args:
        name: Name of the file, for messages.
        text: Header.

    Returns:
        dict, or None if the text is not a RADOLAN header.

    Raises:
        ValueError: The product, the grid or the time is not supported.
    """
    start = re.match(r"([A-Z]{2})(\d{2})(\d{2})(\d{2})\d{5}(\d{2})(\d{2})BY", text)
    grid, precision, interval = (re.search(p, text) for p in (r"GP *(\d+)x *(\d+)", r"PR +E([+-]\d+)", r"INT *(\d+)"))
    if not (start and grid and precision and interval):
        return None
    product, day, hour, minute, month, year = start[1], *map(int, start.groups()[1:])
    if product not in _ONE_BYTE_PRODUCTS | _RAIN_PRODUCTS:
        raise ValueError(
            f"{name} holds the product {product}; known are {', '.join(sorted(_ONE_BYTE_PRODUCTS | _RAIN_PRODUCTS))}"
        )
    shape = int(grid[1]), int(grid[2])
    if shape not in _GRID_ORIGINS:
        raise ValueError(
            f"{name} has a grid of {shape[0]} x {shape[1]}; known are {', '.join(map(str, _GRID_ORIGINS))}"
        )
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


def _make_dataset(header: dict[str, Any], times: np.ndarray, values: np.ndarray) -> xr.Dataset:
    earth = _WGS84 if header["earth"] == "WGS 84" else _SPHERE
    y, x = _compute_coordinates(header["shape"], earth)
    mapping = {
        "grid_mapping_name": "polar_stereographic",
        "latitude_of_projection_origin": 90.0,
        "straight_vertical_longitude_from_pole": 10.0,
        "standard_parallel": 60.0,
        **earth,
        "false_easting": 0.0,
        "false_northing": 0.0,
    }
    attrs: dict[str, str | float]
    if header["product"] in _ONE_BYTE_PRODUCTS:
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


def _compute_coordinates(shape: tuple[int, int], earth: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell centres y (rows, north to south) and x (columns) in metres."""
    distance, angle = _compute_distance_from_pole(51.0, earth), np.deg2rad(9.0 - 10.0)
    down, left = _GRID_ORIGINS[shape]
    corner = -distance * np.cos(angle) - 1e3 * down, distance * np.sin(angle) - 1e3 * left
    y, x = (start + 1e3 * (0.5 + np.arange(size)) for start, size in zip(corner, shape, strict=True))
    return y[::-1], x


def _compute_distance_from_pole(latitude: float, earth: dict[str, float]) -> float:
    """Return the distance in metres from the pole on a polar stereographic map that is true at 60 N.

    Source: Snyder, Map Projections, 1987, equations 15-9 and 21-34.
    """
    radius = earth.get("semi_major_axis") or earth["earth_radius"]
    flattening = 1.0 / earth["inverse_flattening"] if "inverse_flattening" in earth else 0.0
    eccentricity = np.sqrt(flattening * (2.0 - flattening))

    def t(degrees: float) -> float:
        sine = eccentricity * np.sin(np.deg2rad(degrees))
        return np.tan(np.deg2rad(45.0 - degrees / 2.0)) * ((1.0 + sine) / (1.0 - sine)) ** (eccentricity / 2.0)

    m = np.cos(np.deg2rad(60.0)) / np.sqrt(1.0 - (eccentricity * np.sin(np.deg2rad(60.0))) ** 2)
    return radius * m * t(latitude) / t(60.0)


FORMAT = Format(
    name="RADOLAN",
    files="composites of DWD",
    matches=matches,
    read=read,
    order=140,  # last, since a compressed file or an archive is unpacked to recognise it
    read_files=open_radolan,  # one archive may hold many composites
)
