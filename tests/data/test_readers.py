# SPDX-License-Identifier: Apache-2.0
"""Tests of RADOLAN composites and HKO-7 images."""

import gzip
import io
import tarfile

import cv2
import numpy as np
import pytest

from fastds.cli import main
from fastds.data import from_pixels, open_dataset, open_hko7, open_radolan, save_dataset, to_pixels, to_reflectivity
from fastds.tasks.nowcast.run import nowcast


def composite(product="RX", day="102050", month="0814", codes=None, grid=(900, 900), extra=""):
    """Return the bytes of a composite file."""
    codes = np.zeros(grid, "u1" if product == "RX" else "<u2") if codes is None else codes
    precision = {"RX": "E+00", "RW": "E-01"}.get(product, "E-02")
    size = f"{grid[0]}x {grid[1]}{extra}"
    head = f"{product}{day}10000{month}BY 810138VS 3SW   2.13.1PR {precision}INT   5GP {size}MS 66<boo> "
    return head.encode() + b"\x03" + codes.tobytes()


def write(folder, name, **values):
    (folder / name).write_bytes(composite(**values))
    return folder / name


def test_reflectivity_codes(tmp_path):
    codes = np.zeros((900, 900), "u1")
    codes[0, 0], codes[0, 1], codes[899, 899], codes[5, 7], codes[5, 8] = 1, 65, 177, 249, 250
    z = open_radolan(write(tmp_path, "a", codes=codes)).reflectivity
    assert z.dims == ("time", "y", "x") and z.attrs["units"] == "dBZ" and z.dtype == np.float32
    assert z.values[0, 899, :2].tolist() == [-32.0, 0.0] and z.values[0, 0, 899] == 56.0  # first row: the southernmost
    assert np.isnan(z.values[0, 894, 7:9]).all() and np.isnan(z.values).sum() == 2
    assert z.values[0, 10, 10] == z.attrs["no_echo_value"] == -32.5
    assert str(z.time.values[0])[:16] == "2014-08-10T20:50"


def test_rain_codes(tmp_path):
    codes = np.zeros((900, 900), "<u2")
    codes[0, :6] = [1, 4095, 250 | 0x1000, 2500 | 0x2000, 7 | 0x4000, 30 | 0x8000]
    for product, unit in (("RY", 0.01), ("RW", 0.1)):
        rain = open_radolan(write(tmp_path, product, product=product, codes=codes)).rainfall_amount
        expected = [unit, 4095 * unit, 250 * unit, np.nan, -7 * unit, np.nan]
        np.testing.assert_allclose(rain.values[0, 899, :6], expected, rtol=1e-6)
        assert rain.attrs["units"] == "kg m-2" and rain.attrs["cell_methods"] == "time: sum (interval: 5 min)"


def test_coordinates_match_the_format_description(tmp_path):
    pyproj = pytest.importorskip("pyproj", reason="pyproj is not installed")
    data = open_radolan(write(tmp_path, "a"))
    attrs = data.crs.attrs
    lower_left = data.x.values[0] - 500.0, data.y.values[-1] - 500.0
    project = pyproj.Proj(
        f"+proj=stere +lat_0=90 +lat_ts={attrs['standard_parallel']} "
        f"+lon_0={attrs['straight_vertical_longitude_from_pole']} +R={attrs['earth_radius']}"
    )
    assert project(*lower_left, inverse=True) == pytest.approx((3.5889, 46.9526), abs=1e-4)
    np.testing.assert_allclose(np.diff(data.x), 1000.0)
    np.testing.assert_allclose(np.diff(data.y), -1000.0)


def test_version_5_uses_wgs_84(data_dir, tmp_path):
    """The corners equal those in HDF5 files of DWD; with a sphere they would be 2 km away."""
    pyproj, h5py = pytest.importorskip("pyproj", reason="pyproj is not installed"), pytest.importorskip("h5py")
    with pytest.warns(UserWarning, match="left out"):
        data = open_radolan(data_dir / "raw" / "radolan" / "DE1200_RV2210180700.tar.bz2")
    to_degrees = pyproj.Transformer.from_crs(pyproj.CRS.from_cf(data.crs.attrs), "EPSG:4326", always_xy=True)
    west, east = data.x.values[[0, -1]] + [-500.0, 500.0]
    north, south = data.y.values[[0, -1]] + [500.0, -500.0]
    with h5py.File(data_dir / "raw" / "dwd_hdf5" / "composite_rv_20250923_0855_000-hd5") as file:
        corners = file["where"].attrs
        for name in ("UL", "UR", "LL", "LR"):
            corner = west if name[1] == "L" else east, north if name[0] == "U" else south
            expected = corners[f"{name}_lon"], corners[f"{name}_lat"]
            assert to_degrees.transform(*corner) == pytest.approx(expected, abs=1e-8), name
    old, new = write(tmp_path, "old"), tmp_path / "new"
    new.write_bytes(composite(day="102055").replace(b"VS 3", b"VS 5"))
    with pytest.raises(ValueError, match=r"got RX 900 x 900 \(WGS 84\), RX 900 x 900 \(sphere\);"):
        open_radolan([old, new])


def test_archives_are_sorted_and_nowcast(tmp_path):
    for name, day, code in (("c.gz", "102100", 100), ("b.gz", "102055", 90), ("a.gz", "102050", 80)):
        codes = np.full((900, 900), code, "u1")
        (tmp_path / name).write_bytes(gzip.compress(composite(day=day, codes=codes)))
    with tarfile.open(tmp_path / "d.tar.bz2", "w:bz2") as archive:
        for minute in ("05", "10"):
            data = composite(day=f"1021{minute}", codes=np.full((900, 900), 110, "u1"))
            member = tarfile.TarInfo(f"raa{minute}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    data = open_radolan([tmp_path / name for name in ("c.gz", "d.tar.bz2", "a.gz", "b.gz")])
    assert data.reflectivity.values[:, 0, 0].tolist() == [7.5, 12.5, 17.5, 22.5, 22.5]
    source = to_reflectivity(data)
    assert source.cadence == 300 and source.no_echo == -32.5
    out = nowcast("persistence", data, steps=1, coarsen=30, quantity="reflectivity")
    assert np.all(out.reflectivity == 22.5) and str(out.time.values[0])[:16] == "2014-08-10T21:15"


def rising(folder, count=4):
    """Write composites every five minutes of an echo moving east."""
    folder.mkdir()
    for k in range(count):
        codes = np.zeros((900, 900), "u1")
        codes[300:600, 300 + 30 * k : 420 + 30 * k] = 140
        name = f"raa01-rx_10000-14081020{5 * k:02d}-dwd---bin"
        (folder / f"{name}.gz").write_bytes(gzip.compress(composite(day=f"1020{5 * k:02d}", codes=codes)))
    return folder


def test_open_accepts_files_folders_patterns_and_archives(tmp_path, monkeypatch):
    folder = rising(tmp_path / "radar")
    later = open_radolan(sorted(folder.iterdir())).reflectivity
    assert later.chunks == ((1,) * 4, (900,), (900,))  # none of them in memory
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        expected = open_radolan(sorted(folder.iterdir())).reflectivity
    assert expected.chunks is None
    np.testing.assert_array_equal(later, expected)
    with tarfile.open(tmp_path / "radar.tar", "w") as archive:
        for file in sorted(folder.iterdir()):
            data = gzip.decompress(file.read_bytes())
            member = tarfile.TarInfo(file.stem)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    for source in (folder, folder / "raa01-rx*", f"{folder}/raa01-rx_10000-*.gz", tmp_path / "radar.tar"):
        with open_dataset(source) as found:
            np.testing.assert_array_equal(found.reflectivity, expected)
            np.testing.assert_array_equal(found.time, expected.time)
    assert open_dataset(sorted(folder.iterdir())[0]).sizes["time"] == 1
    (folder / "notes.txt").write_text("a bar")
    assert open_dataset(folder).sizes["time"] == 4
    write(folder, "raa01-ry", product="RY")
    with pytest.raises(ValueError, match="one product and grid .* got RX .*, RY .*; a pattern such as"):
        open_dataset(folder / "raa*")


def test_nowcast_command_reads_raw_composites(tmp_path, capsys):
    folder = rising(tmp_path / "radar")
    command = ["nowcast", str(folder), str(tmp_path / "out.nc"), "--model=extrapolation", "--steps=2", "--coarsen=10"]
    assert main([*command, "--quantity=reflectivity"]) == 0
    with open_dataset(tmp_path / "out.nc") as out:
        given = open_radolan(sorted(folder.iterdir()))
        expected = nowcast("extrapolation", given, steps=2, coarsen=10, quantity="reflectivity")
        np.testing.assert_array_equal(out.reflectivity, expected.reflectivity)
        assert np.argmax(out.reflectivity.values[-1, 45] > 10.0) > 39  # where the bar began at the start
        assert out.crs.attrs["grid_mapping_name"] == "polar_stereographic"
    assert main(["nowcast", str(tmp_path / "none*"), str(tmp_path / "x.nc")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_real_archive_of_forecasts(data_dir):
    path = data_dir / "raw" / "radolan" / "DE1200_RV2210180700.tar.bz2"
    with pytest.warns(UserWarning, match="24 RADOLAN forecasts, 5 to 120 min ahead, are left out"):
        assert open_dataset(path).rainfall_amount.shape == (1, 1200, 1100)
    found = open_radolan(path, forecasts=True)
    assert found.sizes["time"] == 25 and (np.diff(found.time) == np.timedelta64(5, "m")).all()


def test_forecasts_are_rejected_as_observations(tmp_path):
    """With forecasts=True, forecasts are read with their valid times."""
    grid = (1200, 1100)
    files = [write(tmp_path, f"{lead}", product="RV", grid=grid, extra=f"VV {lead:03d}MF 8") for lead in (0, 5, 120)]
    times = open_radolan(files, forecasts=True).time.values
    assert (times - times[0]).astype("timedelta64[m]").tolist() == [np.timedelta64(m, "m").item() for m in (0, 5, 120)]
    with pytest.warns(UserWarning, match="2 RADOLAN forecasts, 5 to 120 min ahead, are left out; fastds.data.open_rad"):
        assert open_radolan(files).time.values.tolist() == times[:1].tolist()
    with pytest.raises(ValueError, match="nothing but RADOLAN forecasts, 5 to 5 min ahead, and no observation"):
        open_radolan(files[1])


@pytest.mark.parametrize(
    ("name", "variable", "largest", "missing"),
    [
        ("raa01-rx_10000-1408102050-dwd---bin.gz", "reflectivity", 56.5, 0.217957),
        ("raa01-ry_10000-1408102050-dwd---bin.gz", "rainfall_amount", 10.79, 0.249498),
        ("raa01-rw_10000-1408102050-dwd---bin.gz", "rainfall_amount", 38.6, 0.221063),
    ],
)
def test_real_composites(data_dir, name, variable, largest, missing):
    field = open_radolan(data_dir / "raw" / "radolan" / name)[variable]
    assert field.shape == (1, 900, 900) and float(field.max()) == pytest.approx(largest, rel=1e-6)
    assert float(field.isnull().mean()) == pytest.approx(missing, abs=1e-6)


def test_rain_coordinates_match_reflectivity(data_dir):
    z, rain = (
        open_radolan(data_dir / "raw" / "radolan" / f"raa01-{product}_10000-1408102050-dwd---bin.gz")
        for product in ("rx", "ry")
    )
    wet = rain.rainfall_amount.values > 0.2
    assert np.nanmean(z.reflectivity.values[wet]) > 25.0 > 0.0 > np.nanmean(z.reflectivity.values)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no radar", "is no RADOLAN composite"),
        (composite()[:-1], "is truncated or damaged: 809999 bytes of data for 900 x 900 pixels"),
        (composite(product="HG"), "holds the product HG; known are RV, RW"),
        (composite(grid=(90, 90)), "has a grid of 90 x 90; known are"),
    ],
    ids=["text", "truncated", "product", "grid"],
)
def test_other_files_are_refused(tmp_path, content, sentence):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        open_radolan(tmp_path / "a")


def test_mixed_and_absent_files_are_refused(tmp_path):
    files = [write(tmp_path, "a"), write(tmp_path, "b", product="RY")]
    with pytest.raises(ValueError, match=r"one product and grid are expected, got RX 900 x 900 \(sphere\), RY 900"):
        open_radolan(files)
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_radolan(tmp_path / "none")
    with pytest.raises(ValueError, match="no RADOLAN file was given"):
        open_radolan([])


@pytest.fixture(scope="module")
def hko7(tmp_path_factory):
    folder = tmp_path_factory.mktemp("radarPNG")
    codes = np.random.default_rng(0).integers(0, 256, (4, 48, 48), dtype=np.uint8)
    for k, image in enumerate(codes):
        day = folder / "2015" / "06" / f"{10 + k // 2}"
        day.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(day / f"RAD1506{10 + k // 2}23{6 * k:02d}00.png"), image)
    (folder / "notes.png").write_bytes(b"no radar image")
    return folder, codes


def test_hko7_images(hko7, tmp_path):
    folder, codes = hko7
    data = open_hko7(folder)
    z = data.reflectivity
    np.testing.assert_array_equal(z.values, from_pixels(codes, "-10-60"))
    assert [str(t)[:16] for t in z.time.values] == [
        "2015-06-10T23:00", "2015-06-10T23:06", "2015-06-11T23:12", "2015-06-11T23:18"
    ]  # fmt: skip
    assert z.attrs["no_echo_value"] == -10.0 and z.attrs["zr_a"] == 58.53
    assert data.y.values[[0, -1]] == pytest.approx([250666.667, -250666.667])
    save_dataset(data, tmp_path / "hko.nc")
    with open_dataset(tmp_path / "hko.nc") as back:
        assert np.array_equal(to_pixels(back.reflectivity.values, "-10-60"), codes)


def test_hko7_days_and_size(hko7):
    folder, codes = hko7
    part = open_hko7(folder, start="2015-06-11", stop="2015-06-12", size=16)
    assert part.reflectivity.shape == (2, 16, 16)
    expected = from_pixels(cv2.resize(codes[3], (16, 16), interpolation=cv2.INTER_LINEAR), "-10-60")
    np.testing.assert_array_equal(part.reflectivity.values[1], expected)


def test_hko7_messages(hko7, tmp_path):
    with pytest.raises(FileNotFoundError, match="no image RADyymmddHHMM00.png from 2020 to None"):
        open_hko7(hko7[0], start="2020")
    with pytest.raises(ValueError, match="stop must be a date such as 2015-06-01, got 'noon'"):
        open_hko7(hko7[0], stop="noon")
    (tmp_path / "RAD150610230000.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        open_hko7(tmp_path)


def test_swiss_grid_coordinates_without_wkt(data_dir):
    """The corners equal those of the PROJ string in the file of the composite."""
    pyproj = pytest.importorskip("pyproj", reason="projections need the package pyproj")
    with open_dataset(data_dir / "raw/mch/AQC161932200V_00005.801.gif") as dataset:
        alone = {name: value for name, value in dataset.crs.attrs.items() if name != "crs_wkt"}
    with open_dataset(data_dir / "radar_mch_20160711_5min.nc") as other:
        crs = pyproj.CRS.from_cf(alone), other.crs.attrs["proj4"]
    found, exact = (pyproj.Transformer.from_crs(one, "EPSG:4326", always_xy=True) for one in crs)
    np.testing.assert_allclose(exact.transform(255.5e3, 479.5e3), (2.70, 49.37), atol=5e-3)
    for corner in ((255.5e3, 479.5e3), (964.5e3, 479.5e3), (964.5e3, -159.5e3), (255.5e3, -159.5e3)):
        np.testing.assert_allclose(found.transform(*corner), exact.transform(*corner), atol=1e-4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            ("lats", "lons"),
            "is an npz archive of coordinates alone; give the archives of rain or reflectivity in the same folder",
        ),
        (("rain",), "is an npz archive of rain; those of MeteoNet are read, which hold data and dates"),
    ],
)
def test_npz_without_fields_is_recognised(tmp_path, arrays, message):
    np.savez(tmp_path / "radar_coords_NW.npz", **dict.fromkeys(arrays, np.zeros((3, 4))))
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path / "radar_coords_NW.npz")
