# SPDX-License-Identifier: Apache-2.0
"""Tests of downscaling radar fields: coordinates, dry pixels, tiles, warnings and error messages."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from fastds import models
from fastds.data import coarsen_dataset, open_dataset, save_dataset, synthetic_event
from fastds.inference import files as inference_files
from fastds.tasks.radar import refinement, tiled_run
from fastds.tasks.radar.methods import pick_model
from fastds.tasks.radar.run import downscale, downscale_file
from tests.support.downscaling_cases import FLOOR, NO_ECHO, Stub, fill, give_card


def test_downscale_sharpens_a_real_file(data_dir, tmp_path, network):
    with open_dataset(data_dir / "radar_fmi_20160928_5min.nc") as file:
        truth = file.isel(time=slice(0, 5), y=slice(256, 384), x=slice(192, 336)).load()
    save_dataset(coarsen_dataset(truth), tmp_path / "in.nc")
    report = downscale_file(tmp_path / "in.nc", tmp_path / "out.nc", model=network)
    with open_dataset(tmp_path / "out.nc") as out, open_dataset(tmp_path / "in.nc") as given:
        np.testing.assert_array_equal(out.time.values, truth.time.values)
        for name in ("x", "y"):
            np.testing.assert_allclose(out[name], truth[name], rtol=0, atol=0.01)
            assert out[name].attrs["standard_name"] == truth[name].attrs["standard_name"]
        assert out.reflectivity.attrs["standard_name"] == truth.reflectivity.attrs["standard_name"]
        assert out.reflectivity.attrs["units"] == "dBZ"
        mapping = out.reflectivity.attrs["grid_mapping"]
        assert out[mapping].attrs == given[mapping].attrs
        assert out.attrs["fastds_model"] == "small" and out.attrs["fastds_time_factor"] == 2
        assert "downscale with small" in out.attrs["history"]
        z, source = out.reflectivity.values, given.reflectivity.values
    assert z.shape == (5, 128, 144) and report.model == "small"
    missing = np.isnan(source)
    assert missing.any() and not missing.all()
    fine_missing = missing.repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(np.isnan(z[::2]), fine_missing)
    np.testing.assert_array_equal(np.isnan(z[1::2]), fine_missing[:-1] | fine_missing[1:])
    dry = (source <= NO_ECHO).repeat(2, 1).repeat(2, 2)
    assert dry.mean() > 0.1
    assert (z[::2][dry] == NO_ECHO).all()
    # The output has echo above the floor only where the input has echo nearby.
    far = far_from_echo(source, 12)
    assert far.any() and (z[1::2][far[:-1] & far[1:] & ~fine_missing[:-1]] == NO_ECHO).all()
    assert not list(tmp_path.glob(".*"))


def far_from_echo(source, radius):
    """Return the mask of fine pixels with no echo within `radius` coarse pixels."""
    echo = torch.from_numpy((source > NO_ECHO).astype(np.float32))
    near = nn.functional.max_pool2d(echo[:, None], 2 * radius + 1, 1, radius)[:, 0].numpy() > 0
    return ~near.repeat(2, 1).repeat(2, 2)


def test_dry_pixels_stay_dry_for_any_model(coarse):
    source = coarse.reflectivity.values.copy()
    source[:, :, :40] = NO_ECHO
    out = downscale(Stub(constants=[0.5, 0.5, 0.5]), fill(coarse, source)).reflectivity.values
    dry = (source <= NO_ECHO).repeat(2, 1).repeat(2, 2)
    assert (out[::2][dry] == NO_ECHO).all()
    far = far_from_echo(source, 12)
    both = far[:-1] & far[1:]
    assert both.any() and (out[1::2][both] == NO_ECHO).all()
    # Within echo above the floor, the output is that of the model.
    weak = torch.from_numpy((source <= FLOOR).astype(np.float32))
    strong = nn.functional.max_pool2d(weak[:, None], 7, 1, 3)[:, 0].numpy() == 0
    assert strong.any()
    np.testing.assert_allclose(out[::2][strong.repeat(2, 1).repeat(2, 2)], 42.5, atol=1e-3)


def test_model_noise_at_its_floor_is_not_written():
    field = xr.DataArray(
        np.full((2, 32, 32), NO_ECHO, np.float32),
        dims=("time", "y", "x"),
        coords={"time": np.array(["2020-01-01T00:00", "2020-01-01T00:10"], "M8[ns]")},
        attrs={"standard_name": "equivalent_reflectivity_factor", "units": "dBZ"},
    )
    field[:, 8:24, 8:24] = 12.0
    field[:, 16, 16] = 30.0
    out = downscale(Stub(constants=[0.003, 0.003, 0.003]), field.to_dataset(name="reflectivity")).reflectivity.values
    echo = out[out > NO_ECHO]
    assert echo.max() <= FLOOR and np.median(echo) == pytest.approx(12.0, abs=0.2)
    assert (out > NO_ECHO).mean() == 0.25


@pytest.mark.parametrize("value", [-20.0, 0.0, 10.0, 14.7])
def test_weak_echo_keeps_its_value(coarse, value):
    out = downscale(Stub(), fill(coarse, np.float32(value))).reflectivity.values
    np.testing.assert_allclose(out, value, rtol=0, atol=1e-4)


def test_weak_echo_is_interpolated_and_spreads_no_further(coarse):
    z = np.full(coarse.reflectivity.shape[1:], NO_ECHO, np.float32)
    z[10:20, 10:20] = np.linspace(0, 9, 10, dtype=np.float32)
    out = downscale(Stub(), fill(coarse, z)).reflectivity.values
    inside = out[:, 20:40, 20:40]
    assert (out > NO_ECHO).sum() == inside.size and inside.min() > -1 and inside.max() < 11
    np.testing.assert_allclose(inside[:, 8, 4:-4], np.broadcast_to(np.arange(3, 15) * 0.5 + 0.25, (5, 12)), atol=0.05)


def test_weak_echo_moves_along_its_own_flow(coarse):
    """Echo below the floor of the network is advected, not blended between the two times."""
    rows, columns = np.meshgrid(*map(np.arange, coarse.reflectivity.shape[1:]), indexing="ij")
    fields = [14.0 - ((rows - 20) ** 2 + (columns - c) ** 2) / 6 for c in (20, 24, 28)]
    fields = np.stack([np.where(z > 0, z, NO_ECHO) for z in fields]).astype(np.float32)
    out = downscale(Stub(), coarse.assign(reflectivity=coarse.reflectivity.copy(data=fields))).reflectivity.values
    wet = (out > NO_ECHO).sum((1, 2))
    np.testing.assert_allclose(wet[1::2], (wet[:-1:2] + wet[2::2]) / 2, rtol=0.05)
    centre = [np.average(np.arange(out.shape[2]), weights=(z > NO_ECHO).sum(0)) for z in out]
    np.testing.assert_allclose(np.diff(centre), 4.0, atol=0.5)
    np.testing.assert_allclose(out[1::2].max((1, 2)), 14.0, atol=0.7)


def test_large_frames_are_interpolated_in_bands(network, coarse, monkeypatch):
    whole = downscale(network, coarse).reflectivity.values
    monkeypatch.setattr(refinement, "_BAND_PIXELS", 1)
    bands = downscale(network, coarse).reflectivity.values
    np.testing.assert_allclose(bands, whole, rtol=0, atol=1e-3)


def test_inner_input_times_are_the_mean_of_both_pairs(coarse):
    out = downscale(Stub(constants=[0.2, 0.4, 0.6]), fill(coarse, np.float32(30.0))).reflectivity.values
    np.testing.assert_allclose(out.mean((1, 2)), FLOOR + 55.0 * np.array([0.2, 0.4, 0.4, 0.4, 0.6]), atol=1e-4)


def test_missing_frame_stays_missing(coarse):
    z = coarse.reflectivity.values.copy()
    z[1] = np.nan
    out = downscale(Stub(), coarse.assign(reflectivity=coarse.reflectivity.copy(data=z))).reflectivity.values
    assert np.isfinite(out[[0, 4]]).all() and np.isnan(out[1:4]).all()


def test_gap_in_time_is_not_filled(event):
    coarse = coarsen_dataset(synthetic_event(3, 13, (64, 64))).isel(time=[0, 1, 4, 6])
    times = coarse.time.values
    times = np.concatenate([times[:2], times[:2] + np.timedelta64(60, "m"), times[:1] + np.timedelta64(180, "m")])
    coarse = coarse.isel(time=[0, 1, 2, 3, 0]).assign_coords(time=("time", times, coarse.time.attrs))
    out = downscale(Stub(), coarse)
    minutes = (out.time.values - times[0]) / np.timedelta64(1, "m")
    np.testing.assert_array_equal(minutes, [0, 5, 10, 60, 65, 70, 180])
    np.testing.assert_allclose(out.reflectivity[-1], out.reflectivity[0], atol=1e-4)


def test_tiled_downscale_equals_untiled(coarse, network):
    whole = downscale(network, coarse)
    tiled = downscale(network, coarse, tile=16)
    assert tiled.attrs["fastds_tile"] == 16 and tiled.attrs["fastds_halo"] % 16 == 0
    assert "fastds_seam_error_dBZ" not in tiled.attrs
    np.testing.assert_allclose(tiled.reflectivity, whole.reflectivity, rtol=0, atol=2e-3)


def test_smaller_halo_has_a_measured_seam_error(coarse, network, tmp_path):
    save_dataset(coarse, tmp_path / "in.nc")
    report = downscale_file(tmp_path / "in.nc", tmp_path / "out.nc", model=network, tile=16, halo=0)
    stated = report.settings["fastds_seam_error_dBZ"]
    assert stated > 1e-3
    assert any("less than the network's reach" in note and "seam error" in note for note in report.notes)
    whole = downscale(network, coarse)
    with open_dataset(tmp_path / "out.nc") as out:
        assert out.attrs["fastds_seam_error_dBZ"] == pytest.approx(stated)
        real = np.abs(out.reflectivity.values - whole.reflectivity.values).max()
    assert real > 1e-3


def test_tiles_are_chosen_by_memory(coarse, network, monkeypatch):
    monkeypatch.setattr(tiled_run, "MEMORY_BUDGET_BYTES", 1)
    out = downscale(network, coarse.isel(x=slice(0, 32), y=slice(0, 32)))
    assert out.attrs["fastds_tile"] == 16


def test_single_tile_equals_untiled(coarse, monkeypatch):
    monkeypatch.setattr(tiled_run, "measure_receptive_field", None)
    for tile in (None, 64, 80):
        out = downscale(Stub(), coarse, tile=tile)
        assert (out.attrs["fastds_tile"], out.attrs["fastds_halo"]) == (0, 0)


def test_bf16_is_close(coarse, network):
    full, half = (downscale(network, coarse, precision=p) for p in ("fp32", "bf16"))
    difference = np.abs(full.reflectivity.values - half.reflectivity.values)
    both = (full.reflectivity.values > FLOOR + 1) & (half.reflectivity.values > FLOOR + 1)
    assert half.attrs["fastds_precision"] == "bf16" and 0 < difference[both].max() < 1.0


@pytest.mark.parametrize("time_factor", [2, 4])
def test_progress_counts_every_tile_of_every_pass(coarse, network, bars_of, time_factor):
    """The input has three frames, a gap, and a single frame."""
    bars, done = bars_of(tiled_run)
    minutes = np.array([0, 10, 20, 60]) * np.timedelta64(1, "m")
    separate = coarse.isel(time=[0, 1, 2, 0]).assign_coords(time=coarse.time.values[0] + minutes)
    downscale(network, separate, tile=32, halo=0, time_factor=time_factor, progress=True)
    tiles = 2 * 2
    assert bars == [(True, tiles * (2 + 1 + (2 * 2 if time_factor == 4 else 0)), "downscaling", "tiles")]
    assert len(done) == bars[0][1]


def test_time_factor_4(coarse, network):
    out = downscale(network, coarse, time_factor=4)
    minutes = (out.time.values - coarse.time.values[0]) / np.timedelta64(1, "s") / 60
    np.testing.assert_array_equal(minutes, np.arange(9) * 2.5)
    assert out.attrs["fastds_time_factor"] == 4 and out.reflectivity.shape == (9, 96, 128)
    constant = downscale(Stub(), fill(coarse, np.float32(30.0)), time_factor=4).reflectivity.values
    np.testing.assert_allclose(constant, 30.0, atol=1e-4)


def rain(coarse, units, **attrs):
    """Convert the reflectivity of the event to rain.

    Args:
        coarse: dataset with the variable `reflectivity`.
        units: "mm h-1" for a rate, "kg m-2" for the amount in 10 minutes.
        attrs: further attributes of the variable.
    """
    rate = (10 ** (coarse.reflectivity / 10) / 200.0) ** (1 / 1.6)
    rate = rate.where(coarse.reflectivity > NO_ECHO, 0.0) * {"mm h-1": 1.0, "kg m-2": 1 / 6}[units]
    out = coarse.drop_vars("reflectivity")
    out["rainfall"] = rate.astype("f4").assign_attrs(units=units, **attrs)
    return out


def test_rates_are_returned_as_rates(coarse):
    given = rain(coarse, "mm h-1", standard_name="rainfall_rate")
    out = downscale(Stub(), given, var="rainfall")
    assert out.rainfall.attrs["units"] == "mm h-1" and out.attrs["fastds_z_r"].startswith("Z = 200 R^1.6")
    dry = (given.rainfall.values == 0).repeat(2, 1).repeat(2, 2)
    assert (out.rainfall.values[::2][dry] == 0).all() and (out.rainfall.values >= 0).all()
    steady = downscale(Stub(), given.assign(rainfall=given.rainfall * 0 + 3.0), var="rainfall")
    np.testing.assert_allclose(steady.rainfall.values, 3.0, rtol=1e-4)


@pytest.mark.parametrize("mapped", [False, True], ids=["in memory", "in a file"])
def test_amounts_are_conserved(coarse, monkeypatch, tmp_path, mapped):
    given = rain(coarse, "kg m-2", standard_name="rainfall_amount", cell_methods="time: sum (interval: 10 min)")
    if mapped:
        monkeypatch.setattr(inference_files, "MAPPED_BYTES", 0)
    save_dataset(given, tmp_path / "in.nc")
    downscale_file(tmp_path / "in.nc", tmp_path / "out.nc", model=Stub(), var="rainfall")
    expected = downscale(Stub(), given, var="rainfall")
    with open_dataset(tmp_path / "out.nc") as out:
        xr.testing.assert_allclose(out.rainfall, expected.rainfall, atol=1e-6)
        amounts = out.rainfall.values
        assert "5 min" in out.rainfall.attrs["cell_methods"]
        bounds = out[out.time.attrs.get("bounds") or out.time.encoding["bounds"]].values
    assert amounts.shape == (6, 96, 128)
    per_cell = amounts.reshape(3, 2, 48, 2, 64, 2).sum(1).mean((2, 4))
    np.testing.assert_allclose(per_cell, given.rainfall.values, rtol=1e-4, atol=1e-6)
    assert (np.diff(bounds, axis=1) == np.timedelta64(5, "m")).all()


def test_large_outputs_use_an_unnamed_temporary_file(coarse, network, tmp_path, monkeypatch):
    save_dataset(coarse, tmp_path / "in.nc")
    expected = downscale(network, coarse)
    monkeypatch.setattr(inference_files, "MAPPED_BYTES", 0)
    downscale_file(tmp_path / "in.nc", tmp_path / "out.nc", model=network)
    with open_dataset(tmp_path / "out.nc") as out:
        np.testing.assert_array_equal(out.reflectivity.values, expected.reflectivity.values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nc", "out.nc"]


@pytest.mark.parametrize("moment", ["network", "writing"])
def test_interrupted_write_leaves_no_file(coarse, tmp_path, monkeypatch, moment):
    save_dataset(coarse, tmp_path / "in.nc")
    (tmp_path / "out.nc").write_bytes(b"old")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    model = Stub()
    monkeypatch.setattr(*((model, "forward") if moment == "network" else (xr.Dataset, "dump_to_store")), interrupt)
    with pytest.raises(KeyboardInterrupt):
        downscale_file(tmp_path / "in.nc", tmp_path / "out.nc", model=model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nc", "out.nc"]
    assert (tmp_path / "out.nc").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"grid_spacing_m": (500, 1000)}, r"grid spacing of 2000 m is outside .* trained for, 500 to 1000 m"),
        ({"cadence_s": (1200, 1800)}, r"cadence of 600 s is outside .* 1200 to 1800 s"),
        ({"motion_px": (50, 60)}, r"motion per input step of .* pixels is outside .* 50 to 60 pixels"),
    ],
    ids=["spacing", "cadence", "motion"],
)
def test_data_outside_the_cards_range_get_a_warning(coarse, limits, sentence, recwarn):
    with pytest.warns(UserWarning, match=sentence):
        downscale(give_card(Stub(), **limits), coarse)


def test_data_inside_the_cards_range_get_none(coarse, recwarn):
    model = give_card(Stub(), grid_spacing_m=(1000, 2000), cadence_s=(600, 600), motion_px=(0, 40))
    downscale(model, coarse)
    assert not [w for w in recwarn if w.category is UserWarning]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"time_factor": 3}, "time_factor must be 2 or 4 .*, got 3"),
        ({"precision": "fp8"}, "precision must be fp32 or bf16, got 'fp8'"),
        ({"threads": 0}, "threads must be a whole number from 1 to"),
        ({"tile": 20}, "tile must be a multiple of 16 and at least 16 .*, got 20"),
        ({"tile": 16, "halo": 5}, "halo must be a multiple of 16 and at least 0 .*, got 5"),
        ({"var": "wind"}, "there is no variable 'wind' in the file; candidates: reflectivity"),
        ({"z_r": (200.0, -1.0), "var": "reflectivity"}, None),
    ],
    ids=["time factor", "precision", "threads", "tile", "halo", "variable", "unused Z-R relation"],
)
def test_wrong_options_are_named(coarse, options, sentence):
    if sentence is None:
        downscale(Stub(), coarse, **options)
        return
    with pytest.raises(ValueError, match=sentence):
        downscale(Stub(), coarse, **options)


class WithHeight(Stub):
    """Adds a tenth of the static map to the output, so that the output depends on the map."""

    def __init__(self):
        super().__init__()
        self.config["static_channels"] = 1
        height = {"name": "height", "standard_name": "surface_altitude", "units": "m", "mean": 100.0, "std": 50.0}
        give_card(self, static_variables=[height])

    def forward(self, x, static=None, flow=None):
        return super().forward(x) + 0.1 * static[None, None].repeat_interleave(2, -2).repeat_interleave(2, -1)


def heights(coarse):
    """Return a ramp in metres on the grid of the fields."""
    ramp = 100.0 + 2.0 * np.arange(coarse.sizes["x"], dtype=np.float32) + np.zeros((coarse.sizes["y"], 1), np.float32)
    coords = {name: coarse[name] for name in ("y", "x")}
    return xr.Dataset({"height": (("y", "x"), ramp, {"units": "m"})}, coords)


@pytest.mark.parametrize("tile", [None, 32])
def test_static_maps_are_normalised_and_cut_with_the_tiles(coarse, tmp_path, tile):
    wet = fill(coarse, 30.0)
    save_dataset(wet, tmp_path / "in.nc"), save_dataset(heights(coarse), tmp_path / "relief.nc")
    files = tmp_path / "in.nc", tmp_path / "out.nc"
    downscale_file(*files, model=WithHeight(), static=[f"{tmp_path}/relief.nc"], tile=tile, halo=None)
    with open_dataset(tmp_path / "out.nc") as out:
        ramp = np.repeat(2.0 * np.arange(coarse.sizes["x"]) / 50.0, 2)
        np.testing.assert_allclose(out.reflectivity[1, 8], (30.0 + 0.1 * 55.0 * ramp).clip(max=70.0), atol=1e-3)
        assert out.attrs["fastds_static_maps"] == "height of relief.nc"
        assert "static maps: height of relief.nc" in out.attrs["history"]


def test_static_maps_that_do_not_fit_are_refused(coarse):
    relief, model = heights(coarse), WithHeight()
    with pytest.raises(ValueError, match=r"reads static maps, height \(m\): give them with the argument static"):
        downscale(model, coarse)
    with pytest.raises(ValueError, match="static map height is in 'km', the model was trained with height in 'm'"):
        downscale(model, coarse, static=relief.assign(height=relief.height.assign_attrs(units="km")))
    with pytest.raises(ValueError, match="no height over .y, x. was found"):
        downscale(model, coarse, static=relief.rename(height="dem"))
    with pytest.raises(ValueError, match="height has 48 missing values on the grid"):
        downscale(model, coarse, static=relief.where(relief.height > 100.0))
    model.card.static_variables = []
    with pytest.raises(ValueError, match="its card names 0 in static_variables"):
        downscale(model, coarse, static=relief)


def test_models_that_do_not_fit_are_refused(coarse):
    with pytest.raises(ValueError, match="model must have a card"):
        downscale(nn.Linear(2, 2), coarse)
    with pytest.raises(ValueError, match="stub has no floor_dbz and ceiling_dbz"):
        downscale(give_card(Stub(), floor_dbz=None), coarse)
    several = Stub()
    several.config["in_channels"] = 3
    with pytest.raises(
        ValueError, match="stub reads 2 variables in addition to the reflectivity, and its card does not"
    ):
        downscale(several, coarse)
    with pytest.raises(ValueError, match="stub reads no static maps"):
        downscale(Stub(), coarse, static=coarse)


def test_non_radar_fields_error_names_the_options():
    axes = {
        "time": ("time", np.array(["2020-01-01T00", "2020-01-01T01"], "datetime64[ns]")),
        "latitude": ("latitude", np.arange(8.0), {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(8.0), {"units": "degrees_east"}),
    }
    fields = xr.Dataset({"t": (tuple(axes), np.zeros((2, 8, 8)), {"units": "K"})}, axes)
    with pytest.raises(
        ValueError, match="candidates: t .*; other fields take one of the arguments scale, grid and like"
    ):
        downscale(Stub(), fields)


def test_files_that_do_not_fit_are_refused(coarse, tmp_path):
    save_dataset(coarse, tmp_path / "in.nc")
    with pytest.raises(ValueError, match="the output must be another file than the input"):
        downscale_file(tmp_path / "in.nc", tmp_path / "." / "in.nc", model=Stub())
    with pytest.raises(FileNotFoundError, match="no such folder"):
        downscale_file(tmp_path / "in.nc", tmp_path / "none" / "out.nc", model=Stub())
    with pytest.raises(FileNotFoundError, match="no such file"):
        downscale_file(tmp_path / "absent.nc", tmp_path / "out.nc", model=Stub())
    save_dataset(coarse.isel(time=[]), tmp_path / "none.nc")
    with pytest.raises(ValueError, match="at least 1 time is needed"):
        downscale_file(tmp_path / "none.nc", tmp_path / "out.nc", model=Stub())
    assert not (tmp_path / "out.nc").exists()


def test_single_matching_weights_are_used(tmp_path, monkeypatch, network):
    from fastds.models import weight_files

    monkeypatch.setattr(weight_files, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match="none of the shipped weights take reflectivity .* no weights are shipped"):
        pick_model()
    variable = {"name": "reflectivity", "standard_name": "equivalent_reflectivity_factor", "units": "dBZ"}
    network.card.input_variables = [variable]
    models.save(network, tmp_path / "first.safetensors")
    model, note = pick_model()
    assert isinstance(model, models.FCZSM) and note == "model first"
    network.card.input_variables = [{**variable, "units": "K", "standard_name": "air_temperature"}]
    models.save(network, tmp_path / "other.safetensors")
    assert "model first" in pick_model()[1]
    network.card.input_variables = [variable]
    models.save(network, tmp_path / "second.safetensors")
    with pytest.raises(ValueError, match="several of the shipped weights .* candidates: first, second"):
        pick_model()
    models.save(network, tmp_path / "fczsm-small.safetensors")
    assert "model fczsm-small (others for reflectivity: first, second)" in pick_model()[1]
    with pytest.raises(FileNotFoundError, match="'third'"):
        pick_model("third")


def test_threads_and_training_mode_are_restored(coarse):
    model, before = Stub().train(), torch.get_num_threads()
    downscale(model, coarse, threads=1)
    assert model.training and torch.get_num_threads() == before
