# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import xarray as xr

from fastds.data import (
    add_history,
    coarsen,
    coarsen_dataset,
    from_reflectivity,
    open_dataset,
    output_frames,
    output_shape,
    prepare,
    save_dataset,
    split_amount,
    synthetic_event,
    to_reflectivity,
)
from fastds.data.radar.preparation import COARSENING_MODES
from fastds.data.radar.reflectivity import find_interval_ends


@pytest.fixture
def event():
    return synthetic_event(2, frames=5, shape=(32, 48)).drop_vars(["eastward_wind", "northward_wind"])


def rain(event, units="kg m-2", cell_methods="time: sum (interval: 5 min)", scale=1.0, bounds=None):
    """Convert the event to rain amounts of 5 minutes, or rates, in units of `scale` mm per 5 minutes."""
    z = event["reflectivity"].values.astype(np.float64)
    amount = np.where(z > -32, (10 ** (z / 10) / 200) ** (1 / 1.6), 0.0) / 12.0
    attrs = {"standard_name": "rainfall_amount", "units": units, "grid_mapping": "crs"}
    if cell_methods:
        attrs["cell_methods"] = cell_methods
    data = event.drop_vars("reflectivity").assign(rain=(("time", "y", "x"), (amount / scale).astype(np.float32), attrs))
    if bounds is not None:
        data["time"].attrs["bounds"] = "time_bnds"
        data["time_bnds"] = (("time", "nv"), bounds)
    return data


def repeated(source, factor=2, time_factor=2, dbz=None):
    """Return finer reflectivity by repetition in space and linear interpolation of dBZ in time."""
    z = source.frames(slice(None)) if dbz is None else dbz
    z = np.repeat(np.repeat(z, factor, 1), factor, 2)
    parts = []
    for segment in source.segments:
        frames = z[segment]
        for k in range(len(frames) - 1):
            parts += [frames[k] + (frames[k + 1] - frames[k]) * j / time_factor for j in range(time_factor)]
        parts.append(frames[-1])
    return np.stack(parts).astype(np.float32)


def blocks(fine, factor=2):
    n, h, w = fine.shape
    return fine.reshape(n, h // factor, factor, w // factor, factor).astype(np.float64).mean((2, 4))


def test_coarsen_then_refine_restores_grid_and_times(event):
    event["time"].encoding = {"units": "minutes since 2024-06-01", "calendar": "standard", "dtype": "int32"}
    coarse = coarsen_dataset(event)
    assert dict(coarse.sizes) == {"time": 3, "y": 16, "x": 24}
    source = to_reflectivity(coarse)
    out = from_reflectivity(source, repeated(source))
    for name in ("x", "y", "time"):
        np.testing.assert_allclose(out[name].astype("f8"), event[name].astype("f8"), rtol=1e-12)
        assert out[name].attrs == event[name].attrs
    assert out["time"].encoding["units"] == "minutes since 2024-06-01"
    xr.testing.assert_identical(out["crs"], event["crs"])
    assert out["reflectivity"].attrs == event["reflectivity"].attrs and out["reflectivity"].dtype == np.float32


def test_coarsen_then_refine_restores_a_real_grid(data_dir, tmp_path):
    with open_dataset(data_dir / "radar_fmi_20160928_5min.nc") as dataset:
        truth = dataset.isel(time=slice(0, 3)).load()
    coarse = save_dataset(coarsen_dataset(truth), tmp_path / "coarse.nc")
    with open_dataset(coarse) as dataset:
        source = to_reflectivity(dataset)
        out = add_history(from_reflectivity(source, repeated(source)), "made finer")
        save_dataset(out, tmp_path / "fine.nc")
    with open_dataset(tmp_path / "fine.nc") as fine:
        for name in ("x", "y", "time"):
            np.testing.assert_allclose(fine[name].astype("f8"), truth[name].astype("f8"), rtol=1e-12)
        assert fine["reflectivity"].attrs["grid_mapping"] == "crs" and fine["crs"].attrs["crs_wkt"]
        first, second = fine.attrs["history"].splitlines()
        assert first.endswith("made finer") and second.startswith("repacked for testing")
        assert "cadence_minutes" not in fine.attrs and fine.attrs["zr_a"] == 223.0


def test_coarsening_equals_the_training_samples(event):
    z = event["reflectivity"].values
    coarse = coarsen_dataset(event)["reflectivity"].values
    np.testing.assert_allclose(prepare(coarse), prepare(coarsen(z[::2], 2, floor=15.0)), atol=1e-6)


@pytest.mark.parametrize("mode", COARSENING_MODES)
def test_coarsening_preserves_dry_and_weak_echo(event, mode):
    z = np.full((5, 32, 48), -32.0, np.float32)
    z[:, 0, 0], z[:, 2:4, 0:2], z[:, 4, 4] = 8.0, 12.0, np.nan
    z[:, 6, 6] = 35.0
    event = event.assign(reflectivity=event["reflectivity"].copy(data=z))
    coarse = coarsen_dataset(event, mode=mode)["reflectivity"].values[0]
    strong = {"dbz": 20.0, "linear_z": 10 * np.log10((10**3.5 + 3 * 10**1.5) / 4), "plain_dbz": -15.25}[mode]
    assert coarse[0, 0] == (-22.0 if mode == "plain_dbz" else 8.0) and coarse[1, 0] == 12.0 and np.isnan(coarse[2, 2])
    assert coarse[3, 3] == pytest.approx(strong)
    assert np.all(coarse[8:] == -32.0)


def test_coarsen_dataset_refuses_rain(event):
    with pytest.raises(ValueError, match="coarsen_dataset needs reflectivity, variable rain is a rain amount"):
        coarsen_dataset(rain(event), var="rain")


def test_sizes_that_are_no_multiple_are_cut(event):
    coarse = coarsen_dataset(event.isel(y=slice(0, 31), x=slice(0, 45)))
    assert coarse["reflectivity"].shape == (3, 15, 22)


def test_other_variables_are_left_out_and_scalars_preserved(event):
    extra = event.assign(quality=event["reflectivity"] * 0).assign_coords(height=500.0)
    source = to_reflectivity(extra, "reflectivity")
    out = from_reflectivity(source, repeated(source))
    assert "quality" not in out and float(out["height"]) == 500.0 and "crs" in out


def test_wrong_shapes(event):
    source = to_reflectivity(event)
    with pytest.raises(
        ValueError, match=r"z must have the shape \(9, 64, 96\) for an input \(5, 32, 48\), got \(8, 64"
    ):
        from_reflectivity(source, repeated(source)[:8])
    source = to_reflectivity(rain(event), "rain")
    with pytest.raises(ValueError, match=r"out must have the shape \(10, 64, 96\), got \(9, 64, 96\)"):
        from_reflectivity(source, repeated(source), out=np.zeros((9, 64, 96), np.float32))
    with pytest.raises(ValueError, match="time_factor must be even for amounts, got 3"):
        from_reflectivity(source, repeated(source, 2, 3), 2, 3)


@pytest.mark.parametrize(
    ("fill", "dtype", "expected"),
    [(-9999.0, "float32", -9999.0), (255, "uint8", np.nan), (None, None, np.nan)],
    ids=["float", "packed", "none"],
)
def test_fill_value(event, tmp_path, fill, dtype, expected):
    encoding = {} if fill is None else {"_FillValue": fill, "dtype": dtype}
    if dtype == "uint8":
        encoding |= {"scale_factor": 0.5, "add_offset": -32.0}
    event["reflectivity"].encoding = encoding
    event["reflectivity"][0, 0, 0] = np.nan
    path = save_dataset(event, tmp_path / "in.nc")
    with open_dataset(path) as dataset:
        source = to_reflectivity(dataset)
        save_dataset(from_reflectivity(source, repeated(source)), tmp_path / "out.nc")
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf", mask_and_scale=False) as out:
        np.testing.assert_equal(float(out["reflectivity"].attrs["_FillValue"]), expected)
        np.testing.assert_equal(out["reflectivity"].values[0, 0, 0], np.float32(expected))
        assert out["reflectivity"].dtype == np.float32


def test_rates_keep_their_units(event):
    rates = rain(event, "kg m-2 s-1", None, scale=300.0)
    rates["rain"].attrs["standard_name"] = "rainfall_flux"
    source = to_reflectivity(rates, "rain")
    out = from_reflectivity(source, repeated(source))["rain"]
    assert out.attrs["units"] == "kg m-2 s-1" and out.shape == (9, 64, 96)
    np.testing.assert_allclose(out[::2, ::2, ::2], rates["rain"], rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("time_factor", [2, 4])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_amounts_are_conserved_in_every_cell_and_interval(event, factor, time_factor):
    data = rain(event)
    source = to_reflectivity(data, "rain")
    assert source.kind == "amount"
    rng = np.random.default_rng(0)
    z = repeated(source, factor, time_factor)
    z = np.where(z > 0, z + rng.normal(0, 6, z.shape), z).astype(np.float32)
    out = from_reflectivity(source, z, factor, time_factor)["rain"]
    assert out.shape == output_shape(source, factor, time_factor)
    sums = blocks(out.values.reshape(5, time_factor, *out.shape[1:]).sum(1), factor)
    np.testing.assert_allclose(sums, data["rain"], rtol=1e-5, atol=1e-7)
    assert float(out.min()) >= 0


def test_amounts_are_distributed_by_modelled_rates(event):
    amount = np.array([[1.0]])
    low, high = np.zeros((2, 2)), np.array([[12.0, 0.0], [0.0, 0.0]])
    short = split_amount(amount, [low, low, high], hours=1 / 12)
    np.testing.assert_allclose(short[0], 0.0)
    np.testing.assert_allclose(short[1], [[4.0, 0.0], [0.0, 0.0]])


def test_amounts_where_the_model_is_dry_or_missing_are_spread_evenly():
    amount = np.array([[1.0, 2.0], [np.nan, 0.0]])
    dry = np.zeros((4, 4))
    short = split_amount(amount, [dry, dry, dry], hours=1.0)
    np.testing.assert_allclose(short[:, :2, :2], 0.5)
    np.testing.assert_allclose(short[:, :2, 2:], 1.0)
    assert np.isnan(short[:, 2:, :2]).all() and np.all(short[:, 2:, 2:] == 0)
    missing = np.full((4, 4), np.nan)
    np.testing.assert_allclose(split_amount(amount, [missing] * 3, hours=1.0), short)
    wet = np.ones((4, 4))
    assert np.all(split_amount(amount, [wet] * 3, hours=1.0)[:, 2:, 2:] == 0)  # no rain where the input has none


def test_knmi_amounts_are_conserved(data_dir):
    with open_dataset(data_dir / "radar_knmi_20100826_5min.nc") as dataset:
        part = dataset.isel(time=slice(20, 23)).load()
    source = to_reflectivity(part, "rainfall_amount")
    assert source.z_r_origin == "from the file's attributes"
    # 5 minutes up to the time; the rates belong to the middle
    np.testing.assert_array_equal(source.times, part["time"].values - np.timedelta64(150, "s"))
    out = from_reflectivity(source, repeated(source))
    sums = blocks(out["rainfall_amount"].values.reshape(3, 2, 1530, 1400).sum(1))
    np.testing.assert_allclose(sums, part["rainfall_amount"], rtol=1e-5, atol=1e-6)
    assert out["rainfall_amount"].attrs["cell_methods"] == "time: sum (interval: 2.5 min)"
    np.testing.assert_array_equal(out["time"][1::2], part["time"])
    np.testing.assert_array_equal(out["time_bnds"][:, 1], out["time"])


@pytest.mark.parametrize("position", [0, 1, 2], ids=["start", "middle", "end"])
def test_interval_labels_are_preserved(event, position, tmp_path):
    starts = event["time"].values
    bounds = np.stack([starts, starts + np.timedelta64(5, "m")], axis=1)
    labels = starts + position * np.timedelta64(150, "s")
    data = rain(event.assign_coords(time=labels), cell_methods=None, bounds=bounds)
    data["time"].encoding["units"] = "seconds since 2024-06-01"
    source = to_reflectivity(save_and_open(data, tmp_path), "rain")
    np.testing.assert_array_equal(source.times, starts + np.timedelta64(150, "s"))
    out = save_and_open(from_reflectivity(source, repeated(source)), tmp_path)
    half = np.timedelta64(150, "s")
    expected = np.sort(np.concatenate([starts, starts + half]))
    np.testing.assert_array_equal(out["time_bnds"], np.stack([expected, expected + half], axis=1))
    np.testing.assert_array_equal(out["time"], expected + position * np.timedelta64(75, "s"))
    assert out["time_bnds"].dims == ("time", "nv")


def save_and_open(dataset, folder):
    return open_dataset(save_dataset(dataset, folder / "file.nc")).load()


def test_mean_rates_are_amounts_over_their_interval(event):
    data = rain(event, "mm h-1", "time: mean", scale=1 / 12)
    source = to_reflectivity(data, "rain")
    assert source.kind == "amount"
    out = from_reflectivity(source, repeated(source))["rain"]
    assert out.attrs["units"] == "mm h-1" and out.attrs["cell_methods"] == "time: mean"
    means = blocks(out.values.reshape(5, 2, 64, 96).mean(1))
    np.testing.assert_allclose(means, data["rain"], rtol=1e-5, atol=1e-6)


def test_amounts_in_metres(event):
    data = rain(event, "m", "time: sum", scale=1000.0)
    source = to_reflectivity(data, "rain")
    out = from_reflectivity(source, repeated(source))["rain"]
    np.testing.assert_allclose(blocks(out.values.reshape(5, 2, 64, 96).sum(1)), data["rain"], rtol=1e-5, atol=1e-9)


def test_amounts_across_a_gap(event):
    times = event["time"].values.copy()
    times[3:] += np.timedelta64(1, "h")
    data = rain(event.assign_coords(time=times))
    source = to_reflectivity(data, "rain")
    assert [s.stop - s.start for s in source.segments] == [3, 2] and output_frames(source) == 8
    out = from_reflectivity(source, repeated(source))
    assert out.sizes["time"] == 10
    np.testing.assert_allclose(
        blocks(out["rain"].values.reshape(5, 2, 64, 96).sum(1)), data["rain"], rtol=1e-5, atol=1e-7
    )


def test_amounts_into_a_given_array(event, tmp_path):
    source = to_reflectivity(rain(event), "rain")
    z = repeated(source)
    values = np.memmap(tmp_path / "values", np.float32, "w+", shape=output_shape(source))
    out = from_reflectivity(source, z, out=values)
    np.testing.assert_array_equal(values, from_reflectivity(source, z)["rain"])
    np.testing.assert_array_equal(out["rain"], values)


def test_amount_without_an_interval_is_refused(event):
    with pytest.raises(
        ValueError, match=r"rain \[kg m-2\] is an amount without cell_methods or time bounds, so its int"
    ):
        to_reflectivity(rain(event, cell_methods=None), "rain")


def test_running_accumulations_are_refused(event, data_dir):
    total = rain(event)
    total["rain"] = total["rain"].cumsum("time").assign_attrs(total["rain"].attrs)
    with pytest.raises(ValueError, match="rain never falls from one time to the next, so it runs on; take differences"):
        to_reflectivity(total, "rain")
    start = np.full(5, event["time"].values[0] - np.timedelta64(5, "m"))
    bounds = np.stack([start, event["time"].values], axis=1)
    with pytest.raises(ValueError, match="rain runs on from 2024-06-01T11:55:00; take differences"):
        to_reflectivity(rain(event, cell_methods=None, bounds=bounds), "rain")
    with (
        open_dataset(data_dir / "meteonet_arome_tp_NW_0025deg_20180501_1h.nc") as dataset,
        pytest.raises(ValueError, match=r"tp \[kg m-2\] is an amount without cell_methods or time bounds"),
    ):
        to_reflectivity(dataset, "tp")


@pytest.mark.parametrize(
    ("start", "length", "message"),
    [
        ([0, 5, 10, 15, 20], [5, 5, 2, 5, 5], "unequal intervals, 120 to 300 s"),
        ([0, 5, 10, 15, 20], [10, 10, 10, 10, 10], "overlap"),
        ([0, 5, 10, 15, 20], [-5, 5, 5, 5, 5], "pairs of start and end, end after start"),
        ([0, 5, 10, 15, 20], [2, 2, 2, 2, 2], "intervals of 120 s at a cadence of 300 s; sum it so that they agree"),
    ],
    ids=["unequal", "overlapping", "reversed", "gaps"],
)
def test_bounds_that_do_not_fit_are_refused(event, start, length, message):
    minute = np.timedelta64(1, "m")
    first = event["time"].values[0] + np.array(start) * minute
    bounds = np.stack([first, first + np.array(length) * minute], axis=1)
    with pytest.raises(ValueError, match=message):
        to_reflectivity(rain(event, cell_methods=None, bounds=bounds), "rain")


def test_interval_of_the_cell_methods_that_does_not_fit_the_cadence(event):
    with pytest.raises(ValueError, match="rain has intervals of 300 s at a cadence of 600 s"):
        to_reflectivity(rain(event).isel(time=slice(None, None, 2)), "rain")


def test_bounds_that_are_no_dates(event):
    with pytest.raises(ValueError, match=r"the time bounds time_bnds must be dates of the shape \(5, 2\)"):
        to_reflectivity(rain(event, bounds=np.zeros((5, 2))), "rain")


def test_the_ends_of_short_intervals_are_frames_of_the_model():
    # Intervals (0, 10], (10, 20], (20, 30]: frames at 5, 10, ..., 25; the ends of the second one are 10, 15 and 20.
    assert find_interval_ends(1, 5, 2).tolist() == [1, 2, 3]
    assert find_interval_ends(0, 5, 2).tolist() == [0, 0, 1] and find_interval_ends(2, 5, 2).tolist() == [3, 4, 4]
    assert find_interval_ends(1, 9, 4).tolist() == [2, 3, 4, 5, 6]
