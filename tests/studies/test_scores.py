# SPDX-License-Identifier: Apache-2.0
"""Tests of scores and tables of the radar, nowcast and field studies against separate computations."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from torch import nn

pytest.importorskip("lightning", reason="training extra is not installed")

from fastds import models
from fastds.data import RAIN_THRESHOLDS, coarsen, open_dataset, save_dataset, synthetic_event
from fastds.inference.tiling import Tile
from fastds.models.baselines import advection, trilinear
from fastds.studies import humidity, nowcast, radar
from fastds.studies.fields import crops as field_crops
from fastds.studies.fields.study import render
from fastds.tasks.humidity.config import parse_arguments as humidity_training
from fastds.tasks.nowcast.scores import NowcastTable
from fastds.tasks.radar.refinement import FrameRefiner
from fastds.tasks.radar.steady import match_end_frames

# ---- radar


class Weaker(nn.Module):
    """Trilinear interpolation minus a tenth of the range between floor and ceiling."""

    def __init__(self):
        super().__init__()
        self.config = {}
        self.card = models.ModelCard(name="weaker", floor_dbz=15.0, ceiling_dbz=65.0)

    def forward(self, x):
        return trilinear(x, 2) - 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write 6 fields of 44 x 52 pixels with a hole; the first is not in the test block."""
    folder, event = tmp_path_factory.mktemp("radar"), synthetic_event(1, frames=6, shape=(44, 52))
    event["reflectivity"][3, 20:23, 30:33] = np.nan
    save_dataset(event, folder / "event.nc")
    return folder


@pytest.fixture
def one_file(monkeypatch):
    monkeypatch.setattr(radar, "TEST_BLOCKS", {"event.nc": (1, None, 2)})
    monkeypatch.setattr(radar.models, "load", lambda name: Weaker())


def truth_of(folder):
    with open_dataset(folder / "event.nc") as dataset:
        z = dataset["reflectivity"].values
    there = binary_erosion(~np.isnan(z[3]).reshape(22, 2, 26, 2).any((1, 3)).repeat(2, 0).repeat(2, 1), np.ones((5, 5)))
    return [z[k : k + 3].astype(float) for k in (1, 3)], there  # of these starts one is at every second interval


def mse(predicted, truth, there, floor):
    """Return the mean squared error of each frame of a triple."""
    p, t = (np.clip(np.nan_to_num(np.array(z), nan=-32.0), floor, 70) for z in (predicted, truth))
    return ((p - t) ** 2)[:, :, there].mean((0, 2))


def interpolated(triple, low, high, method, mode="dbz"):
    floored = triple[::2] if mode == "plain_dbz" else triple[::2].clip(low)
    x = (np.nan_to_num(coarsen(floored, 2), nan=low).clip(low, high) - low) / (high - low)
    return low + (high - low) * method(torch.from_numpy(x).float()[None, :, None], 2)[0, :, 0].double().numpy()


def refined_means(triple, smooth):
    means = np.nan_to_num(coarsen(triple[::2].clip(0), 2), nan=0.0)
    whole = (slice(0, 22), slice(0, 26))
    network = Weaker()
    refiner = FrameRefiner(
        lambda x, flow: network(x), scale=2, floor=15.0, ceiling=65.0, no_echo=-32.0, tiles=[Tile(whole, whole)],
        steady=not smooth,
    )  # fmt: skip
    return np.stack(list(refiner.refine(means)))


def steadied(fields):
    """Apply match_end_frames to fields (3, h, w) in dBZ, as downscale does by default."""
    y = torch.from_numpy((fields - 15) / 50).float()
    return np.stack([fields[0], 15 + 50 * match_end_frames(y).numpy(), fields[2]])


@pytest.mark.parametrize("smooth", [False, True])
def test_errors_of_a_model_on_the_radars(folder, one_file, capsys, smooth):
    heads = "block", "floor", "coarsened", *radar.BASELINES, "a model", "of trilinear", "of advection"
    results = radar.print_errors(str(folder), "a model", modes=["dbz"], smooth=smooth)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "| " + " | ".join(heads) + " |"
    assert printed[1] == "|---|---|---|---|---|---|---|---|---|" and len(printed) == 4
    assert list(results) == [("event.nc", 15.0, "dbz"), ("event.nc", 0.0, "dbz")]
    truth, there = truth_of(folder)
    for line, ((_, floor, _), result) in zip(printed[2:], results.items(), strict=True):
        row = result.errors
        expected = {}
        for name, method in (("trilinear", trilinear), ("advection", advection)):
            expected[name] = mse([interpolated(t, floor, 70, method) for t in truth], truth, there, floor)
        fields = [interpolated(t.clip(floor), 15, 65, trilinear) - 5 for t in truth]
        fields = fields if smooth else [steadied(z) for z in fields]
        if floor == 0:  # as downscale refines means of what is cut at 0 dBZ
            fields = [refined_means(t, smooth) for t in truth]
        expected["model"] = mse(fields, truth, there, floor)
        for name, (first, middle, last) in expected.items():
            found = row[name]
            assert found["pixels"] == 2 * there.sum()
            assert found["mse_t2"] == pytest.approx(middle, rel=1e-3)
            assert found["mse_t13"] == pytest.approx((first + last) / 2, rel=1e-3)
            assert np.isnan(found["ssim"])
        cells = [f"{row[name]['mse_total']:.3f}" for name in (*radar.BASELINES, "model")]
        ratios = [f"{row['model']['mse_total'] / row[name]['mse_total']:.3f}" for name in ("trilinear", "advection")]
        assert line == f"| event.nc | {floor:g} | dbz | " + " | ".join([*cells, *ratios]) + " |"
    scores = radar.summarize(results)["event.nc, floor 15 dBZ"]
    row = results["event.nc", 15.0, "dbz"].errors
    assert scores == {
        **{key: round(row["model"][key], 4) for key in ("mse_total", "mse_t2", "mse_t13")},
        **{f"mse_total_{name}": round(row[name]["mse_total"], 4) for name in radar.BASELINES},
    }


def test_errors_with_other_coarsening_operators(folder, one_file, capsys):
    """The operator plain_dbz averages pixels without echo as -32 dBZ; the truth does not change."""
    results = radar.print_errors(str(folder), "a model", [15.0], modes=["dbz", "plain_dbz"])
    assert list(radar.summarize(results)) == ["event.nc, floor 15 dBZ", "event.nc, floor 15 dBZ, plain_dbz"]
    truth, there = truth_of(folder)
    first, middle, last = mse([interpolated(t, 15, 70, trilinear, "plain_dbz") for t in truth], truth, there, 15)
    found = results["event.nc", 15.0, "plain_dbz"].errors["trilinear"]
    assert found["mse_t2"] == pytest.approx(middle, rel=1e-3)
    assert found["mse_t13"] == pytest.approx((first + last) / 2, rel=1e-3)
    assert found["mse_total"] != pytest.approx(
        results["event.nc", 15.0, "dbz"].errors["trilinear"]["mse_total"], rel=1e-4
    )


def row_of(ours, theirs, blocks, pixels=None):
    """Return a row of the radar study with these squared errors of the model and of advection."""
    pixels = pixels or [1] * len(blocks)
    of = {"model": ours, "advection": theirs}
    samples = {k: [{"mse_total": e, "pixels": n} for e, n in zip(of[k], pixels, strict=True)] for k in of}
    return radar.Row(samples, blocks)


def test_ratios_of_blocks_of_time():
    """Samples are weighted by pixels. With at least five blocks, the interval is a bootstrap over blocks."""
    row = row_of([1.0, 3.0, np.nan], [2.0, 2.0, np.nan], [0, 0, 1], [3, 1, 0])
    assert row.errors["model"] == {"mse_total": 1.5, "pixels": 4}
    found = radar.compute_ratio([row], "advection")
    assert found.mean == pytest.approx(0.75) and np.isnan(found.low)
    ours = np.array([0.6, 0.7, 0.8, 0.9, 1.0])
    alike = row_of(2 * ours, [2.0] * 5, range(5))
    found = radar.compute_ratio([alike], "advection")
    drawn = np.random.default_rng(0).choice(ours, (4000, 5)).mean(1)
    assert found.mean == pytest.approx(0.8)
    assert found[1:] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)
    paired = row_of([*ours, *ours], [1.0] * 10, [0, 1, 2, 3, 4] * 2)  # samples of a block are drawn together
    assert radar.compute_ratio([paired], "advection")[1:] == pytest.approx(found[1:], abs=0.02)
    both = radar.compute_ratio([alike, row_of([1.2], [1.0], [0])], "advection")  # the mean of 0.8 and 1.2
    assert both.mean == pytest.approx(1.0) and both.low < 0.85 < 1.0 < both.high


def test_other_cadences_and_grids_of_the_radars(folder, one_file):
    block = radar.read_test_block(folder, "event.nc", 10.0, interval=2)
    assert (block.name, block.floor, len(block.samples)) == ("event.nc", 10.0, 1)
    with open_dataset(folder / "event.nc") as dataset:
        z = dataset["reflectivity"].values[1::2]
    sample = block.samples[0]
    there = ~np.isnan(z)
    np.testing.assert_allclose(sample["y"][:, 0].numpy()[there], ((z[there].clip(10, 70) - 10) / 60), atol=1e-6)
    valid = sample["valid"][:, 0].numpy()
    assert valid.shape == (3, 44, 52) and (valid == valid[0]).all()
    assert valid[0, 2:-2, 2:18].all() and not valid[0, :2].any() and not valid[0, :, -2:].any()
    assert radar.read_test_block(folder, "event.nc", scale=2).samples[0]["y"].shape == (3, 1, 20, 24)


def test_scores_go_into_the_card(folder, one_file, monkeypatch, tmp_path):
    saved = []
    monkeypatch.setattr(radar.models, "save", lambda network, target: saved.append((network.card, target)))
    radar.publish("weights", tmp_path / "out", str(folder), {"licence": "CC0"}, [15.0])
    (card, target) = saved[0]
    assert card.licence == "CC0" and target == tmp_path / "out"
    modes = "", ", linear_z", ", plain_dbz"
    assert list(card.metrics["test"]) == [f"event.nc, floor 15 dBZ{mode}" for mode in modes]


radar.read_test_block.__test__ = False

# ---- nowcasts


@pytest.fixture
def scores():
    """Return scores of four methods at two leads."""
    rows = {}
    for k, method in enumerate(("extrapolation", "blurred-persistence", "persistence", "net")):
        csi = 0.9 - 0.01 * k - 0.1 * np.arange(len(RAIN_THRESHOLDS)) - 0.003 * np.array([[0], [k + 1]])
        rows[method] = {"mse": np.array([10.0 + k, 20.0 + k * k]), "csi": csi}
    return NowcastTable(rows, np.array([300.0, 600.0]), (200.0, 1.6), 7, 100, {})


def test_comparison_of_nowcasts(scores):
    found = nowcast.compare_with_reference(scores, "persistence")
    assert list(found) == ["mse", "csi 0.5", "csi 2", "csi 5"]
    np.testing.assert_allclose(found["mse"], [13 / 12, 29 / 24])
    for name in ("csi 0.5", "csi 2", "csi 5"):
        np.testing.assert_allclose(found[name], [-0.01, -0.013])
    np.testing.assert_allclose(nowcast.compare_with_reference(scores)["mse"], [13 / 10, 29 / 20])


def test_summary_of_nowcasts(scores):
    found = nowcast.summarize(scores)
    assert found["starts"] == 7 and found["mse"] == 21.0 and found["mse of persistence"] == 18.0
    for method, k in (("", 3), (" of extrapolation", 0), (" of blurred-persistence", 1), (" of persistence", 2)):
        for rate in nowcast.RATES:
            mean = 0.9 - 0.01 * k - 0.1 * RAIN_THRESHOLDS.index(rate) - 0.0015 * (k + 1)
            assert found[f"csi {rate:g}{method}"] == round(mean, 4)
    assert found["mse over extrapolation's, worst lead"] == 1.45
    assert [found[f"csi {rate:g} less extrapolation's, worst lead"] for rate in nowcast.RATES] == [-0.039] * 3


@pytest.mark.parametrize(
    ("options", "read", "steps"), [({}, 18, 6), ({"steps": 12}, 12, 12), ({"steps": 30}, 4, 20), ({"starts": 2}, 7, 6)]
)
def test_score_file_uses_frames_before_the_start(monkeypatch, tmp_path, options, read, steps):
    """The file has 24 fields of 10 minutes and the model needs 4."""
    times = np.datetime64("2024-06-01T12:00", "ns") + np.timedelta64(10, "m") * np.arange(24)
    event = synthetic_event(0, frames=2, shape=(32, 32)).isel(time=[0] * 24).assign_coords(time=times)
    save_dataset(event, tmp_path / "event.nc")
    calls = {}
    monkeypatch.setattr(nowcast, "TEST_STARTS", {"event.nc": 3})
    monkeypatch.setattr(nowcast, "nowcast", lambda model, fields, **given: calls.update(fields=fields, given=given))
    monkeypatch.setattr(nowcast, "evaluate", lambda made, truth, baselines: (truth.sizes["time"], baselines))
    network = nn.Identity()
    network.card = models.ModelCard(name="net", input_steps=4)
    options = {"steps": 6} | options
    assert nowcast.score_file(network, tmp_path, "event.nc", baselines=["x"], **options) == (24, ["x"])
    expected = {"steps": steps, "every": "30min", "smooth": False, "quantity": "reflectivity"}
    assert calls["given"] == expected
    assert calls["fields"].sizes["time"] == read and (calls["fields"].time[0] == event.time[0]).item()


def test_print_scores_of_all_test_files(scores, monkeypatch, capsys, tmp_path):
    calls, saved = [], []
    network = nn.Identity()
    network.card = models.ModelCard(name="net")
    monkeypatch.setattr(nowcast.models, "load", lambda name: network)
    monkeypatch.setattr(nowcast.models, "save", lambda *args: saved.append(args))
    monkeypatch.setattr(nowcast, "score_file", lambda *args, **options: calls.append((args, options)) or scores)
    assert (
        nowcast.print_scores("data", "net") == dict.fromkeys(nowcast.TEST_STARTS, nowcast.summarize(scores))
        and not saved
    )
    assert calls == [((network, "data", f), {"starts": None, "smooth": False}) for f in nowcast.TEST_STARTS]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * (1 + 3 * 4) and lines[0] == f"{next(iter(nowcast.TEST_STARTS))}: 7 starts, minutes 5 10"
    assert lines[1] == "  mse      vs extrapolation       " + " 1.300  1.450"
    assert lines[4] == "  csi 5    vs extrapolation       " + "-0.030 -0.039"
    assert lines[9] == "  mse      vs persistence         " + " 1.083  1.208"
    config = nowcast.StudyConfig(nowcast.Files("data"), "net", output=str(tmp_path / "out"))
    assert nowcast.study(config) == config.output and saved == [(network, config.output)]
    assert network.card.metrics["test"]["radar_mch_20160711_5min.nc"] == nowcast.summarize(scores)


# ---- fields


def test_crops_reach_the_last_row_and_column():
    """All rows of a band and all columns occur."""
    crops = field_crops.draw_crops((2, 1, 19, 21), 8, 60, seed=0)
    for band in range(4):
        assert {c.row for c in crops if c.band == band} == set(range(3 * band, 3 * band + 3))
    assert {c.column for c in crops} == set(range(14)) and [c.time for c in crops] == [0] * 240 + [1] * 240
    rows = {c.row for c in field_crops.draw_crops((1, 1, 9, 9), 8, 60, seed=0)}
    assert rows == {0, 1}, "bands of less than a row"
    assert field_crops.draw_crops((2, 1, 19, 12), None, 60, seed=0) == [(0, 0, 0, 0), (1, 0, 0, 0)]


def test_crops_are_degraded_in_batches():
    fields = torch.randn(1, 2, 30, 40, generator=torch.Generator().manual_seed(0))
    crops, calls = field_crops.draw_crops(fields.shape, 24, 3, seed=1), []

    def degrade(fine, size, number):
        calls.append((tuple(fine.shape), size, number))
        return torch.zeros(len(fine), 2, *size)

    def predict(x, size):
        return x.new_zeros(len(x), 2, *size)

    found = field_crops.compute_crop_errors(predict, fields, crops, 24, (2, 3), degrade)
    assert calls == [((8, 2, 24, 24), (12, 8), 0), ((4, 2, 24, 24), (12, 8), 8)]
    inner = [fields[0, :, c.row + 8 : c.row + 16, c.column + 9 : c.column + 15] for c in crops]
    assert found == [pytest.approx(z.double().square().mean((1, 2)).tolist()) for z in inner]


def test_render_tables_by_hand():
    base = {"variables": ["t", "u"], "value_range": [10.0, 20.0], "crops": [(0, b, 0, 0) for b in range(2)]}
    errors = {0: [[0.1, 0.4], [0.4, 0.1]], 1: [[0.2, 0.8], [0.1, 0.4]]}
    cost = {"steps": 1500, "parameters": 12345}
    runs = [
        {**base, **cost, "method": "inr-small", "seed": s, "train_cpu_s": 60.0 + 60 * s, "mse": {"2": errors[s]}}
        for s in (1, 0)
    ]
    runs.append({**base, "method": "bicubic", "mse": {"2": [[0.5, 0.5], [0.5, 0.5]], "4": [[1.0, 1.0], [1.0, 1.0]]}})
    each = np.array([errors[0], errors[1]])
    db = 10 * np.log10(np.array([100.0, 400.0]) / each)
    pooled = each.mean((0, 1))
    cells = [f"{d:.2f} ({np.sqrt(m):.4g})" for d, m in zip(db.mean((0, 1)), pooled, strict=True)]
    pooled = (10 * np.log10(np.array([100.0, 400.0]) / pooled)).mean()
    lines = render(runs).splitlines()
    assert lines[0] == "PSNR, mean over the crops and then the variables:" and lines[1] == ""
    assert lines[2] == "| method | factor | t: dB (RMSE) | u: dB (RMSE) | mean dB | dB of mean MSE |"
    assert lines[3] == "| --- | --- | --- | --- | --- | --- |"
    assert lines[4] == "| bicubic | 2 | 23.01 (0.7071) | 29.03 (0.7071) | 26.02 | 26.02 |"
    assert lines[5] == "| bicubic | 4 | 20.00 (1) | 26.02 (1) | 23.01 | 23.01 |"
    assert lines[6] == f"| inr-small | 2 | {cells[0]} | {cells[1]} | {db.mean():.2f} | {pooled:.2f} |"
    gain = db - 10 * np.log10(np.array([100.0, 400.0]) / 0.5)
    row = next(line for line in lines if line.startswith("| inr-small - bicubic")).split(" | ")
    assert row[1] == "2" and row[2].startswith(f"{gain.mean():+.2f} [") and len(row) == 6
    assert [cell.split()[0] for cell in row[3:5]] == [f"{g:+.2f}" for g in gain.mean((0, 1))]
    assert row[5] == ", ".join(f"{g:+.2f}" for g in gain.mean((1, 2))) + " |"
    # Two bands: the interval goes from one to the other.
    low, high = np.sort(gain.mean((0, 2)))
    assert row[2] == f"{gain.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
    assert lines[-2:] == ["| --- | --- | --- | --- | --- |", "| inr-small | 2 | 1500 | 12,345 | 1.5 |"]


# ---- humidity


def test_regions_of_the_humidity_study(monkeypatch):
    """Regions with at least four times are scored, in the unit of the file."""
    config = humidity_training(["--config", "wgan-gp-small", "--data.path", "data"])
    regions = [np.full((n, 4, 4), 0.25, np.float32) for n in (3, 4, 5)]
    monkeypatch.setattr(humidity, "read_regions", lambda data, part: regions if part == "test" else [])
    monkeypatch.setattr(humidity, "evaluate_region", lambda *args: args)
    found = humidity.score({"net": None}, config, 3, 5)
    assert [len(region) for _, region, _, _ in found] == [4, 5] and found[0][0] == {"net": None}
    expected = 0.25 * config.data.range + config.data.offset
    assert all(np.allclose(region, expected) and rest == [3, 5] for _, region, *rest in found)
