# SPDX-License-Identifier: Apache-2.0
"""Files drawn by seed: formats, packings, fill values, grids, projections, scanning, calendars, jitter and damage.

Each is written by a library that fastds does not write with (netCDF4, h5py, eccodes, rasterio, zarr), together with
what a reader must find: values, times, and places by pyproj from the drawn metadata.
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
    """A drawn file or several, and the truth about them.

    Attributes:
        path: of a file, a store, or a pattern. var: name of the variable.
        values: (T, H, W) float64, NaN where missing. longitude, latitude: (H, W) degrees, NaN where not known.
        seconds: (T,) after the first time, None for a format of one time. tolerance: of values.
        cell: width of a cell in degrees of latitude. damaged: whether bytes were changed.
        how: what was drawn, for messages.
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
    damaged: bool = False


def random_field(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """A smooth field of 0 to 1, with both ends."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape), (0.5, 2.0, 2.0))
    return (noise - noise.min()) / np.ptp(noise)


def _axis(rng: np.random.Generator, start: float, step: float, size: int) -> np.ndarray:
    values = start + step * np.arange(size)
    return values[::-1].copy() if rng.random() < 0.5 else values


@dataclasses.dataclass
class Packing:
    """dtype, scale_factor, add_offset and fill value of stored numbers, and the attributes that declare them."""

    dtype: str
    scale: float | None
    offset: float
    fill: float | None
    attrs: dict
    name: str

    def store(self, values: np.ndarray) -> np.ndarray:
        """Values (NaN where missing) as the file holds them."""
        coded = values if self.scale is None else np.rint((values - self.offset) / self.scale)
        coded = np.where(np.isnan(values), np.nan if self.fill is None else self.fill, coded)
        return coded.astype(self.dtype)

    @property
    def tolerance(self) -> float:
        return 0.51 * self.scale if self.scale is not None else 0.0


def draw_packing(rng: np.random.Generator, low: float, high: float, dtypes: tuple[str, ...]) -> Packing:
    """A packing that holds values from low to high beside its fill value."""
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
        told = np.array([dt(-777.0), dt(fill)]) if way == "several" else dt(fill)
        return Packing(dtype, None, 0.0, float(dt(fill)), {"missing_value" if way == "several" else way: told}, way)
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


def draw_times(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, dict, str]:
    """Seconds after the first, numbers as stored, their attributes, and what was drawn."""
    step = int(rng.choice([300, 600, 3600, 21600, 86400]))
    seconds = step * np.arange(count, dtype=float)
    calendar = str(rng.choice(CALENDARS, p=[0.5, 0.3, 0.1, 0.1]))
    unit, length = [("seconds", 1), ("minutes", 60), ("hours", 3600), ("days", 86400)][int(rng.integers(4))]
    start = 100 * 86400
    numbers = (start + seconds) / length
    dtype = "f8"
    if np.all(numbers == np.rint(numbers)) and rng.random() < 0.6:
        dtype = str(rng.choice(["i4", "i8"]))
    elif unit == "days" and rng.random() < 0.3:
        dtype = "f4"
    numbers = numbers.astype(dtype)
    kept = numbers.astype(float) * length - start
    attrs = {"units": f"{unit} since 2023-01-01 00:00:00", "calendar": calendar, "standard_name": "time"}
    return kept - kept[0], numbers, attrs, f"{unit} {dtype} {calendar} every {step} s"


def _draw_values(rng: np.random.Generator, kind: str, shape: tuple[int, int, int]) -> np.ndarray:
    values = KINDS[kind][2](random_field(rng, shape))
    if rng.random() < 0.6:
        top, left = (int(rng.integers(size - 3)) for size in shape[1:])
        values[:, top : top + 3, left : left + 3] = np.nan
    return values


def _grid(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[dict, np.ndarray, np.ndarray, float, str]:
    """Coordinates {name: (dims, values, attrs)} with a grid mapping under "crs", longitudes and latitudes (H, W), width
    of a cell in degrees, and what was drawn."""
    height, width = shape
    kind = str(rng.choice(["regular", "projected", "curvilinear"], p=[0.5, 0.35, 0.15]))
    if kind == "regular":
        step = float(rng.choice([0.05, 0.25, 1.0]))
        lat = _axis(rng, float(np.round(rng.uniform(-50, 30), 2)), step, height)
        west = float(rng.choice([0.0, 350.0 - step * width, -20.0, 179.0 - step * width]))
        lon = _axis(rng, west, step, width)
        dtype = "f4" if rng.random() < 0.3 else "f8"
        axes = {
            "latitude": (("latitude",), lat.astype(dtype), {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": (("longitude",), lon.astype(dtype), {"units": "degrees_east", "standard_name": "longitude"}),
        }
        places = np.meshgrid(lon, lat)
        return axes, *places, step, f"regular {step} {dtype}"
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


def write_cf(rng: np.random.Generator, folder: Path, form: str) -> Drawn:
    """NetCDF or Zarr, in one file or in several of other packings."""
    count, shape = int(rng.integers(2, 6)), (int(rng.integers(12, 30)), int(rng.integers(12, 30)))
    kind = str(rng.choice(list(KINDS)))
    values = _draw_values(rng, kind, (count, *shape))
    grid, lon, lat, cell, said = _grid(rng, shape)
    seconds, numbers, time_attrs, times = draw_times(rng, count)
    dtypes = ("f4", "f8", "i2", "i4") if form == "netcdf3" else ("f4", "f8", "i2", "u1", "u2", "i4")
    parts = 1 if form.startswith("zarr") or rng.random() < 0.75 else 2
    order = rng.permutation(parts)
    packings, edges = [], np.linspace(0, count, parts + 1).astype(int)
    expected = values.copy()
    for part in range(parts):
        steps = slice(edges[part], edges[part + 1])
        own = values[steps] + (30.0 if part and kind == "t2m" else 0.0)
        expected[steps] = own
        packing = draw_packing(rng, float(np.nanmin(own)), float(np.nanmax(own)), dtypes)
        packings.append(packing)
        name = f"{'ab'[order[part]]}{part}.nc" if parts > 1 else "file.zarr" if form.startswith("zarr") else "file.nc"
        write = _write_zarr if form.startswith("zarr") else _write_netcdf
        time = (("time",), numbers[steps], time_attrs)
        write(rng, folder / name, form, kind, packing, own, grid, time)
    rounding = 3e-7 * float(np.nanmax(np.abs(expected)))
    tolerance = max(p.tolerance for p in packings) + rounding
    how = {"kind": kind, "grid": said, "times": times, "packing": " and ".join(p.name for p in packings)}
    path = folder / "*.nc" if parts > 1 else folder / name
    return Drawn(str(path) if parts > 1 else path, kind, expected, lon, lat, seconds, tolerance, cell, how)


def _write_netcdf(rng, path: Path, form: str, kind: str, packing: Packing, values, grid: dict, time: tuple) -> None:
    import netCDF4

    units, standard, _ = KINDS[kind]
    with netCDF4.Dataset(path, "w", format="NETCDF3_64BIT_OFFSET" if form == "netcdf3" else "NETCDF4") as file:
        file.set_auto_maskandscale(False)
        dims = next((d for d in (v[0] for v in grid.values() if isinstance(v, tuple)) if len(d) == 2), None)
        dims = dims or tuple(grid)[:2]
        for name, size in zip(("time", *dims), values.shape, strict=True):
            file.createDimension(name, size)
        variables = {"time": time} | {n: v for n, v in grid.items() if n != "crs"}
        if form == "netcdf3":
            variables["time"] = (time[0], time[1].astype("f8") if time[1].dtype == "i8" else time[1], time[2])
        for name, (own, numbers, attrs) in variables.items():
            variable = file.createVariable(name, numbers.dtype, own)
            variable[:] = numbers
            variable.setncatts(attrs)
        attrs = dict(packing.attrs)
        fill = attrs.pop("_FillValue", None)
        order = ("time", *dims) if rng.random() < 0.7 else ("time", *dims[::-1])
        how = {} if form == "netcdf3" else {"zlib": bool(rng.random() < 0.5)}
        variable = file.createVariable(kind, packing.dtype, order, fill_value=fill, **how)
        stored = packing.store(values)
        variable[:] = stored if order[1:] == dims else np.swapaxes(stored, 1, 2)
        variable.setncatts({"units": units, "standard_name": standard} | attrs)
        if "crs" in grid:
            file.createVariable("crs", "i4").setncatts({"crs_wkt": grid["crs"]})
            variable.grid_mapping = "crs"
        if len(dims) == 2 and "lat" in grid:
            variable.coordinates = "lat lon"
        if form != "netcdf3" and rng.random() < 0.1:
            file.createGroup("extra").createDimension("n", 2)


def _write_zarr(rng, path: Path, form: str, kind: str, packing: Packing, values, grid: dict, time: tuple) -> None:
    import zarr

    units, standard, _ = KINDS[kind]
    version = int(form[-1])
    group = zarr.open_group(path, mode="w", zarr_format=version)
    dims = next((d for d in (v[0] for v in grid.values() if isinstance(v, tuple)) if len(d) == 2), tuple(grid)[:2])
    variables = {"time": time} | {n: v for n, v in grid.items() if n != "crs"}
    attrs = {"units": units, "standard_name": standard} | packing.attrs
    fill = attrs.pop("_FillValue", None) if version == 2 else None
    attrs = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in attrs.items()}
    if "_FillValue" in attrs:  # the format 3 holds it as xarray encodes it, so another attribute declares it here
        attrs["missing_value"] = attrs.pop("_FillValue")
    if "crs" in grid:
        attrs["grid_mapping"] = "crs"
        variables["crs"] = ((), np.array(0, "i4"), {"crs_wkt": grid["crs"]})
    if "lat" in grid:
        attrs["coordinates"] = "lat lon"
    variables[kind] = (("time", *dims), packing.store(values), attrs)
    for name, (own, numbers, told) in variables.items():
        numbers = np.asarray(numbers)
        how = {"fill_value": fill} if name == kind and fill is not None else {}
        if version == 3:
            how["dimension_names"] = own
        array = group.create_array(name, shape=numbers.shape, dtype=numbers.dtype, **how)
        array[...] = numbers
        array.attrs.update(told | ({"_ARRAY_DIMENSIONS": list(own)} if version == 2 else {}))
