# SPDX-License-Identifier: Apache-2.0
"""Tests of matching gridded fields in fastds.evaluate: places, levels, times and variables."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds.data import coarsen_dataset, save_dataset, synthetic_event
from fastds.tasks.api import select_evaluation_task
from tests.support.field_cases import KELVIN, TIMES, fields, means_of_blocks, run, smooth


def test_truth_is_aligned_by_coordinates():
    truth = smooth()
    made = truth.isel(latitude=slice(3, 11), longitude=slice(2, 12), time=[1, 2])
    shifted = truth.assign(t=(truth.t - 1).assign_attrs(KELVIN))
    for other in (
        shifted,
        shifted.isel(latitude=slice(None, None, -1)),
        shifted.rename(latitude="lat", longitude="lon"),
    ):
        table = fastds.evaluate(made, other)
        assert table.rows["t"]["prediction"]["bias"] == pytest.approx(1, abs=1e-4) and table.fields == 2
    world = fields(np.random.default_rng(0).normal(280, 5, (1, 6, 12)), 50 - 20 * np.arange(6), 30 * np.arange(12))
    west = world.roll(longitude=6).assign_coords(
        longitude=("longitude", -180 + 30.0 * np.arange(12), world.longitude.attrs)
    )
    west["t"].attrs = KELVIN
    west["t"] = west.t.roll(longitude=6) * 0 + np.roll(world.t.values, 6, -1)
    west["t"].attrs = KELVIN
    assert fastds.evaluate(world, west).rows["t"]["prediction"]["mae"] == 0
    seam = west.isel(longitude=slice(4, 9))  # from 60 W to 60 E, in two parts in the truth
    assert fastds.evaluate(seam, world).rows["t"]["prediction"]["mae"] == 0
    close = world.assign_coords(longitude=world.longitude + 1.5)  # a twentieth of a cell
    close["longitude"].attrs = world.longitude.attrs
    assert fastds.evaluate(close, world).rows["t"]["prediction"]["mae"] == 0


def test_truth_levels_are_selected():
    truth = xr.concat([smooth(), smooth(seed=1)], xr.DataArray([500, 850], dims="level", name="level"))
    truth["t"] = truth.t.transpose("time", "level", ...).assign_attrs(KELVIN)
    lower = smooth(seed=1).assign_coords(level=850.0)
    assert fastds.evaluate(lower, truth).rows["t"]["prediction"]["mae"] == 0
    both = fastds.evaluate(truth.isel(level=[1, 0]), truth)
    assert both.rows["t"]["prediction"]["mae"] == 0 and both.fields == 6
    with pytest.raises(ValueError, match="TRUTH has no level 700.0; it has 2 from 500 to 850"):
        fastds.evaluate(lower.assign_coords(level=700.0), truth)
    with pytest.raises(ValueError, match="TRUTH has the dimension level of length 2, which PRED has not"):
        fastds.evaluate(lower.drop_vars("level"), truth)


def test_unmatched_times_are_ignored():
    truth = smooth(times=3)
    later = smooth(times=3).assign_coords(time=TIMES[1:4])
    table = fastds.evaluate(later, truth)
    assert table.fields == 2 and "left out: 1 of 3 values of time of PRED, which not all" in " ".join(
        table.list_notes()
    )
    single = smooth(times=1).isel(time=0)  # times as a scalar, and no time at all
    assert fastds.evaluate(single, truth).rows["t"]["prediction"]["mae"] == 0
    assert fastds.evaluate(single.drop_vars("time"), single.drop_vars("time")).fields == 1


REFUSED = {
    "another grid": (
        lambda truth: smooth(step=2.0),
        "the grids differ: PRED has 16 latitudes from 40 to 25, TRUTH has 16 latitudes from 40 to 10",
    ),
    "half a cell": (
        lambda truth: truth.assign_coords(longitude=truth.longitude + 0.5),
        "PRED has 20 longitudes from 10 to 29, TRUTH has 20 longitudes from 10.5 to 29.5",
    ),
    "a third of a cell": (
        lambda truth: truth.assign_coords(latitude=truth.latitude - 0.3),
        "PRED has 16 latitudes from 40 to 25, TRUTH has 16 latitudes from 39.7 to 24.7",
    ),
    "half the spacing": (
        lambda truth: truth.interp(longitude=10 + 0.5 * np.arange(39), method="nearest").assign_coords(
            longitude=("longitude", 10 + 0.5 * np.arange(39), truth.longitude.attrs)
        ),
        "PRED has 20 longitudes from 10 to 29, TRUTH has 39 longitudes from 10 to 29",
    ),
    "too small": (lambda truth: truth.isel(latitude=slice(0, 9)), "TRUTH has 9 latitudes from 40 to 32"),
    "other units": (
        lambda truth: truth.assign(t=truth.t.assign_attrs(units="degC") - 273),
        "variable t is in 'K' in PRED and in '.*' in TRUTH: convert one of them first",
    ),
    "no variable": (
        lambda truth: truth.rename(t="t2m"),
        "there is no variable that all files have: PRED has t; TRUTH has t2m",
    ),
    "no time": (
        lambda truth: truth.assign_coords(time=truth.time + np.timedelta64(1, "D")),
        "there is no time that all files have: PRED has 3 from 2020-01-01T00:00:00 to 2020-01-01T12:00:00; TRUTH has 3",
    ),
    "a time twice": (
        lambda truth: truth.assign_coords(time=TIMES[[0, 1, 1]]),
        "TRUTH has the time 2020-01-01 06:00:00 twice",
    ),
    "no places": (
        lambda truth: truth.drop_vars("latitude"),
        "TRUTH: expected one latitude coordinate along a dimension, found none",
    ),
    "damage": (
        lambda truth: truth.assign(t=(truth.t * 10).assign_attrs(KELVIN)),
        "values of variable t of TRUTH are 2.* outside the plausible",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_mismatched_pairs_are_rejected(kind, tmp_path, monkeypatch, capsys):
    """The pair is refused in Python, by `fastds evaluate`, and by `fastds downscale --truth` before it computes."""
    change, sentence = REFUSED[kind]
    truth = smooth()
    with pytest.raises(ValueError, match=sentence):
        fastds.evaluate(truth, change(truth))
    monkeypatch.chdir(tmp_path)
    for name, dataset in (("pred", truth), ("truth", change(truth)), ("in", means_of_blocks(truth))):
        save_dataset(dataset, f"{name}.nc")
    assert run("evaluate pred.nc truth.nc") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fastds evaluate: ")
    assert run("downscale in.nc out.nc --scale 2 --model bicubic --truth truth.nc") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fastds downscale: --truth: ") and not Path("out.nc").exists()


def test_missing_units_are_reported():
    truth = smooth()
    bare = truth.assign(t=truth.t.drop_attrs())
    for made, known, what in ((bare, truth, "PRED"), (truth, bare, "TRUTH")):
        table = fastds.evaluate(made, known)
        assert f"{what} declares no units of t; K is assumed" in table.list_notes()
    assert "declares no units" not in " ".join(fastds.evaluate(bare, bare).list_notes())


def test_unmatched_variables_are_reported():
    made = smooth().assign(q=smooth().t, b=smooth().t)
    table = fastds.evaluate(made, made.drop_vars("q"), input=means_of_blocks(made))
    assert list(table.rows) == ["t"] and "not compared, as not all files have them: q, b" in table.list_notes()
    assert list(fastds.evaluate(made, made, var="b").rows) == ["b"]


def test_an_input_of_another_place_is_refused():
    truth = smooth()
    coarse = means_of_blocks(truth)
    with pytest.raises(ValueError, match="the grids differ: PRED reaches beyond COARSE"):
        fastds.evaluate(truth, truth, input=coarse.isel(latitude=slice(0, 5)))
    with pytest.raises(ValueError, match="variable t is in 'K' in PRED and in 'degC' in COARSE"):
        fastds.evaluate(truth, truth, input=coarse.assign(t=coarse.t.assign_attrs(units="degC")))
    mixed = truth.assign(q=truth.t.expand_dims(realization=2))
    with pytest.raises(ValueError, match="variables of PRED have different numbers of members; name one with"):
        fastds.evaluate(mixed, mixed.isel(realization=0))
    with pytest.raises(ValueError, match="there is no field in PRED: a dimension of t has length 0"):
        fastds.evaluate(truth.isel(time=[]).drop_vars("time"), truth.isel(time=[]).drop_vars("time"))
    with pytest.raises(ValueError, match="TRUTH has no field 'q' over its grid; it has t"):
        fastds.evaluate(truth.assign(q=truth.t), truth, var="q")


def test_blocks_of_dask_are_computed_once_for_the_check_and_once_for_the_scores():
    da = pytest.importorskip("dask.array")
    truth, computed = smooth(times=4), []

    def one(values):
        computed.append(len(values))
        return values + 1

    values = da.from_array(truth.t.values, (2, -1, -1)).map_blocks(one, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    made = truth.assign(t=(truth.t.dims, values, KELVIN))
    table = fastds.evaluate(made, truth.isel(time=[1, 2, 3]))
    assert table.rows["t"]["prediction"]["bias"] == pytest.approx(1, abs=1e-4) and table.fields == 3
    assert len(computed) == 4


# ---- which task it is


def test_evaluate_selects_the_task_from_the_files():
    event = synthetic_event(1, 3, (32, 32))[["reflectivity"]]
    rain = smooth().rename(t="rain").assign(rain=lambda d: d.rain.assign_attrs(units="mm h-1"))
    flat = rain.rename(latitude="y", longitude="x").drop_vars(["y", "x"])
    expected = {
        "radar": [event, flat, rain.assign_attrs(fastds_task="radar"), flat.assign(t=smooth().t.values.sum())],
        "fields": [smooth(), rain, event.assign_attrs(fastds_task="fields"), flat.expand_dims(realization=2)],
        "nowcast": [fastds.nowcast("persistence", synthetic_event(1, 4, (32, 32)), steps=1)],
    }
    for task, datasets in expected.items():
        assert [select_evaluation_task(dataset) for dataset in datasets] == [task] * len(datasets)
    mixed = smooth().assign(dbz=smooth().t.assign_attrs(units="dBZ"))
    assert [select_evaluation_task(mixed, var) for var in (None, "dbz", "t")] == ["radar", "radar", "fields"]
    with pytest.raises(ValueError, match="z_r is no argument for fields, .* input, model, report, var$"):
        fastds.evaluate(smooth(), smooth(), z_r=(200, 1.6))
    made = fastds.downscale("trilinear", coarsen_dataset(event))
    assert made.attrs["fastds_task"] == "radar"
