# SPDX-License-Identifier: Apache-2.0
"""Tests of the study of arbitrary-scale downscaling: crops, intervals, resumed runs and the table."""

import dataclasses
import json

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="training extra is not installed")

import xarray as xr

from fastds import models
from fastds.ops.impl.inr_query.points import GridSpec
from fastds.studies.command import main
from fastds.studies.fields.crops import BANDS, compute_crop_errors, draw_crops
from fastds.studies.fields.study import (
    Method,
    StudyConfig,
    compute_interval,
    compute_psnr,
    get_crop_labels,
    make_degradation,
    make_training_config,
    parse_arguments,
    render,
    run_study,
)
from fastds.tasks.fields.config import DataConfig, ModelConfig
from fastds.tasks.fields.evaluation import resize_bicubic, resize_bilinear
from fastds.tasks.fields.samples import FieldData, load_fields

SMALL = {"channels": 8, "blocks": 2}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rows, columns = torch.arange(40.0)[:, None], torch.arange(110.0)[None]
    field = torch.stack([torch.sin(1.1 * rows + 0.3 * t) * torch.cos(0.9 * columns - t) for t in range(2)])
    data = {"t": (("time", "latitude", "longitude"), (280 + 5 * field).numpy(), {"units": "K"})}
    file = tmp_path_factory.mktemp("study") / "waves.nc"
    xr.Dataset(data).to_netcdf(file, engine="h5netcdf")
    return file


def config(path, output, **options):
    data = DataConfig(
        str(path), variables=["t"], train=[0, 40], validation=[42, 70], test=[72, 110], crop=8, halo=1, queries=64,
        scales=[1.5, 2.5], batch_size=2, epoch_samples=8, vectors=[-1, -1], test_scales=[2.0],
    )  # fmt: skip
    attention = {"width": 32, "heads": 2, "key_width": 4}
    inr = {"encoder_options": SMALL, "dpfa_count": 1, "decoder_options": attention}
    methods = {
        "inr-small": Method(ModelConfig("inr", inr)),
        "edsr-x2": Method(ModelConfig("edsr-x2", {"encoder_options": SMALL}), scales=[2.0, 2.0], test=["2"]),
    }
    return StudyConfig(data, methods, **{"seeds": [0], "max_steps": 4, "crop": 36, "output": str(output)} | options)


def test_crops_cover_times_and_bands():
    crops = draw_crops((3, 2, 181, 80), 64, 2, seed=0)
    assert len(crops) == 3 * BANDS * 2 and crops == draw_crops((3, 2, 181, 80), 64, 2, seed=0)
    assert {(c.time, c.band) for c in crops} == {(t, b) for t in range(3) for b in range(BANDS)}
    assert all(0 <= c.row <= 181 - 64 and 0 <= c.column <= 80 - 64 for c in crops)
    for band in range(BANDS):
        rows = [c.row for c in crops if c.band == band]
        assert max(rows) - min(rows) < (181 - 64 + 1) / BANDS + 1
    with pytest.raises(ValueError, match="smaller than the crops"):
        draw_crops((3, 2, 60, 80), 64, 2, seed=0)


@pytest.mark.parametrize("scale", [(2, 2), (2.67, 2.67), (2, 3)], ids=str)
def test_errors_of_crops(scale):
    fields = torch.randn(2, 3, 50, 60, generator=torch.Generator().manual_seed(0))
    crops = draw_crops(fields.shape, 48, 1, seed=1)
    found = np.array(compute_crop_errors(resize_bilinear, fields, crops, 48, scale))
    assert found.shape == (len(crops), 3)
    c = crops[3]
    fine = fields[c.time, :, c.row : c.row + 48, c.column : c.column + 48]
    coarse = [int(48 / s) for s in scale]
    fine = fine[:, : round(coarse[0] * scale[0]), : round(coarse[1] * scale[1])]
    if scale == (2, 2):
        x = fine.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean((2, 4))
        up = torch.nn.functional.interpolate(x[None], fine.shape[1:], mode="bilinear")[0]
        assert np.allclose(found[3], (up - fine)[:, 8:-8, 8:-8].square().mean((1, 2)), rtol=1e-5)
    exact = compute_crop_errors(lambda x, size: fine[None], fields, [c], 48, scale)
    assert exact == [[0.0, 0.0, 0.0]]


def test_non_integer_factor_rounds_the_margin_up():
    """At factor 2.67, the margin is 3 + 6 fine pixels."""
    fields, spoilt = torch.zeros(1, 1, 48, 48), torch.zeros(1, 1, 48, 48)
    spoilt[..., 8, 20], spoilt[..., 20, 9], spoilt[..., 38, 20] = 7.0, 2.0, 3.0
    crop = draw_crops(fields.shape, None, 1, seed=0)
    size = []

    def predict(x, fine):
        size.append(fine)
        return spoilt[..., : fine[0], : fine[1]]

    found = compute_crop_errors(predict, fields, crop, None, (2.67, 2.67))
    rows, columns = size[0]  # 45 coarse pixels times 2.67 is 48.06: 17 x 2.67 = 45.4
    assert (rows, columns) == (45, 45)
    assert found == [[pytest.approx(4.0 / 27**2)]], "row 8 and row 38 are of the margin, column 9 is not"


def test_bicubic_equals_the_baseline():
    from fastds.models.baselines import interpolate

    x = torch.randn(1, 2, 9, 11, generator=torch.Generator().manual_seed(0))
    inner = (..., slice(6, -6), slice(6, -6))  # at the border torch renormalises, the baseline repeats
    assert torch.allclose(resize_bicubic(x, (27, 33))[inner], interpolate(x, 3)[inner], atol=1e-5)


def test_interval_draws_times_and_bands():
    crops = [(t, b, 0, 0) for t in range(8) for b in range(4)]
    labels = get_crop_labels({"crops": crops})
    assert compute_interval(np.full(32, 0.7), labels) == pytest.approx((0.7, 0.7))
    one_band = np.array([1.0 if b == 0 else 0.0 for _, b, _, _ in crops])
    low, high = compute_interval(one_band, labels)
    assert low == 0 and high >= 0.5  # four bands of which one differs: wide, however many times there are
    noise = np.random.default_rng(0).normal(size=32)
    low, high = compute_interval(noise, labels)
    assert low < noise.mean() < high
    two_days = get_crop_labels({"crops": crops, "together": 4})
    assert set(two_days[:, 0]) == {0, 1} and set(two_days[:, 1]) == {0, 1, 2, 3}


def test_interval_holds_95_percent():
    """With many times and one band, the interval is 1.96 standard errors to each side."""
    n = 500
    values = np.random.default_rng(3).normal(size=n)
    labels = np.stack([np.arange(n), np.zeros(n, int)], 1)
    low, high = compute_interval(values, labels)
    expected = 1.96 * values.std() / np.sqrt(n)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.08)  # 90 %: 0.84 of it
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.1 * expected)


def best(folder):
    return folder / "inr-small-0" / "best.safetensors"


def test_study_trains_once_and_renders(path, tmp_path):
    table = run_study(config(path, tmp_path)).read_text()
    scored = run_study(config(path, tmp_path / "scored", run=["edsr-x2"], weights=[str(best(tmp_path))])).read_text()
    assert f"weights {best(tmp_path)} - bicubic | 4 |" in scored and f"weights {best(tmp_path)} - edsr" not in scored
    for text in ("inr-small - bicubic", "inr-small - edsr-x2", "| edsr-x2 | 2 |", "| bilinear | 2x3 |", "CPU minutes"):
        assert text in table, table
    assert "| edsr-x2 | 4 |" not in table
    files = {f: f.stat().st_mtime_ns for f in tmp_path.glob("*.json")}
    assert {f.stem for f in files} == {"bilinear", "bicubic", "bicubic-0.75", "inr-small-0", "edsr-x2-0", "options"}
    assert run_study(config(path, tmp_path)).read_text() == table
    assert files == {f: f.stat().st_mtime_ns for f in tmp_path.glob("*.json")}
    run = json.loads((tmp_path / "inr-small-0.json").read_text())
    assert len(run["mse"]["4"]) == len(run["crops"]) == 2 * BANDS * 2
    db = compute_psnr(run, "2")
    assert np.allclose(db, 20 * np.log10(run["value_range"][0]) - 10 * np.log10(run["mse"]["2"]))


def test_results_of_weights_are_those_of_their_file(path, tmp_path):
    """Files of the same name in several folders, and a file that was trained anew, are scored each."""
    files = [tmp_path / str(n) / "best.safetensors" for n in range(2)]
    study = config(path, tmp_path / "study", seeds=[], weights=[str(file) for file in files])
    network = models.create("inr", in_channels=1, **study.methods["inr-small"].model.options)

    def save(file, width):
        file.parent.mkdir(exist_ok=True)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(0, width)
        models.save(network, file)

    def row(table, file):
        return next(line for line in table.splitlines() if f"| weights {file} | 2 |" in line).split("|")[3:]

    save(files[0], 0.1), save(files[1], 0.2)
    table = run_study(study).read_text()
    assert row(table, files[0]) != row(table, files[1])
    save(files[1], 0.3)
    again = run_study(study).read_text()
    assert row(again, files[0]) == row(table, files[0]) and row(again, files[1]) != row(table, files[1])
    alone = run_study(dataclasses.replace(study, weights=study.weights[:1])).read_text()
    assert str(files[1]) not in alone


def test_missing_weights_leave_no_files(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.safetensors"):
        run_study(config(path, tmp_path / "study", seeds=[], weights=[str(tmp_path / "absent.safetensors")]))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "options, named", [({"max_steps": 5}, "max_steps was 4 and is 5"), ({"crop": 24}, "crop was 36")]
)
def test_results_of_other_options_are_refused(path, tmp_path, options, named):
    run_study(config(path, tmp_path, seeds=[]))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=named):
        run_study(config(path, tmp_path, **options))
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_degraded_inputs_score_the_same_weights(path, tmp_path):
    clean = config(path, tmp_path, run=["edsr-x2"])
    run_study(clean)
    best = tmp_path / "edsr-x2-0" / "best.safetensors"
    before = best.stat().st_mtime_ns
    run_study(dataclasses.replace(clean, degraded=True))
    assert best.stat().st_mtime_ns == before and "| bicubic | 2x3 |" in (tmp_path / "degraded/table.md").read_text()
    for name in ("bicubic", "edsr-x2-0"):
        a, b = (json.loads((tmp_path / f / f"{name}.json").read_text()) for f in ("", "degraded"))
        assert np.mean(b["mse"]["2"]) > 1.5 * np.mean(a["mse"]["2"]) and a["crops"] == b["crops"]
    run = json.loads((tmp_path / "degraded/edsr-x2-0.json").read_text())
    assert run["train_cpu_s"] == json.loads((tmp_path / "edsr-x2-0.json").read_text())["train_cpu_s"]


def test_degradation_is_the_same_for_every_method(path, tmp_path):
    degrade = make_degradation(FieldData(config(path, tmp_path).data))
    fine = 280 + torch.randn(2, 1, 36, 36, generator=torch.Generator().manual_seed(0))
    x = degrade(fine, (18, 18), 5)
    assert x.shape == (2, 1, 18, 18) and torch.equal(x, degrade(fine, (18, 18), 5))
    assert not torch.equal(x, degrade(fine, (18, 18), 6)) and abs(x.mean() - 280) < 2


def test_location_regression_beats_interpolation(path, tmp_path):
    """If the fields are a pattern times a factor, a regression at each point is exact."""
    pattern = torch.randn(1, 33, 49, generator=torch.Generator().manual_seed(0))
    factor = 1 + 0.1 * torch.arange(40.0)[:, None, None] % 7
    data = {"t": (("time", "latitude", "longitude"), (280 + factor * pattern).numpy(), {"units": "K"})}
    xr.Dataset(data).to_netcdf(tmp_path / "box.nc", engine="h5netcdf")
    split = {"split": "time", "train": [0, 20], "validation": [21, 22], "test": [24, 40], "crop": 6}
    c = config(path, tmp_path / "box", run=["edsr-x2"], crop=None, together=8)
    table = run_study(
        dataclasses.replace(c, data=dataclasses.replace(c.data, path=str(tmp_path / "box.nc"), **split))
    ).read_text()
    assert "| regression per point | 4 |" in table and "| static residual | 2x3 |" not in table
    db = {
        n: compute_psnr(json.loads((tmp_path / f"box/{n}.json").read_text()), "2").mean()
        for n in ("bicubic", "static residual", "regression per point")
    }
    assert db["bicubic"] + 3 < db["static residual"] < db["regression per point"] - 10, db


def test_splits_by_time_and_longitude(path):
    data = DataConfig(str(path), variables=["t"], split="time", train=[0, 1], validation=[1, 2])
    fields = torch.arange(2.0)[:, None, None, None].expand(2, 1, 3, 5)
    assert data.part(fields, data.validation).unique().tolist() == [1]
    data = dataclasses.replace(data, split="longitude")
    assert data.part(fields, [1, 3]).shape == (2, 1, 3, 2)
    with pytest.raises(ValueError, match="data.split must be 'longitude' or 'time', got 'region'"):
        dataclasses.replace(data, split="region")


@pytest.mark.parametrize("name", ["fields-500hPa", "fields-eraint", "t2m-uk"])
def test_shipped_configurations_fit_their_files(name, data_dir):
    config = parse_arguments(["--config", name])
    data = dataclasses.replace(config.data, path=str(data_dir / config.data.path))
    test = data.part(load_fields(data), data.test)
    assert draw_crops(test.shape, config.crop, config.per_cell, seed=0) and len(FieldData(data).training)


def test_methods_see_the_same_samples(path, tmp_path):
    c = config(path, tmp_path)
    one, fixed = make_training_config(c, "inr-small", 3), make_training_config(c, "edsr-x2", 3)
    assert one.seed == fixed.seed == 3 and one.max_steps == fixed.max_steps and one.data.scales == [1.5, 2.5]
    assert fixed.data == dataclasses.replace(one.data, scales=[2.0, 2.0], test_scales=[2.0])


def test_difference_of_known_runs():
    base = {"variables": ["t"], "value_range": [10.0], "crops": [(t, b, 0, 0) for t in range(2) for b in range(4)]}
    runs = [
        {**base, "method": m, "seed": 0, "steps": 1, "parameters": 2, "train_cpu_s": 60.0, "mse": {"2": [[e]] * 8}}
        for m, e in (("inr-small", 0.1), ("liif", 0.2))
    ]
    assert "| inr-small - liif | 2 | +3.01 [+3.01, +3.01] |" in render(runs)


def test_runs_are_paired_by_seed():
    """Only runs of the same seed are compared. A regression without a seed is compared with each run."""
    base = {"variables": ["t"], "value_range": [10.0], "crops": [(t, b, 0, 0) for t in range(2) for b in range(4)]}
    cost = {"steps": 1, "parameters": 2, "train_cpu_s": 60.0}
    errors = {("inr-small", 0): 0.1, ("inr-small", 1): 0.4, ("liif", 1): 0.2, ("liif", 2): 0.8}
    runs = [{**base, **cost, "method": m, "seed": s, "mse": {"2": [[e]] * 8}} for (m, s), e in errors.items()]
    runs.append({**base, "method": "bicubic", "mse": {"2": [[0.2]] * 8}})
    text = render(runs[::-1])
    assert "| inr-small - liif | 2 | -3.01 [-3.01, -3.01] | -3.01 [-3.01, -3.01] | -3.01 |" in text, text
    assert "| inr-small - bicubic | 2 | +0.00 [+0.00, +0.00] | +0.00 [+0.00, +0.00] | +3.01, -3.01 |" in text, text


def test_fixed_ratio_network_is_sampled_at_its_pixels():
    torch.manual_seed(0)
    model = models.create("edsr-x3", in_channels=2, encoder_options=SMALL).eval()
    x = torch.randn(2, 2, 6, 7)
    with torch.no_grad():
        y = model(x, size=(18, 21))
        at = GridSpec.cells((6, 7), (18, 21)).points()
        assert torch.equal(model.query(x, at, torch.full((2, 2), 3.0)), y.flatten(2).transpose(1, 2))
    with pytest.raises(ValueError, match="factor must be 3"):
        model.query(x, at, torch.full((2, 2), 2.0))
    with pytest.raises(ValueError, match=r"size must be \(18, 21\)"):
        model(x, size=(17, 21))


def test_study_rejects_invalid_options(path, tmp_path, capsys):
    c = config(path, tmp_path)
    with pytest.raises(ValueError, match="needs separate test columns"):
        dataclasses.replace(c, data=dataclasses.replace(c.data, test=[]))
    with pytest.raises(ValueError, match="validation .* and test .* of longitude overlap"):
        dataclasses.replace(c.data, test=[60, 80])
    with pytest.raises(ValueError, match="methods of the study read no static maps"):
        dataclasses.replace(c, data=dataclasses.replace(c.data, statics=["lsm"]))
    with pytest.raises(ValueError, match=r"run names \['srno'\]"):
        dataclasses.replace(c, run=["srno"])
    assert main(["fields-500hPa", f"--data.path={tmp_path}/none.nc", f"--output={tmp_path}"]) == 2
    assert "no such file" in capsys.readouterr().err
