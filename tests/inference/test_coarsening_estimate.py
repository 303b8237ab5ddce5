# SPDX-License-Identifier: Apache-2.0
"""Tests of the estimate of the way in which a radar field averages finer cells."""

import numpy as np
import pytest

import fastds
from fastds.data import coarsen, coarsen_dataset, cut_to_multiple, open_dataset, to_reflectivity
from fastds.tasks.radar.coarsening_estimate import estimate_frames

DRY = -32.5


@pytest.fixture(scope="module")
def product():
    """Return three frames with values of a product: multiples of 0.5 dBZ and no echo."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:256, 0:256]
    frames = []
    for k in range(3):
        z = sum(
            rng.uniform(15, 30) * np.exp(-((y - a) ** 2 + (x - b - 4 * k) ** 2) / rng.uniform(30, 200))
            for a, b in rng.uniform(0, 256, (40, 2))
        )
        z = np.round(2 * (z + rng.normal(0, 1, z.shape))).clip(max=120) / 2
        frames.append(np.where(z < 7, DRY, z).astype(np.float32))
    return np.stack(frames)


def average_linear(z):
    return (10 * np.log10(coarsen(10 ** (z / 10), 2))).astype(np.float32)


def perturb(z, where):
    return np.where(where, z + np.random.default_rng(1).normal(0, 0.3, z.shape), z).astype(np.float32)


WAYS = {
    "linear_z": average_linear,
    "plain_dbz": lambda z: coarsen(z, 2),
    "dbz": lambda z: coarsen(z, 2, floor=15.0),
    "product": lambda z: z[:, ::2, ::2],
    "rounded": lambda z: np.round(coarsen(z, 2)),
    # weak echo has values of the product
    "partly continuous": lambda z: np.where(z < 12, z, z + np.random.default_rng(1).normal(0, 0.3, z.shape)).astype(
        "f4"
    ),
    "continuous": lambda z: z + np.random.default_rng(1).normal(0, 0.3, z.shape).astype(np.float32) * (z > DRY),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_estimate_recognises_averages_of_a_product(product, way, packed):
    z = WAYS[way](product).copy()
    z = np.round(100 * z).astype(np.float32) / np.float32(100) if packed else z
    expected = way if way in ("linear_z", "plain_dbz", "dbz") else None
    assert estimate_frames(list(z), DRY).mode == expected
    z[:, :40] = np.nan
    assert estimate_frames(list(z), DRY).mode == expected


def test_estimate_of_little_or_no_echo():
    dry = np.full((64, 64), DRY, np.float32)
    for frames in ([], [dry], [np.full((64, 64), np.nan, np.float32)]):
        assert estimate_frames(frames, DRY).mode is None
    dry[:8, :8] = 20.125
    assert estimate_frames([dry], DRY).reason == "there is too little echo"


def test_estimate_of_real_files(data_dir):
    found = {}
    for path in sorted(data_dir.glob("radar_*.nc")):
        with open_dataset(path) as dataset:
            source = to_reflectivity(dataset)
            frames, no_echo = (
                source.frames(list(range(0, source.shape[0], max(1, source.shape[0] // 3)))),
                source.no_echo,
            )
        z = cut_to_multiple(frames, 2)
        for way in ("linear_z", "plain_dbz", "product"):
            found[path.stem, way] = estimate_frames(list(WAYS[way](z)), no_echo).mode
    wrong = [(*case, mode) for case, mode in found.items() if mode not in (case[1], None)]
    missed = [case for case, mode in found.items() if mode is None and case[1] != "product"]
    assert not wrong and len(found) >= 3 * 11
    # MeteoSwiss: the no-echo value of -20 dBZ is not negligible compared with weak echo of -4 dBZ. SMHI: a small grid.
    assert {(name.split("_")[1], way) for name, way in missed} <= {("mch", "linear_z"), ("smhi", "linear_z")}


def test_downscale_corrects_averages_that_it_recognises(product):
    dataset = fastds.data.synthetic_event(1, frames=3, shape=(256, 256))[["reflectivity", "crs"]]
    dataset["reflectivity"].values[:] = product
    dataset["reflectivity"].attrs["no_echo_value"] = DRY
    coarse = {mode: coarsen_dataset(dataset, every=1, mode=mode) for mode in ("linear_z", "plain_dbz")}
    outputs = {
        (mode, how): fastds.downscale("fczsm-small", coarse[mode], coarsened=how)
        for mode in coarse
        for how in (None, "auto", "unknown", mode)
    }

    def is_equal(a, b):
        return np.array_equal(outputs[a].reflectivity, outputs[b].reflectivity, equal_nan=True)

    assert is_equal(("linear_z", None), ("linear_z", "linear_z"))
    assert is_equal(("linear_z", None), ("linear_z", "auto"))
    assert not is_equal(("linear_z", None), ("linear_z", "unknown"))
    found = outputs["linear_z", None].attrs
    assert found["fastds_coarsened"] == "linear_z" and found["fastds_coarsened_estimate"].startswith(
        "linear_z: many values"
    )
    assert "fastds_coarsened_estimate" not in outputs["linear_z", "linear_z"].attrs
    # The correction of means of dBZ would increase the error of frames that are not smooth.
    assert is_equal(("plain_dbz", None), ("plain_dbz", "unknown"))
    assert "fastds_coarsened" not in outputs["plain_dbz", None].attrs
    assert outputs["plain_dbz", None].attrs["fastds_coarsened_estimate"].startswith("plain_dbz: ")
    smooth = fastds.downscale("fczsm-small", coarse["plain_dbz"], smooth=True)
    assert smooth.attrs["fastds_coarsened"] == "plain_dbz"


def test_baselines_are_not_corrected(product):
    dataset = fastds.data.synthetic_event(1, frames=3, shape=(256, 256))[["reflectivity", "crs"]]
    dataset["reflectivity"].values[:] = product
    coarse = coarsen_dataset(dataset, every=1, mode="linear_z")
    assert "fastds_coarsened_estimate" not in fastds.downscale("advection", coarse).attrs
