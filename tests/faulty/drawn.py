# SPDX-License-Identifier: Apache-2.0
"""Random files: formats, packings, fill values, grids, projections, scanning orders, calendars, jitter and damage.

The files are written by libraries that fastds does not use for writing (netCDF4, h5py, eccodes, rasterio, zarr) or by
struct. The expected coordinates are computed by pyproj from the drawn metadata.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

UTM = "+proj=utm +zone=33 +ellps=GRS80 +units={unit}"
PROJECTIONS = (
    UTM,
    "+proj=laea +lat_0=52 +lon_0=10 +x_0=4321000 +y_0=3210000 +ellps=GRS80 +units={unit}",
    "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +ellps=WGS84 +units={unit}",
    "+proj=lcc +lat_1=45 +lat_2=55 +lat_0=50 +lon_0=10 +ellps=WGS84 +units={unit}",
)
UNITS_OF_LENGTH = {"m": ("m", "metre", "meters"), "km": ("km", "kilometers", "Kilometre"), "us-ft": ("US_survey_foot",)}
METRES = {"m": 1.0, "km": 1e3, "us-ft": 1200 / 3937}
# Name, units, standard name, and how a random field of 0 to 1 becomes values.
KINDS: dict[str, tuple[str, str, Callable]] = {
    "t2m": ("K", "air_temperature", lambda u: 250 + 60 * u),
    "tp": ("mm", "precipitation_amount", lambda u: np.maximum(0, 40 * u - 15)),
    "w": ("Pa s-1", "w", lambda u: 2 * u - 1),
    "q": ("1e-3 kg kg-1", "humidity_mixing_ratio", lambda u: 20 * u),
}
CALENDARS = ("standard", "proleptic_gregorian", "noleap", "360_day")


@dataclasses.dataclass
class Drawn:
    """One or more files and their expected contents.

    Attributes:
        path: file, store, or pattern of files.
        var: name of the variable.
        values: (N, H, W) float64, NaN where missing. N are times, and levels or members within a time.
        longitude: (H, W) in degrees, NaN where not known.
        latitude: (H, W) in degrees, NaN where not known.
        seconds: (T,) seconds after the first time; None if times are not compared.
        tolerance: largest error of values.
        cell: width of a cell in degrees of latitude.
        how: drawn properties, for messages.
        first: first time, such as 2024-06-01T12:00.
        others: values and tolerance of further variables, by name.
        bounds: (T, 2) seconds after the first time of the time bounds; None without bounds.
        refused: pattern of an error message that is as correct as a result.
        inner: coordinates of levels or members; None if their order does not change.
        damaged: True if bytes were changed.
    """

    path: Path | str
    var: str
    values: np.ndarray
    longitude: np.ndarray
    latitude: np.ndarray
    seconds: np.ndarray | None
    tolerance: float
    cell: float
    how: dict
    first: str | None = None
    others: dict[str, tuple[np.ndarray, float]] = dataclasses.field(default_factory=dict)
    bounds: np.ndarray | None = None
    refused: str = ""
    inner: np.ndarray | None = None
    damaged: bool = False


def random_field(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Make a smooth random field whose minimum is 0 and maximum is 1."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape), (0.5, 2.0, 2.0))
    return (noise - noise.min()) / np.ptp(noise)


def _axis(rng: np.random.Generator, start: float, step: float, size: int) -> np.ndarray:
    values = start + step * np.arange(size)
    return values[::-1].copy() if rng.random() < 0.5 else values


def _longitudes(rng: np.random.Generator, step: float, size: int) -> tuple[np.ndarray, str]:
    """Draw longitudes in either direction, and return them with a description.

    They may cross the meridian where the numbers jump, or consist of two parts.
    """
    way = str(rng.choice(["plain", "from 180", "across 0", "in two parts"], p=[0.6, 0.15, 0.15, 0.1]))
    if way == "plain":
        west = float(rng.choice([0.0, 350.0 - step * size, -20.0, 179.0 - step * size]))
        return _axis(rng, west, step, size), way
    part = int(rng.integers(3, size - 3))
    east = step * np.arange(-part, size - part)  # from the west of a meridian to the east
    if way == "from 180":
        numbers = (east + 180 + 180) % 360 - 180
    elif way == "across 0":
        numbers = east % 360
    else:
        numbers = np.sort(east % 360)
    return (numbers[::-1].copy() if rng.random() < 0.3 else numbers), way


@dataclasses.dataclass
class Packing:
    """Packing of a variable: dtype, scale_factor, add_offset, fill value, and the attributes that declare them.

    If the attribute _Unsigned declares the numbers as unsigned, `stored` is the signed dtype in the file.
    """

    dtype: str
    scale: float | None
    offset: float
    fill: float | None
    attrs: dict
    name: str
    stored: str | None = None

    def store(self, values: np.ndarray) -> np.ndarray:
        """Pack values, NaN where missing."""
        coded = values if self.scale is None else np.rint((values - self.offset) / self.scale)
        coded = np.where(np.isnan(values), np.nan if self.fill is None else self.fill, coded)
        return coded.astype(self.dtype).view(self.stored or self.dtype)

    @property
    def tolerance(self) -> float:
        return 0.51 * self.scale if self.scale is not None else 0.0


def draw_stored(rng: np.random.Generator, low: float, high: float, dtypes: tuple[str, ...]) -> Packing:
    """Draw a packing like draw_packing, or one with unsigned numbers that are stored as signed numbers."""
    if rng.random() >= (0.06 if "u1" in dtypes else 0.3):  # NetCDF-3 has no other unsigned numbers
        return draw_packing(rng, low, high, dtypes)
    packing = draw_packing(rng, low, high, ("u1", "u2"))
    signed = packing.dtype.replace("u", "i")
    for name, value in packing.attrs.items():
        if getattr(value, "dtype", None) == packing.dtype:
            packing.attrs[name] = np.asarray(value).view(signed)[()]
    packing.stored = signed
    packing.attrs["_Unsigned"] = "true"
    packing.name += " as signed"
    return packing


def draw_packing(rng: np.random.Generator, low: float, high: float, dtypes: tuple[str, ...]) -> Packing:
    """Draw a packing that can hold values from low to high and a fill value."""
    dtype = str(rng.choice(dtypes))
    if dtype in ("f4", "f8"):
        way = str(
            rng.choice(["_FillValue", "missing_value", "nan", "undeclared", "valid_range", "valid_max", "several"])
        )
        dt = np.dtype(dtype).type
        span = high - low
        if way == "nan":
            return Packing(dtype, None, 0.0, None, {}, "nan")
        if way == "undeclared":
            fill = float(rng.choice([-9999.0, 9.969209968386869e36, 1e20]))
            return Packing(dtype, None, 0.0, fill, {}, f"undeclared {fill:g}")
        if way == "valid_range":
            ends = np.array([low - 0.1 * span, high + 0.1 * span], dtype)
            return Packing(dtype, None, 0.0, high + 5 * span, {"valid_range": ends}, way)
        if way == "valid_max":
            return Packing(dtype, None, 0.0, high + 5 * span, {"valid_max": dt(high + 0.1 * span)}, way)
        fill = float(rng.choice([-9999.0, -1e30, 12345.0]))
        fill_values = np.array([dt(-777.0), dt(fill)]) if way == "several" else dt(fill)
        return Packing(
            dtype, None, 0.0, float(dt(fill)), {"missing_value" if way == "several" else way: fill_values}, way
        )
    limits = np.iinfo(dtype)
    at_low = bool(rng.random() < 0.5)
    codes = (limits.min + 2, limits.max) if at_low else (limits.min, limits.max - 2)
    reach = min(codes[1] - codes[0], 60000)
    scale = float(np.float32((high - low) / (0.8 * reach)))
    offset = low - (codes[0] + 0.1 * reach) * scale
    fill = limits.min if at_low else limits.max
    dt = np.dtype(dtype).type
    way = str(rng.choice(["_FillValue", "missing_value", "valid_range", "valid_range unpacked"]))
    attrs = {"scale_factor": scale, "add_offset": offset}
    if way == "valid_range":
        attrs["valid_range"] = np.array([limits.min + 1, limits.max] if at_low else [limits.min, limits.max - 1], dtype)
    elif way == "valid_range unpacked":
        beyond = 0.09 * reach * scale
        attrs["valid_range"] = np.array([low - beyond, high + beyond], "f8")
    else:
        attrs[way] = dt(fill)
    return Packing(dtype, scale, offset, fill, attrs, f"{way} {dtype}")


@dataclasses.dataclass
class Times:
    """Times as stored in a file and as expected.

    Attributes:
        seconds: seconds after the first time.
        numbers: stored numbers.
        attrs: stored attributes.
        first: first time as text.
        step: time step in seconds.
        per_unit: seconds in the unit of the numbers.
        refused: see Drawn.
        how: drawn properties, for messages.
    """

    seconds: np.ndarray
    numbers: np.ndarray
    attrs: dict
    first: str
    step: float
    per_unit: float
    refused: str
    how: str


def draw_times(rng: np.random.Generator, count: int) -> Times:
    """Draw times in a calendar of CALENDARS, in any unit, as integers or floating-point numbers."""
    step = int(rng.choice([300, 600, 3600, 21600, 86400]))
    start, first = 100 * 86400, "2023-04-11T00:00"
    calendar = str(rng.choice(CALENDARS, p=[0.5, 0.3, 0.1, 0.1]))
    unit, length = [("seconds", 1), ("minutes", 60), ("hours", 3600), ("days", 86400)][int(rng.integers(4))]
    if rng.random() < 0.04:
        calendar = str(rng.choice(["360_day", "standard"]))
        unit, length, step, start, first = "months", 30 * 86400, 30 * 86400, 120 * 86400, "2023-05-01T00:00"
    seconds = step * np.arange(count, dtype=float)
    numbers = (start + seconds) / length
    dtype = "f8"
    if np.all(numbers == np.rint(numbers)) and rng.random() < 0.6:
        dtype = str(rng.choice(["i4", "i8"]))
    elif unit == "days" and rng.random() < 0.4:
        dtype = "f4"
    numbers = numbers.astype(dtype)
    stored = numbers.astype(float) * length - start
    attrs = {"units": f"{unit} since 2023-01-01 00:00:00", "calendar": calendar, "standard_name": "time"}
    months = unit == "months" and calendar != "360_day"  # a twelfth of a year, or to the same day of a month
    refused = "times .* cannot be decoded" if months else ""
    how = f"{unit} {dtype} {calendar} every {step} s"
    return Times(stored - stored[0], numbers, attrs, first, step, length, refused, how)


def draw_values(rng: np.random.Generator, kind: str, shape: tuple[int, int, int]) -> np.ndarray:
    values = KINDS[kind][2](random_field(rng, shape))
    if rng.random() < 0.6:
        top, left = (int(rng.integers(size - 3)) for size in shape[1:])
        values[:, top : top + 3, left : left + 3] = np.nan
    return values


def draw_grid(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[dict, np.ndarray, np.ndarray, float, str]:
    """Draw a grid.

    Returns:
        Coordinates {name: (dims, values, attrs)} with the grid mapping under "crs"; longitudes and latitudes (H, W);
            cell width in degrees; a description.
    """
    height, width = shape
    kind = str(rng.choice(["regular", "projected", "curvilinear"], p=[0.5, 0.35, 0.15]))
    if kind == "regular":
        step = float(rng.choice([0.05, 0.25, 1.0]))
        lat = _axis(rng, float(np.round(rng.uniform(-50, 30), 2)), step, height)
        lon, around = _longitudes(rng, step, width)
        dtype = "f4" if rng.random() < 0.3 else "f8"
        axes = {
            "latitude": (("latitude",), lat.astype(dtype), {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": (("longitude",), lon.astype(dtype), {"units": "degrees_east", "standard_name": "longitude"}),
        }
        places = np.meshgrid(lon, lat)
        return axes, *places, step, f"regular {step} {dtype} {around}"
    import pyproj

    unit = str(rng.choice(list(UNITS_OF_LENGTH)))
    crs = pyproj.CRS.from_user_input(str(rng.choice(PROJECTIONS)).format(unit=unit))
    cell = 2000.0
    east, north = pyproj.Proj(str(crs.to_proj4()).replace(f"+units={unit}", "+units=m"))(12.0, 50.0)
    x = _axis(rng, np.rint(east), cell, width) / METRES[unit]
    y = _axis(rng, np.rint(north), cell, height) / METRES[unit]
    lon, lat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*np.meshgrid(x, y))
    if kind == "projected":
        spelled = str(rng.choice(UNITS_OF_LENGTH[unit]))
        axes = {
            name: ((name,), values, {"units": spelled, "standard_name": f"projection_{name}_coordinate"})
            for name, values in (("y", y), ("x", x))
        }
        return axes | {"crs": crs.to_wkt()}, lon, lat, cell / 111e3, f"projected {unit} {spelled}"
    lost = rng.random() < 0.5
    stored = [lat.copy(), lon.copy()]
    if lost:
        for place in (*stored, lat, lon):
            place[:2, :2] = -9999.0 if any(place is s for s in stored) else np.nan
    axes = {
        "lat": (("y", "x"), stored[0], {"units": "degrees_north", "standard_name": "latitude"}),
        "lon": (("y", "x"), stored[1], {"units": "degrees_east", "standard_name": "longitude"}),
    }
    return axes, lon, lat, cell / 111e3, f"curvilinear{' lost' * lost}"
