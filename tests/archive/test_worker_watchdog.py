# SPDX-License-Identifier: Apache-2.0
"""Tests of killed workers, which are replaced, or end the run with an error message."""

import concurrent.futures
import subprocess
import sys
import types

import pytest

from fastds.archive import worker_watchdog, workers
from fastds.cli import main
from tests.support.archives import same, stored

dask = pytest.importorskip("dask", reason="archives need the package dask")
distributed = pytest.importorskip("distributed", reason="several workers need the package distributed")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="signals of POSIX"),
    pytest.mark.usefixtures("small_chunks"),
]

# Code that each worker runs before it computes. FOLDER has one file for each worker, named after its process id.
PRELOAD = """
import os, pathlib, signal, time
from fastds.archive import workers
folder = pathlib.Path("FOLDER")
workers.known = known = getattr(workers, "known", workers.process_chunk)  # dask runs this file twice in a process
(folder / f"{os.getpid()}.pid").touch()
def process_chunk(pipeline, store, piece):
    HOW
    return known(pipeline, store, piece)
workers.process_chunk = process_chunk
"""
ALL_AT_ONCE = """
    if not (folder / "killed").exists():
        while len(list(folder.glob("*.pid"))) < 2:
            time.sleep(0.01)
        (folder / "killed").touch()
        for pid in sorted((int(file.stem) for file in folder.glob("*.pid")), key=lambda pid: pid == os.getpid()):
            os.kill(pid, signal.SIGKILL)
"""
EACH_AT_A_PIECE = """
    if piece.steps[0] >= 4:
        os.kill(os.getpid(), signal.SIGKILL)
"""

# A scheduler with a worker in one process.
SCHEDULER = """
import runpy, sys
import distributed
runpy.run_path("PRELOAD")
cluster = distributed.LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address=None)
print(cluster.scheduler_address, flush=True)
sys.stdin.read()
"""
HERE = {"processes": False, "protocol": "tcp", "dashboard_address": None, "threads_per_worker": 1}


def preload(files, how):
    """Write a module that workers load at their start."""
    (files / "ids").mkdir()
    (files / "preload.py").write_text(PRELOAD.replace("FOLDER", str(files / "ids")).replace("    HOW", how))
    return str(files / "preload.py")


def words(files, *more):
    form = ["--model", "trilinear", "--dtype", "float32", "--threads", "1"]
    return ["downscale", str(files / "in"), str(files / "out.zarr"), *form, *more]


def test_all_workers_killed_at_once_are_replaced(files, whole, monkeypatch):
    monkeypatch.setattr(workers, "MIN_WORK_S", 0)
    with dask.config.set({"distributed.worker.preload": [preload(files, ALL_AT_ONCE)]}):
        assert main(words(files, "--workers", "2")) == 0
    assert (files / "ids" / "killed").exists() and same(stored(files / "out.zarr"), whole)


def test_repeatedly_killed_workers_end_the_run(files, whole, monkeypatch, capsys):
    """In this test, one killed worker ends the run."""
    monkeypatch.setattr(workers, "MIN_WORK_S", 0)
    settings = {"distributed.scheduler.allowed-failures": 0}
    with dask.config.set(settings | {"distributed.worker.preload": [preload(files, EACH_AT_A_PIECE)]}):
        assert main(words(files, "--workers", "2")) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "computing" not in line]
    assert len(lines) == 1 and "were killed again and again, mostly for want of memory; repeat the command" in lines[0]
    goes_on(files, whole, "--workers", "1")


def test_permanently_lost_workers_end_the_run(files, whole, monkeypatch, capsys):
    monkeypatch.setattr(worker_watchdog, "CHECK_INTERVAL_S", 0.2)
    with distributed.LocalCluster(n_workers=0, **HERE) as cluster:
        address = cluster.scheduler_address
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
        worker += ["--preload", preload(files, EACH_AT_A_PIECE)]
        with subprocess.Popen(worker, stderr=subprocess.DEVNULL) as process:
            cluster.wait_for_workers(1)
            monkeypatch.setattr(worker_watchdog, "TIMEOUT_S", 1.0)
            assert main(words(files, "--scheduler", address)) == 2
            assert process.wait() != 0
    assert "there has been no worker for 1 s; repeat the command when there are some" in capsys.readouterr().err
    goes_on_elsewhere(files, whole)


def test_result_is_not_awaited_after_the_client_is_closed():
    """Dask waits forever for a result whose worker is lost, if the client is closed meanwhile."""
    client = types.SimpleNamespace(status="running")

    def wait(timeout):
        client.status = "closing"
        raise TimeoutError

    with pytest.raises(concurrent.futures.CancelledError):
        workers.wait_for_result(client, types.SimpleNamespace(key="chunk", result=wait))
    done = types.SimpleNamespace(result=lambda timeout: "result")
    assert workers.wait_for_result(client, done) == "result"


def test_lost_scheduler_ends_the_run(files, whole, capsys):
    scheduler = [sys.executable, "-c", SCHEDULER.replace("PRELOAD", preload(files, EACH_AT_A_PIECE))]
    with subprocess.Popen(scheduler, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
            assert main(words(files, "--scheduler", address)) == 2
        assert process.wait() != 0
    assert "the connection to the dask scheduler is lost; repeat the command" in capsys.readouterr().err
    goes_on_elsewhere(files, whole)


def goes_on_elsewhere(files, whole):
    with distributed.LocalCluster(n_workers=1, **HERE) as cluster:
        goes_on(files, whole, "--scheduler", cluster.scheduler_address)


def goes_on(files, whole, *more):
    """Check that the same command completes the archive."""
    assert (files / "out.zarr.part").exists() and (files / "out.zarr.part.manifest").exists()
    assert not (files / "out.zarr").exists()
    assert main(words(files, *more)) == 0 and same(stored(files / "out.zarr"), whole)
