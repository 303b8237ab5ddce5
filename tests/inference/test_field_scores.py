# SPDX-License-Identifier: Apache-2.0
"""Tests of scores of gridded fields and ensembles against separate computations."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.interpolate import RegularGridInterpolator

import fastds
from fastds import models
from fastds.data import open_dataset, save_dataset
from tests.support.field_cases import KELVIN, fields, means_of_blocks, run, smooth
from tests.support.reports import parsed
from tests.support.small_models import generator

# ---- numbers


def test_numbers_by_hand():
    """The errors are 1 and 2 at the equator, and -4 and 0 at 60 degrees, where the weight is 1/2."""
    truth = fields([[[280, 281], [270, 274]]] * 2, [0, 60], [5, 65])
    made = truth.assign(t=truth.t + np.array([[[1, 2], [-4, 0]], [[0, 0], [0, 0]]], "f4"))
    made["t"].attrs = KELVIN
    table = fastds.evaluate(made, truth)
    row = table.rows["t"]["prediction"]
    assert row["mae"] == pytest.approx((1 + 2 + 2) / 6) and row["bias"] == pytest.approx((1 + 2 - 2) / 6)
    assert row["rmse"] == pytest.approx(math.sqrt((1 + 4 + 8) / 6), rel=1e-5)
    # A cell at 60 degrees has half the weight of a cell at the equator, so that each of the latter occurs twice.
    one = np.corrcoef([280, 280, 281, 281, 270, 274], [281, 281, 283, 283, 266, 274])[0, 1]
    assert row["correlation"] == pytest.approx((one + 1) / 2, rel=1e-5)
    assert (table.fields, table.cells, table.left_out, table.shape, table.members) == (2, 8, 0, (2, 2), 1)
    assert "no rows of interpolation" in " ".join(table.list_notes()) and list(table.rows["t"]) == ["prediction"]


def test_interpolation_rows_match_independent_code():
    truth = smooth()
    coarse = means_of_blocks(truth)
    made = truth.assign(t=(truth.t + 1).assign_attrs(KELVIN)).assign_attrs(fastds_model="net")
    rows = fastds.evaluate(made, truth, input=coarse).rows["t"]
    assert list(rows) == ["bilinear", "bicubic", "lanczos", "net"]
    assert rows["net"]["rmse"] == pytest.approx(1, abs=1e-4) and rows["net"]["power"] == pytest.approx(1, abs=1e-4)
    # Bilinear beyond the outer coarse rows: their values.
    axes = [np.concatenate([[-9], a, [99]]) for a in (-coarse.latitude.values, coarse.longitude.values)]
    axes[0][0] = -99
    at = np.meshgrid(-truth.latitude.values, truth.longitude.values, indexing="ij")
    finer = [RegularGridInterpolator(axes, np.pad(z, 1, "edge"))(tuple(at)) for z in coarse.t.values]
    error, w = np.array(finer) - truth.t.values, np.cos(np.deg2rad(truth.latitude.values))[:, None] + np.zeros(20)
    assert rows["bilinear"]["mae"] == pytest.approx(np.average(np.abs(error), weights=np.stack([w] * 3)), rel=1e-4)
    assert rows["bilinear"]["bias"] == pytest.approx(np.average(error, weights=np.stack([w] * 3)), abs=1e-4)
    for method in ("bicubic", "lanczos"):  # as the command makes them
        again = fastds.evaluate(fastds.downscale(method, coarse, scale=2), truth, input=coarse).rows["t"]
        assert again[f"{method} (PRED)"] == pytest.approx(rows[method], rel=1e-4)


def test_without_an_input_the_truth_is_averaged_by_the_factor_of_the_attributes():
    truth = smooth(17, 21)
    coarse = means_of_blocks(truth)
    fine = fastds.downscale("bicubic", coarse, scale=2)
    assert (fine.attrs["fastds_scale"], fine.attrs["fastds_task"]) == (2.0, "fields")
    given, made = (fastds.evaluate(fine, truth, input=i) for i in (coarse, None))
    assert given.shape == made.shape == (16, 20)
    for row in given.rows["t"]:
        assert made.rows["t"][row] == pytest.approx(given.rows["t"][row], rel=1e-3, abs=1e-4), row
    message = " ".join(made.list_notes())
    assert "means of TRUTH over 2 cells each way" in message and "16 x 20 of the 17 x 21 points of TRUTH" in message
    odd = fine.assign_attrs(fastds_scale=[2.5, 3.0])  # 6 and 6 whole cells
    table = fastds.evaluate(odd, truth)
    assert table.shape == (15, 18) and "means of TRUTH over 2.5 x 3 cells" in " ".join(table.list_notes())


def test_decimated_input_points_are_preserved():
    """Bilinear interpolation of every second point restores a plane, except after the last point."""
    truth = smooth(8, 12, 1)
    plane = truth.assign(t=(0 * truth.t + truth.latitude + 2 * truth.longitude + 200).assign_attrs(KELVIN))
    made = plane.assign_attrs(fastds_scale=2, fastds_coarsening="decimate", fastds_model="net")
    table = fastds.evaluate(made, plane)
    error = np.zeros((8, 12)) + np.array([0] * 7 + [1])[:, None] - 2 * np.array([0] * 11 + [1])
    w = np.cos(np.deg2rad(plane.latitude.values))[:, None] + np.zeros(12)
    assert table.rows["t"]["bilinear"]["mae"] == pytest.approx(np.average(np.abs(error), weights=w), rel=1e-3)
    assert table.rows["t"]["net"]["rmse"] == 0 and "points of TRUTH, one in 2" in " ".join(table.list_notes())


def test_ensembles_by_hand():
    """One member is 1 K below the truth and one 1 K above; in every other column both are 3 K above."""
    truth = fields([np.full((2, 4), 280)], [30, -30], [0, 10, 20, 30])
    low, high = (truth.t + np.array(shift * 2, "f4") for shift in ([-1, 3], [1, 3]))
    made = xr.concat([low, high], "realization").assign_attrs(KELVIN).to_dataset(name="t")
    table = fastds.evaluate(made.assign_attrs(fastds_model="gan"), truth)
    mean, one = (table.rows["t"][name] for name in ("gan, mean", "gan, one member"))
    assert mean["mae"] == pytest.approx(1.5) and mean["rmse"] == pytest.approx(math.sqrt(4.5))
    assert one["mae"] == pytest.approx(2) and one["bias"] == pytest.approx(1) and "crps" not in one
    assert mean["crps"] == pytest.approx((0 + 3) / 2)  # 1 - 2/2, and 3 - 0
    assert mean["spread"] == pytest.approx(1)  # variances 2 and 0
    assert mean["spread_skill"] == pytest.approx(math.sqrt(1.5 * 1 / 4.5))
    assert mean["outliers"] == pytest.approx(0.5) and table.ranks["t"] == pytest.approx([0.5, 0.5, 0])
    assert table.members == 2 and "0.667 is right" in " ".join(table.list_notes())


@pytest.mark.parametrize("units,wet", [("mm h-1", 0.1), ("kg m-2 s-1", 0.1 / 3600), ("m", 0.6e-3), ("mm", 0.6)])
def test_rain_has_areas_and_means(units, wet):
    """Amounts are those of the six hours between the times."""
    attrs = {"units": units, "standard_name": "precipitation_amount"}
    truth = fields(np.array([[[0, 1.1, 2, 0.9]] * 2] * 2) * wet, [-1, 1], [0, 1, 2, 3], "tp", attrs)
    made = truth.assign(tp=(("time", "latitude", "longitude"), truth.tp.values[..., [1, 1, 2, 2]], attrs))
    row = fastds.evaluate(made, truth).rows["tp"]["prediction"]
    assert row["wet"] == pytest.approx(2) and row["rain"] == pytest.approx(6.2 / 4, rel=1e-5)
    assert "wet" not in fastds.evaluate(smooth(), smooth()).rows["t"]["prediction"]


def test_cells_that_are_missing_anywhere_are_left_out_of_all_rows_and_counted():
    truth = smooth(16, 20, 2)
    coarse = means_of_blocks(truth)
    made = truth.assign(t=(truth.t + 1).assign_attrs(KELVIN))
    full = fastds.evaluate(made, truth, input=coarse)
    truth.t[0, 3, 4], made.t[1, 5, 6:8] = np.nan, 999.0  # implausible is missing
    with pytest.warns(UserWarning, match="2 of 640 values of variable t of PRED are 999 K"):
        table = fastds.evaluate(made, truth, input=coarse)
    assert (table.cells, table.left_out) == (640, 3) and "3 of 640 cells are left out" in " ".join(table.list_notes())
    assert table.rows["t"]["prediction"]["mae"] == pytest.approx(1, abs=1e-4)
    assert table.rows["t"]["bicubic"]["mae"] != full.rows["t"]["bicubic"]["mae"]
    coarse.t[0, 4, 4] = np.nan  # its block of 2 x 2 cells, of all methods
    with pytest.warns(UserWarning, match="999"):
        assert fastds.evaluate(made, truth, input=coarse).left_out == 3 + 2 * 2


def test_a_missing_cell_of_the_truth_is_a_missing_cell_of_the_input_that_is_made_of_it():
    """The input is made from the truth. Its cell is missing, so none of the 2 x 2 fine cells is scored."""
    truth = smooth(16, 20, 1)
    made = truth.assign(t=truth.t + 1).assign_attrs(fastds_scale=2)
    truth.t[0, 8, 9] = np.nan
    table = fastds.evaluate(made, truth)
    assert table.left_out == 2 * 2 and table.rows["t"]["prediction"]["mae"] == pytest.approx(1, abs=1e-4)


# ---- commands, files, pages


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth = smooth()
    humid = truth.assign(r=(50 + 5 * (truth.t - 250)).assign_attrs(units="%", standard_name="relative_humidity"))
    save_dataset(humid, "truth.nc")
    coarse = means_of_blocks(humid).merge(means_of_blocks(humid, name="r"))
    save_dataset(coarse, "in.nc")
    models.save(generator(), "gan.safetensors")
    return tmp_path


def test_downscale_with_a_truth_and_a_report(folder, capsys):
    words = "downscale in.nc out.nc --scale 2 --model lanczos --truth truth.nc --report out.html"
    assert run(words) == 0
    printed = capsys.readouterr().out
    assert (
        "t, errors in K" in printed
        and "r, errors in %" in printed
        and "lanczos (PRED)" in printed
        and "-0.000" not in printed
    )
    assert "coarse input of the baselines" not in printed  # it was given
    page = parsed(Path("out.html"))
    assert page.texts("caption") == ["t, errors in K", "r, errors in %"]
    drawn = {frame["alt"].partition(", ")[0]: frame["alt"].rpartition("UTC: ")[2] for frame in page.all("img", "frame")}
    with open_dataset("truth.nc") as truth, open_dataset("in.nc") as coarse:
        for name, field in (("truth", truth.t[-1]), ("input", coarse.t[-1])):
            low, high = float(field.min()) - 273.15, float(field.max()) - 273.15
            assert drawn[name].startswith(f"{low:.4g} to {high:.4g} °C, mean")
    titles = [frame["alt"].partition(",")[0] for frame in page.all("img", "frame")]
    assert titles == [name for name in ("input", "lanczos (PRED)", "truth", "bicubic") for _ in range(3)]
    assert page.texts("dd").count("lanczos") == 2 and "Maps of t, one of t, r" in Path("out.html").read_text()
    assert run("evaluate out.nc truth.nc --input in.nc --var r --csv r.csv --report r.html") == 0
    assert "t, errors" not in capsys.readouterr().out and parsed(Path("r.html")).texts("caption") == ["r, errors in %"]
    rows = {row["method"]: row for row in csv.DictReader(Path("r.csv").read_text().splitlines())}
    assert list(rows) == ["bilinear", "bicubic", "lanczos", "lanczos (PRED)"]
    assert list(rows["bicubic"]) == ["variable", "method", "mae", "rmse", "bias", "correlation", "power"]
    with open_dataset("out.nc") as out, open_dataset("truth.nc") as truth:
        error = np.abs(out.r.values - truth.r.values).mean((0, 2))
    mae = np.average(error, weights=np.cos(np.deg2rad(40.0 - np.arange(16))))
    assert float(rows["lanczos (PRED)"]["mae"]) == pytest.approx(mae, rel=1e-3)


def test_members_with_a_truth_and_a_report(folder, capsys):
    words = "downscale in.nc out.nc --model gan.safetensors --members 3 --var r --truth truth.nc --report out.html"
    assert run(words) == 0
    printed = capsys.readouterr().out
    assert "Ensemble of 3 members" in printed and "wgan-gp-small, one member" in printed and "t, errors" not in printed
    page = parsed(Path("out.html"))
    assert page.texts("caption") == ["r, errors in %", "Ensemble of 3 members"]
    titles = {frame["alt"].partition(": ")[0][:-22] for frame in page.all("img", "frame")}
    assert titles == {"input", "wgan-gp-small, mean", "wgan-gp-small, one member", "truth", "bicubic"}
    assert any("0.000 below" in image["alt"] or "above all members" in image["alt"] for image in page.all("img"))
    with open_dataset("out.nc") as out, open_dataset("truth.nc") as truth:
        table = fastds.evaluate(out, truth)
        members, y = out.r.values, truth.r.values
    difference = np.abs(members[:, None] - members[None]).sum((0, 1)) / (2 * 3 * 2)
    points = np.abs(members - y).mean(0) - difference
    score = np.average(points.mean((0, 2)), weights=np.cos(np.deg2rad(40.0 - np.arange(16))))
    assert table.rows["r"]["wgan-gp-small, mean"]["crps"] == pytest.approx(score, rel=1e-4)
    assert run("evaluate out.nc truth.nc --csv m.csv") == 0
    last = list(csv.DictReader(Path("m.csv").read_text().splitlines()))[-2:]
    assert [bool(row["crps"]) for row in last] == [True, False]


def test_truth_of_members_is_checked_first(folder, capsys):
    with open_dataset("truth.nc") as truth:
        save_dataset(truth.load().drop_vars("r"), "t.nc")
    assert run("downscale in.nc out.nc --model gan.safetensors --var r --truth t.nc") == 2
    assert "--truth: there is no variable that all files have: the output has r; TRUTH has t" in capsys.readouterr().err
    assert not Path("out.nc").exists()
    assert run("downscale in.nc out.nc --model gan.safetensors --var r --truth absent.nc") == 2
    assert "--truth: no such file: absent.nc" in capsys.readouterr().err


def test_scores_of_real_fields(data_dir):
    """With ERA5, bicubic has smaller errors than bilinear, and inr-any has smaller errors than both."""
    with open_dataset(data_dir / "era5_surface_025deg_conus_19950714T12.nc") as truth:
        coarse = xr.merge([means_of_blocks(truth, 2, name) for name in ("t2m", "u10")])
        fine = fastds.downscale("bicubic", coarse, scale=2)
        table = fastds.evaluate(fine, truth, input=coarse)
        default_table = fastds.evaluate(fastds.downscale(None, coarse, scale=2), truth, input=coarse)
    assert table.shape == (104, 236) and set(table.rows) == {"t2m", "u10"}
    for rows in table.rows.values():
        assert 0.1 < rows["bicubic"]["rmse"] < 0.9 * rows["bilinear"]["rmse"] and rows["bicubic"]["correlation"] > 0.99
        assert 0.05 < rows["bilinear"]["power"] < rows["bicubic"]["power"] < 0.5
        assert rows["bicubic (PRED)"] == pytest.approx(rows["bicubic"], rel=1e-3)
    for rows in default_table.rows.values():
        assert rows["inr-any"]["rmse"] < 0.9 * rows["bicubic"]["rmse"]
        assert rows["bicubic"]["power"] < rows["inr-any"]["power"] < 1.0
