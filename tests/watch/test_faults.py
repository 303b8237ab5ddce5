# SPDX-License-Identifier: Apache-2.0
"""Tests of `fastds watch` with truncated, late, duplicate and missing files, kills, and a full disk."""

import collections
import errno
import json
import os

import pytest
import xarray as xr

from fastds.cli import main
from fastds.data.io import hdf5_writer
from fastds.watch import durable_files, event_log, service
from tests.support import forked
from tests.support.watch_cases import kinds

EXTRAPOLATION = "nowcast --model extrapolation --steps 1"  # needs two fields
TRILINEAR = "downscale --model trilinear"


def test_outputs_equal_the_single_command_in_spite_of_faults(make_station):
    station = make_station(EXTRAPOLATION)
    station.arrive(*range(8))
    assert kinds(station.turn()[1]) == ["gap", "computed", "skipped", *["computed"] * 6]

    station.arrive(8, share=0.5)  # truncated, then complete
    status, events = station.turn()
    assert (status, kinds(events)) == (1, ["refused"]) and "r008.nc" in events[1]["message"]
    station.arrive(8)
    assert station.turn()[0] == 0 and station.outputs()[-1] == "r008.nc"

    station.arrive(10)  # a gap that is filled
    assert kinds(station.turn()[1]) == ["gap"]
    assert station.events("gap")[-1]["message"] == "no field of 2024-06-01T12:45:00"
    station.arrive(9)
    assert [event["output"] for event in station.turn()[1] if "output" in event] == ["r009.nc", "r010.nc"]

    station.arrive(0, name="first.nc")  # duplicates, of a file without and of one with an output
    station.arrive(5, name="copy.nc")
    os.utime(station.incoming / "r010.nc")
    events = station.turn()[1]
    assert kinds(events) == ["duplicate"] * 3
    assert [event["message"] for event in events[1:3]] == ["has the contents of r005.nc", "has the contents of r000.nc"]
    assert kinds(station.turn()[1]) == []

    station.arrive(12, 13)  # a gap that is filled too late
    assert kinds(station.turn()[1]) == ["gap", "computed", "skipped"]
    station.arrive(11)
    assert kinds(station.turn()[1]) == ["late"]

    station.arrive(14)
    station.arrive(15, name="r014.nc")  # other contents under the same name
    assert kinds(station.turn()[1]) == ["gap"]  # there is no field of the time of frame 14
    station.arrive(14, name="r014.nc")
    assert kinds(station.turn()[1]) == ["computed"]
    station.arrive(*range(15, 18))
    assert kinds(station.turn()[1]) == ["computed"] * 3

    counts = collections.Counter(event["output"] for event in station.events("computed"))
    assert sorted(counts) == station.outputs() and set(counts.values()) == {1}
    assert set(station.outputs()) == {f"r{k:03}.nc" for k in range(18) if k not in (0, 11, 12)}
    for event in station.events("computed")[::7]:
        assert station.equals_single_command(event["output"], event["inputs"]), event
    assert [event["valid_time"] for event in station.events("computed")] == sorted(
        event["valid_time"] for event in station.events("computed")
    )


def test_changed_file_replaces_its_output(make_station):
    station = make_station(TRILINEAR)
    station.arrive(0, 1)
    station.turn()
    station.arrive(7, name="r001.nc")
    events = station.turn()[1]
    assert kinds(events) == ["computed"] and events[1]["replaced"]
    assert station.equals_single_command("r001.nc", ["r001.nc"]) and station.outputs() == ["r000.nc", "r001.nc"]


def test_input_that_is_replaced_by_a_truncated_file_is_not_used(make_station):
    station = make_station(EXTRAPOLATION)
    station.arrive(0, 1)
    station.turn()
    station.arrive(1, share=0.5)
    station.arrive(2)
    status, events = station.turn()
    assert status == 1 and kinds(events) == ["refused", "gap"] and station.outputs() == ["r001.nc"]
    station.arrive(1)
    assert kinds(station.turn()[1]) == ["duplicate", "computed"] and station.outputs() == ["r001.nc", "r002.nc"]


def test_late_files_by_command_and_option(make_station):
    station = make_station(TRILINEAR)
    station.arrive(1)
    station.turn()
    station.arrive(0)
    assert kinds(station.turn("--late", "skip")[1]) == ["late"] and station.outputs() == ["r001.nc"]
    (station.incoming / "r000.nc").unlink()
    station.turn()
    station.arrive(0)
    assert kinds(station.turn()[1]) == ["computed"] and station.outputs() == ["r000.nc", "r001.nc"]


def test_late_files_of_nowcasts_are_computed_on_request(make_station):
    station = make_station(EXTRAPOLATION)
    station.arrive(0, 2, 3)
    station.turn("--late", "compute")
    assert station.outputs() == ["r003.nc"]
    station.arrive(1)
    station.turn("--late", "compute")
    assert station.outputs() == ["r001.nc", "r002.nc", "r003.nc"]
    with xr.open_dataset(station.frames[2]) as frame:
        frame.load()[{"y": slice(None, None, -1)}].assign_coords(y=frame.y).to_netcdf(station.incoming / "r002.nc")
    events = station.turn("--late", "compute")[1]  # the next nowcast used this field, too
    assert [event["output"] for event in events[1:-1]] == ["r002.nc", "r003.nc"]


KILLED = """
import os, signal, sys
from fastds.watch import durable_files, service

moment, words = sys.argv[1], sys.argv[2:]
run, commit, calls = service.CommandRunner.run, durable_files.commit_durably, []

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def run_half(self, inputs, output):
    result = run(self, inputs, output)
    if moment == "while an output is written" and len(calls) == 2:
        contents = output.read_bytes()
        output.write_bytes(contents[: len(contents) // 2])
        output.with_name(f".{output.name}.1-00000000.part").write_bytes(contents[:100])
        kill()
    return result

def commit_output(temporary, target):
    calls.append(target)
    if moment == "before an output is renamed" and len(calls) == 3:
        kill()
    commit(temporary, target)
    if moment == "after an output is renamed" and len(calls) == 3:
        kill()

def commit_state(temporary, target):
    if moment == "before the state is renamed" and len(calls) == 3:
        kill()
    commit(temporary, target)

service.CommandRunner.run, service.commit_durably, durable_files.commit_durably = run_half, commit_output, commit_state
from fastds.cli import main
sys.exit(main(words))
"""


@pytest.mark.parametrize(
    ("moment", "done"),
    [
        ("while an output is written", 2),
        ("before an output is renamed", 2),
        ("after an output is renamed", 3),
        ("before the state is renamed", 3),
    ],
)
def test_nothing_is_lost_half_or_twice_after_a_kill(make_station, moment, done):
    station = make_station(TRILINEAR)
    station.arrive(*range(5))
    killed = forked.run(KILLED, moment, *station.words())
    assert killed.returncode == -9, killed
    assert len([name for name in os.listdir(station.out) if name.startswith("r")]) == done
    status, events = station.turn()
    assert status == 0 and station.outputs() == [f"r00{k}.nc" for k in range(5)]
    again = [event["output"] for event in events if event["event"] == "computed" and "seconds" in event]
    assert again == [f"r00{k}.nc" for k in range(done, 5)]
    assert all(station.equals_single_command(f"r00{k}.nc", [f"r00{k}.nc"]) for k in (2, 3))
    assert kinds(station.turn()[1]) == []


def test_full_disk_is_logged_and_the_output_tried_again(make_station, monkeypatch):
    station = make_station(TRILINEAR)
    station.arrive(0, 1)
    sync, left = durable_files._sync, [4]

    def fail(path):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    compute = service.Service._compute_ready

    def end_when_computed(self):
        compute(self)
        self.wake_up.stop = 15 * (self.log.counts["computed"] == 2)

    monkeypatch.setattr(durable_files, "_sync", fail)
    monkeypatch.setattr(service.Service, "_compute_ready", end_when_computed)
    words = [word for word in station.words("--poll", "0.02") if word != "--once"]
    assert main(words) == 0
    assert "No space left" in station.events("postponed")[0]["message"]
    assert [event["output"] for event in station.events("computed")] == station.outputs() == ["r000.nc", "r001.nc"]
    assert station.events("stopped")[0]["counts"]["computed"] == 2


def test_full_disk_while_an_output_is_written(make_station, monkeypatch):
    class FullDisk(hdf5_writer.DeferredErrorFile):
        def write(self, data):
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return len(data)

    station = make_station(TRILINEAR)
    station.arrive(0)
    with monkeypatch.context() as patched:
        patched.setattr(hdf5_writer, "DeferredErrorFile", FullDisk)
        status, events = station.turn()
    assert status == 1 and kinds(events) == ["postponed"] and station.outputs() == []
    assert events[1]["message"] == f"{station.out / 'r000.nc'} cannot be written: No space left on device"
    assert station.turn()[0] == 0 and station.outputs() == ["r000.nc"]


def test_file_that_changes_while_it_is_computed_is_computed_again(make_station, monkeypatch):
    station = make_station(TRILINEAR)
    station.arrive(0)
    run, runs = service.CommandRunner.run, []

    def change_input(self, inputs, output):
        assert not (station.out / "r000.nc").exists()  # the result of the former contents is dropped
        result = run(self, inputs, output)
        runs.append(output)
        if len(runs) == 1:
            station.arrive(3, name="r000.nc")
        return result

    monkeypatch.setattr(service.CommandRunner, "run", change_input)
    assert station.turn()[0] == 0 and len(runs) == 2
    assert len(station.events("computed")) == 1 and station.equals_single_command("r000.nc", ["r000.nc"])


def test_file_is_read_when_it_does_not_change_any_more(make_station, monkeypatch):
    """A file that is written slowly is not refused; one that stays truncated is."""
    station = make_station(TRILINEAR)
    shares, wait = [0.3, 0.6, 1.0], service.WakeUp.wait

    def write_more(self, seconds):
        if shares:
            station.arrive(0, share=shares.pop(0))
        wait(self, seconds)

    station.arrive(0, share=0.1)
    station.arrive(1, share=0.5)
    monkeypatch.setattr(service.WakeUp, "wait", write_more)
    status, _ = station.turn("--settle", "0.2")
    assert status == 1 and [event["inputs"] for event in station.events("refused")] == [["r001.nc"]]
    assert station.outputs() == ["r000.nc"] and not shares


def test_many_files_leave_nothing_in_memory(make_station, monkeypatch):
    """The state has the files that are in the folders, and other tables are empty."""
    station = make_station(TRILINEAR)
    sizes, services = [], []

    def read_nothing(path, var, reading):
        return [float(path.name[1:6]) * 300], "2024-06-01T12:00:00"

    def write_nothing(self, inputs, output):
        output.write_text(inputs[0].name)
        return []

    def replace_inputs(self, seconds):
        for path in station.incoming.iterdir():
            path.unlink()
        if len(sizes) == 100:
            self.stop = 15
            return
        for k in range(4):
            (station.incoming / f"r{4 * len(sizes) + k:05}.nc").write_text(f"{sizes} {k}")
        sizes.append((station.out / "fastds-watch.json").stat().st_size)

    initialise = service.Service.__init__

    def remember(self, *arguments):
        initialise(self, *arguments)
        services.append(self)

    monkeypatch.setattr(durable_files, "_sync", lambda path: None)  # takes most of the time
    monkeypatch.setattr(service, "read_times", read_nothing)
    monkeypatch.setattr(service.CommandRunner, "run", write_nothing)
    monkeypatch.setattr(service.WakeUp, "wait", replace_inputs)
    monkeypatch.setattr(service.Service, "__init__", remember)
    station.arrive(0, name="r00000.nc")
    main([word for word in station.words("--keep", "1h", "--late", "compute") if word != "--once"])
    assert len(station.events("computed")) > 390 and max(sizes[10:]) - min(sizes[10:]) < 1000
    tables = [value for value in vars(services[0]).values() if isinstance(value, dict | list | set)]
    assert max(map(len, tables)) == 0 and len(services[0].state.inputs) <= 4


def test_every_event_is_one_json_line(make_station, tmp_path):
    log = event_log.EventLog(tmp_path / "log")
    log.write("gap", inputs=["a\nb"], message=None)
    log.close()
    (line,) = (tmp_path / "log").read_text().splitlines()
    event = json.loads(line)
    assert event["inputs"] == ["a\nb"] and event["time"].endswith("Z") and "message" not in event
