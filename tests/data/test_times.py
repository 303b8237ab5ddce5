# SPDX-License-Identifier: Apache-2.0
import datetime

import numpy as np
import pytest

from fastds.data import (
    from_reflectivity,
    open_dataset,
    output_frames,
    refine_time,
    save_dataset,
    synthetic_event,
    time_encoding,
    to_reflectivity,
    triples,
)
from fastds.data.grid.times import find_regular_segments, sequences

MINUTE = np.timedelta64(1, "m")


@pytest.fixture
def event():
    return synthetic_event(1, frames=6, shape=(32, 32)).drop_vars(["eastward_wind", "northward_wind"])


def times_at(*minutes):
    return np.datetime64("2024-06-01T12:00", "ns") + np.array(minutes) * MINUTE


def fine(source, time_factor=2, factor=2):
    """Return finer fields with 20 dBZ everywhere."""
    shape = output_frames(source, time_factor), factor * source.shape[1], factor * source.shape[2]
    return np.full(shape, 20.0, np.float32)


def test_triples_by_time_stamp_over_a_gap():
    found = triples(times_at(0, 5, 10, 20, 25, 30, 35))
    assert found.tolist() == [[0, 1, 2], [3, 4, 5], [4, 5, 6]]
    assert triples(times_at(0, 5, 10, 20, 25, 30, 35), 10 * MINUTE).tolist() == [[0, 2, 3], [2, 3, 5]]


def test_triples_that_share_end_frames_only():
    assert triples(times_at(*range(0, 35, 5)), every=2).tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]


def test_triples_of_cftime_and_numbers():
    cftime = pytest.importorskip("cftime", reason="calendars other than the standard one need cftime")
    dates = [cftime.datetime(2000, 2, 30, 0, 5 * i, calendar="360_day") for i in range(4)]
    assert triples(np.array(dates)).tolist() == [[0, 1, 2], [1, 2, 3]]
    assert triples([0, 300, 600, 1200], interval=datetime.timedelta(seconds=600)).tolist() == [[0, 2, 3]]
    assert triples([0, 300]).shape == (0, 3)


@pytest.mark.parametrize(
    ("times", "interval", "message"),
    [
        (times_at(0), None, "at least 2 time steps"),
        (times_at(5, 0), None, "sorted and without duplicates"),
        (times_at(0, 0), None, "sorted and without duplicates"),
        (times_at(0, 5), 0, "interval must be positive"),
    ],
    ids=["one", "unsorted", "duplicate", "zero"],
)
def test_triples_reject_unsuitable_times(times, interval, message):
    with pytest.raises(ValueError, match=message):
        triples(times, interval)


def test_unsorted_times_are_sorted_with_a_warning(event):
    source = to_reflectivity(event.isel(time=[3, 0, 5, 1, 4, 2]))
    assert "times were not in order and have been sorted" in source.notes
    np.testing.assert_array_equal(source.field, event["reflectivity"])
    assert np.all(np.diff(source.times) > np.timedelta64(0))


def test_repeated_frames_are_dropped_with_a_warning(event):
    source = to_reflectivity(event.isel(time=[0, 1, 1, 2, 3]))
    assert source.shape[0] == 4 and "1 repeated frames were dropped" in source.notes


def test_different_fields_at_one_time_are_refused_by_name(event):
    double = event.assign_coords(time=event["time"].values[[0, 1, 1, 3, 4, 5]])
    with pytest.raises(ValueError, match="time 2024-06-01T12:05:00 occurs twice with different fields"):
        to_reflectivity(double)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_times(event, count):
    with pytest.raises(ValueError, match=f"at least 2 times are needed, variable reflectivity has {count}"):
        to_reflectivity(event.isel(time=slice(0, count)))


def test_times_without_units(event):
    with pytest.raises(ValueError, match="coordinate time holds no dates; expected units such as 'minutes since"):
        to_reflectivity(event.assign_coords(time=np.arange(6.0)))


def test_missing_times(event):
    with pytest.raises(ValueError, match="dimension time has no coordinate"):
        to_reflectivity(event.drop_vars("time"))
    times = event["time"].values.copy()
    times[2] = np.datetime64("NaT")
    with pytest.raises(ValueError, match="coordinate time has a missing time at position 2"):
        to_reflectivity(event.assign_coords(time=times))


def test_irregular_times_are_refused_by_name(event):
    with pytest.raises(
        ValueError, match="irregular: 420 s between 2024-06-01T12:10:00 and 2024-06-01T12:17:00, the most"
    ):
        to_reflectivity(event.assign_coords(time=times_at(0, 5, 10, 17, 22, 27)))


def test_small_jitter_is_preserved():
    times = times_at(0, 5, 10, 15) + np.array([0, 3, -4, 0]) * np.timedelta64(1, "s")
    segments, cadence, notes = find_regular_segments(times)
    assert segments == (slice(0, 4),) and abs(cadence - 300) < 10 and not notes


@pytest.mark.parametrize("seed", range(5))
def test_jitter_of_a_tenth_changes_no_sequence(seed):
    rng, count = np.random.default_rng(seed), 60
    regular = np.delete(np.arange(count) * 300.0, rng.choice(np.arange(1, count - 1), 5, replace=False))
    late = regular + rng.uniform(-29, 29, len(regular))
    late_times = np.datetime64("2024-06-01", "us") + np.round(late * 1e6).astype("timedelta64[us]")
    segments, cadence, _ = find_regular_segments(late_times)
    assert cadence == 300.0 and [s.stop for s in segments][-1] == len(late)
    np.testing.assert_array_equal(sequences(late, 3, 300.0), sequences(regular, 3))


def test_times_of_float32_days_are_regular():
    days = (np.arange(40) * 5 / 1440 + 152.5).astype("f4").astype("f8")
    found = np.datetime64("2024-01-01", "ns") + (days * 86400e9).astype("timedelta64[ns]")
    assert len(sequences(found, 10)) == 31 and find_regular_segments(found)[1] == 300.0


def test_steps_at_the_limits():
    """A deviation of up to a tenth of a step from regular times is accepted; 1.5 steps are a gap."""
    second = np.timedelta64(1, "s")
    for last, segments in ((360, [(0, 4)]), (240, [(0, 4)]), (450, [(0, 3), (3, 4)])):
        found = find_regular_segments(times_at(0, 5, 10, 10) + np.array([0, 0, 0, last]) * second)[0]
        assert [(s.start, s.stop) for s in found] == segments
    for last in (361, 239, 449):
        with pytest.raises(ValueError, match=f"irregular: {last} s between"):
            find_regular_segments(times_at(0, 5, 10, 10) + np.array([0, 0, 0, last]) * second)


def test_refine_time_makes_no_frame_in_a_gap(event):
    source = to_reflectivity(event.assign_coords(time=times_at(0, 5, 10, 25, 30, 35)))
    assert source.segments == (slice(0, 3), slice(3, 6)) and output_frames(source) == 10
    assert any("gap from 2024-06-01T12:10:00 to 2024-06-01T12:25:00" in note for note in source.notes)
    out = from_reflectivity(source, fine(source))
    expected = times_at(0, 5, 10, 25, 30, 35)
    halves = expected[[0, 1, 3, 4]] + np.timedelta64(150, "s")
    np.testing.assert_array_equal(out["time"], np.sort(np.concatenate([expected, halves])))


def test_a_single_frame_between_gaps_keeps_its_time(event):
    source = to_reflectivity(event.assign_coords(time=times_at(0, 5, 10, 25, 40, 45)))
    assert [s.stop - s.start for s in source.segments] == [3, 1, 2]
    assert output_frames(source) == 9 and from_reflectivity(source, fine(source)).sizes["time"] == 9


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_refine_time_keeps_half_units(unit):
    times = np.array(["2024-01-01T00:00:00", "2024-01-01T00:00:05"], dtype=f"datetime64[{unit}]")
    fine_times = refine_time(times)
    assert fine_times[1] - fine_times[0] == np.timedelta64(2500, "ms") and len(fine_times) == 3
    assert len(refine_time(times, 4)) == 5 and len(refine_time(times[:1])) == 1


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("minutes since 2024-06-01 12:00:00", "seconds since 2024-06-01"),
        ("hours since 2024-06-01", "seconds since 2024-06-01"),
        ("days since 0001-01-01 00:00:00", "seconds since 0001-01-01"),
        ("seconds since 1970-01-01T00:00:00Z", "seconds since 1970-01-01"),
        ("fortnights since yesterday", "seconds since 1970-01-01"),
    ],
)
def test_finer_times_survive_the_encoding_of_the_file(event, tmp_path, units, expected):
    event["time"].encoding = {"units": units, "dtype": "int32"}
    source = to_reflectivity(event)
    out = from_reflectivity(source, fine(source))
    with open_dataset(save_dataset(out, tmp_path / "out.nc")) as back:
        assert back["time"].encoding["units"].startswith(expected) and back["time"].encoding["dtype"].kind == "i"
        np.testing.assert_array_equal(back["time"], times_at(0) + np.arange(11) * np.timedelta64(150, "s"))


def test_whole_minutes_keep_the_unit_of_the_file():
    encoding = time_encoding(times_at(0, 5, 10), {"units": "minutes since 2024-01-01", "calendar": "standard"})
    assert encoding == {"units": "minutes since 2024-01-01", "calendar": "standard", "dtype": "int64"}


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "julian"])
def test_cftime_calendars_survive(event, tmp_path, calendar):
    cftime = pytest.importorskip("cftime", reason="calendars other than the standard one need cftime")
    dates = [cftime.datetime(2001, 2, 28, 23, 40 + 5 * i if i < 4 else 55, calendar=calendar) for i in range(4)]
    some = event.isel(time=slice(0, 4)).assign_coords(time=dates)
    some["time"].encoding = {"units": "minutes since 2001-01-01", "calendar": calendar}
    path = save_dataset(some, tmp_path / "in.nc")
    with open_dataset(path) as dataset:
        source = to_reflectivity(dataset)
        assert source.cadence == 300.0
        out = save_dataset(from_reflectivity(source, fine(source)), tmp_path / "out.nc")
    with open_dataset(out) as back:
        assert back["time"].encoding["calendar"] == calendar and back.sizes["time"] == 7
        middle = back["time"].values[1]
        assert middle.calendar == calendar and (middle.minute, middle.second) == (42, 30)


def test_bounds_around_instants_are_regenerated(event, tmp_path):
    half = np.timedelta64(150, "s")
    bounds = np.stack([event["time"].values - half, event["time"].values + half], axis=1)
    event["time"].attrs["bounds"] = "time_bnds"
    with_bounds = event.assign(time_bnds=(("time", "nv"), bounds))
    source = to_reflectivity(with_bounds)
    with open_dataset(save_dataset(from_reflectivity(source, fine(source)), tmp_path / "out.nc")) as out:
        assert out["time_bnds"].shape == (11, 2) and out["time"].attrs["bounds"] == "time_bnds"
        quarter = np.timedelta64(75, "s")
        np.testing.assert_array_equal(out["time_bnds"].values[:, 0], out["time"].values - quarter)
        np.testing.assert_array_equal(out["time_bnds"].values[:, 1], out["time"].values + quarter)


@pytest.mark.parametrize(
    ("seconds", "unit"),
    [
        ([0, 86400], "days"),
        ([0, 3600], "hours"),
        ([0, 60], "minutes"),
        ([0, 150], "seconds"),
        ([0, 0.5], "milliseconds"),
    ],
)
def test_encoding_takes_the_coarsest_unit_that_holds_every_time(seconds, unit):
    times = np.datetime64("2024-06-01", "ns") + (np.array(seconds) * 1e9).astype("timedelta64[ns]")
    encoding = time_encoding(times, {"units": "days since 2024-01-01"})
    assert encoding == {"units": f"{unit} since 2024-01-01", "calendar": "proleptic_gregorian", "dtype": "int64"}
