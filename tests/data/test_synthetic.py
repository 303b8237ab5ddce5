# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

from fastds.data import echo_fraction, open_dataset, save_dataset, synthetic_event, to_reflectivity
from fastds.data.radar import synthetic


@pytest.fixture(scope="module")
def event():
    return synthetic_event(3)


def test_synthetic_event_is_determined_by_the_seed(event):
    xr.testing.assert_identical(synthetic_event(3), event)
    assert not np.array_equal(synthetic_event(4)["reflectivity"], event["reflectivity"])


def test_synthetic_event_has_radar_metadata(event, tmp_path):
    assert event["reflectivity"].shape == (12, 256, 256) and event["reflectivity"].dtype == np.float32
    with open_dataset(save_dataset(event, tmp_path / "event.nc")) as back:
        source = to_reflectivity(back)
        assert source.cadence == 300.0 and source.no_echo == -32.0
        assert float(back["x"][1] - back["x"][0]) == 1000.0 and float(back["y"][1] - back["y"][0]) == -1000.0


@pytest.mark.parametrize("seed", range(4))
def test_echo_cover_and_strength(seed):
    z = synthetic_event(seed, frames=2)["reflectivity"].values
    assert np.isfinite(z).all() and z.max() <= 62.0
    assert np.all((z == -32.0) | (z >= 0.0))
    assert 0.15 < echo_fraction(z) < 0.6
    assert 0.005 < echo_fraction(z, 30.0) < 0.1
    assert z.max() > 45.0
    assert (z == -32.0).mean() > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_synthetic_spectrum_resembles_rain(seed):
    """The slope of radial spectra of rain in dBZ is about -2.5 to -3.5."""
    z = np.clip(synthetic_event(seed, frames=2)["reflectivity"].values[0], 0, None)
    taper = np.outer(np.hanning(256), np.hanning(256))
    power = np.abs(np.fft.fft2((z - z.mean()) * taper)) ** 2
    wave = (np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256))) * 256).astype(int).ravel()
    radial = np.bincount(wave, power.ravel()) / np.bincount(wave)
    slope = np.polyfit(np.log(np.arange(4, 64)), np.log(radial[4:64]), 1)[0]
    assert -3.6 < slope < -2.4


def moved(z, wind, spacing_m, seconds):
    """Advect z by the wind for some seconds with midpoint steps; rows increase southward."""
    flow = np.stack([-wind[1], wind[0]]) * seconds / spacing_m
    grid = np.stack(np.meshgrid(*map(np.arange, z.shape), indexing="ij")).astype(float)
    half = np.stack([ndimage.map_coordinates(part, grid - flow / 2, order=1, mode="nearest") for part in flow])
    return ndimage.map_coordinates(z, grid - half, order=1, mode="nearest")


@pytest.mark.parametrize("seed", range(3))
def test_features_move_with_the_stated_wind(seed):
    event = synthetic_event(seed, frames=6)
    z = np.clip(event["reflectivity"].values, 0, None)
    wind = np.stack([event["eastward_wind"], event["northward_wind"]])
    inside = (slice(30, -30), slice(30, -30))

    def error(motion, step):
        return np.mean(
            [(moved(z[t], motion, 1000.0, 300.0 * step) - z[t + step])[inside] ** 2 for t in range(6 - step)]
        )

    for step in (1, 3):
        assert error(wind, step) < 0.5 * error(0 * wind, step)
        assert error(wind, step) < 0.7 * error(-wind, step)
        # A tenth of the wind more or less, or a turn by 6 degrees, fits worse.
        rotated = np.stack([wind[0] - 0.1 * wind[1], wind[1] + 0.1 * wind[0]])
        assert all(error(wind, step) < error(other, step) for other in (1.1 * wind, 0.9 * wind, rotated))


def test_a_steady_wind_without_development_is_a_translation():
    event = synthetic_event(5, frames=4, rotation=0.0, gusts=0.0, speed=20.0)
    wind = event["eastward_wind"].values, event["northward_wind"].values
    np.testing.assert_allclose(np.hypot(*wind), 20.0, rtol=1e-5)
    assert np.ptp(wind[0]) < 1e-5


def test_cells_grow_and_decay():
    event = synthetic_event(7, frames=12, stratiform_dbz=None)
    z = event["reflectivity"].values
    assert (z == -32.0).mean() > 0.5
    rain = np.where(z > -32, (10 ** (z / 10) / 200) ** (1 / 1.6), 0.0)
    wind = np.stack([event["eastward_wind"], event["northward_wind"]])
    changes = []
    for t in range(11):
        carried = ndimage.uniform_filter(moved(rain[t], wind, 1000.0, 300.0), 9)
        after = ndimage.uniform_filter(rain[t + 1], 9)
        core = np.maximum(carried, after)[30:-30, 30:-30] > 1.0
        changes.append(np.log((after + 0.1) / (carried + 0.1))[30:-30, 30:-30][core])
    change = np.concatenate(changes)
    assert (change > 0.1).mean() > 0.15 and (change < -0.1).mean() > 0.15
    total = rain.sum((1, 2))
    assert 0.3 < total[-1] / total[0] < 3.0


def test_synthetic_event_on_other_grids():
    event = synthetic_event(0, frames=3, shape=(40, 64), spacing_m=500.0, cadence_minutes=2.5, start="2020-01-01")
    assert event["reflectivity"].shape == (3, 40, 64)
    assert event["time"].values[1] - event["time"].values[0] == np.timedelta64(150, "s")
    assert float(event["x"][1] - event["x"][0]) == 500.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 1}, "frames must be from 2 to 10000, got 1"),
        ({"shape": (16, 64)}, r"shape must be two sizes of at least 32 pixels, got \(16, 64\)"),
        ({"shape": (64,)}, "shape must be two whole numbers"),
    ],
    ids=["frames", "small", "one-dimensional"],
)
def test_synthetic_event_rejects_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        synthetic_event(0, **options)


def test_the_wind_has_no_divergence(event):
    east, north = event["eastward_wind"].values, event["northward_wind"].values
    divergence = np.gradient(east, axis=1) - np.gradient(north, axis=0)
    vorticity = np.gradient(north, axis=1) + np.gradient(east, axis=0)
    assert np.abs(divergence).max() < 0.05 * np.abs(vorticity).max()


def test_synthetic_cells_change_gradually():
    event = synthetic_event(7, frames=12, stratiform_dbz=None)
    z = np.clip(event["reflectivity"].values, 0, None)
    wind = np.stack([event["eastward_wind"], event["northward_wind"]])
    inside = (slice(30, -30), slice(30, -30))

    def sudden(before, after, motion):
        """Count strong pixels of one frame that have no echo near them in the other frame."""
        carried = ndimage.maximum_filter(moved(before, motion, 1000.0, 300.0), 5)
        return ((after > 35) & (carried < 5))[inside].sum()

    strong = (z[:, *inside] > 35).sum() / 12
    births = np.mean([sudden(z[t], z[t + 1], wind) for t in range(11)])
    deaths = np.mean([sudden(z[t + 1], z[t], -wind) for t in range(11)])
    assert births < 0.02 * strong and deaths < 0.02 * strong


# Sums of reflectivity by frame and of the wind, times a pattern, computed when this test was written.
OF_A_SEED = [
    (1, {"frames": 4, "shape": (48, 64)}, [194.017, 133.428, -335.357, -20.494, -1.938, 6.262]),
    (
        4,
        {
            "frames": 3, "shape": (40, 32), "spacing_m": 500.0, "cadence_minutes": 2.5, "stratiform_dbz": None,
            "speed": 20.0, "cells_per_10000_km2": 60.0, "rotation": 0.3, "gusts": 0.3,
        },
        [-302.658, 17.693, -129.359, -7.717, 32.571],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("seed", "options", "expected"), OF_A_SEED, ids=["rain", "cells"])
def test_the_event_of_a_seed_stays_the_same(seed, options, expected):
    event = synthetic_event(seed, **options)
    rows, columns = options["shape"]
    pattern = np.cos(0.7 * np.arange(rows))[:, None] * np.sin(0.4 * np.arange(columns) + 1)
    fields = [*event["reflectivity"].values, event["eastward_wind"].values, event["northward_wind"].values]
    assert [(field * pattern).sum() for field in fields] == pytest.approx(expected, abs=2e-2)


@pytest.mark.parametrize(
    "place",
    [(20.3, 31.6), (-2.2, 4.4), (38.7, 47.9), (-9.4, 20.0), (50.0, 20.0), (20.0, 60.4), (20.0, -25.5), (-25.5, 20.0)],
)
def test_synthetic_cell_is_a_rotating_ellipse(place):
    """The rain is peak sin^2(pi age / life) exp(-r^1.5) with r in units of 3 sqrt(2) and 3 / sqrt(2) pixels."""
    cell = {
        "row": place[0],
        "column": place[1],
        "size": 3.0,
        "aspect": 2.0,
        "angle": 0.5,
        "rotation_rate": 1e-3,
        "peak": 40.0,
    }
    rain = np.full((40, 48), 0.5)
    synthetic._add_cell(rain, cell | {"life": 2000.0}, 400.0)
    down, right = np.mgrid[:40, :48] - np.array(place)[:, None, None]

    rotated = (right + 1j * down) * np.exp(-0.9j)
    r = np.hypot(rotated.real / (3 * np.sqrt(2)), rotated.imag / (3 / np.sqrt(2)))
    expected = 40 * np.sin(np.pi / 5) ** 2 * np.exp(-(r**1.5))
    near = np.hypot(down, right) < 4 * 3 * np.sqrt(2)
    np.testing.assert_allclose((rain - 0.5)[near], expected[near], atol=1e-12)
    np.testing.assert_allclose(rain - 0.5, expected, atol=40 * np.exp(-8))
    far = (np.abs(down) > 19).any(1), (np.abs(right) > 19).any(0)
    assert (rain[far[0]] == 0.5).all() and (rain[:, far[1]] == 0.5).all(), "beyond four axes and a pixel"


def test_synthetic_event_is_read_like_a_radar_file(event):
    """The dataset that is read has the times, coordinates, units and projection of a radar file."""
    assert event["time"].values[0] == np.datetime64("2024-06-01T12:00")
    assert event["time"].values[11] == np.datetime64("2024-06-01T12:55")
    assert event["x"].values[[0, -1]].tolist() == [-127_500.0, 127_500.0]
    assert event["y"].values[[0, -1]].tolist() == [127_500.0, -127_500.0]
    assert {event[name].attrs["units"] for name in ("x", "y")} == {"m"}
    crs = event["crs"].attrs
    assert crs["grid_mapping_name"] == "azimuthal_equidistant" and crs["earth_radius"] == 6_371_000.0
    assert (crs["latitude_of_projection_origin"], crs["longitude_of_projection_origin"]) == (50.0, 10.0)
    assert event["reflectivity"].attrs["grid_mapping"] == "crs" and event["reflectivity"].attrs["units"] == "dBZ"
