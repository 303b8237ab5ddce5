# SPDX-License-Identifier: Apache-2.0
"""Tests that evaluations by two workers are bitwise equal to those of one process."""

import dataclasses
import os
import resource

import numpy as np
import pytest
import torch

import fastds
from fastds.archive import evaluation
from fastds.archive.evaluation import evaluate_archive
from fastds.archive.workers import open_cluster
from fastds.cli import main
from fastds.data import coarsen_dataset, save_dataset, synthetic_event
from fastds.memory import get_unsupported_reason
from tests.support.pipelines import fields
from tests.support.small_models import HUMIDITY, TEMPERATURE, field_model, generator

distributed = pytest.importorskip("distributed", reason="several workers need the package distributed")


@pytest.fixture(scope="module")
def scheduler():
    """The cluster has two processes with one thread each."""
    with open_cluster(2, None) as (client, *_):
        yield client.scheduler.address


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(get_unsupported_reason() is not None, reason="memory of glibc")
def test_workers_set_malloc_retention(scheduler):
    """Allocating 20 arrays of 2 MB one after the other must reuse memory; each has 512 pages."""
    faults = "[[np.ones(1 << 18), resource.getrusage(resource.RUSAGE_SELF).ru_minflt][1] for _ in range(21)]"
    names = {"np": np, "resource": resource}
    with distributed.Client(scheduler, set_as_default=False) as client:
        counts = client.submit(eval, faults, names).result(timeout=60)
    assert counts[-1] - counts[0] < 1024


def test_starting_workers_preserves_the_environment(monkeypatch):
    """Dask sets environment variables for its workers, which must be restored."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = dict(os.environ)
    with open_cluster(1, None):
        assert os.environ["MALLOC_MMAP_MAX_"] == "0"
    assert dict(os.environ) == before


def radar():
    """Return a downscaled dataset, the truth and the coarse input."""
    truth = synthetic_event(5, 11, (32, 40))[["reflectivity", "crs"]]
    coarse = coarsen_dataset(truth)
    return fastds.downscale("trilinear", coarse), truth, coarse


def temperature():
    """Return made and true temperatures on the same grid; the error grows with time."""
    truth = fields(TEMPERATURE, 6)
    made = fastds.downscale(field_model(), truth, scale=1.0)
    made = made.assign(t=made.t.copy(data=made.t + np.arange(6, dtype="f4")[:, None, None]))
    return *(dataset.assign(a=dataset.t.copy(data=truth.t))[["a", "t"]] for dataset in (made, truth)), None


def humidity():
    coarse = fields(HUMIDITY, 4)
    truth = fastds.downscale("bicubic", coarse, scale=2)
    return fastds.downscale(generator(), coarse, members=3), truth, coarse


def hindcasts():
    """Return hindcasts and the truth, which ends before the last forecasts do."""
    truth = synthetic_event(5, 12, (32, 32))[["reflectivity", "crs"]]
    made = fastds.nowcast("extrapolation", truth, steps=2, every="5min", coarsen=1, members=2)
    return made, truth.isel(time=slice(0, 10)), None


def same(ours, theirs):
    """Return True if tables and their contents are bitwise equal, with NaN equal to NaN."""
    if dataclasses.is_dataclass(theirs):
        return all(same(value, getattr(theirs, name)) for name, value in vars(ours).items())
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, (float, np.ndarray)):
        return np.array_equal(ours, theirs, equal_nan=True)
    return ours == theirs


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("case", "options"),
    [
        (radar, {}),
        (temperature, {"start": "2019-01-01T03:00", "var": "t"}),
        (humidity, {}),
        (hindcasts, {"baselines": ["persistence"]}),
    ],
)
def test_evaluation_with_two_workers_is_identical(case, options, tmp_path, scheduler, one_thread):
    names = [tmp_path / name for name in ("made.nc", "truth.nc", "input.nc")]
    for dataset, name in zip(case(), names, strict=True):
        if dataset is not None:
            save_dataset(dataset, name)
    given = options | ({"input": names[2]} if names[2].exists() else {})
    expected = fastds.evaluate(*names[:2], **given)
    found = evaluate_archive(*names[:2], scheduler=scheduler, threads=1, **given)
    assert type(found) is type(expected) and same(found, expected)
    assert len(vars(found)) > 3 and found.rows


def test_evaluate_command_with_workers(tmp_path, scheduler, capsys):
    made, truth, coarse = radar()
    for dataset, name in ((made, "made.nc"), (truth, "truth.nc"), (coarse, "input.nc")):
        save_dataset(dataset, tmp_path / name)
    words = ["evaluate", *(str(tmp_path / name) for name in ("made.nc", "truth.nc"))]
    words += ["--input", str(tmp_path / "input.nc")]
    assert main([*words, "--scheduler", scheduler, "--csv", str(tmp_path / "far.csv")]) == 0
    assert main([*words, "--csv", str(tmp_path / "here.csv")]) == 0
    assert (tmp_path / "far.csv").read_text() == (tmp_path / "here.csv").read_text()
    capsys.readouterr()
    for more, sentence in (
        (["--workers", "0"], "--workers must be a whole number from 1 to"),
        (["--workers", "2", "--scheduler", "tcp://x:1"], "give one of --workers and --scheduler"),
        (["--workers", "2", "--report", str(tmp_path / "r.html")], "--report is written by one process"),
    ):
        assert main([*words, *more]) == 2
        assert sentence in capsys.readouterr().err


def test_one_worker_runs_in_this_process_with_requested_threads(monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate_in_processes", lambda *files, **options: torch.get_num_threads())
    before = torch.get_num_threads()
    assert evaluate_archive("made.nc", "truth.nc", workers=1, threads=3) == 3 and torch.get_num_threads() == before


def test_workers_need_files():
    with pytest.raises(ValueError, match="truth must be files, which workers open, got a Dataset"):
        evaluate_archive("made.nc", synthetic_event(5, 3, (32, 32)), workers=2)
