# SPDX-License-Identifier: Apache-2.0
"""Tests of `fastds check` and of `fastds convert`, whose archives MLCast's validator accepts."""

import shutil
import warnings

import numpy as np
import pytest
import xarray as xr

from fastds.cli import main
from fastds.data import open_dataset, save_dataset, synthetic_event
from fastds.data.io.mlcast import ArchiveMetadata, save_mlcast
from fastds.tasks import check, check_commands
from tests.support.small_models import TEMPERATURE, gridded

pytest.importorskip("zarr", reason="archives need the package zarr")
pyproj = pytest.importorskip("pyproj", reason="archives need the package pyproj")

ORIGIN = ArchiveMetadata("CC-BY-4.0", "A B <a@b.org>", "FI-FMI-reflectivity")
METADATA_OPTIONS = ["--license=CC-BY-4.0", "--creator=A B <a@b.org>", "--identifier=FI-FMI-reflectivity"]


@pytest.fixture
def event():
    """Return six fields of 300 x 310 pixels of 500 m; the fourth of seven times is missing."""
    event = synthetic_event(1, frames=7, shape=(300, 310)).isel(time=[0, 1, 2, 4, 5, 6])
    mapping = pyproj.CRS.from_epsg(3067).to_cf()
    event["crs"] = ((), 0, mapping)
    metres = {"units": "m", "axis": "X", "standard_name": "projection_x_coordinate"}
    return event.assign_coords(
        x=("x", 300e3 + 500.0 * np.arange(310), metres),
        y=("y", 6.8e6 - 500.0 * np.arange(300), metres | {"axis": "Y", "standard_name": "projection_y_coordinate"}),
    )


@pytest.fixture
def failed(monkeypatch):
    """Return the errors that MLCast's validator finds in an archive."""
    validator = pytest.importorskip(
        "mlcast_dataset_validator.specs.source_data.radar_precipitation",
        reason="MLCast's validator is not installed (optional peer)",
    )
    requests = pytest.importorskip("requests", reason="no validator (optional peer)")

    def offline(*args, **options):
        raise requests.exceptions.ConnectionError("no network")

    def found(path):
        with xr.open_zarr(path) as archive:
            report, _ = validator.validate_dataset(archive)
        assert len(report.results) > 25
        return [result.requirement for result in report.results if result.status == "FAIL"]

    monkeypatch.setattr(requests, "get", offline)
    return found


def test_mlcast_validator_reports_only_the_short_archive(event, tmp_path, failed):
    save_dataset(event, tmp_path / "event.nc")
    url = "https://github.com/mlcast-community/mlcast-dataset-FI-FMI@v0.1.0"
    out = tmp_path / "archive.zarr"
    assert main(["convert", str(tmp_path / "event.nc"), str(out), *METADATA_OPTIONS, f"--created-with={url}"]) == 0
    assert failed(out) == ["Minimum 3-year coverage"]


URL = "--created-with=https://github.com/mlcast-community/mlcast-dataset-FI-FMI@v0.1.0"
ARCHIVED = [*METADATA_OPTIONS, URL, "--to=mlcast"]


@pytest.mark.parametrize("raw", [False, True])
def test_mlcast_archive_of_swiss_grid_is_valid(data_dir, tmp_path, failed, raw):
    """The projection is an oblique Mercator, whose rotation CF attributes cannot describe."""
    words = [str(data_dir / "radar_mch_20160711_5min.nc"), str(tmp_path / "a.zarr"), "--stop=2016-07-11T20:55"]
    if raw:
        words[:1] = [str(tmp_path / f"AQC16193{time}V_00005.801.gif") for time in (2200, 2205)]
        for copy in words[:2]:
            shutil.copy(data_dir / "raw/mch/AQC161932200V_00005.801.gif", copy)
        words.pop()
    assert main(["convert", *words, *METADATA_OPTIONS[:2], "--identifier=CH-MCH-rain", URL]) == 0
    assert failed(tmp_path / "a.zarr") == ["Minimum 3-year coverage"]


def test_convert_reports_projection_without_cf_attributes(event, tmp_path):
    oblique = "+proj=omerc +lat_0=61 +lonc=24 +alpha=40 +gamma=40 +k=1 +x_0=300000 +y_0=6700000 +ellps=GRS80"
    event["crs"] = ((), 0, {"crs_wkt": pyproj.CRS(oblique).to_wkt()})
    with pytest.warns(UserWarning, match="CF attributes cannot describe the projection Hotine Oblique Mercator"):
        save_mlcast(event, tmp_path / "a.zarr", ORIGIN)


@pytest.mark.parametrize(
    "words",
    [
        ["downscale", "--model=trilinear"],
        ["nowcast", "--model=persistence", "--steps=3"],
        ["nowcast", "--model=persistence", "--lead=10min", "--interval=10min", "--every=5min", "--coarsen=1"],
        ["nowcast", "--model=extrapolation", "--steps=2", "--quantity=reflectivity"],
    ],
    ids=" ".join,
)
@pytest.mark.filterwarnings("ignore:.*trained")
def test_mlcast_radar_output_is_valid(event, tmp_path, failed, words):
    save_dataset(event, tmp_path / "event.nc")
    out = tmp_path / "out.zarr"
    assert main([words[0], str(tmp_path / "event.nc"), str(out), *words[1:], *ARCHIVED]) == 0
    assert failed(out) == ["Minimum 3-year coverage"]


def test_mlcast_forecast_archive_contents(event, tmp_path):
    event = event.isel(time=slice(3, None))  # 12:20, 12:25, 12:30
    source, options = str(save_dataset(event, tmp_path / "event.nc")), ["--model=persistence", *ARCHIVED]
    z = event.reflectivity.values.clip(max=60)
    main(["nowcast", source, str(tmp_path / "one.zarr"), "--steps=2", "--quantity=reflectivity", *options])
    main(["nowcast", source, str(tmp_path / "many.zarr"), "--steps=1", "--every=5min", *options])
    with open_dataset(tmp_path / "one.zarr") as one, open_dataset(tmp_path / "many.zarr") as many:
        assert [str(t)[11:16] for t in one.time.values] == ["12:35", "12:40"]
        assert one.attrs["fastds_start"] == "2024-06-01T12:30:00" and one.attrs["fastds_model"] == "persistence"
        np.testing.assert_allclose(one.equivalent_reflectivity_factor[1], np.where(z[-1] > 0, z[-1], -32), atol=0.01)
        assert [str(t)[11:16] for t in many.time.values] == ["12:25", "12:30", "12:35"]
        assert many.attrs["fastds_lead_s"] == 300 and many.rainfall_flux.attrs["units"] == "kg m-2 h-1"
        rain = np.where(z > 0, (10 ** (z / 10) / 200) ** (1 / 1.6), 0)
        np.testing.assert_allclose(many.rainfall_flux, rain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowcast", "--steps=2", "--every=5min"], "--steps must be 1 for hindcasts in MLCast's form, which has one"),
        (["nowcast", "--steps=1"], "--steps must be at least 2 for one forecast in MLCast's form"),
        (["nowcast", "--report=r.html"], "--to mlcast leaves the starts of forecasts out, which --truth and --report"),
        (["nowcast", "--picture=p.png"], "--picture needs the start of the forecast, which is left out in MLCast's"),
        (["downscale", "--workers=2"], "--to mlcast is for results that are made at once; fastds convert makes it of"),
        (["downscale", "--scale=2"], "--to mlcast is for radar fields, and the model is for fields"),
        (["downscale", "--to=cf"], "--license and --creator and --identifier and --created-with are for an archive in"),
        (["convert", "--to=cf"], "--license and --creator and --identifier and --created-with are for an archive in"),
        (["downscale", "OUT.nc"], "OUT.nc: archives are Zarr stores, and their names end in .zarr"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mlcast_output_is_checked_before_computation(event, tmp_path, monkeypatch, capsys, words, message):
    def computed(*args, **options):
        raise AssertionError("computed")

    monkeypatch.setattr("fastds.tasks.nowcast.pipeline.NowcastPipeline.compute_all", computed)
    monkeypatch.setattr("fastds.tasks.radar.pipeline.RadarPipeline.compute_all", computed)
    monkeypatch.chdir(tmp_path)
    save_dataset(event, "event.nc")
    command, *chosen = words
    out = chosen.pop() if chosen[-1].startswith("OUT") else "out.zarr"
    model = ["--model=persistence"] if command == "nowcast" else []
    assert main([command, "event.nc", out, *model, *ARCHIVED, *chosen]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["event.nc"]


def test_convert_preserves_values(event, tmp_path):
    seen = []
    save_mlcast(event, tmp_path / "a.zarr", ORIGIN, watch=lambda blocks: seen.extend(blocks) or blocks)
    with open_dataset(tmp_path / "a.zarr") as archive:
        z = archive.equivalent_reflectivity_factor
        np.testing.assert_array_equal(z, event.reflectivity)
        assert z.attrs["no_echo_value"] == event.reflectivity.attrs["no_echo_value"]
        assert z.encoding["chunks"] == (1, 300, 310) and z.encoding["compressors"][0].codec_id == "zstd"
        assert [str(time)[11:16] for time in archive.missing_times.values] == ["12:15"]
        proj = pyproj.Proj(pyproj.CRS.from_epsg(3067))
        lon, lat = proj(300e3, 6.8e6, inverse=True)
        assert float(archive.latitude[0, 0]) == pytest.approx(lat, abs=1e-9)
        assert float(archive.longitude[0, 0]) == pytest.approx(lon, abs=1e-9)
    assert [block for part in seen for block in part] == list(range(6))


def test_convert_appends_blocks_of_times(event, tmp_path, monkeypatch):
    save_mlcast(event, tmp_path / "whole.zarr", ORIGIN)
    monkeypatch.setattr("fastds.data.io.mlcast._BLOCK_BYTES", 2 * 4 * 300 * 310)
    save_mlcast(event, tmp_path / "parts.zarr", ORIGIN)
    with open_dataset(tmp_path / "whole.zarr") as whole, open_dataset(tmp_path / "parts.zarr") as parts:
        xr.testing.assert_equal(whole, parts)
        assert parts.sizes["time"] == 6
        attributes = [
            {k: v for k, v in archive.attrs.items() if k != "mlcast_created_on"} for archive in (whole, parts)
        ]
        assert attributes[0] == attributes[1] and attributes[0]["license"] == ORIGIN.license


def test_convert_changes_rain_units(event, tmp_path):
    rain = event.reflectivity.clip(0) / 36e5
    rain.attrs = {"units": "m s-1", "standard_name": "rainfall_rate", "grid_mapping": "crs"}
    save_mlcast(event[["crs"]].assign(rain=rain), tmp_path / "a.zarr", ORIGIN)
    with open_dataset(tmp_path / "a.zarr") as archive:
        np.testing.assert_allclose(archive.rainfall_flux, event.reflectivity.clip(0), rtol=1e-6)
        assert archive.rainfall_flux.attrs["units"] == "kg m-2 h-1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "an archive in MLCast's form needs --license and --creator and --identifier; --to cf writes a CF store"),
        ([*METADATA_OPTIONS[:2], "--identifier=x"], "--identifier must be such as FI-FMI-reflectivity, got 'x'"),
        ([METADATA_OPTIONS[0], "--creator=A", METADATA_OPTIONS[2]], "--creator must be Name <email>, got 'A'"),
    ],
)
def test_convert_requires_the_origin(event, tmp_path, capsys, words, message):
    save_dataset(event, tmp_path / "event.nc")
    assert main(["convert", str(tmp_path / "event.nc"), str(tmp_path / "a.zarr"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "a.zarr").exists()


def test_convert_requires_a_projection(event, tmp_path):
    with pytest.raises(ValueError, match=r"must be on a projection, .* got y \[no units\] and x \[no units\]"):
        save_mlcast(event.drop_vars(["x", "y"]), tmp_path / "a.zarr", ORIGIN)
    with pytest.raises(ValueError, match="their names end in .zarr"):
        save_mlcast(event, tmp_path / "a.nc", ORIGIN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            "mch/AQC161932200V_00005.801.gif",
            "an archive needs at least 2 times, variable rainfall_amount has 1; --to cf,",
        ),
        ("dpc/VMI_1744834500000.h5", "an archive needs at least 2 times, variable reflectivity has 1; --to cf,"),
        ("radar_dpc_sardinia_20250416_5min.nc", "and longitude [degrees_east]; --to cf, in Python"),
    ],
)
def test_convert_suggests_another_format(data_dir, tmp_path, capsys, raw, message):
    source = data_dir / (f"raw/{raw}" if "/" in raw else raw)
    out = str(tmp_path / "o.zarr")
    assert main(["convert", str(source), out, *METADATA_OPTIONS]) == 2
    assert message in capsys.readouterr().err
    assert main(["convert", str(source), out, "--to=cf"]) == 0
    with open_dataset(out) as written:
        assert written.sizes["time"]


def test_convert_several_files(event, tmp_path, capsys):
    """Each file counts days since its own first time."""
    names = []
    for k in range(event.sizes["time"]):
        part = event.isel(time=[k])
        part["time"].encoding = {"units": f"days since {part.time.values[0]}", "dtype": "int64"}
        names.append(str(save_dataset(part, tmp_path / f"{k}.nc")))
    capsys.readouterr()
    assert main(["convert", *names, str(tmp_path / "all.nc")]) == 0
    assert "units" not in capsys.readouterr().err
    with open_dataset(tmp_path / "all.nc") as joined:
        np.testing.assert_array_equal(joined.reflectivity, event.reflectivity)


@pytest.mark.parametrize(
    ("words", "taken"), [([], "rainfall_flux"), (["--var=reflectivity"], "equivalent_reflectivity_factor")]
)
def test_convert_prefers_rain_over_reflectivity(event, tmp_path, capsys, words, taken):
    """MLCast's networks learn rain; --var chooses the other."""
    rate = {"units": "mm h-1", "standard_name": "rainfall_rate", "grid_mapping": "crs"}
    rain = event.reflectivity.clip(0).assign_attrs(rate)
    save_dataset(event.assign(rain=rain), tmp_path / "event.nc")
    assert main(["convert", str(tmp_path / "event.nc"), str(tmp_path / "a.zarr"), *METADATA_OPTIONS, *words]) == 0
    assert f"archived {'reflectivity' if words else 'rain'}\n" in capsys.readouterr().out
    with open_dataset(tmp_path / "a.zarr") as archive:
        assert set(archive.data_vars) == {taken, "crs"}


def test_check_names_suitable_commands(event, tmp_path, capsys):
    save_dataset(event, tmp_path / "event.nc")
    assert main(["check", str(tmp_path / "event.nc")]) == 0
    printed = capsys.readouterr().out
    for text in (
        "format     NetCDF-4, 1 file",
        "every 5 min, 1 gap\n",
        "variable   reflectivity [dBZ] time 6, y 300, x 310",
        "grid       transverse mercator, cells of 500 x 500 m",
        "can        downscale: reflectivity to 10 fields of 600 x 620; model fczsm-small (others for reflectivity: ",
        "cannot     nowcast: the forecast from 2024-06-01T12:30:00 needs 5 fields every 300 s; that of",
        "cannot     downscale --model wgan-gp-small-x2, downscale --model wgan-gp-small-x8: the variable is ",
        "northward_wind, reflectivity with --var\n",
        "can        query: reflectivity at points; model inr-any (any variable)",
        "can        evaluate: reflectivity, as PRED or TRUTH of radar fields",
        "can        convert: to CF, OUT.nc, or OUT.zarr with --to cf",
        "can        convert --to mlcast: to an archive in MLCast's form",
        "warning    the grid spacing of 500 m and the cadence of 300 s are outside the ranges that fczsm-small was "
        "trained for, 2000 to 8000 m and 600 to 1800 s: expect larger errors",
        "out of domain 4.00 (1: the ends of the training)",
    ):
        assert text in printed, printed


def test_check_of_fields_unsuitable_for_inr_small(tmp_path, capsys):
    """The model inr-any is used. Variables without the time dimension are named and not downscaled."""
    temperature = gridded(TEMPERATURE)
    save_dataset(temperature.assign(terrain=temperature.t[0, :, :].drop_vars("time")), tmp_path / "t.nc")
    assert main(["check", str(tmp_path / "t.nc")]) == 0
    assert "can        downscale --scale 2: t at any scale; model inr-any (any variable)" in capsys.readouterr().out
    assert main(["downscale", str(tmp_path / "t.nc"), str(tmp_path / "o.nc"), "--scale", "2"]) == 0
    assert "not in the result: terrain" in capsys.readouterr().out


def test_check_of_fields(data_dir, capsys):
    name = data_dir / "era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc"
    assert main(["check", str(name)]) == 0
    printed = capsys.readouterr().out
    assert "can        downscale --scale 2: r, t, u, z at any scale; model inr-small" in printed
    assert "can        downscale --model wgan-gp-small-x8: r at 8 times the resolution" in printed
    radar = (
        "cannot     radar commands (downscale, nowcast, convert --to mlcast): no variable of reflectivity was found\n"
    )
    assert printed.endswith(radar), printed
    assert "can        query: r, t, u, z at points; model inr-small" in printed
    assert "can        evaluate: r, t, u, z, as PRED or TRUTH of gridded fields" in printed
    assert "as downscale" not in printed


def test_check_of_default_networks_does_not_warn(data_dir, capsys):
    """The line of a network has the out-of-distribution score of the inputs, and no warning is printed."""
    assert main(["check", str(data_dir / "era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc")]) == 0
    printed = capsys.readouterr().out
    assert "downscale --model wgan-gp-small-x8: r at 8 times the resolution; out of domain 4" in printed
    assert "warning" not in printed


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "grib/nam.t00z.awp21100.tm00.grib2",
            ["can        convert: to CF", "cannot     radar commands (downscale, nowcast, "],
        ),
        ("knmi/RAD_NL25_PCP_CM_202106222000.h5", ["can        downscale: reflectivity to 1 field of 1530 x 1400"]),
        ("dpc/VMI_1744834500000.h5", ["can        query: reflectivity at points; model inr-any"]),
    ],
)
def test_check_of_partly_supported_data(data_dir, capsys, name, lines):
    if name.startswith("grib"):
        pytest.importorskip("cfgrib", reason="GRIB needs the package cfgrib")
    assert main(["check", str(data_dir / "raw" / name)]) == 0
    printed = capsys.readouterr().out
    assert all(line in printed for line in lines) and printed.count("candidates:") <= 1, printed


def test_check_of_forecasts_and_of_no_field(event, tmp_path, capsys):
    save_dataset(event, tmp_path / "event.nc")
    assert (
        main(["nowcast", str(tmp_path / "event.nc"), str(tmp_path / "f.nc"), "--model=persistence", "--steps=2"]) == 0
    )
    save_dataset(event[["time"]].assign(count=7), tmp_path / "n.nc")
    assert main(["check", str(tmp_path / "f.nc")]) == 0
    assert "can        evaluate: forecasts, as PRED" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "n.nc")]) == 2
    assert "cannot     convert: there is no field" in capsys.readouterr().out


def test_check_of_unusual_coordinates_and_times(event, tmp_path, capsys):
    """The grid crosses Greenwich in longitudes of 0 to 360 degrees, one time occurs twice, and units are radians."""
    radar = event[["reflectivity"]].isel(time=[0, 1, 1, 2], y=slice(0, 40), x=slice(0, 40))
    east = {"standard_name": "longitude", "units": "degrees_east"}
    north = {"standard_name": "latitude", "units": "degrees_north"}
    radar = radar.drop_vars(set(radar.coords) - {"time"}).assign_coords(
        y=("y", 50 + 0.02 * np.arange(40), north), x=("x", (359.8 + 0.02 * np.arange(40)) % 360, east)
    )
    save_dataset(radar, tmp_path / "a.nc")
    save_dataset(radar.assign_coords(y=np.deg2rad(radar.y).assign_attrs(north | {"units": "rad"})), tmp_path / "b.nc")
    assert main(["check", str(tmp_path / "a.nc"), str(tmp_path / "b.nc")]) == 2
    printed = capsys.readouterr().out
    assert "to 2024-06-01T12:10:00, 1 of them repeated, every 5 min" in printed
    assert "grid       50.00 to 50.78 N, 359.80 to 0.58 E, cells of 2224 x 1418 m" in printed
    assert "cannot be read: coordinate y has units 'rad', expected degrees: multiply it by 180 / pi first" in printed


def test_check_prints_a_warning_once(event, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        check_commands, "list_commands", lambda *_: [(verb, lambda: warnings.warn("so", stacklevel=1)) for verb in "ab"]
    )
    save_dataset(event, tmp_path / "event.nc")
    assert check.check(tmp_path / "event.nc") and capsys.readouterr().out.count("warning    so\n") == 1


@pytest.mark.parametrize(("fields", "more"), [(8, []), (10, ["and 2 more"])])
def test_check_lists_eight_variables(fields, more):
    values = ("time", "latitude", "longitude"), np.zeros((2, 3, 4), np.float32), {"units": "K"}
    facts = list(check._list_facts(xr.Dataset({f"v{k}": values for k in range(fields)})))
    assert [text for name, text in facts if name == "variable"] == [
        f"v{k} [K] time 2, latitude 3, longitude 4" for k in range(8)
    ]
    assert [text for name, text in facts if not name] == more


def test_check_of_unsupported_data(event, tmp_path, capsys):
    save_dataset(event, tmp_path / "event.nc")
    (tmp_path / "notes").write_text("a bar")
    assert main(["check", str(tmp_path / "notes"), str(tmp_path / "none"), str(tmp_path / "event.nc")]) == 2
    printed = capsys.readouterr().out
    assert "can        downscale" in printed and "cannot be read: no such file:" in printed
    assert "notes is in no format that is known: ODIM HDF5" in printed


@pytest.mark.parametrize(
    ("times", "description"),
    [
        ([f"{y}-{m:02}-01" for y in (1980, 1981, 1982) for m in (1, 2, 12)], "monthly, 3 gaps"),
        ([f"1980-{m:02}-{15 + (m != 2)}T12:00" for m in range(1, 13)], "monthly"),
        ([f"1980-01-{d:02}" for d in range(1, 30)], "every 1 day"),
        (["1980-01-01", "1980-02-01", "1980-02-03"], "every 2 days, 1 gap"),
    ],
)
def test_check_reports_monthly_data(times, description):
    assert check._describe_times(np.array(times, "datetime64[ns]")).endswith(f", {description}")
    dates = xr.date_range("2000-01-01", periods=5, freq="MS", calendar="360_day", use_cftime=True)
    assert check._describe_times(dates.values).endswith(", monthly")


def test_check_of_out_of_distribution_data(tmp_path, capsys):
    save_dataset(gridded(TEMPERATURE), tmp_path / "t.nc")
    assert main(["check", str(tmp_path / "t.nc")]) == 0
    note = (
        "cannot     downscale --model wgan-gp-small-x2, downscale --model wgan-gp-small-x8: needs relative humidity; "
    )
    assert f"{note}this file has t\n" in capsys.readouterr().out


@pytest.mark.parametrize("dim", ["time", "latitude", "longitude"])
def test_check_of_fields_without_a_value(tmp_path, capsys, dim):
    gridded(TEMPERATURE).isel({dim: slice(0, 0)}).to_netcdf(tmp_path / "t.nc", engine="h5netcdf")
    main(["check", str(tmp_path / "t.nc")])
    printed = capsys.readouterr().out
    assert f"grid       none, dimension {dim} has length 0" in printed
    assert "internal error" not in printed and "zero-size" not in printed, printed
