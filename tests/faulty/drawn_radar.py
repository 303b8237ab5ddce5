# SPDX-License-Identifier: Apache-2.0
"""Random files of ODIM, KNMI and GeoTIFF, see drawn.py."""

from pathlib import Path

import numpy as np

from .drawn import METRES, PROJECTIONS, Drawn, random_field
from .writers import register_writer

_RADAR = ("DBZH", "RATE", "ACRR")


def transform(crs: object, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import pyproj

    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*np.meshgrid(x, y))


@register_writer("odim", share=0.08, added=6)
def write_odim(rng: np.random.Generator, folder: Path) -> Drawn:
    """Write a composite in ODIM HDF5 with projected or geographic coordinates and any dtype."""
    import h5py
    import pyproj

    height, width = int(rng.integers(10, 30)), int(rng.integers(10, 30))
    quantity = str(rng.choice(_RADAR))
    geographic = bool(rng.random() < 0.2)
    if geographic:
        text, dx, dy = "+proj=longlat +datum=WGS84", 0.02, 0.01
        left, bottom = (float(v) for v in np.round(rng.uniform([0, 45], [10, 55]), 6))
        crs, corner = pyproj.CRS.from_user_input("EPSG:4326"), (left, bottom)
    else:
        unit = str(rng.choice(["m", "km"]))
        text, dx, dy = str(rng.choice(PROJECTIONS)).format(unit=unit), 2000.0, 1000.0
        metric = pyproj.CRS.from_user_input(text.replace("+units=km", "+units=m"))
        east, north = pyproj.Proj(metric)(10.0, 50.0)
        left, bottom = float(np.rint(east)), float(np.rint(north))
        crs, corner = metric, pyproj.Proj(metric)(left, bottom, inverse=True)
    dtype = str(rng.choice(["u1", "u2", "i2", "f4", "f8"]))
    field = random_field(rng, (1, height, width))[0]
    dry = field < 0.3
    missing = np.zeros(field.shape, bool)
    if rng.random() < 0.6:
        missing[:3, :4] = True
    wet = {"DBZH": 55 * field, "RATE": 30 * field, "ACRR": 12 * field}[quantity]
    gain, offset = (1.0, 0.0) if dtype[0] == "f" else ({"DBZH": 0.5, "RATE": 0.2, "ACRR": 0.1}[quantity], -1.0)
    nodata, undetect = (-9999.9, -8888.8) if dtype[0] == "f" else (255.0, 0.0)
    codes = wet if dtype[0] == "f" else np.clip(np.rint((wet - offset) / gain), 1, 254)
    values = codes * gain + offset
    codes = np.where(missing, nodata, np.where(dry, undetect, codes)).astype(dtype)
    values = np.where(missing, np.nan, np.where(dry, -32.0 if quantity == "DBZH" else 0.0, values))
    number = np.float32 if rng.random() < 0.4 else np.float64
    end = str(rng.choice(["120000", "1200"]))
    path = folder / "file.h5"
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_2")
        group = file.create_group("what").attrs
        group["object"], group["date"], group["time"] = (np.bytes_(text_) for text_ in ("COMP", "20240601", end))
        group["source"] = np.bytes_("ORG:247,CMT:Ré".encode("latin-1") if rng.random() < 0.2 else "ORG:247")
        place = {"projdef": np.bytes_(text), "xsize": np.int64(width), "ysize": np.int64(height), "xscale": dx,
                 "yscale": dy, "LL_lon": corner[0], "LL_lat": corner[1]}  # fmt: skip
        if rng.random() < 0.5 and not geographic:
            upper = pyproj.Proj(crs)(left + dx * width, bottom + dy * height, inverse=True)
            place |= {"UR_lon": upper[0], "UR_lat": upper[1]}
        file.create_group("where").attrs.update(place)
        dataset = file.create_group("dataset1")
        interval = {"startdate": "20240601", "starttime": "115500", "enddate": "20240601", "endtime": "120000"}
        dataset.create_group("what").attrs.update({k: np.bytes_(v) for k, v in interval.items()})
        data = dataset.create_group("data1")
        packing = {"gain": gain, "offset": offset, "nodata": nodata, "undetect": undetect}
        what = data.create_group("what").attrs
        what["quantity"] = np.bytes_(quantity)
        what.update({k: number(v) for k, v in packing.items()})
        data.create_dataset("data", data=codes)
    x, y = left + dx * (np.arange(width) + 0.5), bottom + dy * (height - np.arange(height) - 0.5)
    lon, lat = np.meshgrid(x, y) if geographic else transform(crs, x, y)
    var = {"DBZH": "reflectivity", "RATE": "rainfall_rate", "ACRR": "rainfall_amount"}[quantity]
    how = {"quantity": quantity, "dtype": dtype, "projection": text}
    cell = dy if geographic else dy / 111e3
    return Drawn(path, var, values[None], lon, lat, np.zeros(1), 1e-4, cell, how, "2024-06-01T12:00")


@register_writer("knmi", share=0.04, added=5)
def write_knmi(rng: np.random.Generator, folder: Path) -> Drawn:
    """Write a file in the HDF5 format of KNMI, with offsets and cell sizes in km or m."""
    import h5py
    import pyproj

    rows, columns = int(rng.integers(10, 40)), int(rng.integers(10, 40))
    unit = str(rng.choice(["KM", "M"]))
    length = {"KM": 1e3, "M": 1.0}[unit]
    cell = float(rng.choice([500.0, 1000.0, 2400.0]))
    top, left = float(rng.choice([3650e3, 3649.5e3, 3700.25e3])), float(rng.choice([0.0, 250.0, -1500.0]))
    axes = {"KM": ("6378.137", "6356.752"), "M": ("6378137", "6356752")}[unit]
    proj = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a={} +b={} +x_0=0 +y_0=0"
    metric = pyproj.CRS.from_user_input(proj.format("6378137", "6356752"))
    codes = np.rint(3000 * random_field(rng, (1, rows, columns))[0]).astype("u2")
    values = codes * 0.01
    if rng.random() < 0.5:
        codes[:3, :3] = 65535
        values[:3, :3] = np.nan
    path = folder / "file.h5"
    with h5py.File(path, "w") as file:
        file.create_group("overview").attrs.update(
            {
                "product_datetime_start": np.bytes_("26-AUG-2010;00:25:00.000"),
                "product_datetime_end": np.bytes_("26-AUG-2010;00:30:00.000"),
                "product_group_name": np.bytes_("RAD_NL25_RAP_5min"),
            }
        )
        place = file.create_group("geographic")
        place.attrs.update(
            {
                "geo_number_rows": np.array([rows], "i4"), "geo_number_columns": np.array([columns], "i4"),
                "geo_pixel_size_x": np.array([cell / length], "f4"), "geo_dim_pixel": np.bytes_(f"{unit},{unit}"),
                "geo_pixel_size_y": np.array([-cell / length], "f4"),
                "geo_column_offset": np.array([left / length], "f4"), "geo_row_offset": np.array([top / length], "f4"),
            }
        )  # fmt: skip
        if rng.random() < 0.5:
            corners = ((0, rows), (0, 0), (columns, 0), (columns, rows))
            degrees = [pyproj.Proj(metric)(left + cell * i, -top - cell * j, inverse=True) for i, j in corners]
            place.attrs["geo_product_corners"] = np.array(degrees, "f4").ravel()
        place.create_group("map_projection").attrs["projection_proj4_params"] = np.bytes_(proj.format(*axes))
        image = file.create_group("image1")
        image.attrs["image_geo_parameter"] = np.bytes_("ACCUMULATED_PRECIPITATION_[MM]")
        image.create_group("calibration").attrs.update(
            {
                "calibration_formulas": np.bytes_("GEO=0.01*PV+0.0"),
                "calibration_missing_data": np.array([65535], "i4"),
                "calibration_out_of_image": np.array([65535], "i4"),
            }
        )
        image.create_dataset("image_data", data=codes)
    x, y = left + cell * (np.arange(columns) + 0.5), -top - cell * (np.arange(rows) + 0.5)
    lon, lat = transform(metric, x, y)
    how = {"unit": unit, "cell": cell, "top": top, "left": left}
    first = "2010-08-26T00:30"
    return Drawn(path, "rainfall_amount", values[None], lon, lat, np.zeros(1), 1e-5, cell / 111e3, how, first)


@register_writer("geotiff", share=0.04, added=4)
def write_geotiff(rng: np.random.Generator, folder: Path) -> Drawn:
    """Write a GeoTIFF image of reflectivity with coordinates in metres or feet.

    Missing values are given by nodata, an internal or external mask, or an alpha band.
    """
    import rasterio
    from rasterio.crs import CRS
    from rasterio.enums import ColorInterp
    from rasterio.transform import from_origin

    height, width = int(rng.integers(10, 40)), int(rng.integers(10, 40))
    unit = str(rng.choice(["m", "us-ft"]))
    code = {"m": "EPSG:3067", "us-ft": "EPSG:2263"}[unit]
    cell = 2000.0 / METRES[unit]
    left, top = (float(v) for v in np.rint({"m": (300e3, 7000e3), "us-ft": (900e3, 300e3)}[unit]))
    values = np.where((z := 55 * random_field(rng, (1, height, width))[0]) > 20, z, -32.0).astype("f4").astype(float)
    way = str(rng.choice(["nodata", "mask", "msk", "alpha", "none"]))
    missing = np.zeros(values.shape, bool)
    missing[:4, :5] = way != "none"
    path = folder / "radar_202406011200.tif"
    form = {"driver": "GTiff", "height": height, "width": width, "dtype": "float32", "crs": CRS.from_string(code),
            "transform": from_origin(left, top, cell, cell), "count": 2 if way == "alpha" else 1}  # fmt: skip
    if way == "nodata":
        form["nodata"] = -9999.0
    stored = np.where(missing, -9999.0, values) if way == "nodata" else values
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=way == "mask"), rasterio.open(path, "w", **form) as image:
        image.write(stored.astype("f4"), 1)
        image.units = ("dBZ",) * form["count"]
        if way in ("mask", "msk"):
            image.write_mask(np.where(missing, 0, 255).astype("u1"))
        if way == "alpha":
            image.write(np.where(missing, 0, 255).astype("f4"), 2)
            image.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
    values[missing] = np.nan
    import pyproj

    x, y = left + cell * (np.arange(width) + 0.5), top - cell * (np.arange(height) + 0.5)
    lon, lat = transform(pyproj.CRS.from_user_input(code), x, y)
    how, first = {"unit": unit, "mask": way}, "2024-06-01T12:00"
    return Drawn(path, "reflectivity", values[None], lon, lat, np.zeros(1), 1e-4, 2000.0 / 111e3, how, first)
