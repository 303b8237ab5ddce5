# SPDX-License-Identifier: Apache-2.0
"""Tests that files and options that once caused a traceback give a one-line error and status 2."""

import re

import numpy as np
import pytest
import xarray as xr

from fastds.cli import main
from fastds.data import save_dataset, synthetic_event
from fastds.models import load_card
from fastds.training.command import TASKS
from tests.support import forked

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 8)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentences")
    event = synthetic_event(5, 4, (64, 64))[["reflectivity", "crs"]]
    save_dataset(event, folder / "radar.nc")
    first = event.time.values[0].astype("datetime64[ns]")
    event.assign_coords(time=first + np.arange(4) * np.timedelta64(1, "ns")).to_netcdf(folder / "ns.nc")
    latitude = ("latitude", np.linspace(60.0, 40.0, 12), {"standard_name": "latitude", "units": "degrees_north"})
    longitude = ("longitude", np.linspace(0.0, 22.0, 12), {"standard_name": "longitude", "units": "degrees_east"})
    usual = {"r": 50.0, "t": 270.0, "u": 5.0, "z": 5e4}
    dims = ("time", "latitude", "longitude")
    fields = {
        v["name"]: (dims, np.full((1, 12, 12), usual[v["name"]]), v) for v in load_card("inr-small").input_variables
    }
    times = np.array(["2020-01-01"], "datetime64[ns]")
    grid = xr.Dataset(fields, coords={"time": times, "latitude": latitude, "longitude": longitude})
    grid.to_netcdf(folder / "grid.nc", engine="h5netcdf")
    grid.isel(time=slice(0, 0)).to_netcdf(folder / "none.nc", engine="h5netcdf")
    (folder / "points.csv").write_text("name,lat,lon\nA,50,10\n")
    (folder / "long.csv").write_text("name,lat,lon\nA,50,10\nB,50,10,4,5\n")
    (folder / "short.csv").write_text("name,lat,lon\nA,50\n")
    (folder / "latin.csv").write_bytes("name,lat,lon\nZürich,47,8\n".encode("latin-1"))
    (folder / "excel.csv").write_bytes("\ufeffname,lat,lon\nZürich,50,8\n".encode())
    (folder / "bomb.yaml").write_text(BOMB)
    (folder / "scales.yaml").write_text(BOMB + "data: {path: x, scales: *a7}\n")
    (folder / "loop.yaml").write_text("data: &a [*a]\n")
    (folder / "deep.yaml").write_text("[" * 5000)
    (folder / "image.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    return folder


QUERY = ["query", "grid.nc", "--output", "o.csv", "--points"]
CASES = {
    "no time": (["query", "none.nc", "--output", "o.csv", "--points", "points.csv"], "dimension time .* has length 0"),
    "no time, finer": (["downscale", "none.nc", "o.nc", "--scale", "2"], "dimension time of variable r has length 0"),
    "long row": ([*QUERY, "long.csv"], "long.csv: point 2 has 5 values for 3 columns"),
    "short row": ([*QUERY, "short.csv"], "short.csv: point 1 has 2 values for 3 columns"),
    "latin": ([*QUERY, "latin.csv"], "latin.csv is not in UTF-8 .byte 0xfc at 14.: save it as UTF-8"),
    "scale": (["downscale", "grid.nc", "o.nc", "--scale", "1e9"], "--scale must leave at most 16777216 .* 1.2e.10"),
    "huge scale": (["downscale", "grid.nc", "o.nc", "--scale", "1e300"], "--scale must leave at most"),
    "grid": (["downscale", "grid.nc", "o.nc", "--grid", "1e-9"], "--grid must leave at most .*, got 1e-09"),
    "ns": (["nowcast", "ns.nc", "o.nc"], "time steps must be at least 1 ms, most are 1e-09 s"),
    "ns, finer": (["downscale", "ns.nc", "o.nc"], "time steps must be at least 1 ms"),
    "threads": (["nowcast", "radar.nc", "o.nc", "--threads", "100000"], "--threads must be a whole number from 1 to"),
    "threads, finer": (["downscale", "radar.nc", "o.nc", "--threads", "100000"], "--threads must be a whole number"),
    "threads, points": ([*QUERY, "points.csv", "--threads", "100000"], "--threads must be a whole number"),
    "device": (["nowcast", "radar.nc", "o.nc", "--device", "tpu"], "--device must be auto, cpu or cuda, got 'tpu'"),
    "bomb": (["train", "radar", "--config", "bomb.yaml", "--data.path=x"], "bomb.yaml stands for more than 100000"),
    "bomb for a list": (["train", "radar", "--config=scales.yaml"], "scales.yaml stands for more than 100000 values"),
    "loop": (["train", "radar", "--config=loop.yaml"], "loop.yaml stands for more than"),
    "deep": (["train", "radar", "--config=deep.yaml"], "deep.yaml is no YAML file"),
    "image": (["train", "radar", "--config=image.yaml"], "image.yaml is no YAML file"),
    "long value": (["train", "radar", "--data.path=x", f"--data.scales={'x' * 100_000}"], "data.scales"),
} | {
    f"batch of {task}": (["train", task, "--data.path=x", "--data.batch-size=0"], "--data.batch-size must be at least")
    for task in TASKS
} | {
    f"epoch of {task}": (
        ["train", task, "--data.path=x", "--data.batch-size=8", "--data.epoch-samples=7"],
        "--data.epoch-samples must be at least --data.batch-size, got 7",
    )
    for task in TASKS
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_errors_are_one_sentence(folder, monkeypatch, capsys, case):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    arguments, sentence = CASES[case]
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"fastds {arguments[0]}: ") and len(lines[-1]) < 1200, lines
    assert all(line.startswith("warning: ") for line in lines[:-1])
    assert re.search(sentence, lines[-1]), lines
    assert sorted(folder.iterdir()) == before


def test_csv_file_with_byte_order_mark(folder, tmp_path, capsys):
    output = tmp_path / "o.csv"
    command = ["query", f"{folder}/grid.nc", "--points", f"{folder}/excel.csv", "--output", str(output)]
    assert main(command) == 0, capsys.readouterr().err
    assert output.read_text(encoding="utf-8").splitlines()[0].startswith("name,lat,lon,")


FLIPPED = """
import gc, sys
sys.argv[0] = "fastds"
from fastds.cli import main
for path in sys.argv[1:]:
    main(["nowcast", path, path + ".out.nc", "--model", "persistence"])
    gc.collect()
"""


def test_damaged_file_error_is_the_last_output(folder, tmp_path):
    content, rng, files = (folder / "radar.nc").read_bytes(), np.random.default_rng(0), []
    for number in range(25):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 40):
            damaged[place] ^= 1 << int(rng.integers(8))
        files.append(tmp_path / f"{number}.nc")
        files[-1].write_bytes(damaged)
    done = forked.run(FLIPPED, *files, imports=forked.TORCH)
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and all(x.startswith(("fastds nowcast: ", "warning: ")) for x in lines), done.stderr
    assert sum("cannot be read" in line for line in lines) > 5
