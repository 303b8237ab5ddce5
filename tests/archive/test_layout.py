# SPDX-License-Identifier: Apache-2.0
"""Tests of the Zarr chunks and shards of an archive, of small fields in batches, and of input stores that grow."""

import numpy as np
import pytest
import xarray as xr

from fastds.archive import request, run
from fastds.archive.layout import choose_layout, parse_sizes
from fastds.archive.run import compute_archive
from fastds.tasks.fields import networks
from fastds.tasks.fields.pipeline import FieldsPipeline
from fastds.tasks.radar.pipeline import RadarPipeline
from tests.support.archives import archive, same, stored
from tests.support.pipelines import fields
from tests.support.small_models import TEMPERATURE

pytest.importorskip("zarr", reason="archives need the package zarr")
pytest.importorskip("dask", reason="archives need the package dask")


@pytest.fixture(autouse=True)
def _closed():
    request.open_request_dataset.cache_clear()


@pytest.fixture
def daily(tmp_path):
    """Return 50 small fields and the path of a Zarr store with them."""
    dataset = fields(TEMPERATURE, 50)
    dataset.to_zarr(tmp_path / "in.zarr", consolidated=False)
    return dataset, tmp_path / "in.zarr"


def _run(source, target, **options):
    return compute_archive("fields", source, target, model="bicubic", options={"scale": 2.0}, threads=1, **options)


@pytest.mark.parametrize(
    "value", ["time", "time=0", "time=1.5", "time=x", "time=-3", "=4", "time=2,time=3", {"time": 0}]
)
def test_parse_sizes_rejects_invalid_lengths(value):
    with pytest.raises(ValueError, match=r"^chunks (must be|names a dimension twice).*got"):
        parse_sizes("chunks", value)


def test_parse_sizes_reads_text_and_mappings():
    assert parse_sizes("chunks", " time=365, latitude=100") == {"time": 365, "latitude": 100}
    assert parse_sizes("shards", {"time": 4}) == {"time": 4} and parse_sizes("shards", None) == {}


def test_default_chunks_hold_many_times_and_whole_chunks_of_work():
    job = FieldsPipeline("bicubic", fields(TEMPERATURE, 50), scale=2.0)
    name, (dims, shape) = next(iter(job.variables.items()))
    long = FieldsPipeline("bicubic", fields(TEMPERATURE, 50), scale=2.0)
    long.variables = {name: (dims, (50, 1024, 1024))}
    assert choose_layout(long, 48, {}, {}).chunks[name] == (2, 1024, 1024)
    found = choose_layout(job, 20, {}, {})
    assert found.steps == 20 and found.chunks[name] == (20, *shape[1:]) and not found.shards


def test_chunks_of_work_are_multiples_of_requested_chunks():
    job = FieldsPipeline("bicubic", fields(TEMPERATURE, 50), scale=2.0)
    name, (_, shape) = next(iter(job.variables.items()))
    found = choose_layout(job, 20, {"time": 7, "latitude": 5}, {})
    assert found.steps == 14 and found.chunks[name] == (7, 5, shape[2])
    found = choose_layout(job, 20, {"time": 2}, {"time": 12})
    assert found.steps == 12 and found.shards[name] == (12, *shape[1:])
    assert choose_layout(job, 20, {}, {"time": 30}).steps == 30
    with pytest.raises(ValueError, match="shards must be a multiple of the chunks, got time=9 with chunks of 2"):
        choose_layout(job, 20, {"time": 2}, {"time": 9})
    with pytest.raises(ValueError, match=r"chunks has the dimension 'x'; the result has time, latitude, longitude"):
        choose_layout(job, 20, {"x": 2}, {})


def test_chunks_within_series_with_gaps_are_refused(event):
    job = RadarPipeline("trilinear", event)  # series of 6, 4, 1 and 1 frames
    assert choose_layout(job, 4, {}, {}).chunks["reflectivity"][0] == 1
    with pytest.raises(ValueError, match="chunks must divide the lengths of all series .* got 8"):
        choose_layout(job, 4, {"time": 8}, {})


def test_archive_with_shards_equals_one_with_single_chunks(daily, tmp_path):
    _, source = daily
    _run(source, tmp_path / "a.zarr", chunks={"time": 1})
    _run(source, tmp_path / "b.zarr", chunks="time=4,latitude=9", shards="time=8")
    a, b = stored(tmp_path / "a.zarr"), stored(tmp_path / "b.zarr")
    assert a.drop_attrs().identical(b.drop_attrs())
    assert a.t.encoding["chunks"][0] == 1 and a.t.encoding["shards"] is None
    assert b.t.encoding["chunks"][:2] == (4, 9) and b.t.encoding["shards"][0] == 8


def test_killed_archive_with_chunks_of_many_times_resumes(daily, tmp_path, monkeypatch):
    _, source = daily
    _run(source, tmp_path / "a.zarr", chunks="time=8")
    known, calls = run.compute_chunks, []

    def stop(*args):
        for number, one in enumerate(known(*args)):
            if number == 2:
                raise KeyboardInterrupt
            calls.append(one)
            yield one

    monkeypatch.setattr(run, "choose_chunk_steps", lambda job, workers=1: 8)
    monkeypatch.setattr(run, "compute_chunks", stop)
    with pytest.raises(KeyboardInterrupt):
        _run(source, tmp_path / "b.zarr", chunks="time=8")
    monkeypatch.setattr(run, "compute_chunks", known)
    with pytest.raises(ValueError, match=r"chunks of 8 along time, and 16 are requested: leave out"):
        _run(source, tmp_path / "b.zarr", chunks="time=16")
    report = _run(source, tmp_path / "b.zarr")
    assert any("5 computed by 1 process, 2 already done" in note for note in report.notes)
    assert same(stored(tmp_path / "b.zarr"), stored(tmp_path / "a.zarr"))


def test_other_chunks_of_a_finished_archive_are_written(daily, tmp_path):
    _, source = daily
    for length in (8, 10):
        _run(source, tmp_path / "a.zarr", chunks={"time": length})
        assert stored(tmp_path / "a.zarr").t.encoding["chunks"][0] == length


def test_append_computes_the_new_times_of_a_store_that_grew(daily, tmp_path, monkeypatch):
    dataset, source = daily
    monkeypatch.setattr(run, "choose_chunk_steps", lambda job, workers=1: 8)
    _run(source, tmp_path / "a.zarr", append=True)
    later = dataset.assign_coords(time=dataset.time + (dataset.time[-1] - dataset.time[0]) + np.timedelta64(1, "D"))
    later.to_zarr(source, append_dim="time", consolidated=False)
    request.open_request_dataset.cache_clear()
    report = _run(source, tmp_path / "a.zarr", append=True)
    assert any("13 chunks: 7 computed" in note for note in report.notes)
    request.open_request_dataset.cache_clear()
    _run(source, tmp_path / "b.zarr")
    assert same(stored(tmp_path / "a.zarr"), stored(tmp_path / "b.zarr"))


def test_append_refuses_a_store_whose_earlier_values_changed(daily, tmp_path, monkeypatch):
    dataset, source = daily
    monkeypatch.setattr(run, "choose_chunk_steps", lambda job, workers=1: 8)
    _run(source, tmp_path / "a.zarr", append=True)
    later = dataset.assign_coords(time=dataset.time + (dataset.time[-1] - dataset.time[0]) + np.timedelta64(1, "D"))
    xr.concat([dataset.assign(t=dataset.t + 1), later], "time").to_zarr(source, mode="w", consolidated=False)
    request.open_request_dataset.cache_clear()
    with pytest.raises(ValueError, match=r"in\.zarr has changed in other ways than that times were appended"):
        _run(source, tmp_path / "a.zarr", append=True)


def test_append_after_a_gap_to_chunks_of_many_times_uses_one_process(files, monkeypatch):
    names = [f"{number}.nc" for number in range(6)]
    archive(files, names[:2], append=True, chunks={"time": 6})
    report = archive(files, names, append=True, workers=2)
    assert any("computed by one process" in note for note in report.notes), report.notes
    archive(files, names, "whole.zarr")
    assert same(stored(files / "out.zarr"), stored(files / "whole.zarr"))


def test_small_fields_in_batches_do_not_depend_on_chunks(monkeypatch):
    monkeypatch.setattr(networks, "MAX_BATCH", 4)
    dataset = fields(TEMPERATURE, 10)
    dataset.t[5, 3, 3] = np.nan  # this field is computed alone
    whole = FieldsPipeline("inr-any", dataset, scale=2.0, threads=1)
    assert whole.step_multiple == 4
    expected = whole.compute_all(False, None).t.values
    parts = [whole.compute(chunk)["t"] for chunk in whole.make_chunks(4)]
    assert np.array_equal(np.concatenate(parts), expected, equal_nan=True)
    monkeypatch.setattr(networks, "MAX_BATCH", 1)
    single = FieldsPipeline("inr-any", dataset, scale=2.0, threads=1).compute_all(False, None).t.values
    np.testing.assert_allclose(expected, single, rtol=1e-5)
