# SPDX-License-Identifier: Apache-2.0
"""Tests of reading GeoTIFF images: positions, values and missing metadata."""

import gzip

import numpy as np
import pytest

from fastds.cli import main
from fastds.data import open_dataset

pyproj = pytest.importorskip("pyproj", reason="projections need the package pyproj")
rasterio = pytest.importorskip("rasterio", reason="GeoTIFF images need the package rasterio")

FMI = "raw/fmi/201609281500_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz"
DPC = "raw/dpc/VMI_1744834500000.h5"
TAGS = {"Quantity": "Corrected reflectivity", "Gain": "0.5", "Offset": "-32", "Nodata": "255", "Undetect": "0"}


def write(path, codes, y, x, crs="EPSG:4326", tags=None, transform=None, form=None, **band):
    """Write a GeoTIFF image.

    Args:
        path: file to write.
        codes: values (H, W) or (bands, H, W).
        y: row coordinates of pixel centres.
        x: column coordinates of pixel centres.
        crs: coordinate reference system.
        tags: tags of the image.
        transform: affine transform in place of the one of y and x.
        form: options of GDAL.
        band: attributes of the band, and `nodata`.
    """
    dy, dx = y[1] - y[0], x[1] - x[0]
    grid = transform or rasterio.Affine(dx, 0.0, x[0] - dx / 2, 0.0, dy, y[0] - dy / 2)
    bands = codes.reshape(-1, *codes.shape[-2:])
    options = {"count": len(bands), "height": len(y), "width": len(x), "dtype": codes.dtype.name, "crs": crs}
    options |= form or {}
    with rasterio.open(path, "w", driver="GTiff", transform=grid, compress="lzw", nodata=band.pop("nodata", None),
                       **options) as image:  # fmt: skip
        image.write(bands)
        image.update_tags(**(tags or {}))
        for name, value in band.items():
            setattr(image, name, [value])
    return path


def test_codes_of_fmi_are_those_of_its_pgm(data_dir, tmp_path):
    with open_dataset(data_dir / FMI) as known:
        z = known.reflectivity[0].values
        codes = np.where(np.isnan(z), 255, 2 * (np.nan_to_num(z) + 32)).astype(np.uint8)
        crs = pyproj.CRS.from_cf(known.crs.attrs).to_wkt()
        path = write(tmp_path / "a.tif", codes, known.y.values, known.x.values, crs, TAGS)
        packed = tmp_path / "201609281500_lowest.tif.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        with open_dataset(packed) as found:
            assert found.encoding["format"] == "GeoTIFF"
            np.testing.assert_array_equal(found.reflectivity[0], z)
            assert found.reflectivity.attrs["no_echo_value"] == known.reflectivity.attrs["no_echo_value"]
            assert found.time.values[0] == known.time.values[0]
            for axis in "yx":
                np.testing.assert_allclose(found[axis], known[axis], atol=1e-3)
            places = [pyproj.Proj(pyproj.CRS.from_cf(d.crs.attrs))(3e5, 2e5, inverse=True) for d in (known, found)]
            np.testing.assert_allclose(*places, atol=1e-9)


def test_geotiff_swiss_grid_without_wkt(tmp_path):
    """The attributes without crs_wkt must give the same coordinates, since the oblique Mercator of CF would not."""
    y, x = np.arange(305.5e3, 60e3, -1e3), np.arange(480.5e3, 840e3, 1e3)
    crs = pyproj.CRS.from_epsg(21781)
    path = write(tmp_path / "201609281500_lowest.tif", np.ones((y.size, x.size), np.uint8), y, x, crs.to_wkt(), TAGS)
    with open_dataset(path) as found:
        alone = pyproj.CRS.from_cf({k: v for k, v in found.crs.attrs.items() if k != "crs_wkt"})
        assert pyproj.CRS.from_cf(found.crs.attrs).coordinate_operation.method_name.startswith("Hotine")
    places = [pyproj.Proj(one)(x[[0, -1]], y[[0, -1]], inverse=True) for one in (crs, alone)]
    np.testing.assert_allclose(*places, atol=1e-4)


def test_degrees_and_values_as_they_are(data_dir, tmp_path):
    """The file is like those of Radar-DPC: dBZ, milliseconds in the file name, and a nodata value."""
    with open_dataset(data_dir / DPC) as known:
        z = known.reflectivity[0, :200, :300]
        values = np.where(np.isnan(z), -9999, z).astype(np.float32)
        y, x = np.linspace(47, 46, 200), np.linspace(9, 11, 300)
        write(tmp_path / "VMI_1744834500000.tif", values, y, x, nodata=-9999, units="dBZ")
        with open_dataset(tmp_path / "VMI_1744834500000.tif") as found:
            np.testing.assert_array_equal(found.reflectivity[0], z)
            assert "no_echo_value" not in found.reflectivity.attrs
            np.testing.assert_allclose(found.latitude, y)
            np.testing.assert_allclose(found.longitude, x)
            assert found.time.values[0] == known.time.values[0]


def test_scale_and_units_of_the_band_and_other_lengths(tmp_path):
    """The coordinates of the image are in feet and are converted to metres."""
    codes = np.arange(12, dtype=np.uint16).reshape(3, 4)
    crs = "+proj=utm +zone=32 +ellps=WGS84 +units=ft"
    y, x = np.array([3e3, 2e3, 1e3]), np.arange(4) * 1e3
    path = write(tmp_path / "rr_20240501T1230Z.tif", codes, y, x, crs, units="mm/h", scales=0.01, offsets=0.5)
    with open_dataset(path) as found:
        np.testing.assert_allclose(found.rainfall_rate[0], 0.01 * codes + 0.5, rtol=1e-6)
        np.testing.assert_allclose(found.y, 0.3048 * y)
        assert str(found.time.values[0])[:16] == "2024-05-01T12:30"


def test_other_units_stay_as_they_are(tmp_path):
    y, x = np.arange(3.0, 0, -1), np.arange(4.0)
    path = write(tmp_path / "202405011230.tif", np.ones((3, 4), np.float32), y, x, units="m s-1")
    with open_dataset(path) as found:
        assert found["band_1"].attrs["units"] == "m s-1"


@pytest.mark.parametrize(
    "form", [{}, {"ENDIANNESS": "BIG"}, {"BIGTIFF": "YES"}, {"BIGTIFF": "YES", "ENDIANNESS": "BIG"}]
)
def test_geotiff_time_tag_precedes_the_file_name(tmp_path, form):
    """The test covers the four kinds of TIFF files, which begin with different bytes."""
    y, x, codes = np.arange(3.0, 0, -1), np.arange(4.0), np.arange(12, dtype=np.uint16).reshape(3, 4)
    tags = {"Observation time": "202405011225"}
    with open_dataset(write(tmp_path / "202405011230.tif", codes, y, x, tags=tags, form=form)) as found:
        assert str(found.time.values[0])[:16] == "2024-05-01T12:25"
        np.testing.assert_array_equal(found["band_1"][0], codes)


def test_geotiff_unknown_quantity_needs_units(tmp_path, capsys):
    echo = np.zeros((16, 16), np.float32)
    echo[4:12, 4:12] = 30
    y, x = np.arange(16, 0, -1) * 1e3, np.arange(16) * 1e3
    for minute in (0, 5):
        write(tmp_path / f"2024050112{minute:02}.tif", echo, y, x, "EPSG:3067")
    files, out = str(tmp_path / "*.tif"), tmp_path / "out.nc"
    assert main(["nowcast", files, str(out), "--model", "extrapolation"]) == 2
    assert "--units" in capsys.readouterr().err
    assert main(["nowcast", files, str(out), "--model", "extrapolation", "--units", "dBZ", "--steps", "1"]) == 0
    with open_dataset(out) as made:
        rain = made.rainfall_rate[0].values  # Z = 200 R^1.6
        np.testing.assert_allclose(rain, np.where(echo > 0, (10**3 / 200) ** (1 / 1.6), 0), atol=0.02)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("202405011200.tif", {"crs": None}, "has no projection; gdal_translate -a_srs"),
        ("202405011200.tif", {"bands": 2}, "has 2 bands, expected one"),
        (
            "202405011200.tif",
            {"transform": rasterio.Affine(1, 0.2, 0, 0.2, -1, 0)},
            "is rotated against its projection",
        ),
        ("radar.tif", {}, "has no time; its name must"),
        ("20240501125.tif", {}, "has no time; its name must"),
        ("209913459999.tif", {}, "has no time; its name must"),
        ("202405011200.tif", {"cut": 300}, "is a damaged TIFF image"),
    ],
)
def test_geotiff_errors(tmp_path, name, change, message):
    codes = np.zeros((change.get("bands", 1), 40, 50), np.uint8)
    options = {key: value for key, value in change.items() if key in ("crs", "transform")}
    path = write(tmp_path / name, codes, np.arange(40, 0, -1.0), np.arange(50.0), **options)
    if "cut" in change:
        path.write_bytes(path.read_bytes()[: change["cut"]])
    with pytest.raises(ValueError, match=message):
        open_dataset(path)


def test_geotiff_error_names_the_package(tmp_path, monkeypatch):
    path = write(tmp_path / "202405011200.tif", np.zeros((3, 3), np.uint8), np.arange(3.0, 0, -1), np.arange(3.0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="GeoTIFF images need the package rasterio: python -m pip install rasterio"):
        open_dataset(path)
