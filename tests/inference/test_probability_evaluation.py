# SPDX-License-Identifier: Apache-2.0
"""Tests of evaluate for exceedance probabilities: scores, alignment by valid time, units, thresholds, files."""

import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds import cli
from fastds.data import reflectivity_to_rate, save_dataset, synthetic_event
from fastds.tasks.probability.forecasts import ProbabilityForecasts
from fastds.tasks.probability.picture import select_leads
from tests.support.reports import parsed

NAME = "probability_of_rainfall_rate_above_threshold"
RATES = [0.5, 2.0]
DATA = Path(os.environ.get("FASTDS_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def event():
    """Return 12 fields with a hole, and a pixel that is missing in one of them."""
    event = synthetic_event(3, frames=12, shape=(64, 70))[["reflectivity", "crs"]].copy(deep=True)
    event["reflectivity"][:, 30:36, 50:60] = np.nan
    event["reflectivity"][6, 3, 5] = np.nan
    return event


@pytest.fixture(scope="module")
def risk(event):
    """Return hindcasts of probabilities from the fields 4 and 6."""
    known = event.isel(time=slice(0, 7))
    return fastds.nowcast(
        "extrapolation", known, steps=3, members=4, probability=RATES, every="10min", start=str(event.time.values[4])
    )


def compute_reference(risk, event, rate, lead):
    """Return probabilities and events of all cells that neither forecast nor truth lacks."""
    times = list(event.time.values)
    p, o, left_out = [], [], 0
    for start, reference in enumerate(risk.forecast_reference_time.values):
        z = event.reflectivity.values[times.index(reference) + 1 + lead]
        field = risk[NAME].sel(threshold=rate).values[start, lead]
        valid = ~(np.isnan(z) | np.isnan(field))
        p, o = [*p, field[valid]], [*o, reflectivity_to_rate(z[valid]) >= rate]
        left_out += (~valid).sum()
    return np.concatenate(p).astype(float), np.concatenate(o), left_out


def test_scores_are_those_of_numpy_by_threshold_and_lead(risk, event):
    table = fastds.evaluate(risk, event)
    assert table.thresholds == ("0.5 mm/h", "2 mm/h") and table.leads.tolist() == [300, 600, 900]
    left_out = 0
    for t, rate in enumerate(RATES):
        for lead in range(3):
            p, o, missing = compute_reference(risk, event, rate, lead)
            left_out += missing * (t == 0)
            row = {name: values[t, lead] for name, values in table.rows.items()}
            assert row["cells"] == len(p) and row["frequency"] == pytest.approx(o.mean())
            assert row["brier"] == pytest.approx(((p - o) ** 2).mean(), rel=1e-6)
            assert row["brier_skill"] == pytest.approx(1 - ((p - o) ** 2).mean() / o.var(), rel=1e-6)
            higher, equal = (p[o][:, None] > p[~o]).mean(), (p[o][:, None] == p[~o]).mean()
            assert row["roc_area"] == pytest.approx(higher + equal / 2, rel=1e-6)
            low, high = table.intervals["brier_skill"][:, t, lead]
            assert low <= row["brier_skill"] <= high
    assert sum(table.left_out) == left_out and table.left_out[1] > 0
    assert table.cells == 2 * 3 * 64 * 70
    diagram = table.get_reliability(0, 0)
    p, o, _ = compute_reference(risk, event, 0.5, 0)
    chosen = np.isclose(p, 0.5)
    assert diagram["observed"][2] == pytest.approx(o[chosen].mean()) and diagram["cells"].sum() == len(p)


def test_observed_rain_gives_the_scores_of_its_reflectivity(risk, event):
    rain = event.drop_vars("reflectivity")
    values = reflectivity_to_rate(event.reflectivity.values)
    rain["rainfall_rate"] = (("time", "y", "x"), values, {"units": "mm h-1", "standard_name": "rainfall_rate"})
    tables = [fastds.evaluate(risk, truth) for truth in (event, rain, rain.assign_attrs(zr_a=316.0, zr_b=1.5))]
    for table in tables[1:]:
        assert np.array_equal(table.rows["brier"], tables[0].rows["brier"])
    assert any("the truth is rain" in note for note in tables[1].list_notes())


def test_rain_is_averaged_by_its_own_relation(event):
    """Cells of 2 x 2 pixels: the events are those of the averaged rain, whatever relations the files declare."""
    rain = event.drop_vars("reflectivity")
    values = reflectivity_to_rate(event.reflectivity.values, (316.0, 1.5))
    rain["rainfall_rate"] = (("time", "y", "x"), values, {"units": "mm h-1", "standard_name": "rainfall_rate"})
    declared = rain.assign_attrs(zr_a=316.0, zr_b=1.5)
    options = {"steps": 1, "members": 2, "probability": RATES, "coarsen": 2, "start": str(event.time.values[5])}
    risk = fastds.nowcast("extrapolation", declared, **options)
    cells = values[6].reshape(32, 2, 35, 2).mean((1, 3))
    for truth in (declared, rain, rain.assign_attrs(zr_a=100.0, zr_b=2.5)):
        table = fastds.evaluate(risk, truth)
        for t, rate in enumerate(RATES):
            p = risk[NAME].sel(threshold=rate).values.reshape(32, 35)
            there = ~(np.isnan(p) | np.isnan(cells))
            error = ((p - (cells >= rate))[there] ** 2).mean()
            assert table.rows["brier"][t, 0] == pytest.approx(error, rel=1e-6)


def make_perfect(risk, event):
    """Return probabilities 0 and 1 that are those of the observed fields."""
    out = risk.copy(deep=True)
    for start in range(2):
        for lead in range(3):
            z = event.reflectivity.sel(time=risk.time.values[start, lead]).values
            out[NAME][:, start, lead] = np.stack([reflectivity_to_rate(z) >= rate for rate in RATES])
    return out


def test_perfect_and_climatological_probabilities(risk, event):
    table = fastds.evaluate(make_perfect(risk, event), event)
    assert (table.rows["brier"] == 0).all() and (table.rows["brier_skill"] == 1).all()
    assert (table.rows["roc_area"] == 1).all() and (table.rows["reliability"] == 0).all()
    constant = risk.copy(deep=True)
    constant[NAME][:] = table.rows["frequency"][:, None, :, None, None]
    found = fastds.evaluate(constant, event).rows
    np.testing.assert_allclose(found["brier_skill"], 0, atol=1e-6)
    np.testing.assert_allclose(found["roc_area"], 0.5)


def test_a_dry_truth_has_no_skill_but_a_brier_score(risk, event):
    dry = event.copy(deep=True)
    dry["reflectivity"][:] = np.where(np.isnan(event.reflectivity), np.nan, -32.0)
    never = risk.copy(deep=True)
    never[NAME][:] = 0
    table = fastds.evaluate(never, dry)
    assert (table.rows["brier"] == 0).all() and np.isnan(table.rows["brier_skill"]).all()
    assert (table.rows["frequency"] == 0).all()


def test_fields_are_compared_at_valid_times(risk, event):
    """Truth of another period, in reverse order: the times that both have are compared, and others counted."""
    part = event.isel(time=slice(None, 6, -1))
    table = fastds.evaluate(risk, part)
    whole = fastds.evaluate(risk.isel(forecast_reference_time=[1]), event)
    assert table.starts == 2
    np.testing.assert_allclose(table.rows["brier"][:, 0], whole.rows["brier"][:, 0])
    assert any(note.startswith("2 fields of other starts left out") for note in table.list_notes())
    later = event.assign_coords(time=event.time + np.timedelta64(1, "D"))
    with pytest.raises(ValueError, match="the truth has no field at the valid times of the probabilities: these are"):
        fastds.evaluate(risk, later)


def test_percent_and_units_of_thresholds_are_converted(risk, event):
    expected = fastds.evaluate(risk, event)
    other = risk.copy(deep=True)
    other[NAME] = (100 * risk[NAME]).assign_attrs(units="%", zr_a=200.0, zr_b=1.6)
    metres = {"units": "m s-1", "spp__relative_to_threshold": "greater_than"}
    other = other.assign_coords(threshold=("threshold", np.array(RATES) / 3.6e6, metres))
    table = fastds.evaluate(other, event)
    assert table.thresholds == expected.thresholds
    np.testing.assert_allclose(table.rows["brier"], expected.rows["brier"], rtol=1e-5)
    assert any("were divided by 100" in note for note in table.list_notes())
    dbz = risk.assign_coords(threshold=("threshold", 23.01 + 16 * np.log10(RATES), {"units": "dBZ"}))
    found = fastds.evaluate(dbz, event)
    assert found.thresholds == ("18.1935 dBZ", "27.8265 dBZ")
    np.testing.assert_allclose(found.rows["brier"], expected.rows["brier"], rtol=0.02)


BAD = {
    "outside": (lambda d: d.assign({NAME: d[NAME].copy(data=35 * d[NAME].values)}), "must be from 0 to 1, got 0 to 35"),
    "no units": (lambda d: d.assign({NAME: d[NAME].drop_attrs()}), "must have the units '1' .* or '%', got no units"),
    "other units": (lambda d: d.assign({NAME: d[NAME].assign_attrs(units="mm")}), "or '%', got units 'mm'"),
    "no threshold": (lambda d: d.drop_vars("threshold"), "must have a coordinate `threshold` with its thresholds"),
    "threshold without units": (
        lambda d: d.assign_coords(threshold=("threshold", RATES)),
        "coordinate threshold must have the units of a rain rate, such as mm h-1, or dBZ, got no units",
    ),
    "amounts": (
        lambda d: d.assign_coords(threshold=("threshold", RATES, {"units": "mm"})),
        "must have the units of a rain rate, such as mm h-1, or dBZ, got units 'mm'",
    ),
    "below": (
        lambda d: d.assign_coords(
            threshold=("threshold", RATES, {"units": "mm h-1", "spp__relative_to_threshold": "less_than"})
        ),
        "spp__relative_to_threshold must be one of .*exceedance.*, got 'less_than'",
    ),
    "another grid": (lambda d: d.isel(x=slice(0, 40)), "the grids differ: PRED has \\(64, 40\\) cells"),
    "shifted grid": (lambda d: d.assign_coords(x=d.x + 5000.0), "the grids differ: coordinate x of PRED"),
}


@pytest.mark.parametrize("what", BAD)
def test_probabilities_that_do_not_fit_are_refused(risk, event, what):
    change, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        fastds.evaluate(change(risk), event)


def test_probabilities_without_initialization_times(risk, event):
    """A file of another program: one threshold as a scalar coordinate, valid times only."""
    one = risk.isel(forecast_reference_time=0, threshold=1)
    field = xr.DataArray(
        one[NAME].values, dims=("time", "y", "x"), attrs={"units": "1"}, name="chance",
        coords={"time": one.time.values, "y": event.y, "x": event.x},
    )  # fmt: skip
    field = field.assign_coords(threshold=((), 2.0, {"units": "mm h-1"}))
    table = fastds.evaluate(field.to_dataset(), event)
    whole = fastds.evaluate(risk.isel(forecast_reference_time=[0], threshold=[1]), event)
    assert not table.has_leads and table.starts == 3
    assert table.rows["brier"][0, 0] == pytest.approx(np.average(whole.rows["brier"], weights=whole.rows["cells"]))


def test_a_rate_equal_to_the_threshold_is_an_event_unless_the_file_says_otherwise(risk):
    z = np.float32(23.0103 + 16 * np.log10(2.0)) * np.ones(3, np.float32)
    for relation, expected in (("greater_than_or_equal_to", True), ("greater_than", False)):
        given = risk.copy()
        given["threshold"] = risk.threshold.assign_attrs(spp__relative_to_threshold=relation)
        assert ProbabilityForecasts(given).find_events(z, (200.0, 1.6), -32.0)[1].all() == expected


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        (range(5, 65, 5), [10, 20, 30, 40, 50, 60]),
        (range(5, 20, 5), [5, 10, 15]),
        (np.arange(1, 19) * 2.5, [15, 30, 45]),
        (np.arange(1, 18) * 2.5, [10, 20, 30, 40]),
        (range(5, 95, 5), [15, 30, 45, 60, 75, 90]),
        (range(6, 66, 6), [30, 60]),
        ([7.0], [7.0]),
    ],
)
def test_leads_of_the_picture_are_even(minutes, expected):
    minutes = np.array(list(minutes), float)
    assert minutes[select_leads(60 * minutes)].tolist() == expected


# ---- commands


def test_nowcast_writes_picture_report_and_scores_of_probabilities(event, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_dataset(event, "in.nc")
    start = str(event.time.values[8])[:16]
    words = f"nowcast in.nc risk.nc --model extrapolation --steps 2 --members 3 --probability 0.5,2 --start {start}"
    assert cli.main([*words.split(), "--picture", "p.png", "--truth", "in.nc", "--report", "r.html"]) == 0
    printed = capsys.readouterr().out
    assert "wrote p.png" in printed and printed.count("Brier skill ") == 2 and "uncertainty  " not in printed
    assert "--all-scores prints all scores." in printed
    page = parsed(tmp_path / "r.html")
    assert page.texts("h1") == ["Probabilities: extrapolation against the truth"]
    assert page.all("img")[0]["alt"].startswith("at least 0.5 mm/h")
    text = (tmp_path / "r.html").read_text()
    assert all(f"{what} at {rate} mm/h" in text for what in ("Reliability", "ROC") for rate in ("0.5", "2"))
    assert cli.main(["evaluate", "risk.nc", "in.nc", "--all-scores", "--csv", "s.csv"]) == 0
    printed = capsys.readouterr().out
    assert "uncertainty" in printed and "95 % confidence intervals" in printed and "--all-scores" not in printed
    csv = (tmp_path / "s.csv").read_text()
    assert csv.startswith("method,lead_min,threshold,score,probability,value\n")
    assert "extrapolation,5,0.5 mm/h,brier," in csv and ",diagram observed," in csv and ",ROC hit rate," in csv


def test_report_of_probabilities_without_a_truth(event, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_dataset(event, "in.nc")
    words = "nowcast in.nc risk.nc --model extrapolation --steps 2 --members 2 --probability 1 --report r.html"
    assert cli.main(words.split()) == 0
    page = parsed(tmp_path / "r.html")
    assert page.texts("h1") == ["Probabilities with extrapolation"]
    assert "observed" in (tmp_path / "r.html").read_text() and not page.texts("caption")


def test_truth_of_probabilities_is_checked_before_the_forecast(event, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_dataset(event, "in.nc")
    save_dataset(event.isel(x=slice(0, 40)), "other.nc")
    words = "nowcast in.nc risk.nc --model extrapolation --steps 2 --probability 1 --truth other.nc"
    assert cli.main(words.split()) == 2
    assert "the grids differ" in capsys.readouterr().err and not (tmp_path / "risk.nc").exists()


def test_report_of_an_ensemble_shows_members_quantiles_and_probabilities(event, tmp_path):
    made = fastds.nowcast("extrapolation", event.isel(time=slice(0, 9)), steps=2, members=3)
    table = fastds.evaluate(made, event, baselines=["persistence"], report=tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    for part in ("Members", "Quantiles of the members", "Share of the members", "member 3", "90 % quantile"):
        assert part in text, part
    for chart in (
        "Rank of the truth",
        "CRPS (mm/h) by lead",
        "Spread/skill by lead",
        "Reliability at 2 mm/h",
        "ROC at",
    ):
        assert chart in text, chart
    rows = table.ensemble.rows
    np.testing.assert_allclose(rows["crps_reliability"] + rows["crps_potential"], rows["crps_ensemble"], rtol=1e-9)
    assert (rows["crps"] < rows["crps_ensemble"]).all()
    assert table.ensemble.wet_ranks.sum(-1) == pytest.approx(1)
    shares = fastds.nowcast("extrapolation", event.isel(time=slice(0, 9)), steps=2, members=3, probability=[0.5, 2, 5])
    direct = fastds.evaluate(shares, event)
    np.testing.assert_allclose(table.shares.rows["brier"], direct.rows["brier"], rtol=1e-6)


@pytest.mark.skipif(not (DATA / "radar_dwd_yw_crop_20180514_5min.nc").exists(), reason="needs FASTDS_DATA")
def test_scores_of_a_real_file_are_those_of_the_package_scores():
    scores = pytest.importorskip("scores.probability", reason="compares with the package scores")
    with xr.open_dataset(DATA / "radar_dwd_yw_crop_20180514_5min.nc", engine="h5netcdf") as file:
        event = file[["rainfall_amount"]].isel(time=slice(60, 80)).load()
    made = fastds.nowcast("extrapolation", event.isel(time=slice(0, 10)), steps=4, members=5, probability=[0.6, 2.4])
    table = fastds.evaluate(made, event)
    for t, rate in enumerate(made.threshold.values):
        for lead, time in enumerate(made.time.values):
            p = made[NAME].values[t, lead]
            rain = 12 * event.rainfall_amount.sel(time=time).values  # multiples of 0.12 mm/h, some equal to the rate
            o = xr.DataArray(np.where(np.isnan(rain), np.nan, np.round(rain, 4) >= rate), dims=("y", "x"))
            p = xr.DataArray(p, dims=("y", "x"))
            assert table.rows["brier"][t, lead] == pytest.approx(float(scores.brier_score(p, o)), rel=1e-6)
            area = float(scores.roc_curve_data(p.astype(float).round(6), o, np.arange(6) / 5).AUC)
            assert table.rows["roc_area"][t, lead] == pytest.approx(area, rel=1e-6)
