# SPDX-License-Identifier: Apache-2.0
"""Tests of downscaling many files into one Zarr store: complete, killed and continued runs, and workers."""

import contextlib
import json
import os
import pickle
import signal
import socket
import sys
import time

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds import models
from fastds.archive import manifest, request, run, workers
from fastds.archive.manifest import Manifest
from fastds.archive.workers import ChunkResult, choose_threads
from fastds.cli import main
from fastds.data import save_dataset
from fastds.tasks.radar.pipeline import RadarPipeline
from tests.support import forked
from tests.support.archives import archive, same, stored
from tests.support.pipelines import counted, fields
from tests.support.small_models import HUMIDITY, TEMPERATURE, field_model, generator, nowcaster, radar_model

zarr = pytest.importorskip("zarr", reason="archives need the package zarr")
dask = pytest.importorskip("dask", reason="archives need the package dask")
pytestmark = pytest.mark.usefixtures("small_chunks")


def test_archive_equals_a_single_run(files, event):
    report = archive(files, model=str(files / "w.safetensors"))
    found = stored(files / "out.zarr")
    expected = fastds.downscale(files / "w.safetensors", event, threads=1)
    assert found.drop_attrs().equals(expected.drop_attrs()) and found.attrs["fastds_model"] == "tiny"
    assert found.reflectivity.encoding["chunks"] == (1, 64, 64) and found.reflectivity.dtype == np.float32
    assert any("5 chunks: 5 computed by 1 process" in note for note in report.notes)
    assert any("read 6 files of the format NetCDF-4, 12 times" in note for note in report.notes)
    assert sorted(p.name for p in files.iterdir()) == ["in", "out.zarr", "out.zarr.manifest", "w.safetensors"]


def test_archive_progress_messages():
    took = ((1, 2e9, "a"), (2, 5e9, "b"), (6, 1e9, "a"))
    made = [ChunkResult(chunk=None, seconds=seconds, peak_bytes=peak, worker=who) for seconds, peak, who in took]
    assert run._summarize(5, made) == [
        "5 chunks: 3 computed (2 by a, 1 by b), 2 already done",
        "3.00 s a chunk; peak memory 5.0 GB",
    ]
    assert run._summarize(1, []) == ["1 chunk: 1 already done"]
    assert run._summarize(2, made[:1])[0] == "2 chunks: 1 computed by a, 1 already done"
    assert run._truncate(list("abcde")) == list("abcde") and run._truncate(list("abcdefg"))[4:] == [
        "e",
        "... and 2 more",
    ]


def test_archive_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [choose_threads(None, workers, None) for workers in (None, 3, 9)] == [8, 2, 1]
    assert choose_threads(5, 3, None) == 5 and choose_threads(None, None, "tcp://x:1") is None


@pytest.mark.parametrize("killed_after", [0, 3, 5])
def test_killed_archive_resumes_without_recomputing(files, whole, monkeypatch, killed_after):
    known, computed = workers.process_chunk, []

    def make(job, store, piece):
        if len(computed) == killed_after and stop:
            raise KeyboardInterrupt
        computed.append(piece)
        return known(job, store, piece)

    monkeypatch.setattr(workers, "process_chunk", make)
    stop = True
    if killed_after < 5:
        with pytest.raises(KeyboardInterrupt):
            archive(files)
        assert not (files / "out.zarr").exists()
        part = stored(files / "out.zarr.part").reflectivity
        assert np.isnan(part[sum(p.outputs[1] - p.outputs[0] for p in computed) :]).all()  # missing, not dry
    else:  # after the last chunk
        monkeypatch.setattr(run, "commit_output", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            archive(files)
        monkeypatch.undo()
        small = pytest.MonkeyPatch()
        small.setattr(workers, "process_chunk", make)
    stop = False
    report = archive(files)
    assert len(computed) == len(set(computed)) == 5 and same(stored(files / "out.zarr"), whole)
    assert any(f"{5 - killed_after} computed by 1 process" in note or "5 already done" in note for note in report.notes)
    if killed_after == 5:
        small.undo()


def test_finished_archive_is_left_unchanged(files, monkeypatch):
    archive(files)
    computed, looked, known = [], [], manifest.get_file_stamp
    counted(monkeypatch, RadarPipeline, computed)
    monkeypatch.setattr(manifest, "get_file_stamp", lambda file: looked.append(file) or known(file))
    report = archive(files)
    assert len(looked) == 6  # once at each file, which is slow on a network
    assert not computed and any("5 already done" in note for note in report.notes)


def test_archive_killed_before_its_last_step_resumes(files, monkeypatch):
    """The store already has its final name, and the manifest does not."""
    archive(files)
    os.replace(files / "out.zarr.manifest", files / "out.zarr.part.manifest")
    computed = []
    counted(monkeypatch, RadarPipeline, computed)
    archive(files)
    assert not computed and (files / "out.zarr.manifest").exists() and not (files / "out.zarr.part.manifest").exists()


def test_truncated_manifest_line_is_recomputed(files):
    archive(files)
    manifest = files / "out.zarr.manifest"
    manifest.write_text(manifest.read_text()[:-9])
    report = archive(files)
    assert any("1 computed by" in note for note in report.notes)


@pytest.mark.parametrize("first", [1, 3, 5])
def test_archive_appends_new_files(files, whole, monkeypatch, first):
    names = [f"{number}.nc" for number in range(6)]
    archive(files, names[:first], append=True)
    assert stored(files / "out.zarr").sizes["time"] < whole.sizes["time"]
    computed = []
    counted(monkeypatch, RadarPipeline, computed)
    archive(files, names, append=True)
    assert same(stored(files / "out.zarr"), whole)
    assert len(computed) == {1: 5, 3: 3, 5: 3}[first]  # with the last piece of before, where no gap follows
    with xr.open_zarr(files / "out.zarr", consolidated=True) as dataset:
        assert dataset.sizes["time"] == 21


def test_append_updates_the_ood_score(files):
    model = radar_model()
    model.card.input_ranges = {"flow residual": [0.0, 1.0]}
    models.save(model, files / "w.safetensors")
    scores = []
    for target, names in (("out.zarr", ["0.nc"]), ("out.zarr", ["0.nc", "1.nc"]), ("new.zarr", ["0.nc", "1.nc"])):
        archive(files, names, target, model=str(files / "w.safetensors"), append=True)
        scores.append(stored(files / target).attrs["fastds_out_of_domain"])
    assert scores[0] != scores[1] == scores[2]


def test_killed_append_resumes(files, whole, monkeypatch):
    names = [f"{number}.nc" for number in range(6)]
    archive(files, names[:3])
    known, computed = workers.process_chunk, []

    def make(job, store, piece):
        if len(computed) == 1 and len(computed) == stop:
            raise KeyboardInterrupt
        computed.append(piece)
        return known(job, store, piece)

    stop = 1
    with monkeypatch.context() as context:
        context.setattr(workers, "process_chunk", make)
        with pytest.raises(KeyboardInterrupt):
            archive(files, names, append=True)
        part = stored(files / "out.zarr").reflectivity
        assert part.sizes["time"] == 21 and np.isnan(part[-1]).all() and np.isfinite(part[0]).all()
        stop = None
        archive(files, names, append=True)
    assert len(computed) == len(set(computed)) and same(stored(files / "out.zarr"), whole)


def test_append_rejects_incompatible_files(files):
    names = [f"{number}.nc" for number in range(6)]
    archive(files, names[1:4])
    for source, options, sentence in (
        (names, {}, "the new files do not come after those in the store"),
        (names[2:], {}, "1.nc is not among the files; without the argument append it is made anew"),
        (names[1:], {"options": {"time_factor": 4}}, "time_factor was None and is 4; "),
    ):
        with pytest.raises(ValueError, match=sentence):
            archive(files, source, append=True, **options)
    os.utime(files / "in" / "2.nc", (1, 1))
    with pytest.raises(ValueError, match="2.nc has changed"):
        archive(files, names[1:], append=True)
    (files / "out.zarr.manifest").unlink()
    with pytest.raises(ValueError, match="there is no out.zarr.manifest"):
        archive(files, names[1:], append=True)


def test_unfinished_archive_of_other_options_is_not_overwritten(files, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(workers, "process_chunk", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            archive(files)
    with pytest.raises(ValueError, match=r"out\.zarr\.part is unfinished and of other files or options"):
        archive(files, options={"time_factor": 4})
    (files / "out.zarr.part.manifest").unlink()
    archive(files, options={"time_factor": 4})  # of nothing that was done
    assert stored(files / "out.zarr").attrs["fastds_time_factor"] == 4


def test_other_request_replaces_the_archive_when_finished(files):
    archive(files)
    archive(files, options={"time_factor": 4})
    assert stored(files / "out.zarr").sizes["time"] == 39
    assert Manifest(files / "out.zarr").fingerprint["options"] == {"time_factor": 4}


def test_archive_started_on_gpu_is_not_resumed_on_cpu(files, monkeypatch):
    """The manifest stores the device that "auto" selected when the archive was started."""
    archive(files, ["0.nc", "1.nc"], options={"device": "auto"})
    assert Manifest(files / "out.zarr").fingerprint["options"]["device"] == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        run, "create_pipeline", lambda request: pytest.fail("computed") if request.options["device"] == "cpu" else job
    )
    job = RadarPipeline(radar_model(), fastds.data.open_dataset(files / "in"))
    with pytest.raises(ValueError, match="device was 'cpu' and is 'cuda'"):
        archive(files, options={"device": "auto"}, append=True)


def test_unreadable_file_raises_or_is_skipped(files, event):
    whole = (files / "in" / "2.nc").read_bytes()
    (files / "in" / "2.nc").write_bytes(whole[: len(whole) // 2])
    other = event.isel(time=slice(4, 6), x=slice(0, 30))
    save_dataset(other.assign_coords(time=other.time + np.timedelta64(1, "D")), files / "in" / "9.nc")
    with pytest.raises((ValueError, OSError), match=r"2\.nc"):
        archive(files)
    report = archive(files, keep_going=True)
    assert sum("2.nc" in note or "9.nc" in note for note in report.notes) == 2
    expected = fastds.downscale("trilinear", event.isel(time=[0, 1, 2, 3, *range(6, 12)]), threads=1)
    assert stored(files / "out.zarr").drop_attrs().equals(expected.drop_attrs())


def test_failing_chunk_raises_or_is_skipped(files, event):
    """More than half of the values of four times are impossible."""
    for number in (3, 4):
        bad = event.isel(time=slice(2 * number, 2 * number + 2)).copy(deep=True)
        bad["reflectivity"][:, :28] = 300.0
        save_dataset(bad, files / "in" / f"{number}.nc")
    with pytest.raises(ValueError, match=r"2024-06-01T13:10.* to 2024-06-01T13:.*: .*reflectivity"):
        archive(files)
    with pytest.warns(UserWarning, match="reflectivity"):  # for a field that the following chunk reads
        report = archive(files, keep_going=True)
    found = stored(files / "out.zarr").reflectivity
    empty = np.isnan(found).all(("y", "x"))
    assert empty.values.nonzero()[0].tolist() == list(range(11, 19))
    assert sum("reflectivity" in note and "2024-06-01T13:10" in note for note in report.notes) == 1
    report = archive(files, keep_going=True)  # tries again what failed
    assert any("1 computed by 1 process, 4 already done" in note for note in report.notes)


def test_chunk_warnings_are_printed_once(files, recwarn):
    weights = radar_model()
    weights.card.cadence_s = (3000.0, 6000.0)
    models.save(weights, files / "w.safetensors")
    archive(files, model=str(files / "w.safetensors"))
    words = [str(warning.message) for warning in recwarn if "cadence" in str(warning.message)]
    assert len(words) == 1


def test_archive_is_packed_like_the_input(files, event):
    packed = event.copy()
    packed["reflectivity"].encoding = {"dtype": "uint8", "scale_factor": 0.5, "add_offset": -32.0, "_FillValue": 255}
    save_dataset(packed, files / "packed.nc")
    archive(files, "packed.nc", dtype="input")
    archive(files, "packed.nc", target="float.zarr")
    found, plain = stored(files / "out.zarr").reflectivity, stored(files / "float.zarr").reflectivity
    assert found.encoding["dtype"] == np.int32 and found.encoding["scale_factor"] == 0.0625
    assert float(abs(found - plain).max()) <= 0.0313 and ((plain == -32) == (found == -32)).all()


def test_archive_packing_rounds_like_netcdf(files, monkeypatch, event):
    """The test value rounds in float32 to the middle between two packed steps."""
    packed, tie = event.copy(), np.float32(21.46875) - np.float32(1e-6)
    packed["reflectivity"].encoding = {"dtype": "uint8", "scale_factor": 0.5, "add_offset": -32.0, "_FillValue": 255}
    save_dataset(packed.isel(time=slice(0, 2)), files / "packed.nc")
    known = RadarPipeline.compute
    monkeypatch.setattr(RadarPipeline, "compute", lambda *a: {k: np.full_like(v, tie) for k, v in known(*a).items()})
    archive(files, "packed.nc", dtype="input")
    assert (stored(files / "out.zarr").reflectivity == 21.4375).all()


CASES = {
    "fields": (field_model, lambda: fields(TEMPERATURE, 10), ["--scale", "2"], "t"),
    "humidity": (generator, lambda: fields(HUMIDITY, 20), ["--members", "2"], "r"),
}


@pytest.mark.parametrize("task", CASES)
def test_archive_command_of_fields_and_ensembles(tmp_path, task, capsys):
    make, data_of, words, name = CASES[task]
    data = data_of()
    for number in range(2):
        half = slice(number * len(data.time) // 2, (number + 1) * len(data.time) // 2)
        save_dataset(data.isel(time=half), tmp_path / f"{number}.nc")
    models.save(make(), tmp_path / "w.safetensors")
    words = [f"{tmp_path}/?.nc", "--model", str(tmp_path / "w.safetensors"), "--dtype", "float32", *words]
    words += ["--threads", "1"]  # with other numbers networks round differently
    for target, more in (("made.nc", []), ("b.zarr", ["--workers", "1"])):
        assert main(["downscale", words[0], str(tmp_path / target), *words[1:], *more]) == 0
    assert "computed by 1 process" in capsys.readouterr().out
    with xr.open_dataset(tmp_path / "made.nc", engine="h5netcdf") as expected:
        found = stored(tmp_path / "b.zarr")
        assert found[name].dims == expected[name].dims and np.array_equal(found[name], expected[name])


def test_archive_of_hindcasts(files, tmp_path, capsys):
    models.save(nowcaster(), tmp_path / "n.safetensors")
    words = ["--model", str(tmp_path / "n.safetensors"), "--steps", "2", "--coarsen", "1", "--interval", "10min"]
    words += ["--every", "10min", "--dtype", "float32"]
    for target, more in (("a.nc", []), ("b.zarr", ["--append"])):
        assert main(["nowcast", f"{files}/in/*.nc", str(files / target), *words, *more]) == 0
    with xr.open_dataset(files / "a.nc", engine="h5netcdf") as expected:
        found = stored(files / "b.zarr")
        assert np.array_equal(found.rainfall_rate, expected.rainfall_rate, equal_nan=True)
        assert found.forecast_reference_time.equals(expected.forecast_reference_time)
    one = [*words[:8], "--start", "2024-06-01T12:50", "--workers", "1"]
    assert main(["nowcast", f"{files}/in/*.nc", f"{files}/c.zarr", *one]) == 2
    assert "an archive has several times or forecasts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["o.nc", "--workers", "2"], "the output of an archive is a Zarr store, whose name ends in .zarr, got"),
        (["o.zarr", "--workers", "0"], "--workers must be a whole number from 1 to"),
        (["o.zarr", "--workers", "2", "--scheduler", "tcp://x:1"], "give one of --workers and --scheduler"),
        (["o.zarr", "--append", "--report", "r.html"], "--report is for results that are made at once"),
    ],
)
def test_archive_rejects_conflicting_options(files, words, sentence, capsys):
    target, *options = words
    model = ["--model", str(files / "w.safetensors")]
    options = [str(files / "r.html") if word == "r.html" else word for word in options]
    assert main(["downscale", f"{files}/in", str(files / target), *model, *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(files.glob("o.*"))


def test_archive_with_dask_scheduler(files, event):
    """A scheduler is given by its address or by a file."""
    distributed = pytest.importorskip("distributed", reason="several workers need the package distributed")
    form = {"processes": False, "protocol": "tcp", "dashboard_address": None, "threads_per_worker": 1}
    with distributed.LocalCluster(n_workers=1, **form) as cluster:
        report = archive(files, scheduler=cluster.scheduler_address)
        (files / "dask.json").write_text(json.dumps({"address": cluster.scheduler_address, "workers": {}}))
        archive(files, target="other.zarr", scheduler=str(files / "dask.json"))
    assert any(f"5 computed by 1 workers of {cluster.scheduler_address}" in note for note in report.notes)
    assert same(stored(files / "out.zarr"), stored(files / "other.zarr"))
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), pytest.raises(OSError, match="127.0.0.1:9"):
        archive(files, target="third.zarr", scheduler="tcp://127.0.0.1:9")


def test_small_archive_starts_no_workers(files, whole, monkeypatch):
    monkeypatch.setattr(workers, "open_cluster", lambda *_: pytest.fail("workers were started"))
    report = archive(files, workers=2)
    assert any("5 computed by 1 process" in note for note in report.notes)
    assert same(stored(files / "out.zarr"), whole)


def test_single_chunk_starts_no_workers(files, monkeypatch):
    monkeypatch.setattr(workers, "open_cluster", lambda *_: pytest.fail("workers were started"))
    monkeypatch.setattr(workers, "MIN_WORK_S", 0)
    assert any("1 chunk: 1 computed" in note for note in archive(files, ["0.nc", "1.nc"], workers=2).notes)


def test_long_first_chunk_runs_alongside_workers(files, whole, monkeypatch):
    """The first chunk ends after a worker has computed the other chunks."""
    distributed = pytest.importorskip("distributed", reason="several workers need the package distributed")
    known, done, latest = workers.process_chunk, files / "done", time.monotonic() + 60

    def make(job, store, piece):
        if piece.steps[0] > 0:
            (done / str(piece.steps[0])).mkdir(parents=True)
        while piece.steps[0] == 0 and len(list(done.glob("*"))) < 4 and time.monotonic() < latest:
            time.sleep(0.01)
        return known(job, store, piece)

    @contextlib.contextmanager
    def cluster(count, scheduler):
        form = {"processes": False, "protocol": "tcp", "dashboard_address": None, "threads_per_worker": 1}
        local = distributed.LocalCluster(n_workers=1, **form)
        with local, distributed.Client(local, set_as_default=False) as client:
            yield client, 1, "a worker"

    monkeypatch.setattr(workers, "process_chunk", make)
    monkeypatch.setattr(workers, "MIN_WORK_S", 0.01)
    monkeypatch.setattr(workers, "open_cluster", cluster)
    report = archive(files, workers=2)
    assert any("5 computed (4 by a worker, 1 by 1 process)" in note for note in report.notes)
    assert same(stored(files / "out.zarr"), whole)


def test_workers_do_not_reopen_files(files, monkeypatch):
    job_request = request.Request("radar", tuple(map(str, sorted((files / "in").iterdir()))), "trilinear", {}, {})
    job = request.create_pipeline(job_request)
    there = pickle.dumps(workers.PickledPipeline(job))
    monkeypatch.setattr("fastds.data.formats.opening.FileProbe", lambda path: pytest.fail(f"opened {path}"))
    for number in (0, 4, 5):
        os.remove(files / "in" / f"{number}.nc")
    piece = job.make_chunks(4)[1]
    (values,), (expected,) = (made.compute(piece).values() for made in (pickle.loads(there).pipeline, job))
    assert piece.reads == (2, 6) and np.array_equal(values, expected)


# The command, killed when its manifest, the first word, has a piece.
KILLED = """
import os, pathlib, signal, sys, threading, time
from fastds.archive import workers
from fastds.cli import main
workers.MIN_WORK_S = 0
manifest = pathlib.Path(sys.argv.pop(1))
def kill():
    while not manifest.exists() or manifest.read_text().count("\\n") < 2:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals of POSIX")
def test_restarted_workers_give_identical_results(files, whole, capsys, monkeypatch):
    """The run is killed when a chunk is done. The restarted run does not compute this chunk again."""
    distributed = pytest.importorskip("distributed", reason="several workers need the package distributed")
    monkeypatch.setattr(workers, "MIN_WORK_S", 0)
    words = ["downscale", str(files / "in"), str(files / "out.zarr"), "--model", "trilinear", "--dtype", "float32"]
    words += ["--workers", "2"]
    manifest = files / "out.zarr.part.manifest"
    assert forked.run(KILLED, manifest, *words).returncode in (-signal.SIGKILL, 0)
    done = sum("piece" in json.loads(line) for line in manifest.read_text().splitlines()) if manifest.exists() else 0
    with socket.socket() as taken:  # the port of dask's dashboard, by another archive
        with contextlib.suppress(OSError):
            taken.bind(("", 8787))
            taken.listen()
        assert main(words) == 0
    left, captured = done if done else 5, capsys.readouterr()  # the run may have been over before the kill
    share = f"by 2 workers of at most {distributed.system.MEMORY_LIMIT / 2e9:.1f} GB each"
    assert (share in captured.out or left == 5) and "8787" not in captured.err
    assert same(stored(files / "out.zarr"), whole)
    entries = [json.loads(line) for line in (files / "out.zarr.manifest").read_text().splitlines()]
    assert len([e for e in entries if "piece" in e]) == 5
