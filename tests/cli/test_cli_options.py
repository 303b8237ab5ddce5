# SPDX-License-Identifier: Apache-2.0
"""Tests of the effect of each option of each command; a new option needs a test here."""

import csv
import dataclasses
import functools
import importlib
import json
import shlex
import types
import typing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import yaml
from scipy.ndimage import binary_erosion

from tests.support.small_models import HUMIDITY, TEMPERATURE, generator, gridded, nowcaster, radar_model

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds import cli, models
from fastds._parsers import build_parser
from fastds.data import coarsen_dataset, synthetic_event
from fastds.studies.command import STUDIES
from fastds.tasks.radar.demo import demo
from fastds.training.command import TASKS

Z_R = 300.0, 1.4
# The files declare neither their unit nor their missing value, and their Z-R relation is not the default.
PART = "2024-06-01T12:05", "2024-06-01T12:15"
SECOND = "2019-01-01T03:00"
READING = "--var rain --units mm/h --missing -9 --z-r 300 1.4"
ARCHIVE_OPTIONS = "--license CC-BY-4.0 --creator A<a@b.org> --identifier DE-DWD-rain --created-with URL"
# The files *.bin have the numbers of in.nc, truth.nc, known.nc and fields.nc.
RADAR_LAYOUT = "dtype=>f4 name=rain time=2024-06-01T12:00"
FIELD_LAYOUT = "shape=2,8,10 dtype=<f8 offset=4 bounds=37,53,104,124 name=t time=2019-01-01 step=3h"
FIELDS = "--model fields.safetensors --static relief.nc:h --missing -999 --units K"


def rain(dataset, **attrs):
    """Replace the reflectivity by rain rates (Z-R relation 300, 1.4) with -9 in a corner."""
    z = dataset.reflectivity.values
    rates = np.where(z > 0, (10 ** (z / 10) / Z_R[0]) ** (1 / Z_R[1]), 0.0).astype("f4")
    rates[:, :6, :6] = -9
    return dataset.drop_vars("reflectivity").assign(rain=(("time", "y", "x"), rates, attrs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    event = synthetic_event(5, 5, (64, 64))[["reflectivity"]]
    known = synthetic_event(3, frames=20, shape=(40, 44))[["reflectivity"]]
    made = {"in": rain(coarsen_dataset(event)), "truth": rain(event), "known": rain(known)}
    made["pred"] = made["truth"].assign(rain=1.2 * made["truth"].rain.where(made["truth"].rain >= 0))
    made["pred"].rain.attrs = {"units": "mm h-1", "standard_name": "rainfall_rate"}
    made["mapped"] = made["truth"].assign(crs=synthetic_event(5, 5, (64, 64)).crs)
    made["mapped"].rain.attrs["grid_mapping"] = "crs"
    humid = [gridded(HUMIDITY).expand_dims({"pressure_level": [level]}, 1) for level in (500.0, 850.0)]
    made["humid"] = xr.concat(humid, "pressure_level")
    made["humid"]["r"][:, 1] *= 0.9
    made["humid"]["pressure_level"].attrs = {"units": "hPa"}
    fields = gridded(TEMPERATURE)
    fields["t"].attrs.pop("units")
    fields["t"][:, 6:, 8:] = -999
    made["fields"] = fields
    made["relief"] = fields.isel(time=0, drop=True).rename(t="h").assign(h=lambda d: 0 * d.h + 10 * d.longitude)
    made["relief"].h.attrs = {"units": "m"}
    made["bytes"] = coarsen_dataset(event)
    packed = {"reflectivity": {"dtype": "uint8", "scale_factor": 0.5, "add_offset": -32.0, "_FillValue": 255}}
    for name, dataset in made.items():
        encoding = packed if name == "bytes" else {}
        dataset.to_netcdf(folder / f"{name}.nc", engine="h5netcdf", encoding=encoding)
    rates = made["in"].rain
    made["in"].assign(prob=(rates.dims, 0 * rates.values + 0.5, {"units": "1"})).to_netcdf(
        folder / "further.nc", engine="h5netcdf"
    )
    torch.manual_seed(1)
    options = {"encoder_options": {"channels": 8, "blocks": 2}, "dpfa_count": 1}
    inr = models.create(
        "inr-small", in_channels=1, static_channels=1, **options, decoder_options={"width": 16, "heads": 2}
    )
    inr.card.input_variables = inr.card.output_variables = [TEMPERATURE]
    inr.card.static_variables = [{"name": "h", "units": "m"}]
    moving = models.create("nowcast-small", hidden=4)
    torch.nn.init.constant_(moving.network.module.output.bias, -0.03)  # all echo decays
    moving.card.floor_dbz, moving.card.ceiling_dbz, moving.card.input_steps = 0.0, 60.0, 3
    probable = radar_model(in_channels=2)
    probable.card.input_variables = [{"name": "reflectivity"}, {"name": "probability", "units": "%", "range": [0, 100]}]
    networks = {
        "radar": radar_model(),
        "probable": probable,
        "fields": inr,
        "humid": generator(),
        "moving": moving,
        "rolling": nowcaster(),
    }
    for name, network in networks.items():
        models.save(network, folder / f"{name}.safetensors")
    for name in ("in", "truth", "known"):
        made[name].rain.values.astype(">f4").tofile(folder / f"{name}.bin")
    (folder / "fields.bin").write_bytes(b"head" + made["fields"].t.values.astype("<f8").tobytes())
    (folder / "points.csv").write_text("name,lat,lon,elev\nA,45.2,110.1,2101\nB,10.0,110.0,0\n")
    return folder


# ---- what each run leaves


def tiles_and_errors(printed):
    out = xr.open_dataset("out.nc")
    names = "tile", "halo", "precision", "time_factor", "z_r"
    assert [out.attrs[f"fastds_{n}"] for n in names] == [16, 0, "bf16", 2, "Z = 300 R^1.4, given"]
    assert out.rain[:, :6, :6].isnull().all() and out.rain[:, 16:, 16:].notnull().all()
    assert "model tiny" in printed and "Errors above 15 dBZ" in printed and "tiny" in Path("out.html").read_text()


def four_times_as_often(printed):
    assert xr.open_dataset("four.nc").sizes["time"] == 9


def check_coarsening(printed):
    assert xr.open_dataset("declared.nc").attrs["fastds_coarsened"] == "linear_z"


def check_probability(printed):
    assert xr.open_dataset("further-fine.nc").attrs["fastds_dynamics"] == "prob as probability (0 to 1)"


def finer_by(name, rows, columns):
    def check(printed):
        t = xr.open_dataset(name).t
        assert t.shape == (2, rows, columns) and t[..., : rows // 2, : columns // 2].notnull().all()
        assert t[..., -2:, -1].isnull().all() and "static maps: h of relief.nc" in xr.open_dataset(name).history

    return check


def stored_as(name, dtype):
    def check(printed):
        assert xr.open_dataset(name).reflectivity.encoding["dtype"] == dtype

    return check


def times_of(name, *minutes):
    def check(printed):
        expected = [np.datetime64(f"2024-06-01T12:{minute:02d}") for minute in minutes]
        assert list(np.atleast_1d(xr.open_dataset(name).time.values)) == expected

    return check


def one_pair(printed):
    assert "1 pairs of input frames" in printed


def second_time(printed):
    rows = list(csv.DictReader(Path("b.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["A", "B"]
    assert float(rows[0]["t_correction"]) == pytest.approx(-5.0, abs=0.01)  # 1000 m above the surface


def two_members(printed):
    out = xr.open_dataset("members.nc")
    assert out.r.shape == (2, 2, 16, 20) and (out.attrs["fastds_seed"], out.attrs["fastds_level"]) == (3, 850.0)
    assert out.pressure_level == 850.0


def rolled(printed):
    out, z = xr.open_dataset("now.nc"), xr.open_dataset("known.nc").rain.values[10]
    names = "block", "coarsening", "interval_s", "precision", "z_r"
    assert [out.attrs[f"fastds_{n}"] for n in names] == [2, 2, 600, "bf16", "Z = 300 R^1.4, given"]
    assert out.reflectivity.shape == (4, 20, 22) and out.forecast_reference_time == np.datetime64("2024-06-01T12:50")
    assert np.array_equal(out.reflectivity[0].isnull(), (z < 0)[::2, ::2]) and "CSI by lead" in printed
    assert Path("now.png").read_bytes()[:4] == b"\x89PNG" and "CSI by lead" in Path("now.html").read_text()


def hindcast(printed):
    out, given = xr.open_dataset("hind.nc"), xr.open_dataset("known.nc").rain.where(lambda r: r >= 0)
    assert out.rainfall_rate.dims == ("forecast_reference_time", "forecast_period", "y", "x")
    assert out.rainfall_rate.shape[1:] == (2, 40, 44)
    heaviest = (10**6 / Z_R[0]) ** (1 / Z_R[1])  # 60 dBZ
    expected = given.sel(time=out.forecast_reference_time).clip(max=heaviest)
    for lead in (0, 1):
        np.testing.assert_allclose(out.rainfall_rate[:, lead], expected, rtol=1e-3)


def smoothed(printed):
    smooth, matched = (xr.open_dataset(name) for name in ("smooth.nc", "matched.nc"))
    assert (smooth.attrs["fastds_smooth"], matched.attrs["fastds_smooth"]) == (1, 0)
    assert (matched.fastds_errors if "fastds_errors" in matched.attrs else "") == ""
    assert smooth.fastds_errors == "nowcast-errors" and not matched.rainfall_rate.equals(smooth.rainfall_rate)


def drawn(printed):
    out, other = (xr.open_dataset(name).rainfall_rate for name in ("drawn.nc", "other.nc"))
    assert out.shape == (3, 2, 40, 44) and "1 ensemble of 3 members, of 2 fields every 5 min" in printed
    assert out.realization.size == 3 and not out.equals(other)


def check_probabilities(printed):
    out, members = xr.open_dataset("shares.nc"), xr.open_dataset("drawn.nc").rainfall_rate
    there = members.isel(realization=0, drop=True).notnull()
    shares = (members >= out.threshold).mean("realization").where(there)
    xr.testing.assert_allclose(out.probability_of_rainfall_rate_above_threshold, shares.transpose("threshold", ...))


def stations(printed):
    rows = list(csv.DictReader(Path("a.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["A", "B"] * 2
    assert [row["t"] == "nan" for row in rows] == [False, True] * 2 and 255 < float(rows[0]["t"]) < 285


def table_by_hand(printed):
    truth = xr.open_dataset("truth.nc").rain.values.astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        t, p = (10 * np.log10(Z_R[0] * (k * truth) ** Z_R[1]) for k in (1.0, 1.2))
    valid = truth[0] >= 0
    valid[:12, :12] = False  # six missing pixels of the input
    valid = binary_erosion(valid, np.ones((5, 5)))
    error = (p.clip(15, 70) - t.clip(15, 70))[[1, 3]][:, valid] ** 2
    table = pd.read_csv("t.csv", index_col="method")
    assert table.mse_t2_15["prediction"] == pytest.approx(error.mean(), rel=1e-3)
    assert "Errors above 15 dBZ" in Path("t.html").read_text()
    assert "prediction" in printed and list(table.index) == ["trilinear", "bicubic", "advection", "prediction"]


def checked(printed):
    assert "format     NetCDF-4, 1 file" in printed and "times      3, 2024-06-01T12:05:00" in printed
    assert "can        nowcast" not in printed and "cannot     nowcast: " in printed
    assert "can        downscale: rain to 5 fields of 128 x 128; model fczsm-small" in printed
    assert "downscale --model radar.safetensors: rain to 5" in printed and "moving.safetensors" not in printed


def archived(printed):
    out, given = archive("a.zarr"), xr.open_dataset("truth.nc").rain.where(lambda r: r >= 0)
    assert out.sizes["time"] == 3
    np.testing.assert_array_equal(out.rainfall_flux, given[1:4])


def archive(name):
    out = xr.open_dataset(name)
    assert out.rainfall_flux.attrs["units"] == "kg m-2 h-1"
    attributes = [out.attrs[key] for key in ("license", "mlcast_created_by", "mlcast_dataset_identifier")]
    assert attributes == ["CC-BY-4.0", "A<a@b.org>", "DE-DWD-rain"] and out.attrs["mlcast_created_with"] == "URL"
    return out


def archive_of_shape(name, *shape):
    def check(printed):
        assert archive(name).rainfall_flux.shape == shape

    return check


def with_chunks(name, chunks, shards):
    def check(printed):
        with xr.open_zarr(name) as found:
            encoding = next(v for v in found.data_vars.values() if v.ndim == 3).encoding
        assert encoding["chunks"][:2] == chunks and encoding["shards"][:2] == shards

    return check


def as_an_archive(name):
    def check(printed):
        assert "computed by 1 process" in printed and Path(f"{name}.manifest").exists()
        assert xr.open_dataset(name).sizes

    return check


def raw_as(name, other):
    """Return a check that a result from raw numbers is that from the NetCDF file."""

    def check(printed):
        raw, expected = (xr.open_dataset(one).load() for one in (name, other))
        for field in expected.data_vars:
            np.testing.assert_array_equal(raw[field], expected[field])
        assert "plain array" in printed and raw.time.equals(expected.time)

    return check


def raw_stations(printed):
    raw, expected = (list(csv.DictReader(Path(name).read_text().splitlines())) for name in ("raw.csv", "a.csv"))
    assert [row["t"] for row in raw] == [row["t"] for row in expected]


def raw_table(printed):
    assert Path("raw-table.csv").read_text() == Path("t.csv").read_text()


def raw_checked(printed):
    assert "format     plain array, 1 file" in printed and "can        downscale: rain to 9 fields" in printed


def plain_copy(printed):
    xr.testing.assert_equal(xr.open_dataset("copy.zarr"), xr.open_dataset("truth.nc"))


def demonstrated(printed):
    assert "synthetic rain event, seed 3: 3 frames of 64 x 64" in printed and "model tiny" in printed
    assert xr.open_dataset("demo/OUT.nc").sizes["x"] == 64


RUNS = {
    f"downscale in.nc out.nc --model radar.safetensors {READING} --tile 16 --halo 0 --threads 1 --precision bf16 "
    "--device cpu --graph never --truth truth.nc --report out.html --picture out.png": tiles_and_errors,
    f"downscale in.nc part.nc --model radar.safetensors {READING} --start 2024-06-01T12:10 --stop 2024-06-01T12:20": (
        times_of("part.nc", 10, 15, 20)
    ),
    f"downscale in.nc four.nc --model radar.safetensors {READING} --time-factor 4": four_times_as_often,
    f"downscale further.nc further-fine.nc --model probable.safetensors {READING} --dynamics {{prob:[0,1]}}": (
        check_probability
    ),
    f"downscale in.nc declared.nc --model radar.safetensors {READING} --smooth --coarsened linear_z": (
        check_coarsening
    ),
    f"downscale in.nc archive.zarr --model radar.safetensors {READING} --workers 1 --append --keep-going": (
        as_an_archive("archive.zarr")
    ),
    f"downscale in.nc chunked.zarr --model radar.safetensors {READING} --chunks time=2,y=32 --shards time=4,y=64": (
        with_chunks("chunked.zarr", (2, 32), (4, 64))
    ),
    "downscale bytes.nc packed.nc --model radar.safetensors --dtype input": stored_as("packed.nc", "int16"),
    "downscale bytes.nc plain.nc --model radar.safetensors --dtype float32": stored_as("plain.nc", "float32"),
    f"downscale fields.nc scale.nc {FIELDS} --scale 2.5": finer_by("scale.nc", 20, 25),
    f"downscale fields.nc grid.nc {FIELDS} --grid 0.5": finer_by("grid.nc", 29, 37),
    f"downscale fields.nc like.nc {FIELDS} --like scale.nc": finer_by("like.nc", 20, 25),
    "downscale humid.nc members.nc --model humid.safetensors --members 2 --seed 3 --level 850": two_members,
    f"nowcast known.nc now.nc --model rolling.safetensors {READING} --steps 4 --block 2 --start 2024-06-01T12:50 "
    "--interval 10min --coarsen 2 --quantity reflectivity --threads 1 --precision bf16 --device cpu "
    "--graph never --all-scores --picture now.png "
    "--truth known.nc --report now.html": rolled,
    f"nowcast known.nc hind.nc --model persistence {READING} --lead 10min --every 15min": hindcast,
    f"nowcast known.nc hind.zarr --model persistence {READING} --lead 10min --every 5min --workers 1 --append "
    "--keep-going --chunks y=32 --shards y=64": as_an_archive("hind.zarr"),
    "nowcast bytes.nc last.nc --model persistence --steps 1 --quantity reflectivity --dtype input": (
        stored_as("last.nc", "int16")
    ),
    "nowcast bytes.nc same.nc --model persistence --steps 1 --quantity reflectivity --dtype float32": (
        stored_as("same.nc", "float32")
    ),
    f"nowcast known.nc stopped.nc --model persistence {READING} --steps 1 --stop 2024-06-01T12:30": (
        times_of("stopped.nc", 35)
    ),
    f"nowcast known.nc matched.nc --model moving.safetensors {READING} --steps 2": lambda printed: None,
    f"nowcast known.nc smooth.nc --model moving.safetensors {READING} --steps 2 --smooth": smoothed,
    f"nowcast known.nc other.nc --model extrapolation {READING} --steps 2 --members 3": lambda printed: None,
    f"nowcast known.nc drawn.nc --model extrapolation {READING} --steps 2 --members 3 --seed 4": drawn,
    f"nowcast known.nc shares.nc --model extrapolation {READING} --steps 2 --members 3 --seed 4 "
    "--probability 0.5,2": check_probabilities,
    f"query fields.nc --points points.csv --output a.csv {FIELDS} --outside nan --threads 1 --device cpu "
    "--precision fp32 --graph auto": stations,
    f"query fields.nc --points points.csv --output b.csv {FIELDS} --var t --start {SECOND} --stop {SECOND} "
    "--outside nan --height elev --lapse-rate 5": second_time,
    f"evaluate pred.nc truth.nc {READING} --start 2024-06-01T12:00 --stop 2024-06-01T12:10 --workers 1": one_pair,
    f"evaluate pred.nc truth.nc --input in.nc {READING} --csv t.csv --report t.html --all-scores": table_by_hand,
    f"check truth.nc --var rain --units mm/h --missing -9 --start {PART[0]} --stop {PART[1]} "
    "--model radar.safetensors": checked,
    f"convert mapped.nc a.zarr --to mlcast --var rain --units mm/h --missing -9 --start {PART[0]} --stop {PART[1]} "
    f"{ARCHIVE_OPTIONS}": archived,
    f"downscale mapped.nc fine.zarr --model trilinear {READING} --to mlcast {ARCHIVE_OPTIONS}": (
        archive_of_shape("fine.zarr", 9, 128, 128)
    ),
    f"nowcast mapped.nc next.zarr --model persistence {READING} --steps 2 --to mlcast {ARCHIVE_OPTIONS}": (
        archive_of_shape("next.zarr", 2, 64, 64)
    ),
    "convert truth.nc copy.zarr --to cf": plain_copy,
    f"downscale in.bin raw.nc --model radar.safetensors {READING} --array 'shape=3,32,32 {RADAR_LAYOUT} step=10min' "
    "--start 2024-06-01T12:10 --stop 2024-06-01T12:20": raw_as("raw.nc", "part.nc"),
    f"nowcast known.bin raw-now.nc --model persistence {READING} --array 'shape=20,40,44 {RADAR_LAYOUT} step=5min' "
    "--steps 1 --stop 2024-06-01T12:30": raw_as("raw-now.nc", "stopped.nc"),
    f"query fields.bin --points points.csv --output raw.csv {FIELDS} --outside nan --array "
    f"'{FIELD_LAYOUT} standard_name=air_temperature'": raw_stations,
    f"evaluate pred.nc truth.bin --input in.nc {READING} --csv raw-table.csv --array "
    f"'shape=5,64,64 {RADAR_LAYOUT} step=5min'": raw_table,
    f"check truth.bin --var rain --units mm/h --missing -9 --array 'shape=5,64,64 {RADAR_LAYOUT} step=5min'": (
        raw_checked
    ),
    f"convert truth.bin raw-copy.nc --array 'shape=5,64,64 {RADAR_LAYOUT} step=5min'": raw_as(
        "raw-copy.nc", "truth.nc"
    ),
    "demo --output demo --model radar.safetensors --seed 3 --size 64 --threads 1 --device cpu": demonstrated,
}


@pytest.fixture
def thread_counts(monkeypatch):
    """Yield the list of numbers of threads that torch is set to; the test begins with 3 threads."""
    numbers, before, change = [], torch.get_num_threads(), torch.set_num_threads
    change(3)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: (numbers.append(n), change(n)))
    yield numbers
    change(before)


@pytest.mark.filterwarnings("ignore:.*trained")
@pytest.mark.parametrize("line", RUNS, ids=lambda line: " ".join(line.split()[:3]))
def test_options_change_the_result(folder, monkeypatch, capsys, thread_counts, line):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("fastds.tasks.radar.demo._write_picture", lambda *args: None)
    monkeypatch.setattr("fastds.tasks.radar.demo.demo", functools.partial(demo, frames=3))
    assert cli.main(shlex.split(line)) == 0, capsys.readouterr().err
    RUNS[line](capsys.readouterr().out)
    assert ("--threads 1" in line) == (thread_counts[:1] == [1])


def test_every_command_option_is_tested():
    tried = {}
    for words in map(str.split, RUNS):
        tried.setdefault(words[0], set()).update(word for word in words if word.startswith("--"))
    commands = build_parser()._subcommands_action.choices
    elsewhere = {"train", "study", "models", "info", "finetune", "export", "watch"}  # in files of their own
    assert set(tried) == set(commands) - elsewhere
    for name, words in tried.items():
        strings = [action.option_strings for action in commands[name]._actions]
        known = [{option for option in names if option.startswith("--")} for names in strings]
        known = [names for names in known if names and not names & {"--help", "--scheduler"}]  # see test_archive.py
        assert all(names & words for names in known), (name, known)


@pytest.mark.parametrize("words", ["query a.nc --points b.csv --out DIR", "demo --out DIR"])
def test_out_is_an_alias_of_output(words):
    options = build_parser().parse_args(words.split())
    assert options[words.split()[0]].output == "DIR"


# ---- trainings and studies, whose options are the fields of their configurations


def leaves(kind, prefix=""):
    """Yield the names and types of all options."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inside = dataclasses.is_dataclass(hints[field.name])
        name = prefix + field.name
        yield from leaves(hints[field.name], f"{name}.") if inside else [(name, hints[field.name])]


def another(kind, default=None):
    """Return a value of a type that is not the default."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return another(next(k for k in inside if k is not type(None)), default)
    if origin is dict or kind is dict:
        return {"key": another(inside[1]) if inside else 3}
    if origin in (list, tuple):
        return [another(k) for k in inside]
    if kind is bool:
        return not default
    return {int: 7, float: 7.25, str: "word"}.get(kind, 5)


def configuration(*words):
    """Return the output of --print-config."""
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--print-config"])
    assert end.value.code in (0, None)


def value_of(values, name):
    for part in name.split("."):
        values = values[part]
    return values


CONFIGURED = {("train", task): importlib.import_module(f"fastds.tasks.{task}.config").TrainingConfig for task in TASKS}
CONFIGURED |= {("study", name): importlib.import_module(STUDIES[name][0]).StudyConfig for name in STUDIES}


@pytest.mark.parametrize("command", CONFIGURED, ids=" ".join)
def test_every_configuration_option_is_used(command, tmp_path, capsys):
    """Options are set on the command line and by the file that --print-config writes."""
    options = {name: kind for name, kind in leaves(CONFIGURED[command]) if name != "methods"}
    configuration(*command, "--data.path=PATH")
    printed = yaml.safe_load(capsys.readouterr().out)
    values = {name: another(kind, value_of(printed, name)) for name, kind in options.items()}
    configuration(*command, *(f"--{name}={json.dumps(v) if v != 'word' else v}" for name, v in values.items()))
    text = capsys.readouterr().out
    assert {name: value_of(yaml.safe_load(text), name) for name in options} == values
    assert all(values[name] != value_of(printed, name) for name in options)
    (tmp_path / "again.yaml").write_text(text)
    configuration(*command, f"--config={tmp_path}/again.yaml")
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(text)
