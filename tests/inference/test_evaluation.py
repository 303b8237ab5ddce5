# SPDX-License-Identifier: Apache-2.0
"""Tests of the error table of fastds.evaluate against separate computations, and of error messages."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console
from scipy.fft import dctn
from scipy.ndimage import binary_erosion

import fastds
from fastds.data import coarsen_dataset, reflectivity_to_rate, save_dataset, synthetic_event, to_reflectivity
from fastds.metrics import EVALUATION_FLOORS
from fastds.metrics.errors import ssim
from fastds.models.baselines import advection
from fastds.tasks.radar import scores
from fastds.tasks.radar.evaluation import check_truth, evaluate
from fastds.tasks.radar.methods import BASELINES
from fastds.training.radar_files import are_different


@pytest.fixture(scope="module")
def truth():
    return synthetic_event(5, 5, (64, 80))


@pytest.fixture(scope="module")
def coarse(truth):
    return coarsen_dataset(truth)


def shifted(truth, add):
    """Return a prediction: the truth with `add` dB added to echo above 20 dBZ."""
    z = truth.reflectivity
    return truth.assign(reflectivity=z.where(z <= 20, z + add).assign_attrs(z.attrs)).assign_attrs(fastds_model="net")


def test_truth_has_zero_error(truth, coarse):
    table = evaluate(truth, truth, coarse=coarse)
    row = table.rows["prediction"]
    assert list(table.rows) == [*BASELINES, "prediction"] and table.pairs == 2
    for floor in EVALUATION_FLOORS:
        assert row[f"mse_total_{floor:g}"] == 0 and row[f"ssim_{floor:g}"] == pytest.approx(1, abs=1e-3)
    assert (
        row["csi_15"] == row["csi_30"] == 1
        and row["fss_15"] == pytest.approx(1)
        and row["spectrum"] == pytest.approx(1)
    )
    assert row["recoarsened_rmse"] < 1e-5
    assert all(table.rows[b]["mse_total_15"] > 0.1 for b in BASELINES)
    assert table.rows["advection"]["mse_total_15"] < table.rows["trilinear"]["mse_total_15"]


def test_numbers_by_hand(truth, coarse):
    table = evaluate(shifted(truth, 2.0), truth, coarse=coarse)
    z = truth.reflectivity.values[:, 2:-2, 2:-2]
    strong = (z > 20).mean((1, 2))
    t2, t13 = 4 * strong[[1, 3]].mean(), 4 * np.mean([strong[[0, 2]].mean(), strong[[2, 4]].mean()])
    row = table.rows["net"]
    assert row["mse_t2_15"] == pytest.approx(t2, rel=1e-4) and row["mse_t13_15"] == pytest.approx(t13, rel=1e-4)
    assert row["mse_total_15"] == pytest.approx((t2 + 2 * t13) / 3, rel=1e-4)
    assert row["mse_total_0"] == pytest.approx(row["mse_total_15"], rel=1e-4)
    assert table.pixels == 60 * 76
    order = [0, 1, 2, 2, 3, 4]
    hits, events = (z[order] >= 30).sum(), (np.where(z > 20, z + 2, z)[order] >= 30).sum()
    assert row["csi_30"] == pytest.approx(hits / events)


def baseline_fields(pair, floor, method):
    """Compute the baseline between two coarse fields in float64 and return fine fields (3, H, W) in dBZ.

    Args:
        pair: coarse fields (2, h, w) in dBZ.
        floor: lowest reflectivity in dBZ.
        method: "trilinear" or "bicubic".
    """
    x = (np.clip(pair, floor, 70) - floor) / (70 - floor)
    kind = {"trilinear": "bilinear", "bicubic": "bicubic"}[method]
    up = F.interpolate(torch.from_numpy(x).double()[:, None], scale_factor=2, mode=kind)[:, 0].clamp(0, 1).numpy()
    return floor + (70 - floor) * np.stack([up[0], up.mean(0), up[1]])


def moved_fields(pair, floor):
    x = torch.from_numpy((np.clip(pair, floor, 70) - floor) / (70 - floor)).float()
    return floor + (70 - floor) * advection(x[None, :, None], 2)[0, :, 0].double().numpy()


@pytest.mark.parametrize("method", BASELINES)
def test_rows_of_the_baselines_by_hand(truth, coarse, method):
    """The second pair of fields has missing pixels. Errors are weighted by the number of valid pixels."""
    z = truth.reflectivity.values.copy()
    z[3, 10:40, 20:60] = np.nan
    holed = truth.assign(reflectivity=truth.reflectivity.copy(data=z))
    row = evaluate(holed, holed, coarse=coarse).rows[method]
    sums, events, squares, ratios, shares = {}, np.zeros((3, 2)), np.zeros(2), [], {15: [], 30: [], 40: []}
    for k in (0, 1):
        t, pair = z[2 * k : 2 * k + 3], coarse.reflectivity.values[k : k + 2]
        valid = binary_erosion(~np.isnan(t).any(0), np.ones((5, 5)))
        t = np.where(valid, t, 0.0)
        for floor in (15, 0):
            p = moved_fields(pair, floor) if method == "advection" else baseline_fields(pair, floor, method)
            frames = (((p.clip(floor, 70) - t.clip(floor, 70)) ** 2) * valid).sum((1, 2))
            mse = {"t2": frames[1], "t13": (frames[0] + frames[2]) / 2, "total": frames.sum() / 3}
            for name, total in mse.items():
                sums[f"mse_{name}_{floor}"] = sums.get(f"mse_{name}_{floor}", 0) + np.array([total, valid.sum()])
            similar = ssim(*(torch.from_numpy(np.where(valid, f, floor).clip(floor, 70)) for f in (p, t)),
                           torch.from_numpy(valid).expand(3, -1, -1), 70 - floor)  # fmt: skip
            sums[f"ssim_{floor}"] = sums.get(f"ssim_{floor}", 0) + np.array([similar, 1]) * valid.sum()
            if floor == 15:
                power = [dctn(np.where(valid, f, 15).clip(15), axes=(1, 2), norm="ortho") ** 2 for f in (p, t)]
                k_rows, k_columns = np.arange(64)[:, None] / 128, np.arange(80) / 160
                short = (np.hypot(k_rows, k_columns) > 1 / 4) & (np.hypot(k_rows, k_columns) <= 1 / 2)
                ratios.append(power[0][:, short].sum() / power[1][:, short].sum())
                cells = p[[0, 2]].clip(15).reshape(2, 32, 2, 40, 2).mean((2, 4)) - pair.clip(15, 70)
                inside = valid.reshape(32, 2, 40, 2).all((1, 3))
                squares += [(cells[:, inside] ** 2).sum(), 2 * inside.sum()]
        for i, q in enumerate(shares):
            wet = [(f >= q) & valid for f in (p, t)]
            events[i] += (wet[0] & wet[1]).sum(), (wet[0] | wet[1]).sum()
            windows = [sliding_window_view(w, (9, 9), (1, 2)).mean((3, 4)) for w in wet]
            if wet[0].any() or wet[1].any():
                difference = ((windows[0] - windows[1]) ** 2).sum()
                shares[q].append(1 - difference / sum((w**2).sum() for w in windows))
    expected = {name: total / pixels for name, (total, pixels) in sums.items()}
    expected |= {f"csi_{q}": hits / union for q, (hits, union) in zip(shares, events, strict=True)}
    expected |= {f"fss_{q}": np.mean(values) for q, values in shares.items()}
    expected |= {"spectrum": np.mean(ratios), "recoarsened_rmse": np.sqrt(squares[0] / squares[1])}
    assert row == pytest.approx(expected, rel=1e-3)


def test_means_are_not_labelled_as_sums(truth, coarse):
    table, out = evaluate(truth, truth, coarse=coarse), io.StringIO()
    for part in table.tables():
        Console(file=out, width=200).print(part)
    assert "MSE t1, t3" in out.getvalue() and "t1+t3" not in out.getvalue()
    assert "t1, t3: mean at them; total: (t2 + 2 (t1, t3)) / 3" in table.list_notes()[0]


@pytest.mark.parametrize("top, left", [(0, 0), (3, 2)])
def test_larger_truth_is_cropped(truth, top, left):
    """coarsen_dataset drops the last row or column of an odd size."""
    coarse = coarsen_dataset(truth.isel(y=slice(top, top + 61), x=slice(left, left + 77)))
    fine, cut = fastds.downscale("trilinear", coarse), truth.isel(y=slice(top, top + 60), x=slice(left, left + 76))
    check_truth(truth, to_reflectivity(coarse))
    table = evaluate(fine, truth, coarse=coarse)
    assert table.rows == evaluate(fine, cut, coarse=coarse).rows and table.pixels == 56 * 72
    assert "60 x 76 of the 64 x 80 pixels of TRUTH are compared" in table.notes
    elsewhere = truth.assign_coords(x=truth.x + 500.0)
    with pytest.raises(ValueError, match="the grids differ"):
        evaluate(fine, elsewhere, coarse=coarse)
    with pytest.raises(ValueError, match="the grids differ"):
        check_truth(elsewhere, to_reflectivity(coarse))


def test_missing_pixels_of_any_file_count_for_none(truth, coarse):
    whole = evaluate(truth, truth, coarse=coarse)
    z = truth.reflectivity.values.copy()
    z[:, :32] = np.nan
    holed = truth.assign(reflectivity=truth.reflectivity.copy(data=z))
    for pair in ((holed, truth), (truth, holed)):
        table = evaluate(*pair, coarse=coarse)
        assert table.pixels == (32 - 4) * 76 < whole.pixels
        assert table.rows["trilinear"]["mse_total_15"] != whole.rows["trilinear"]["mse_total_15"]
        assert table.rows["prediction"]["mse_total_15"] == 0


def test_input_is_made_from_the_truth(truth, coarse):
    given, made = evaluate(truth, truth, coarse=coarse), evaluate(truth, truth)
    for name in BASELINES:
        for column, value in given.rows[name].items():
            assert made.rows[name][column] == pytest.approx(value, rel=1e-5, nan_ok=True), (name, column)
    assert "TRUTH averaged 2 x 2" in " ".join(made.notes) and not given.notes


def test_factor_4_in_time(truth):
    coarse = coarsen_dataset(truth, every=4)
    table = evaluate(truth, truth, coarse=coarse)
    assert table.pairs == 1 and table.rows["prediction"]["mse_total_15"] == 0
    assert table.rows["trilinear"]["mse_t2_15"] > table.rows["trilinear"]["mse_t13_15"] > 0


def test_table_is_printed_and_written(truth, coarse, tmp_path):
    table = evaluate(shifted(truth, 1.0), truth, coarse=coarse)
    out = io.StringIO()
    table.print(Console(file=out, width=80))
    text = out.getvalue()
    for word in (
        "Errors above 15 dBZ",
        "Errors above 0 dBZ",
        "trilinear",
        "bicubic",
        "advection",
        "net",
        "CSI 15",
        "FSS 15",
    ):
        assert word in text
    assert "…" not in text and f"{table.rows['net']['mse_total_15']:.3f}" in text
    table.to_csv(tmp_path / "table.csv")
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0].startswith("method,mse_total_15,") and [line.split(",")[0] for line in lines[1:]] == list(
        table.rows
    )
    assert float(lines[4].split(",")[1]) == pytest.approx(table.rows["net"]["mse_total_15"], rel=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_errors_without_optional_packages(truth, coarse, monkeypatch):
    monkeypatch.setattr(scores, "HAS_TORCHMETRICS", False)
    monkeypatch.setattr(scores, "HAS_SCORES", False)
    table = evaluate(truth, truth, coarse=coarse)
    assert np.isnan(table.rows["trilinear"]["ssim_15"]) and np.isnan(table.rows["trilinear"]["fss_15"])
    assert table.rows["trilinear"]["mse_total_15"] > 0 and "pip install torchmetrics scores" in table.notes[0]
    out = io.StringIO()
    table.print(Console(file=out, width=80))
    assert " - " in out.getvalue()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda t, c: (t, t.isel(x=slice(0, 40)), c),
            r"the grids differ: PRED has \(64, 80\) pixels, TRUTH \(64, 40\)",
        ),
        (lambda t, c: (t.assign_coords(x=t.x + 600), t, c), "the grids differ: coordinate x of PRED"),
        (lambda t, c: (t, t, c.isel(x=slice(0, 10))), "PRED must have twice the pixels of COARSE"),
        (lambda t, c: (t.isel(time=[0, 2, 4]), t, c), "PRED must have a half or a quarter of COARSE's time step"),
        (lambda t, c: (t, t.isel(time=[0, 2, 4]), c), "no pair of input times with all times between them in common"),
        (lambda t, c: (t.drop_vars("reflectivity"), t, c), "PRED: no variable of reflectivity was found"),
        (lambda t, c: (t, t.isel(time=[0]), c), "TRUTH: at least 2 times are needed"),
    ],
    ids=["size", "place", "coarse size", "cadence", "times", "variable", "one time"],
)
def test_files_that_do_not_fit_are_named(truth, coarse, change, sentence):
    prediction, fine, given = change(truth, coarse)
    with pytest.raises(ValueError, match=sentence):
        evaluate(prediction, fine, coarse=given)


def test_files_are_read(truth, coarse, tmp_path):
    for name, dataset in (("truth", truth), ("coarse", coarse)):
        save_dataset(dataset, tmp_path / f"{name}.nc")
    table = fastds.evaluate(tmp_path / "truth.nc", tmp_path / "truth.nc", input=tmp_path / "coarse.nc")
    assert table.rows["prediction"]["mse_total_15"] == 0


def test_grids_differ_by_more_than_a_tenth_of_a_cell():
    """Grids of one cell are never different, because a single cell has no spacing."""
    for step in (0.02, -1000.0):
        a = step * np.arange(5)
        assert not are_different(a, a + 0.09 * step) and not are_different(a, a - 0.09 * step)
        assert are_different(a, a + 0.11 * step) and are_different(a, a - 0.11 * step) and are_different(a, a[::-1])
    assert not are_different([1.0], [2.0])


def as_rain(dataset, z_r, **attrs):
    """Return the rain rates of a dataset by a Z-R relation."""
    rate = reflectivity_to_rate(dataset.reflectivity.values, z_r)
    rain = dataset[["reflectivity", "crs"]].drop_vars("reflectivity")
    rain["rainfall_rate"] = (dataset.reflectivity.dims, rate, {"units": "mm h-1", "standard_name": "rainfall_rate"})
    return rain.assign_attrs(attrs)


def test_rain_is_compared_with_rain_whatever_relations_the_files_declare(truth, coarse):
    german, declared = (256.0, 1.42), {"zr_a": 256.0, "zr_b": 1.42}
    perfect, given = as_rain(truth, german, **declared), as_rain(coarse, german, **declared)
    expected = evaluate(perfect, perfect, coarse=given)
    found = evaluate(perfect, as_rain(truth, german), coarse=as_rain(coarse, german))
    assert found.rows["prediction"]["mse_total_15"] == 0
    for name, row in expected.rows.items():
        assert found.rows[name]["mse_total_15"] == pytest.approx(row["mse_total_15"], rel=1e-5)
    # of a prediction in dBZ, the input of the baselines is converted as the truth
    mixed = evaluate(truth, perfect, coarse=as_rain(coarse, german))
    assert mixed.rows["prediction"]["mse_total_15"] == pytest.approx(0, abs=1e-6)
    assert mixed.rows["trilinear"]["mse_total_15"] == pytest.approx(
        expected.rows["trilinear"]["mse_total_15"], rel=1e-5
    )
