# SPDX-License-Identifier: Apache-2.0
"""Tests of nowcast training data: pixel codes, thresholds and windows of consecutive fields."""

import numpy as np
import pytest

from fastds.data import (
    DWD_Z_R,
    HKO_Z_R,
    PIXEL_SCALES,
    RAIN_THRESHOLDS,
    FrameStore,
    RadarWindows,
    from_pixels,
    make_window,
    normalised_rates,
    prepare,
    rate_to_reflectivity,
    recode_pixels,
    reflectivity_to_rate,
    sequences,
    synthetic_event,
    to_pixels,
)

# Values computed from equations 9 and 10 of the DB-RNN paper and with the scale of the public code.
TABLE = {
    (HKO_Z_R, "0-60"): (0.21630, 0.37283, 0.47630, 0.55456, 0.67861),
    (HKO_Z_R, "-10-60"): (0.32825, 0.46243, 0.55111, 0.61820, 0.72453),
    (DWD_Z_R, "0-60"): (0.33013, 0.47262, 0.56680, 0.63804, 0.75096),
    (DWD_Z_R, "-10-60"): (0.42583, 0.54796, 0.62868, 0.68975, 0.78654),
}


@pytest.mark.parametrize(("z_r", "scale"), TABLE, ids=str)
def test_thresholds_of_the_published_tables(z_r, scale):
    found = normalised_rates(RAIN_THRESHOLDS, z_r, *PIXEL_SCALES[scale])
    np.testing.assert_allclose(found, TABLE[z_r, scale], atol=6e-6)


@pytest.mark.parametrize("scale", PIXEL_SCALES)
def test_pixel_codes_round_trip_exactly(scale):
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_pixels(from_pixels(codes, scale), scale), codes)
    np.testing.assert_allclose(prepare(from_pixels(codes, scale), *PIXEL_SCALES[scale]), codes / 255, atol=1e-6)


def test_pixel_codes_follow_equation_9():
    z = np.array([-32.0, 0.0, 0.2, 0.3, 12.0, 59.9, 60.0, 75.0, np.nan])
    assert to_pixels(z).tolist() == [0, 0, 0, 1, 51, 254, 255, 255, 0]
    assert recode_pixels(np.array([0, 36, 37, 255], np.uint8)).tolist() == [0, 0, 0, 255]
    assert recode_pixels(np.uint8(100)) == int(255 * (70 * 100 / 255 - 10) / 60)
    with pytest.raises(ValueError, match="scale must be one of 0-60, -10-60, got '0-70'"):
        to_pixels(z, "0-70")


@pytest.mark.parametrize("z_r", [HKO_Z_R, DWD_Z_R])
def test_rain_rates_round_trip(z_r):
    rates = np.array([0.1, 0.5, 7.0, 90.0], np.float32)
    np.testing.assert_allclose(reflectivity_to_rate(rate_to_reflectivity(rates, z_r), z_r), rates, rtol=1e-5)


def test_sequences_skip_gaps():
    minutes = np.array([0, 5, 10, 15, 25, 30, 35, 40, 45]) * 60.0
    assert sequences(minutes, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [5, 6, 7, 8]]
    assert sequences(minutes, 3, 600.0).tolist() == [[1, 3, 4], [3, 4, 6], [4, 6, 8]]
    assert sequences(minutes, 2, every=2).tolist() == [[0, 1], [2, 3], [5, 6], [7, 8]]
    assert sequences(minutes, 6).shape == (0, 6)


@pytest.fixture(scope="module")
def event():
    event = synthetic_event(0, frames=13, shape=(42, 50))[["reflectivity"]]
    event["reflectivity"][4, 3:9, 5:7] = np.nan
    return event.isel(time=[i for i in range(13) if i != 7])  # a gap


def test_windows_hold_the_fields_in_order_with_their_masks(event):
    windows = RadarWindows(event, known=3, future=2, scale=4)
    assert windows.index.tolist() == [list(range(s, s + 5)) for s in (0, 1, 2, 7)]
    sample = windows[2]
    z = np.clip(event["reflectivity"].values[2:7, :40, :48], 0, None).reshape(5, 10, 4, 12, 4).mean((2, 4))
    expected = np.where(np.isnan(z), 0.0, np.clip(z, 0, 60) / 60)
    assert {k: tuple(v.shape) for k, v in sample.items()} == {
        "x": (3, 1, 10, 12), "y": (2, 1, 10, 12), "valid": (5, 1, 10, 12)
    }  # fmt: skip
    np.testing.assert_allclose(np.concatenate([sample["x"], sample["y"]])[:, 0], expected, atol=1e-6)
    assert np.array_equal(sample["valid"][:, 0].numpy(), ~np.isnan(z)) and not sample["valid"].all()


def test_windows_by_interval_and_without_overlap(event):
    assert RadarWindows(event, known=2, future=2, interval=2).index.tolist() == [
        [0, 2, 4, 6],
        [2, 4, 6, 7],
        [4, 6, 7, 9],
        [6, 7, 9, 11],
    ]
    assert RadarWindows(event, known=2, future=1, every=3).index.tolist() == [[0, 1, 2], [3, 4, 5], [8, 9, 10]]
    with pytest.raises(ValueError, match="no 12 frames at equal intervals of 300 s among 12 frames"):
        RadarWindows(event, known=6, future=6)


def test_a_window_of_arrays_keeps_the_floor_and_ceiling(event):
    z = FrameStore(event).dbz([0, 1, 2], slice(8, 24), slice(8, 24))
    sample = make_window(z, 2, floor=15.0, ceiling=70.0)
    np.testing.assert_allclose(sample["x"][:, 0], prepare(z[:2], 15.0, 70.0), atol=1e-7)
    assert sample["x"].shape == (2, 1, 16, 16) and sample["y"].shape == (1, 1, 16, 16)
