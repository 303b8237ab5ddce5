# SPDX-License-Identifier: Apache-2.0
"""Tests of fastds.nowcast and `fastds nowcast`: values, times, CF output, coarsening, gaps and messages."""

import cftime
import numpy as np
import pytest
import torch

from fastds import models
from fastds.cli import main
from fastds.data import open_dataset, save_dataset, synthetic_event, to_reflectivity
from fastds.inference import files as inference_files
from fastds.models.baselines import blurred_persistence, extrapolation
from fastds.tasks.nowcast import methods
from fastds.tasks.nowcast.pipeline import Options, find_input_offsets
from fastds.tasks.nowcast.run import nowcast, nowcast_file

START = "2020-06-01T12:00"
CARD = {"floor_dbz": 0.0, "ceiling_dbz": 60.0, "input_steps": 3}


@pytest.fixture(scope="module")
def event():
    """Return 12 fields of 42 x 54 pixels of 1 km, every 5 minutes, with a hole."""
    event = synthetic_event(3, frames=12, shape=(42, 54))[["reflectivity", "crs"]]
    event = event.assign_coords(time=np.datetime64(START, "ns") + np.arange(12) * np.timedelta64(5, "m"))
    event["reflectivity"][:, 5:9, 30:33] = np.nan
    return event


def network(**card):
    torch.manual_seed(0)
    model = models.create("ms-convlstm-small")
    model.card.name = "tiny"
    for name, value in {**CARD, **card}.items():
        setattr(model.card, name, value)
    return model


def normalised(event, frames, coarsen=1):
    z = average(np.clip(event["reflectivity"].values[frames], 0, None), coarsen)
    return torch.from_numpy(np.clip(z, 0, 60) / 60).float()[None, :, None]


def average(z, coarsen):
    n, h, w = z.shape
    h, w = h // coarsen, w // coarsen
    return z[:, : h * coarsen, : w * coarsen].reshape(n, h, coarsen, w, coarsen).mean((2, 4))


def rate(x, z_r=(200.0, 1.6)):
    """Convert normalised fields (1, n, 1, h, w) to rain rates (n, h, w) in mm/h."""
    z = 60 * x[0, :, 0].double().clamp(0, 1).numpy()
    return np.where(z <= 0, 0.0, (10 ** (z / 10) / z_r[0]) ** (1 / z_r[1]))


def check_forecast(out, expected):
    """Check that a dataset holds the expected rates, except in the weakest cells, which may be set to 0."""
    values = out.rainfall_rate.values
    there = ~np.isnan(values)
    dried = there & (values == 0) & (expected > 0)
    np.testing.assert_allclose(values[there & ~dried], expected[there & ~dried], rtol=1e-3, atol=1e-4)
    for field, made, cut in zip(values, expected, dried, strict=True):
        assert not cut.any() or made[cut].max() <= made[field > 0].min()
    assert out.attrs["fastds_dried_share"] == pytest.approx(dried.sum() / there.sum(), rel=5e-3)


def test_input_offsets_are_the_times_that_a_nowcast_reads(event):
    model = network()  # reads three fields

    def find(model, **options):
        offsets, necessary = find_input_offsets(model, 300.0, Options(**options))
        return offsets.tolist(), necessary

    assert find(model) == ([0, 300, 600], 3)
    assert find(model, interval="10min") == ([0, 600, 1200], 3)
    assert find("persistence") == ([0, 300], 2)  # the time step needs two
    assert find("extrapolation") == ([0, 300, 600, 900], 2)
    with pytest.raises(ValueError, match=r"interval must be a multiple of the file's 300 s, got '7min'"):
        find_input_offsets(model, 300.0, Options(interval="7min"))


def test_nowcast_passes_the_last_frames_to_the_network(event):
    model = network()
    with torch.no_grad():
        expected = rate(model.eval().forecast(normalised(event, slice(9, 12)), steps=4))
    out = model.nowcast(event, steps=4)
    hole = np.isnan(event["reflectivity"].values[-1])
    assert out.rainfall_rate.dims == ("time", "y", "x") and out.rainfall_rate.shape == (4, 42, 54)
    assert np.array_equal(np.isnan(out.rainfall_rate.values), np.broadcast_to(hole, (4, 42, 54)))
    check_forecast(out, expected)
    assert model.training is False


def test_long_forecasts_may_restart(event):
    model = network()
    with torch.no_grad():
        expected = rate(model.eval().forecast(normalised(event, slice(9, 12)), steps=5, block=2))
    out = model.nowcast(event, steps=5, block=2)
    check_forecast(out, expected)
    assert out.attrs["fastds_block"] == 2
    with pytest.raises(ValueError, match="method extrapolation cannot start anew from its own forecasts"):
        nowcast("extrapolation", event, block=2)


def test_smooth_forecasts_are_not_intensity_matched(event):
    torch.manual_seed(0)
    model = models.create("nowcast-small", hidden=4).eval()
    for name, value in {**CARD, "name": "moving"}.items():
        setattr(model.card, name, value)
    torch.nn.init.constant_(model.network.module.output.bias, -0.03)  # all echo decays
    known = torch.from_numpy(np.clip(event["reflectivity"].values[9:], 0, 60) / 60)[None, :, None]
    expected = 60 * model(known, steps=2)[0, :, 0].detach().numpy()
    out = model.nowcast(event, steps=2, smooth=True, quantity="reflectivity")
    there = ~np.isnan(out.reflectivity.values) & (out.from_outside.values == 0)
    assert out.attrs["fastds_dry_below_dBZ"] == 2
    assert out.attrs["fastds_dry_below_mm_h"] == pytest.approx((10**0.2 / 200) ** (1 / 1.6), abs=1e-4)
    assert ((expected > 0) & (expected < 2))[there].any()
    expected = np.where(expected < 2, event["reflectivity"].attrs.get("no_echo_value", -32.5), expected)
    np.testing.assert_allclose(out.reflectivity.values[there], expected[there], rtol=1e-3, atol=1e-3)
    assert out.attrs["fastds_smooth"] == 1 and "fastds_errors" not in out.attrs
    matched = model.nowcast(event, steps=2, quantity="reflectivity")
    assert matched.attrs["fastds_smooth"] == 0 and matched.reflectivity.mean() > 1.1 * out.reflectivity.mean()
    with pytest.raises(ValueError, match="method extrapolation gives its forecasts no intensities that could be left"):
        nowcast("extrapolation", event, smooth=True)


def test_smooth_rain_is_the_mean_of_members(event):
    smooth = nowcast("nowcast-small", event, steps=6, smooth=True)
    members = nowcast("nowcast-small", event, steps=6, members=96)
    assert smooth.attrs["fastds_errors"] == members.attrs["fastds_errors"]
    mean, rain = members.rainfall_rate.mean("realization"), smooth.rainfall_rate
    observed = rate(normalised(event, [11]))[0]
    now = observed[~np.isnan(event["reflectivity"].values[11])].mean()
    # Members have spatially correlated noise, so that even the mean of 96 members over a small domain varies.
    np.testing.assert_allclose(rain.mean(("y", "x")), mean.mean(("y", "x")), rtol=0.25)
    np.testing.assert_allclose(rain[:2].mean(("y", "x")), now, rtol=0.15)
    # The reflectivity of least squared error has less rain.
    z = nowcast("nowcast-small", event, steps=6, smooth=True, quantity="reflectivity").reflectivity
    low = np.where(z > 0, (10 ** (z / 10) / 200) ** (1 / 1.6), 0).mean((1, 2))
    assert (low < 0.97 * rain.mean(("y", "x"))).all()


def test_coarser_cells_preserve_the_mean_rain(event):
    pixels = rate(normalised(event.fillna(0), [11]))[0]
    blocks = pixels.reshape(21, 2, 27, 2).mean((1, 3))
    out = nowcast("persistence", event, steps=1, coarsen=2)
    there = ~np.isnan(out.rainfall_rate.values[0]) & (out.rainfall_rate.values[0] > 0)
    np.testing.assert_allclose(out.rainfall_rate.values[0][there], blocks[there], rtol=1e-3)
    assert out.attrs["fastds_averaged"] == "rain rate"
    z = nowcast("persistence", event, steps=1, coarsen=2, quantity="reflectivity")
    expected = 60 * normalised(event, [11], 2)[0, 0, 0].numpy()
    there = z.reflectivity.values[0] > 0
    np.testing.assert_allclose(z.reflectivity.values[0][there], expected[there], rtol=1e-3)
    assert z.attrs["fastds_averaged"] == "reflectivity"


def test_times_grid_and_attributes(event):
    out = nowcast("extrapolation", event, lead="20min", start="2020-06-01T12:30Z")
    reference = np.datetime64("2020-06-01T12:30")
    assert out.forecast_reference_time.values == reference and out.forecast_reference_time.ndim == 0
    assert out.forecast_period.values.tolist() == [300, 600, 900, 1200] and out.forecast_period.attrs["units"] == "s"
    assert np.array_equal(out.time.values, reference + np.arange(1, 5) * np.timedelta64(5, "m"))
    for dim in ("y", "x"):
        assert np.array_equal(out[dim], event[dim])
    assert out.rainfall_rate.attrs["units"] == "mm h-1" and out.rainfall_rate.attrs["grid_mapping"] == "crs"
    assert out.attrs["fastds_model"] == "extrapolation" and out.attrs["fastds_interval_s"] == 300
    assert (
        out.attrs["fastds_z_r"] == "Z = 200 R^1.6, the default" and "nowcast with extrapolation" in out.attrs["history"]
    )


def test_baselines_are_methods(event):
    for name, method, known in (("extrapolation", extrapolation, 4), ("blurred-persistence", blurred_persistence, 5)):
        out = nowcast(name, event, steps=2)
        expected = rate(method(normalised(event, slice(12 - known, 12)), 2))
        if name == "extrapolation":
            check_forecast(out, expected)
            continue
        there = ~np.isnan(out.rainfall_rate.values)
        np.testing.assert_allclose(out.rainfall_rate.values[there], expected[there], rtol=1e-3, atol=1e-4)
        assert "fastds_dried_share" not in out.attrs


@pytest.mark.parametrize(("frames", "used"), [
    ([10, 11], [10, 11]), ([9, 10, 11], [9, 10, 11]), ([7, 8, 9, 10, 11], [8, 9, 10, 11]), ([8, 10, 11], [10, 11]),
    ([5, 6, 7, 9, 10, 11], [9, 10, 11]),
])  # fmt: skip
def test_extrapolation_reads_up_to_four_fields_without_a_gap(event, frames, used):
    out = nowcast("extrapolation", event.isel(time=frames), steps=2)
    check_forecast(out, rate(extrapolation(normalised(event, used), 2)))
    assert out.attrs["fastds_input_steps"] == len(used)


def test_requested_z_r_relation_is_used(event):
    z = nowcast("persistence", event, steps=1, quantity="reflectivity").reflectivity
    given = event["reflectivity"].values[-1]
    there, echo = ~np.isnan(given), given > 0
    assert z.attrs["units"] == "dBZ" and np.array_equal(np.isnan(z.values[0]), ~there)
    np.testing.assert_allclose(z.values[0][echo], np.minimum(given[echo], 60), atol=1e-4)
    assert np.all(z.values[0][there & ~echo] == z.attrs["no_echo_value"])
    out = nowcast("persistence", event, steps=1, z_r=(300, 1.4))
    expected = np.where(echo, (10 ** (np.minimum(given, 60) / 10) / 300) ** (1 / 1.4), 0.0)
    np.testing.assert_allclose(out.rainfall_rate.values[0][there], expected[there], rtol=1e-4)
    assert out.rainfall_rate.attrs["zr_a"] == 300 and out.attrs["fastds_z_r"] == "Z = 300 R^1.4, given"
    named = event.assign_attrs(zr_a=316.0, zr_b=1.5)
    assert nowcast("persistence", named, steps=1).attrs["fastds_z_r"] == "Z = 316 R^1.5, from the file's attributes"
    other = nowcast("persistence", named, steps=1, z_r=(300, 1.4))
    assert other.rainfall_rate.attrs["zr_a"] == 300 and not {"zr_a", "zr_b"} & set(other.attrs), (
        "a file has one Z-R relation"
    )
    back = to_reflectivity(nowcast("persistence", named, steps=2), "rainfall_rate")
    np.testing.assert_allclose(back.frames(0)[echo], np.minimum(given[echo], 60), atol=1e-3)


def test_rates_and_amounts_return_rates(event):
    rates = np.where(event["reflectivity"] > 0, (10 ** (event["reflectivity"] / 10) / 200) ** (1 / 1.6), 0.0)
    attrs = {"units": "kg m-2", "standard_name": "rainfall_amount", "cell_methods": "time: sum"}
    amounts = event.drop_vars("reflectivity").assign(rain=(("time", "y", "x"), rates / 12, attrs))
    out = nowcast("persistence", amounts, steps=2, var="rain")
    there = ~np.isnan(rates[-1])
    np.testing.assert_allclose(out.rainfall_rate.values[1][there], rates[-1][there], rtol=1e-3, atol=0.04)
    assert out.rainfall_rate.attrs["cell_methods"] == "time: mean"
    assert out.time.values[0] == event.time.values[-1] + np.timedelta64(5, "m")


def test_grid_and_interval_of_the_card(event, tmp_path):
    model = network(grid_spacing_m=(4000.0, 4000.0), cadence_s=(600.0, 1200.0))
    with torch.no_grad():
        rain = average(rate(normalised(event, slice(7, 12, 2))), 4)  # cells have the mean rain
        z = torch.from_numpy(10 * np.log10(200 * rain**1.6 + 1e-9) / 60).clamp(0, 1).float()
        expected = rate(model.eval().forecast(z[None, :, None], steps=2))
    out = model.nowcast(event, steps=2)
    assert out.rainfall_rate.shape == (2, 10, 13) and out.attrs["fastds_coarsening"] == 4
    assert out.forecast_period.values.tolist() == [600, 1200]
    np.testing.assert_allclose(out.x, event.x.values[:52].reshape(13, 4).mean(1))
    check_forecast(out, expected)
    with pytest.warns(UserWarning, match="the grid spacing of 2000 m is outside .* trained for, 4000 m:"):
        assert model.nowcast(event, steps=1, coarsen=2).rainfall_rate.shape == (1, 21, 27)
    with pytest.warns(UserWarning, match="interval between fields of 300 s is outside"):
        model.nowcast(event, steps=1, interval="5min")
    save_dataset(event.drop_vars(["y", "x"]), tmp_path / "in.nc")
    report = nowcast_file(tmp_path / "in.nc", tmp_path / "out.nc", model=model, steps=1)
    assert "the file declares no grid spacing" in report.summary()


def test_coarser_forecast_warns(event, tmp_path, capsys):
    save_dataset(event, tmp_path / "in.nc")
    models.save(network(grid_spacing_m=(4000.0, 4000.0), cadence_s=(600.0, 1200.0)), tmp_path / "w.safetensors")
    message = "coarser than the file: cells of 4 x 4 of the file (4000 instead of 1000 m), fields every 600 s of the"
    for options, hint in (([], True), (["--coarsen", "4"], False)):
        run = ["nowcast", f"{tmp_path}/in.nc", f"{tmp_path}/out.nc", "--model", f"{tmp_path}/w.safetensors"]
        assert main([*run, "--steps", "1", *options]) == 0
        printed = capsys.readouterr().out
        assert message in printed and ("with --coarsen 1 cells stay those of the file" in printed) == hint
    with open_dataset(tmp_path / "out.nc") as out:
        assert out.attrs["fastds_resolution"].startswith(message)
    fine = nowcast("persistence", event, steps=1)
    assert "fastds_resolution" not in fine.attrs


def test_scalar_coordinates_are_preserved(event):
    high = event.assign_coords(height=((), 1500.0, {"units": "m"}))
    for options in ({"steps": 1}, {"steps": 1, "every": "10min"}):
        out = nowcast("persistence", high, **options)
        assert out.height.item() == 1500.0 and out.height.attrs == {"units": "m"}


@pytest.mark.parametrize("mapped_bytes", [inference_files.MAPPED_BYTES, 0], ids=["in memory", "in a file"])
def test_hindcasts(event, tmp_path, monkeypatch, mapped_bytes):
    monkeypatch.setattr(inference_files, "MAPPED_BYTES", mapped_bytes)
    gap = event.isel(time=[i for i in range(12) if i != 6])
    model = network()
    save_dataset(gap, tmp_path / "in.nc")
    report = nowcast_file(tmp_path / "in.nc", tmp_path / "out.nc", model=model, steps=2, every="10min")
    assert (
        "2 of 5 starts were left out" in report.summary() and "3 forecasts of 2 fields every 5 min" in report.summary()
    )
    with open_dataset(tmp_path / "out.nc") as out:
        assert out.rainfall_rate.dims == ("forecast_reference_time", "forecast_period", "y", "x")
        minutes = (out.forecast_reference_time.values - np.datetime64(START)) / np.timedelta64(1, "m")
        assert minutes.tolist() == [10, 20, 50]
        leads = out.time.values - out.forecast_reference_time.values[:, None]
        assert np.all(leads == np.array([5, 10]) * np.timedelta64(1, "m"))
        for number, minute in enumerate((10, 20, 50)):
            alone = model.nowcast(gap, steps=2, start=str(np.datetime64(START) + np.timedelta64(minute, "m")))
            np.testing.assert_array_equal(out.rainfall_rate.values[number], alone.rainfall_rate.values)


def test_non_standard_calendars(event):
    times = [cftime.Datetime360Day(2020, 2, 30, 23, 5 * k) for k in range(12)]
    event = event.assign_coords(time=times)
    out = nowcast("persistence", event, steps=2)
    assert str(out.time.values[-1]) == "2020-03-01 00:05:00"
    assert str(nowcast("persistence", event, start="2020-02-30T23:10").time.values[0]) == "2020-02-30 23:15:00"
    with pytest.raises(ValueError, match="start must be a date such as 2020-02-30 23:00:00, got '2020-02-31'"):
        nowcast("persistence", event, start="2020-02-31")


def test_files_and_memory_agree_and_picture_is_written(event, tmp_path):
    save_dataset(event, tmp_path / "in.nc")
    options = {"steps": 2, "start": "2020-06-01T12:50", "quantity": "reflectivity"}
    picture = tmp_path / "out.png"
    nowcast_file(tmp_path / "in.nc", tmp_path / "out.nc", model="extrapolation", picture=picture, **options)
    with open_dataset(tmp_path / "out.nc") as out, open_dataset(tmp_path / "in.nc") as given:
        expected = nowcast("extrapolation", given, **options)
        np.testing.assert_array_equal(out.reflectivity.values, expected.reflectivity.values)
        assert out.forecast_period.values.tolist() == [300, 600]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nc", "out.nc", "out.png"]


def test_nowcast_command(event, tmp_path, capsys):
    save_dataset(event, tmp_path / "in.nc")
    code = main(["nowcast", f"{tmp_path}/in.nc", f"{tmp_path}/o.nc", "--model", "extrapolation", "--lead", "30min"])
    printed = capsys.readouterr().out
    assert code == 0 and "1 forecast of 6 fields every 5 min" in printed and f"wrote {tmp_path}/o.nc" in printed


BROKEN = {
    "short.nc": lambda e: e.isel(time=slice(0, 2)),
    "gap.nc": lambda e: e.isel(time=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11]),
    "uneven.nc": lambda e: e.assign_coords(time=e.time + np.array([0] * 11 + [2]) * np.timedelta64(1, "m")),
    "kelvin.nc": lambda e: e.assign(reflectivity=e.reflectivity.assign_attrs(units="K")),
    "good.nc": lambda e: e,
}


@pytest.fixture(scope="module")
def folder(event, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nowcast")
    for name, change in BROKEN.items():
        save_dataset(change(event), folder / name)
    models.save(network(), folder / "tiny.safetensors")
    models.save(network(floor_dbz=None), folder / "cardless.safetensors")
    other = network()
    other.config["cell"] = "lstm2"
    models.save(other, folder / "cell.safetensors")
    return folder


@pytest.mark.parametrize(
    ("file", "options", "sentence"),
    [
        ("short.nc", [], "3 fields every 300 s are needed before a forecast, the file has 2 from 2020-06-01T12:00:00"),
        (
            "gap.nc",
            [],
            "the forecast from 2020-06-01T12:55:00 needs 3 fields every 300 s; that of 2020-06-01T12:50:00 is",
        ),
        ("uneven.nc", [], "times are irregular: 420 s between"),
        ("kelvin.nc", [], "variable reflectivity has units 'K'; expected dBZ"),
        ("good.nc", ["--start", "2020-06-01T13:30"], "start 2020-06-01T13:30 is not one of the file's times"),
        ("good.nc", ["--start", "2020-06-01T12:05"], "that of 2020-06-01T11:55:00 is missing"),
        ("good.nc", ["--start", "yesterday noon"], "start must be a date such as 2020-06-01T12:00:00"),
        ("good.nc", ["--lead", "7min"], "lead must be a multiple of the interval between fields, 300 s, got '7min'"),
        ("good.nc", ["--lead", "60"], "lead must be a duration with its unit such as 60min or 1h, got '60'"),
        ("good.nc", ["--lead", "1h", "--steps", "3"], "give one of --steps and --lead, got 3 and '1h'"),
        ("good.nc", ["--steps", "0"], "steps must be a whole number from 1 to 10000, got 0"),
        ("good.nc", ["--every", "7min"], "every must be a multiple of the file's 300 s"),
        ("good.nc", ["--interval", "2min"], "interval must be a multiple of the file's 300 s"),
        ("good.nc", ["--coarsen", "30"], "coarsen must leave 2 or more cells each way of (42, 54), got 30"),
        ("good.nc", ["--quantity", "snow"], "invalid choice"),
        ("good.nc", ["--var", "tp"], "there is no variable 'tp' in the file"),
        ("good.nc", ["--model", "oracle"], "methods without weights: persistence, blurred-persistence, extrapolation"),
        ("good.nc", ["--model", "db-predrnn"], "networks of fastds models --presets must be trained first"),
        ("good.nc", ["--model", "{folder}/cell.safetensors"], "cell must be one of convlstm"),
        ("good.nc", ["--model", "{folder}/cardless.safetensors"], "has no floor_dbz and ceiling_dbz in its card"),
        ("good.nc", ["--model", "fczsm-small"], "model fczsm-small does not forecast"),
        ("none.nc", [], "no such file"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_user_error_is_one_line(folder, tmp_path, capsys, file, options, sentence):
    chosen = [] if "--model" in options else ["--model", f"{folder}/tiny.safetensors"]
    options = [option.format(folder=folder) for option in options]
    assert main(["nowcast", f"{folder}/{file}", f"{tmp_path}/o.nc", *chosen, *options]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shipped", "chosen"),
    [
        ({}, "method extrapolation (no weights"),
        ({"one": 5, "fczsm-small": None}, "model one"),
        ({"one": 5, "nowcast-small": 4}, "model nowcast-small (other nowcasters: one)"),
        ({"one": 5, "two": 4}, "several nowcasters are shipped, name one with the argument model: one, two"),
    ],
    ids=["none", "one", "default", "several"],
)
def test_default_method(monkeypatch, shipped, chosen):
    monkeypatch.setattr(methods, "available", lambda pretrained: list(shipped))
    monkeypatch.setattr(methods, "load_card", lambda name: models.ModelCard(name=name, input_steps=shipped[name]))
    monkeypatch.setattr(methods, "load", lambda name: network(name=name))
    if "several" in chosen:
        with pytest.raises(ValueError, match=chosen):
            methods.pick_method()
    else:
        assert chosen in methods.pick_method()[1]


def test_output_over_input_and_unknown_options_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="the output must be another file than the input"):
        nowcast_file(folder / "good.nc", folder / "good.nc", model="persistence")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        nowcast_file(folder / "good.nc", tmp_path / "no" / "o.nc", model="persistence")
    with pytest.raises(TypeError, match="leads"):
        nowcast_file(folder / "good.nc", tmp_path / "o.nc", model="persistence", leads=3)


def test_downscale_rejects_a_nowcasting_model(event):
    from fastds.tasks.radar.run import downscale

    with pytest.raises(ValueError, match="model tiny forecasts and does not downscale; use nowcast"):
        downscale(network(), event)
