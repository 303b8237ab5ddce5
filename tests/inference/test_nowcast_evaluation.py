# SPDX-License-Identifier: Apache-2.0
"""Tests of nowcast scores by lead time, against separate computations."""

import csv
import io
import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from fastds import models
from fastds.cli import main
from fastds.data import (
    HKO_Z_R,
    RAIN_THRESHOLDS,
    RadarWindows,
    normalised_rates,
    reflectivity_to_rate,
    save_dataset,
    synthetic_event,
)
from fastds.metrics import fss, spectral_ratio
from fastds.models.baselines import blurred_persistence, extrapolation
from fastds.studies import nowcast as study
from fastds.tasks.nowcast.evaluation import compute_window_scores, evaluate
from fastds.tasks.nowcast.run import nowcast
from fastds.tasks.nowcast.scores import BANDS, NowcastTable, compute_csi_difference

STEPS, STARTS = 3, (4, 6, 8)  # the last of the known fields of each start


@pytest.fixture(scope="module")
def event():
    """Return 13 fields of 42 x 54 pixels with a moving hole."""
    event = synthetic_event(3, frames=13, shape=(42, 54))[["reflectivity", "crs"]]
    for k in range(13):
        event["reflectivity"][k, 5:9, 20 + k : 23 + k] = np.nan
    return event


@pytest.fixture(scope="module")
def hindcasts(event):
    return nowcast("extrapolation", event, steps=STEPS, start="2024-06-01T12:20", every="10min")


def persistence_and_truth(event):
    """Return forecast and truth (STARTS, STEPS, H, W), normalised, with NaN for pixels that are not scored."""
    z = np.clip(event["reflectivity"].values, 0, 60) / 60
    truth = np.stack([z[s + 1 : s + 1 + STEPS] for s in STARTS])
    last = np.stack([z[s] for s in STARTS])[:, None]
    truth = np.where(np.isnan(last), np.nan, truth)
    return torch.from_numpy(np.where(np.isnan(truth), np.nan, np.nan_to_num(last) + 0 * truth)), torch.from_numpy(truth)


# pysteps is a row where it is installed.
METHODS = ["persistence", "blurred-persistence", "extrapolation", *["pysteps"] * bool(find_spec("pysteps"))]


@pytest.fixture(scope="module")
def table(event, hindcasts):
    return evaluate(hindcasts, event)


def test_all_methods_have_the_same_starts_and_the_prediction_its_own_scores(table):
    assert list(table.rows) == [*METHODS, "extrapolation (PRED)"]
    assert table.starts == 3 and table.leads.tolist() == [300, 600, 900]
    for score, values in table.rows["extrapolation"].items():
        np.testing.assert_allclose(table.rows["extrapolation (PRED)"][score], values, rtol=1e-3, atol=1e-5)
    mse = [table.means(method, "mse") for method in ("extrapolation", "blurred-persistence", "persistence")]
    assert mse == sorted(mse)


def test_scores_agree_with_an_independent_count(event, table):
    prediction, truth = persistence_and_truth(event)
    row = table.rows["persistence"]
    there = ~truth.isnan()
    filled = torch.nan_to_num(prediction), torch.nan_to_num(truth)
    thresholds = normalised_rates(RAIN_THRESHOLDS, (200.0, 1.6))
    for lead in range(STEPS):
        keep = there[:, lead]
        p, t = (z[:, lead][keep] for z in (prediction, truth))
        assert row["mse"][lead] == pytest.approx(3600 * (p - t).square().mean().item(), rel=1e-5)
        rates = [torch.where(z > 0, (10 ** (6 * z.double()) / 200) ** (1 / 1.6), 0) for z in (p, t)]
        wet = [(rate >= 0.1).sum().item() for rate in rates]
        assert row["wet"][lead] == pytest.approx(wet[0] / wet[1]) != 1
        assert row["rain"][lead] == pytest.approx((rates[0].sum() / rates[1].sum()).item(), rel=1e-4) != 1
        for k, threshold in enumerate(thresholds):
            hits, union = ((p >= threshold) & (t >= threshold)).sum(), ((p >= threshold) | (t >= threshold)).sum()
            assert row["csi"][lead, k] == pytest.approx((hits / union).item(), nan_ok=True)
            expected = fss(filled[0][:, lead], filled[1][:, lead], threshold, 9, keep)
            assert row["fss"][lead, k] == pytest.approx(expected, rel=1e-5, nan_ok=True)
            near = [F.max_pool2d(((z[:, lead] >= threshold) & keep).float(), 9, 1) > 0 for z in filled]
            expected = ((near[0] & near[1]).sum() / (near[0] | near[1]).sum()).item()
            assert row["csi_near"][lead, k] == pytest.approx(expected, nan_ok=True)
        ratios = [
            spectral_ratio(60 * torch.where(keep[s], filled[0][s, lead], 0.0), 60 * filled[1][s, lead], 0.0, BANDS)
            for s in range(len(STARTS))
        ]
        np.testing.assert_allclose(row["power"][lead], np.mean([list(r.values()) for r in ratios], 0), rtol=1e-4)


@pytest.mark.parametrize(("name", "method", "known"), [
    ("blurred-persistence", blurred_persistence, 5), ("extrapolation", extrapolation, 4)
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_rows_of_the_baselines_are_those_of_the_last_fields(event, table, name, method, known):
    z = np.clip(event["reflectivity"].values, 0, 60) / 60
    sums = np.zeros((2, STEPS))
    for start in STARTS:
        before = torch.from_numpy(z[start - known + 1 : start + 1]).float()[None, :, None]
        truth, forecast = z[start + 1 : start + 1 + STEPS], method(before, STEPS)[0, :, 0].numpy().clip(0, 1)
        there = ~np.isnan(truth) & ~np.isnan(z[start])
        sums += (np.where(there, 60 * (forecast - truth), 0) ** 2).sum((1, 2)), there.sum((1, 2))
    np.testing.assert_allclose(table.rows[name]["mse"], sums[0] / sums[1], rtol=1e-3)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_extrapolation_of_the_evaluation_reads_the_fields_of_a_nowcast(event, count):
    out = nowcast("extrapolation", event.isel(time=slice(0, count)), steps=STEPS)
    rows = evaluate(out, event, baselines=["extrapolation"]).rows
    np.testing.assert_allclose(rows["extrapolation"]["mse"], rows["extrapolation (PRED)"]["mse"], rtol=1e-3)


@pytest.mark.parametrize("quantity", ["rate", "reflectivity"])
def test_coarser_forecasts_are_compared_with_means_of_the_truth(event, quantity):
    out = nowcast("persistence", event, steps=2, start="2024-06-01T12:30", coarsen=4, quantity=quantity)
    row = evaluate(out, event).rows["persistence (PRED)"]
    z = np.clip(event["reflectivity"].values[6:9, :40, :52], 0, None)
    # the quantity of the forecast is averaged
    z = np.where(z > 0, 10 ** (z / 16), 0 * z) if quantity == "rate" else z
    z = z.reshape(3, 10, 4, 13, 4).mean((2, 4))
    z = np.maximum(16 * np.log10(np.maximum(z, 1e-9)), 0) if quantity == "rate" else z
    error = (np.clip(z[:1], 0, 60) - np.clip(z[1:], 0, 60)) ** 2
    np.testing.assert_allclose(row["mse"], np.nanmean(error, (1, 2)), rtol=1e-4)


def test_starts_without_all_fields_are_left_out(event, hindcasts):
    cut = event.isel(time=slice(0, 11))
    table = evaluate(hindcasts, cut)
    assert table.starts == 2 and table.notes == ("3 of 5 starts left out, fields before or after them are missing",)
    split = evaluate(hindcasts, event.isel(time=slice(5, 13)), observed=event)
    assert split.starts == 3
    with pytest.raises(
        ValueError, match="no start has 5 observed fields before it and all 3 after it: forecasts start from 2024"
    ):
        evaluate(hindcasts, event.isel(time=slice(0, 6)))


def test_other_grids_and_files_are_refused(event, hindcasts):
    with pytest.raises(ValueError, match=r"the grids differ: PRED has \(42, 54\) cells of 1 x 1 pixels, the observed"):
        evaluate(hindcasts, event.isel(x=slice(0, 50)))
    with pytest.raises(ValueError, match="coordinate x of PRED and x of the observed file are different places"):
        evaluate(hindcasts, event.assign_coords(x=event.x + 5000.0))
    with pytest.raises(ValueError, match="the file holds no forecasts that fastds nowcast wrote"):
        evaluate(event, event)


def test_commands_print_and_write_the_table(event, tmp_path, capsys):
    save_dataset(event, tmp_path / "in.nc")
    files = f"{tmp_path}/in.nc", f"{tmp_path}/out.nc"
    options = ["--steps", "3", "--every", "15min", "--model", "extrapolation", "--truth", files[0]]
    assert main(["nowcast", *files, *options]) == 0
    printed = capsys.readouterr().out
    assert "Main scores, CSI and FSS" in printed and "CSI by lead in minutes" not in printed
    assert printed.count("extrapolation (PRED)") == 1 and "--all-scores prints all scores." in printed
    assert main(["nowcast", *files, *options, "--all-scores"]) == 0
    printed = capsys.readouterr().out
    for word in (
        "Scores at rain rates in mm/h",
        "CSI by lead in minutes",
        "CSI near by lead in minutes",
        "Wet area / truth's by lead in minutes",
        "Mean rain / truth's by lead in minutes",
        "extrapolation (PRED)",
    ):
        assert word in printed
    assert main(["evaluate", files[1], files[0], "--csv", f"{tmp_path}/t.csv"]) == 0
    with open(tmp_path / "t.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (len(METHODS) + 1) * 3 * (6 * 5 + 4 + 4 + 2)
    chosen = {(r["score"], r["at"]) for r in rows}
    assert ("csi", "0.5") in chosen and ("power", "2-4") in chosen and ("b_mse", "") in chosen


def test_difference_of_csi_and_its_interval_over_starts(table):
    ours, theirs = (table.counts[name] for name in ("extrapolation", "persistence"))
    assert ours.shape == (3, STEPS, 5, 4) and (ours.sum(-1) == theirs.sum(-1)).all()
    means = [table.means(name, "csi") for name in ("extrapolation", "persistence")]
    mean, low, high = compute_csi_difference(ours, theirs)
    np.testing.assert_allclose(mean, means[0] - means[1])
    assert (low[:3] <= mean[:3]).all() and (mean[:3] <= high[:3]).all() and (low[:3] < high[:3]).all()
    assert (compute_csi_difference(ours, ours)[:, :3] == 0).all()
    alike = np.repeat(ours[:1], 4, 0), np.repeat(theirs[:1], 4, 0)
    np.testing.assert_allclose(*compute_csi_difference(*alike)[1:])
    with pytest.raises(ValueError, match="both counts must have the same starts and leads"):
        compute_csi_difference(ours, theirs[:2])


def test_interval_of_the_difference_holds_95_percent():
    """With one event per initialization time, CSI is a proportion, for which the interval is known."""
    n, counts = 400, np.zeros((2, 400, 1, 1, 4))
    hit = np.random.default_rng(1).random(n) < 0.3
    counts[0, hit, ..., 0], counts[0, ~hit, ..., 1], counts[1, ..., 1] = 1, 1, 1
    mean, low, high = compute_csi_difference(*counts, draws=4000)
    expected = 1.96 * np.sqrt(hit.mean() * (1 - hit.mean()) / n)
    assert mean == pytest.approx(hit.mean()) and (high - low) / 2 == pytest.approx(expected, rel=0.07)  # 90 %: 0.84


def test_two_models_are_compared_start_by_start(event, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "TEST_STARTS", {"event.nc": 2})
    save_dataset(event, tmp_path / "event.nc")
    for name, match_above in (("matched", 0.25), ("plain", None)):
        model = models.create("nowcast-small", hidden=4, match_above=match_above)
        torch.nn.init.constant_(model.network.module.output.bias, -0.05)  # all echo decays
        model.card.name, model.card.floor_dbz, model.card.ceiling_dbz, model.card.input_steps = name, 0.0, 60.0, 3
        models.save(model, tmp_path / f"{name}.safetensors")
    files = {"model": f"{tmp_path}/matched.safetensors", "against": f"{tmp_path}/plain.safetensors"}
    assert study.print_scores(f"{tmp_path}", **files) == {}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("event.nc: 1 start, mse ") and len(lines) == 6
    ours, theirs, difference = (float(lines[2].split()[k].strip(",")) for k in (3, 5, 7))
    assert ours > 1.5 * theirs and difference == pytest.approx(ours - theirs, abs=2e-4)
    study.print_scores(f"{tmp_path}", smooth=True, **files)
    for line in capsys.readouterr().out.splitlines()[1:4]:
        assert "difference +0.0000 [+0.0000, +0.0000]" in line


def test_paper_windows_are_scored_on_all_frames(event):
    torch.manual_seed(0)
    model = models.create("db-convlstm-small").eval()
    windows = RadarWindows(event, known=3, future=2, every=5)
    scores = compute_window_scores(model, windows, HKO_Z_R)
    assert scores.frames == 4 and scores.future == 2 and scores.samples == len(windows) == 2
    with torch.no_grad():
        batch = torch.stack([windows[i]["x"] for i in range(2)])
        y = model(batch, steps=2)[1]
    truth = torch.stack([torch.cat([windows[i]["x"][1:], windows[i]["y"]]) for i in range(2)])
    valid = torch.stack([windows[i]["valid"][1:] for i in range(2)])
    error = torch.where(valid, (y.clamp(0, 1) - truth).abs(), 0.0)
    np.testing.assert_allclose(scores.by_frame()["mae"], error.sum((0, 2, 3, 4)) / valid.sum((0, 2, 3, 4)), rtol=1e-4)


def test_table_content_by_hand():
    """Undefined scores are printed as "-"."""
    leads, rates, bands = 12, len(RAIN_THRESHOLDS), len(BANDS)
    by_rate = 0.9 - 0.1 * np.arange(rates) - 0.01 * np.arange(leads)[:, None]
    row = {score: by_rate - 0.001 * k for k, score in enumerate(("csi", "hss", "pod", "far", "csi_near", "fss"))}
    row |= {score: 100.0 * k + np.arange(leads) for k, score in enumerate(("b_mse", "b_mae", "mse", "mae"))}
    row |= {"wet": 1 + 0.01 * np.arange(leads), "rain": 2 - 0.01 * np.arange(leads)}
    row["power"] = 0.5 + 0.1 * np.arange(bands) + 0.01 * np.arange(leads)[:, None]
    none = {score: np.full_like(values, np.nan) for score, values in row.items()}
    for values in (row["csi"], row["csi_near"]):
        values[:, -1] = np.nan
    table = NowcastTable({"net": row, "none": none}, 300.0 * np.arange(1, 13), (200.0, 1.6), 1, 99, {}, ("a note",))
    out = io.StringIO()
    table.print(Console(file=out, width=160), all_scores=True)
    lines = [
        [cell.strip() for cell in re.split(r"  +|│|┃", line) if cell.strip()] for line in out.getvalue().splitlines()
    ]

    def after(title):
        return lines[next(k for k, line in enumerate(lines) if line and line[0].startswith(title)) :]

    def rows(title, name, count):
        return [line[1:] for line in after(title) if line and line[0] == name][:count]

    shown = [f"{v:.3f}" for v in by_rate.mean(0)]
    csi, hss, *_ = rows("Scores at rain rates", "net", 6)
    assert csi == ["CSI", *shown[:-1], "-"] and hss == ["HSS", *(f"{v:.3f}" for v in by_rate.mean(0) - 0.001)]
    assert [line[0] for line in rows("Scores at rain rates", "net", 6)] == [
        "CSI",
        "HSS",
        "POD",
        "FAR",
        "CSI near",
        "FSS",
    ]
    assert rows("Errors, and power", "net", 1) == [
        ["5.5", "105.5", "205.5", *(f"{v:.3f}" for v in row["power"].mean(0))]
    ]
    minutes = ["method", "10", "20", "30", "40", "50", "60"]
    assert minutes in after("MSE in dBZ²")[:4]
    assert rows("MSE in dBZ²", "net", 1) == [[f"{v:.1f}" for v in row["mse"][1::2]]]
    assert rows("Wet area / truth's", "net", 1) == [[f"{v:.3f}" for v in row["wet"][1::2]]]
    assert rows("Mean rain / truth's", "net", 1) == [[f"{v:.3f}" for v in row["rain"][1::2]]]
    expected = [
        [f"{rate:g}", *(f"{v:.3f}" for v in by_rate[1::2, RAIN_THRESHOLDS.index(rate)])] for rate in RAIN_THRESHOLDS
    ]
    assert rows("CSI by lead", "net", rates)[: rates - 1] == expected[:-1]
    assert rows("Power over the truth's at wavelengths", "net", 1) == [
        ["2-4", *(f"{v:.3f}" for v in row["power"][1::2, 0])]
    ]
    (main,) = table.main_tables()
    cells = [next(iter(column.cells)) for column in main.columns]
    rates = (0.5, 2.0, 10.0), (2.0, 10.0)
    skills = [
        f"{row[score].mean(0)[RAIN_THRESHOLDS.index(rate)]:.3f}"
        for score, some in zip(("csi", "fss"), rates, strict=True)
        for rate in some
    ]
    assert cells == ["net", "205.5", *skills, f"{row['wet'].mean():.3f}", f"{row['rain'].mean():.3f}"]
    assert lines[-1] == ["a note"] and "1 start, 99 valid cells" in out.getvalue()


def as_rain(event, z_r, **attrs):
    """Return the rain rates of an event by a Z-R relation."""
    rate = reflectivity_to_rate(event.reflectivity.values, z_r)
    rain = event.drop_vars("reflectivity")
    rain["rainfall_rate"] = (event.reflectivity.dims, rate, {"units": "mm h-1", "standard_name": "rainfall_rate"})
    return rain.assign_attrs(attrs)


@pytest.mark.parametrize("options", [{}, {"coarsen": 3}, {"members": 2, "seed": 1}])
def test_rain_is_compared_with_rain_whatever_relations_the_files_declare(event, options):
    """The same rain with another declared relation, or with --z-r, has the same scores."""
    german = as_rain(event, (256.0, 1.42), zr_a=256.0, zr_b=1.42)
    made = nowcast("extrapolation", german, steps=STEPS, start="2024-06-01T12:30", **options)
    undeclared = as_rain(event, (256.0, 1.42))
    expected = evaluate(made, german)
    tables = [evaluate(made, undeclared), evaluate(made, german, z_r=(200.0, 1.6))]
    for table in tables:
        for name, row in expected.rows.items():
            np.testing.assert_allclose(table.rows[name]["mse"], row["mse"], rtol=1e-5)
    other = evaluate(made, undeclared, observed=german)
    np.testing.assert_allclose(other.rows["persistence"]["mse"], expected.rows["persistence"]["mse"], rtol=1e-5)


def test_perfect_rain_has_no_error(event):
    """A forecast of rain by (256, 1.42) against the same rain without a declared relation."""
    still = event.isel(time=[0] * 13).assign_coords(time=event.time)
    made = nowcast("persistence", as_rain(still, HKO_Z_R, zr_a=256.0, zr_b=1.42), steps=2, start="2024-06-01T12:30")
    row = evaluate(made, as_rain(still, HKO_Z_R)).rows["persistence (PRED)"]
    np.testing.assert_allclose(row["mse"], 0, atol=1e-6)
