# SPDX-License-Identifier: Apache-2.0
"""Tests of lazy results: they are computed chunk by chunk, on demand, and equal eager results."""

import numpy as np
import pytest

import fastds
from fastds.data import save_dataset, synthetic_event
from fastds.data.radar.reflectivity import reflectivity_to_rate
from fastds.inference import chunking
from fastds.tasks.fields import networks
from fastds.tasks.fields.pipeline import FieldsPipeline
from fastds.tasks.humidity.pipeline import HumidityPipeline
from fastds.tasks.nowcast.pipeline import prepare
from fastds.tasks.radar.pipeline import RadarPipeline
from tests.support.pipelines import fields, make_event
from tests.support.small_models import HUMIDITY, TEMPERATURE, field_model, generator, nowcaster, radar_model

pytest.importorskip("dask", reason="lazy results need dask")


@pytest.fixture(scope="module")
def event():
    return make_event()


def rates(event):
    attrs = {"standard_name": "rainfall_rate", "units": "mm h-1"}
    return event.assign(rain=(event.reflectivity.dims, reflectivity_to_rate(event.reflectivity.values), attrs))


def amounts(event):
    """Return six fields with the variable `rain`, the precipitation in mm of the 10 minutes before each time."""
    attrs = {"standard_name": "rainfall_amount", "units": "mm", "cell_methods": "time: sum (interval: 10 min)"}
    rain = reflectivity_to_rate(event.reflectivity.values) / 6
    return event.isel(time=slice(0, 6)).assign(rain=(event.reflectivity.dims, rain[:6], attrs))


CASES = {
    "reflectivity": lambda event: (radar_model(), event, {}),
    "four times": lambda event: (radar_model(), event, {"time_factor": 4}),
    "rate": lambda event: (radar_model(), rates(event), {"var": "rain"}),
    "amount": lambda event: (radar_model(), amounts(event), {"var": "rain"}),
    "fields": lambda event: (field_model(), fields(TEMPERATURE, 10), {"scale": 2.5}),
    "humidity": lambda event: (generator(), fields(HUMIDITY, 20), {"members": 2, "seed": 3}),
}


@pytest.mark.filterwarnings("ignore:the grid spacing:UserWarning", "ignore:the cadence:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_lazy_downscale_equals_eager(event, case, monkeypatch):
    monkeypatch.setattr(networks, "MAX_BATCH", 3)
    model, data, options = CASES[case](event)
    expected = fastds.downscale(model, data, **options)
    monkeypatch.setattr(chunking, "choose_chunk_steps", lambda job: job.step_multiple)
    computed = []
    for job in (RadarPipeline, FieldsPipeline, HumidityPipeline):
        known = job.compute
        monkeypatch.setattr(
            job, "compute", lambda self, piece, known=known: computed.append(piece) or known(self, piece)
        )
    found = fastds.downscale(model, data.chunk(time=3), **options)
    assert not computed and chunking.is_lazy(found)
    name = next(n for n, v in expected.data_vars.items() if v.ndim >= 3)
    last = found[name].isel(time=-1).load()
    assert len(computed) == 1 and np.array_equal(last, expected[name].isel(time=-1), equal_nan=True)
    assert found.load().drop_attrs().identical(expected.drop_attrs()) and len(computed) > 2
    # Shares of changed values are known once all is computed.
    stamped = {k: value for k, value in expected.attrs.items() if k != "history" and not k.endswith("_share")}
    assert {key: value for key, value in found.attrs.items() if key != "history"} == stamped


@pytest.mark.filterwarnings("ignore:the grid spacing:UserWarning", "ignore:the interval:UserWarning")
def test_lazy_nowcast_equals_eager(monkeypatch):
    data = synthetic_event(5, 12, (32, 32))[["reflectivity", "crs"]]
    options = {"steps": 2, "every": "5min", "coarsen": 1, "interval": "5min"}
    expected = fastds.nowcast(nowcaster(), data, **options)
    monkeypatch.setattr(chunking, "choose_chunk_steps", lambda job: 3)
    found = fastds.nowcast(nowcaster(), data.chunk(time=1), **options)
    assert chunking.is_lazy(found) and len(found.rainfall_rate.chunks[0]) == 4
    assert found.load().drop_attrs().identical(expected.drop_attrs())
    alone = fastds.nowcast(nowcaster(), data.chunk(time=1), steps=2, coarsen=1, interval="5min")
    assert not chunking.is_lazy(alone)  # there is one forecast


def test_lazy_output_file_is_complete(event, tmp_path):
    save_dataset(event, tmp_path / "a.nc")
    save_dataset(event.assign_coords(time=event.time + np.timedelta64(1, "D")), tmp_path / "b.nc")
    found = fastds.downscale("trilinear", [tmp_path / "a.nc", tmp_path / "b.nc"])
    assert not chunking.is_lazy(found)


def test_chunks_are_consecutive_and_read_their_neighbours(event):
    job = RadarPipeline(radar_model(), event)
    found = job.make_chunks(4)
    assert [piece.steps for piece in found] == [(0, 4), (4, 6), (6, 10), (10, 11), (11, 12)]
    assert [piece.reads for piece in found] == [(0, 6), (2, 6), (6, 11), (8, 11), (11, 12)]
    assert [piece.outputs for piece in found] == [(0, 8), (8, 11), (11, 19), (19, 20), (20, 21)]
    line = prepare("persistence", synthetic_event(5, 12, (32, 32)), steps=2, every="5min").make_chunks(5)
    assert [piece.outputs for piece in line] == [(0, 5), (5, 10), (10, 12)] and line[1].reads == (5, 10)


def test_chunk_reads_each_frame_once(event):
    read = []

    def seen(values, block_info=None):
        read.append(block_info[0]["array-location"][0][0])
        return values

    once = event.chunk(time=1)
    once["reflectivity"] = once.reflectivity.copy(data=once.reflectivity.data.map_blocks(seen, dtype=np.float32))
    job = RadarPipeline("trilinear", once)
    piece = job.make_chunks(4)[2]
    job.compute(piece)
    assert sorted(read) == list(range(*piece.reads))


def test_chunk_size_follows_memory_and_workers(event):
    job = RadarPipeline(radar_model(), event)
    job.variables = {"reflectivity": (("time", "y", "x"), (23, 300, 300))}
    assert chunking.choose_chunk_steps(job) == chunking.MAX_STEPS
    job.variables = {"reflectivity": (("time", "y", "x"), (23, 64, 64))}
    assert chunking.choose_chunk_steps(job) == chunking.SMALL_BYTES / (4 * 64 * 64)
    assert chunking.choose_chunk_steps(job, workers=2) == job.step_multiple  # 12 steps for 2 workers with 4 pieces each
    job.variables = {"reflectivity": (("time", "y", "x"), (23, 2000, 2000))}
    assert chunking.choose_chunk_steps(job) == 4
