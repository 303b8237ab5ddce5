# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from fastds.data import (
    EpochSampler,
    EvaluationTriples,
    FrameStore,
    RadarTriples,
    TimeBlock,
    coarsen,
    prepare,
    save_dataset,
    synthetic_event,
)
from fastds.data.samples.radar_triples import augment, make_sample

KEYS = {"x": (2, 1, 16, 16), "y": (3, 1, 32, 32), "valid": (3, 1, 32, 32)}


@pytest.fixture(scope="module")
def event():
    return synthetic_event(0, frames=9, shape=(136, 150)).drop_vars(["eastward_wind", "northward_wind"])


@pytest.fixture(scope="module")
def samples(event):
    return RadarTriples([event], crop=16, samples=40)


def test_shapes_types_and_range(samples):
    for index in range(20):
        sample = samples[index]
        assert {key: tuple(value.shape) for key, value in sample.items()} == KEYS
        assert sample["x"].dtype == sample["y"].dtype == torch.float32 and sample["valid"].dtype == torch.bool
        for key in ("x", "y"):
            assert torch.isfinite(sample[key]).all() and sample[key].min() >= 0 and sample[key].max() <= 1
        assert sample["valid"].all()  # nothing is missing in this event


def test_sample_depends_on_seed_and_index_only(event, samples):
    again = RadarTriples([event], crop=16, samples=7)
    other = RadarTriples([event], crop=16, seed=1)
    for index in (0, 5, 39, 1234):
        assert all(torch.equal(samples[index][key], again[index][key]) for key in KEYS)
        assert not torch.equal(samples[index]["y"], other[index]["y"])
    assert not torch.equal(samples[0]["y"], samples[1]["y"]) and len(samples) == 40


def test_workers_give_the_same_batches(samples):
    order = EpochSampler(samples)
    order.set_epoch(3)
    alone, two = (
        [batch["y"] for batch in DataLoader(samples, batch_size=8, sampler=order, num_workers=n)] for n in (0, 2)
    )
    assert len(alone) == 5 and all(torch.equal(a, b) for a, b in zip(alone, two, strict=True))
    assert torch.equal(alone[0][0], samples[120]["y"])


@pytest.mark.parametrize(
    ("mode", "scale", "interval"), list(itertools.product(["dbz", "linear_z"], [1, 2, 4], [1, 2, 3]))
)
def test_input_is_the_coarsened_truth_at_every_scale_and_interval(event, mode, scale, interval):
    data = RadarTriples([event], crop=16, scales=(scale,), intervals=(interval,), modes=(mode,), augment=False)
    z = event["reflectivity"].values
    z = np.maximum(z, 15.0)
    if mode == "linear_z":
        z = 10 ** (z / 10)
    z = z[:, : 136 - 136 % scale, : 150 - 150 % scale]
    z = z.reshape(9, z.shape[1] // scale, scale, z.shape[2] // scale, scale).mean((2, 4))
    truth = prepare(10 * np.log10(z) if mode == "linear_z" else z)
    for index in range(3):
        sample = data[index]
        x, y = sample["x"].numpy()[:, 0], sample["y"].numpy()[:, 0]
        # the crop is somewhere in the truth, on block borders, at three times with one interval between them
        found = [
            (t, r, c)
            for t in range(9 - 2 * interval)
            for r in range(0, truth.shape[1] - 31, 2)
            for c in range(0, truth.shape[2] - 31, 2)
            if abs(truth[t, r, c] - y[0, 0, 0]) < 1e-5
            and np.abs(truth[t : t + 2 * interval + 1 : interval, r : r + 32, c : c + 32] - y).max() < 1e-5
        ]
        assert len(found) == 1
        if mode == "dbz":
            np.testing.assert_allclose(x, y[::2].reshape(2, 16, 2, 16, 2).mean((2, 4)), atol=1e-6)
        else:
            linear = 10 ** ((15 + 55 * y[::2]) / 10)
            linear = linear.reshape(2, 16, 2, 16, 2).mean((2, 4))
            np.testing.assert_allclose(15 + 55 * x, 10 * np.log10(linear), atol=1e-3)


def test_input_of_plain_means(event):
    """The operator "plain_dbz" averages values below the floor, which lowers the mean of the input."""
    data = RadarTriples([event], crop=16, scales=(1,), modes=("plain_dbz",), augment=False)
    drawn, read = [], data.stores[0].dbz
    data.stores[0].dbz = lambda *where: drawn.append(read(*where)) or drawn[-1]
    sample = data[0]
    z = next(z for z in drawn if np.allclose(prepare(z), sample["y"][:, 0]))
    floored, plain = (x[::2].reshape(2, 16, 2, 16, 2).mean((2, 4)) for x in (np.maximum(z, 15.0), z))
    np.testing.assert_allclose(sample["x"][:, 0], prepare(plain), atol=1e-6)
    assert (prepare(plain) < prepare(floored) - 0.01).any()


def test_unknown_coarsening_mode_is_rejected(event):
    with pytest.raises(ValueError, match="mode must be one of dbz, linear_z, plain_dbz, got 'mean'"):
        RadarTriples([event], crop=16, modes=("dbz", "mean"))


def test_mixture_draws_every_combination(event):
    seen = set()
    data = RadarTriples([event], crop=16)
    original = data.stores[0].dbz

    def spy(frames, rows, columns):
        seen.add((int(frames[1] - frames[0]), (rows.stop - rows.start) // 32))
        return original(frames, rows, columns)

    data.stores[0].dbz = spy
    for index in range(150):
        data[index]
    assert seen == set(itertools.product((1, 2, 3), (1, 2, 4)))


def test_sources_are_drawn_by_their_weights(event):
    part = event.isel(time=slice(0, 3), y=slice(0, 32), x=slice(0, 32))
    sources = [part.assign(reflectivity=part.reflectivity * 0 + dbz) for dbz in (42.5, 56.25)]  # 0.5 and 0.75
    for weights, share in ((None, 0.5), ((0, 2), 1.0), ((1, 4), 0.8)):
        triples = RadarTriples(sources, crop=16, scales=(1,), intervals=(1,), weights=weights)
        found = np.mean([float(triples[i]["x"].max()) > 0.6 for i in range(300)])
        assert found == pytest.approx(share, abs=0.07) and (share < 1 or found == 1), (weights, found)


def test_minimum_echo_of_samples(event):
    z = event["reflectivity"].values.copy()
    z[:, :, 75:] = -32.0
    data = RadarTriples([event.assign(reflectivity=event["reflectivity"].copy(data=z))], crop=16, scales=(1,))
    shares = [float((data[index]["y"] > 0).float().mean()) for index in range(60)]
    assert np.mean(np.array(shares) >= 0.2) > 0.9


def test_crops_avoid_missing_areas_and_mark_what_is_missing(event):
    z = event["reflectivity"].values.copy()
    z[:, :, 90:] = np.nan
    z[4, 3, 5] = np.nan
    part = event["reflectivity"].copy(data=z)
    data = RadarTriples([part], crop=16, scales=(1,))
    for index in range(40):
        sample = data[index]
        assert sample["valid"].float().mean() >= 0.5
        assert torch.isfinite(sample["y"]).all() and not sample["y"][~sample["valid"]].gt(1).any()


def test_coarse_cells_with_missing_pixels_are_invalid():
    z = np.full((3, 8, 8), 30.0, np.float32)
    z[0, 1, 1], z[1, 4, 4] = np.nan, np.nan
    sample = make_sample(z)
    assert sample["x"][0, 0, 0, 0] == 0 and sample["x"][1, 0, 0, 0] > 0
    valid = sample["valid"][:, 0]
    assert not valid[:, :2, :2].any()  # the input block is missing, so its pixels are unknown in every frame
    assert not valid[1, 4, 4] and valid[0, 4, 4] and valid[1, 4, 5]  # the truth of the middle frame alone is missing
    assert valid.sum() == 3 * 64 - 12 - 1


def test_truth_at_coarser_scales_is_missing_where_any_pixel_is():
    z = np.full((3, 8, 8), 30.0, np.float32)
    z[1, 0, 0] = np.nan
    assert not make_sample(z, scale=2)["valid"][1, 0, 0, 0]


def whole_frame_flow(x):
    """Return a flow whose values identify the position, the frame and the direction."""
    h, w = x.shape[-2:]
    rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    forward = np.stack([rows, columns]) / 8.0
    return np.stack([forward, -forward - 1.0])


def test_flow_is_cut_from_the_whole_frame(event):
    data = RadarTriples([event], crop=16, scales=(1,), augment=False, flow=whole_frame_flow)
    for index in range(5):
        flow = data[index]["flow"]
        assert flow.shape == (1, 2, 2, 16, 16) and flow.dtype == torch.float32
        torch.testing.assert_close(flow[0, 1], -flow[0, 0] - 1.0)
        assert torch.equal(flow[0, 0, 0].diff(dim=0), torch.full((15, 16), 0.125))
        assert torch.equal(flow[0, 0, 1].diff(dim=1), torch.full((16, 15), 0.125))


def test_flow_is_computed_once_per_pair_and_ahead_of_workers(event):
    calls = []

    def flow(x):
        calls.append(x.shape)
        return np.zeros((2, 2, *x.shape[-2:]))

    data = RadarTriples([event], crop=16, scales=(1, 2), intervals=(1, 2), flow=flow)
    data.cache_flow()
    # 7 and 5 triples, whose outer frames make 7 and 5 pairs
    assert calls.count((2, 68, 75)) == 12 and calls.count((2, 34, 37)) == 12
    for index in range(30):
        data[index]
    assert len(calls) == 24


@pytest.mark.parametrize("mode", ["dbz", "linear_z", "plain_dbz"])
def test_context_is_the_coarsened_frame_before_and_after(event, mode):
    """With nine frames at interval D, the input frames at 2 D before and after a triple are given where they exist."""
    data = RadarTriples([event], crop=16, scales=(1, 2), intervals=(1, 2), modes=(mode,), augment=False, context=True)
    counts = np.zeros((2, 2), int)
    for index in range(40):
        draw, _ = data.draw(np.random.default_rng((data.seed, index)))
        context, (rows, columns) = data[index]["context"], data.window(draw)
        assert context.shape == (2, 1, 16, 16) and context.dtype == torch.float32
        length = draw.triple[2] - draw.triple[0]
        for k, frame in enumerate((draw.triple[0] - length, draw.triple[2] + length)):
            exists = 0 <= frame < 9
            counts[k, int(exists)] += 1
            if not exists:
                assert context[k].isnan().all()
                continue
            z = event["reflectivity"].values[frame : frame + 1, rows, columns]
            expected = prepare(coarsen(coarsen(z, draw.scale, mode, data.floor), 2, mode, data.floor))
            np.testing.assert_allclose(context[k], expected, atol=1e-6)
    assert (counts > 2).all()


def test_augmented_samples_lack_one_context_frame_of_five(event):
    data = RadarTriples([event], crop=16, scales=(1,), intervals=(1,), context=True)
    complete = RadarTriples([event], crop=16, scales=(1,), intervals=(1,), context=True, augment=False)
    lacking = [np.array([d[i]["context"].isnan().all((1, 2, 3)).numpy() for i in range(300)]) for d in (data, complete)]
    extra = lacking[0].sum() - lacking[1].sum()
    assert 0.14 < extra / (~lacking[1]).sum() < 0.26


def test_context_is_exchanged_when_time_is_reversed(event):
    data = RadarTriples([event], crop=16, scales=(1,), intervals=(1,), augment=False, context=True)
    sample = data.read(data.draw(np.random.default_rng(1))[0])
    turned = augment(sample, False, False, False, True)
    np.testing.assert_array_equal(turned["context"], sample["context"][::-1])
    np.testing.assert_array_equal(turned["x"], sample["x"][::-1])


def test_flow_function_gets_the_context_of_whole_frames(event):
    given = []

    def flow(x, context):
        given.append((x, context))
        return np.zeros((2, 2, *x.shape[-2:]))

    data = RadarTriples([event], crop=16, scales=(1,), intervals=(1,), flow=flow, context=True)
    data.cache_flow()
    assert len(given) == 7 and {context.shape for _, context in given} == {(2, 68, 75)}
    (_, first), (x, _), (_, third) = given[0], given[2], given[2]
    assert np.isnan(first[0]).all() and np.isfinite(first[1]).all() and np.isfinite(third).all()
    np.testing.assert_allclose(given[4][1][0], x[0], atol=1e-6)  # frames 2 and 4 are the input of triple 2


@pytest.mark.parametrize("options", list(itertools.product([False, True], repeat=4)))
def test_flow_is_rotated_with_the_grid(options):
    """Sampling one frame at the positions displaced by the flow gives the other frame, also after augmentation.

    The forward flow gives the first frame from the second, and the backward flow the second from the first.
    """
    rng = np.random.default_rng(0)
    first = torch.from_numpy(rng.random((1, 1, 24, 24), dtype=np.float32))
    dy, dx = 3, -5  # features move 3 rows down and 5 columns left
    second = torch.roll(first, (dy, dx), (2, 3))
    forward = np.broadcast_to(np.array([dy, dx], np.float32)[:, None, None], (2, 24, 24))
    sample = {
        "x": np.stack([first[0].numpy(), second[0].numpy()]),
        "y": np.zeros((3, 1, 48, 48), np.float32),
        "valid": np.ones((3, 1, 48, 48), bool),
        "flow": np.stack([forward, -forward])[None].copy(),
    }
    before = sample["flow"].copy()
    out = augment(sample, *options)
    np.testing.assert_array_equal(sample["flow"], before)  # the cache is not written to
    a, b = (torch.from_numpy(np.ascontiguousarray(out["x"]))[i][None] for i in (0, 1))
    for here, there, flow in ((a, b, out["flow"][0, 0]), (b, a, out["flow"][0, 1])):
        rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
        flow = torch.from_numpy(np.ascontiguousarray(flow))
        grid = torch.stack([(columns + flow[1]) / 23 * 2 - 1, (rows + flow[0]) / 23 * 2 - 1], -1)[None]
        warped = F.grid_sample(there, grid, align_corners=True)
        torch.testing.assert_close(warped[..., 6:-6, 6:-6], here[..., 6:-6, 6:-6], rtol=1e-4, atol=1e-4)


def test_augmentation_changes_all_arrays_alike():
    rng = np.random.default_rng(0)
    y = rng.random((3, 1, 8, 8), dtype=np.float32)
    x = y[::2].reshape(2, 1, 4, 2, 4, 2).mean((3, 5))
    out = augment({"x": x, "y": y, "valid": y > 0.5}, True, False, True, True)
    np.testing.assert_allclose(out["x"], out["y"][::2].reshape(2, 1, 4, 2, 4, 2).mean((3, 5)), rtol=1e-6)
    np.testing.assert_array_equal(out["valid"], out["y"] > 0.5)
    np.testing.assert_array_equal(out["y"][0, 0], y[2, 0, ::-1].T)


def test_cache_uses_one_byte_per_pixel_for_half_dbz_values(event, data_dir):
    store = FrameStore(TimeBlock(str(data_dir / "radar_mch_20160711_5min.nc"), 3, 6))
    assert store.data.dtype == np.uint8 and store.shape == (3, 640, 710)
    from fastds.data import open_dataset

    with open_dataset(data_dir / "radar_mch_20160711_5min.nc") as dataset:
        truth = dataset["reflectivity"][3:6].values
    np.testing.assert_allclose(store.dbz([0, 1, 2]), truth, atol=1e-4)
    np.testing.assert_array_equal(store.always_valid(), np.isfinite(truth).all(0))
    other = FrameStore(event)
    assert other.data.dtype == np.float32
    np.testing.assert_array_equal(other.dbz([1, 4]), event["reflectivity"].values[[1, 4]])


def test_blocks_of_time_and_files(event, tmp_path):
    path = str(save_dataset(event, tmp_path / "event.nc"))
    data = RadarTriples([TimeBlock(path, 0, 4), path, event["reflectivity"]], crop=16, weights=[0, 1, 1])
    assert [store.shape[0] for store in data.stores] == [4, 9, 9]
    assert data.stores[0].name == "event.nc[0:4]"
    assert list(data.triples[0]) == [1] and list(data.triples[1]) == [1, 2, 3]
    data[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 100}, "a coarse crop of 100 needs 200 fine pixels a side, the grid is"),
        ({"weights": [1, 2]}, "weights must be 1 non-negative numbers, one per source"),
        ({"intervals": (9,)}, "no three frames at equal intervals among 9 frames"),
    ],
    ids=["crop", "weights", "intervals"],
)
def test_triples_reject_invalid_arguments(event, options, message):
    with pytest.raises(ValueError, match=message):
        RadarTriples([event], **{"crop": 16, **options})


# File: first frame, end, every; squared errors of trilinear interpolation at the outer and the middle frames, dBZ^2.
PUBLISHED = {
    "radar_fmi_20160928_5min.nc": ((22, 30), 1, 0.641, 2.313),
    "radar_knmi_20100826_5min.nc": ((76, 92), 1, 0.170, 2.820),
    "radar_mch_20160711_5min.nc": ((0, None), 5, 0.156, 2.669),
    "radar_opera_20180824_15min.nc": ((0, None), 3, 1.276, 7.718),
    "radar_bom_melbourne_20180616_6min.nc": ((0, None), 4, 0.299, 11.635),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_evaluation_samples_reproduce_the_published_errors(data_dir, name):
    (start, stop), every, t13, t2 = PUBLISHED[name]
    data = EvaluationTriples(TimeBlock(str(data_dir / name), start, stop), every=every)
    errors = []
    for number in range(len(data)):
        sample = data[number]
        x, y = sample["x"][:, 0] * 55, sample["y"][:, 0] * 55
        up = F.interpolate(x[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
        prediction = torch.stack([up[0], (up[0] + up[1]) / 2, up[1]])
        missing = F.pad((~sample["valid"][0]).float()[None], (2, 2, 2, 2), value=1.0)
        inside = F.max_pool2d(missing, 5, 1)[0, 0] == 0
        assert torch.equal(sample["valid"][0], sample["valid"][1])
        squares = ((prediction - y) ** 2)[:, inside].double().mean(1)
        errors.append([(squares[0] + squares[2]) / 2, squares[1]])
    np.testing.assert_allclose(np.mean(errors, axis=0), [t13, t2], atol=6e-4)


def test_evaluation_of_whole_frames_with_flow(event):
    data = EvaluationTriples(event, interval=2, scale=2, flow=whole_frame_flow)
    assert len(data) == 5
    sample = data[0]
    assert sample["x"].shape == (2, 1, 34, 36) and sample["y"].shape == (3, 1, 68, 72)
    assert sample["flow"].shape == (1, 2, 2, 34, 36)
    z = np.maximum(event["reflectivity"].values[[0, 2, 4], :136, :144], 15)
    np.testing.assert_allclose(sample["y"][:, 0], prepare(coarsen(z, 2)), atol=1e-5)
