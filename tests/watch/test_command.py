# SPDX-License-Identifier: Apache-2.0
"""Tests of the options, signals and files of `fastds watch`."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fastds._parsers import build_command_parser
from fastds.cli import main
from fastds.data import save_dataset, synthetic_event
from fastds.watch import heartbeat, service, wake_up
from fastds.watch.input_windows import Window, select_window
from fastds.watch.state import Input
from tests.support import watch_cases
from tests.support.watch_cases import kinds

EXTRAPOLATION, TRILINEAR = "nowcast --model extrapolation --steps 1", "downscale --model trilinear"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "fastds watch: the command after -- must be nowcast or downscale with its options, got none"),
        ("evaluate a b", "fastds watch: the command after -- must be nowcast or downscale with its options, got"),
        ("nowcast in.nc out.nc", "leave out 'in.nc': fastds watch gives the command its input and output files"),
        ("nowcast --start 2020-01-01", "fastds nowcast: leave out --start, which does not work with fastds watch"),
        ("nowcast --every 5min", "leave out --every,"),
        ("downscale --truth t.nc", "leave out --truth,"),
        ("downscale --workers 2", "leave out --workers,"),
        ("downscale --to mlcast", "leave out --to,"),
        ("nowcast --setps 3", "fastds nowcast: unknown option --setps; did you mean --steps?"),
        ("nowcast --steps x", "fastds nowcast: --steps must be a whole number, got 'x'"),
        ("nowcast --steps 0", "fastds nowcast: --steps must be"),
        ("nowcast --steps 3 --lead 5min", "fastds nowcast: give one of --steps and --lead"),
        ("nowcast --model persistence --members 2", "fastds nowcast: method persistence moves nothing"),
        ("nowcast --model nothing.safetensors", "nothing.safetensors"),
        ("downscale --model nowcast-small", "forecasts and does not downscale"),
        ("downscale --scale 2 --time-factor 2", "--time-factor is no option for fields"),
    ],
)
def test_options_of_the_command_are_checked_before_anything_is_written(make_station, capsys, command, message):
    station = make_station(command)
    station.arrive(0)
    assert station.turn()[0] == 2 and not station.events() and not os.listdir(station.out)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--keep 3", "--keep must be a duration with its unit such as 60min or 1h, got '3'"),
        ("--poll 0", "--poll must be positive, got 0"),
        ("--settle -1", "--settle must be 0 or more, got -1"),
        ("--deadline 0", "--deadline must be positive, got 0"),
        ("--window 3", "--window is for nowcast, the command is downscale"),
        ("--name a/{stem}.nc", "--name must give the name of a NetCDF file, such as {stem}.nc, got 'a/input.nc'"),
        ("--name {stem}.zarr", "--name must give the name of a NetCDF file"),
        ("--name {site}.nc", "--name must be a format with the fields time and stem, got '{site}.nc': unknown field"),
        ("--heartbeat in/beat", "--heartbeat must not be in IN_FOLDER"),
        ("--heartbeat nowhere/beat", "--heartbeat: no such folder"),
        ("--late no", "--late"),
        ("--options nowhere.txt", "nowhere.txt"),
    ],
)
def test_options_are_checked(make_station, monkeypatch, capsys, options, message):
    station = make_station(TRILINEAR)
    monkeypatch.chdir(station.folder)
    assert station.turn(*options.split())[0] == 2 and not os.listdir(station.out)
    assert message in capsys.readouterr().err


def test_folders_are_checked(make_station, capsys):
    station = make_station(TRILINEAR)
    assert main(["watch", str(station.out), str(station.out), "--", "downscale"]) == 2
    assert "OUT_FOLDER must be another folder than IN_FOLDER" in capsys.readouterr().err
    assert main(["watch", str(station.out / "a"), str(station.out), "--", "downscale"]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_state_of_another_command_and_damaged_state_are_refused(make_station, capsys):
    station = make_station(TRILINEAR)
    station.arrive(0)
    station.turn()
    state = station.out / "fastds-watch.json"
    stored = json.loads(state.read_text())
    state.write_text(json.dumps(stored | {"command": "nowcast"}))
    assert station.turn()[0] == 2 and "-- nowcast; take another OUT_FOLDER for downscale" in capsys.readouterr().err
    state.write_text("{")
    assert station.turn()[0] == 2 and "fastds-watch.json is not a state file" in capsys.readouterr().err


def test_names_and_retention(make_station):
    station = make_station(TRILINEAR)
    station.arrive(*range(4))
    (station.out / "20240601T1150.nc").write_text("of another program")
    options = "--name", "{time:%Y%m%dT%H%M}_{stem}.nc", "--keep", "5min"
    assert kinds(station.turn(*options)[1]) == ["computed", "computed", "computed", "removed", "computed", "removed"]
    assert station.outputs() == ["20240601T1150.nc", "20240601T1210_r002.nc", "20240601T1215_r003.nc"]
    station.arrive(4)
    assert kinds(station.turn(*options)[1]) == ["computed", "removed"]


def test_pattern_window_and_limit_of_a_computation(make_station):
    station = make_station(EXTRAPOLATION)
    station.arrive(*range(6))
    station.arrive(6, name="other.nc")
    station.turn("--pattern", "r*.nc", "--window", "5", "--hang", "60")
    inputs = [len(event["inputs"]) for event in station.events("computed")]
    assert inputs == [2, 3, 4, 5, 5] and station.outputs() == [f"r00{number}.nc" for number in range(1, 6)]


def test_every_option_is_tested():
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    text += Path(watch_cases.__file__).read_text()
    names = [action.option_strings for action in build_command_parser("watch")._actions if action.option_strings]
    assert not [found for found in names if found[-1] != "--help" and found[-1] not in text]


def test_times_of_one_file(make_station, tmp_path):
    """The frames of a nowcast may be in one file, and a file that grows is computed again."""
    station = make_station("nowcast --model extrapolation --steps 1 --coarsen 1")
    event = synthetic_event(3, 5, (64, 64))[["reflectivity", "crs"]]
    save_dataset(event.isel(time=slice(0, 4)), station.incoming / "all.nc")
    assert kinds(station.turn()[1]) == ["computed"] and station.equals_single_command("all.nc", ["all.nc"])
    save_dataset(event, station.incoming / "all.nc")
    events = station.turn()[1]
    assert kinds(events) == ["computed"] and events[1]["valid_time"] == "2024-06-01T12:20:00"
    assert station.equals_single_command("all.nc", ["all.nc"])


def test_warm_network_computes_the_same_as_a_new_one(make_station):
    station = make_station("nowcast --steps 2")
    station.arrive(*range(7))
    station.turn()
    computed = station.events("computed")
    assert [len(event["inputs"]) for event in computed] == [5, 5, 5]
    assert station.equals_single_command(computed[-1]["output"], computed[-1]["inputs"])


def test_a_file_that_does_not_fit_is_refused_and_others_go_on(make_station):
    station = make_station(TRILINEAR)
    (station.incoming / "notes.nc").write_text("no fields")
    with xr.open_dataset(station.frames[0]) as frame:
        wind = frame[["reflectivity"]].rename(reflectivity="wind")
        wind["wind"].attrs = {"units": "m s-1", "standard_name": "wind_speed"}
        wind.to_netcdf(station.incoming / "wind.nc")
    station.arrive(5)
    status, events = station.turn()
    refused = {event["inputs"][0]: event["message"] for event in events if event["event"] == "refused"}
    assert status == 1 and set(refused) == {"notes.nc", "wind.nc"} and station.outputs() == ["r005.nc"]


def start(station, *options):
    words = [word for word in station.words(*options) if word not in ("--once", "--settle", "0")]
    return subprocess.Popen([sys.executable, "-m", "fastds", *words], stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.05)


def test_running_process_takes_files_signals_and_a_lock(make_station, capfd):
    station = make_station(TRILINEAR)
    options, beat = station.folder / "options.txt", station.folder / "beat"
    options.write_text("--time-factor 2  # comment\n")
    station.arrive(0)
    process = start(
        station, "--settle=0.05", "--heartbeat", str(beat), "--options", str(options), "--deadline", "0.000001"
    )
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        wait_for(lambda: station.events("computed") or process.poll() is not None)
        assert beat.exists()
        assert main(station.words()) == 2  # the folder is locked
        assert "another process works on" in capfd.readouterr().err
        began = time.monotonic()
        station.arrive(1)
        wait_for(lambda: len(station.events("computed")) == 2)
        if importlib.util.find_spec("watchdog"):  # else it looks every 5 s
            assert time.monotonic() - began < 4
        options.write_text("--coarsened nothing\n")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: station.events("reloaded"))
        assert "failed, nothing has changed: fastds downscale: " in station.events("reloaded")[0]["message"]
        options.write_text("--coarsened dbz\n")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(station.events("reloaded")) == 2)
        station.arrive(2)
        wait_for(lambda: len(station.events("computed")) == 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    process.stderr.close()
    counts = station.events("stopped")[0]["counts"]
    assert counts == {"computed": 3, "deadline_missed": 3} and station.events("stopped")[0]["signal"] == 15
    assert station.equals_single_command("r001.nc", ["r001.nc"])
    station.command += ["--coarsened", "dbz"]
    assert station.equals_single_command("r002.nc", ["r002.nc"])


def test_signal_ends_after_the_output(make_station, monkeypatch):
    station = make_station(TRILINEAR)
    station.arrive(0, 1)
    run = service.CommandRunner.run

    def interrupt(self, inputs, output):
        os.kill(os.getpid(), signal.SIGTERM)
        return run(self, inputs, output)

    monkeypatch.setattr(service.CommandRunner, "run", interrupt)
    before = signal.getsignal(signal.SIGTERM)
    assert station.turn()[0] == 0 and station.outputs() == ["r000.nc"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_polling_without_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with wake_up.WakeUp(tmp_path, None) as waiting:
        assert (waiting.method, waiting.interval) == ("polling", wake_up.POLL_S)
    with wake_up.WakeUp(tmp_path, 0.5) as waiting:
        assert (waiting.method, waiting.interval) == ("polling", 0.5)


def test_heartbeat_stops_while_the_process_hangs(monkeypatch, tmp_path):
    monkeypatch.setattr(heartbeat, "_INTERVAL_S", 0.01)
    with heartbeat.Heartbeat(tmp_path / "beat", 0.3) as beat:
        os.utime(tmp_path / "beat", (0, 0))
        wait_for(lambda: (tmp_path / "beat").stat().st_mtime > 0)
        time.sleep(0.35)
        os.utime(tmp_path / "beat", (0, 0))
        time.sleep(0.1)
        assert (tmp_path / "beat").stat().st_mtime == 0
        beat.report_progress()
        wait_for(lambda: (tmp_path / "beat").stat().st_mtime > 0)


def make_inputs(times):
    """Return inputs by name; the names and the order of arrival are those of the dict."""
    return {
        name: Input([0, 0], name, [60.0 * minute for minute in minutes], "", "", number)
        for number, (name, minutes) in enumerate(times.items())
    }


def select(newest, times, offsets=(0, 5), count=0, necessary=None, **known):
    found = 60.0 * np.array(offsets), necessary or len(offsets)
    window = select_window(newest, make_inputs(times), lambda cadence: found, count, **known)
    return "".join(window.files) if not window.gap else window.gap


def test_window_has_the_files_of_the_required_times():
    single = {"a": [0], "b": [5], "c": [10], "d": [15]}
    assert select("d", single) == "cd" and select("c", single) == "bc"
    assert select("d", single, count=3) == "bcd" and select("d", single, count=9) == "abcd"
    assert select("d", single, (0, 10)) == "bcd"  # the fields between define the time step
    assert select("a", single).startswith("no field of 1969-12-31T23:55:00")
    assert "there is one" in select("a", {"a": [0]})


def test_window_has_further_fields_up_to_the_first_gap():
    single = {"a": [0], "b": [5], "c": [10], "d": [15], "e": [20]}
    assert select("e", single, (0, 5, 10, 15), necessary=2) == "bcde"
    assert select("b", single, (0, 5, 10, 15), necessary=2) == "ab"
    del single["b"]
    assert select("e", single, (0, 5, 10, 15), necessary=2) == "cde"
    assert select("c", single, (0, 5, 10, 15), necessary=2) == "no field of 1970-01-01T00:05:00"


def test_window_allows_for_jitter_and_reports_gaps():
    assert select("d", {"a": [0], "b": [5.2], "c": [10], "d": [14.9]}) == "cd"
    assert select("c", {"a": [0], "b": [5], "c": [15]}) == "no field of 1970-01-01T00:10:00"
    assert select("b", {"a": [0], "b": [10], "c": [15]}) == "no field of 1970-01-01T00:05:00"  # by the time step of c


def test_window_knows_the_time_step_of_earlier_files():
    def find(times, **known):
        return select_window("b", make_inputs(times), lambda cadence: (np.array([0, cadence]), 2), **known)

    few = {"a": [0], "b": [10]}
    assert find(few) == Window(["a", "b"], "", 600.0)  # nothing else is known
    assert find(few, cadence=300.0) == Window(["b"], "no field of 1970-01-01T00:05:00", 300.0)
    assert find({"a": [0], "c": [5], "b": [10]}, unusable={"c"}).gap == "no field of 1970-01-01T00:05:00"
    assert find({"0": [-20], "1": [-10], "a": [0], "b": [10]}, cadence=300.0) == Window(["a", "b"], "", 600.0)


def test_window_of_files_with_several_times():
    assert select("a", {"a": [0, 5, 10]}) == "a"
    assert select("b", {"a": [0, 5, 10], "b": [15, 20]}) == "b"
    assert select("b", {"a": [0, 5, 10], "b": [15]}) == "ab"
    assert select("a", {"a": [0, 5], "b": [5, 10]}) == "a"  # later times are not used
    assert select("b", {"old": [5], "new": [5], "b": [10]}) == "bnew"  # the last that arrived
