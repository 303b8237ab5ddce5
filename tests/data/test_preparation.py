# SPDX-License-Identifier: Apache-2.0

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastds.data import (
    clip_reflectivity,
    coarsen,
    coarsen_mask,
    cut_to_multiple,
    echo_fraction,
    has_enough_echo,
    prepare,
    refine_mask,
    restore,
    valid_mask,
)
from fastds.data.radar.preparation import COARSENING_MODES
from tests.support import forked


@pytest.fixture
def z():
    field = np.random.default_rng(0).uniform(-32, 60, (3, 12, 18)).astype(np.float32)
    field[1, 2, 3] = np.nan
    return field


BOTH = pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])


@BOTH
@pytest.mark.parametrize("floor", [15.0, 0.0])
def test_prepare_and_restore(z, kind, floor):
    x = prepare(kind(z), floor)
    assert type(x) is type(kind(z)) and x.dtype == kind(z).dtype
    x = np.asarray(x)
    assert x.min() == 0 and x.max() <= 1 and x[1, 2, 3] == 0
    expected = np.where(np.isnan(z), floor, np.clip(z, floor, 70))
    np.testing.assert_allclose(np.asarray(restore(kind(x), floor)), expected, atol=1e-5)


def test_normalisation_of_the_paper():
    np.testing.assert_allclose(prepare(np.array([-32.0, 0.0, 15.0, 42.5, 70.0, 80.0])), [0, 0, 0, 0.5, 1, 1])


def test_a_ceiling_below_the_floor_is_refused():
    with pytest.raises(ValueError, match="ceiling must be above floor, got floor 15.0 and ceiling 10.0 dBZ"):
        prepare(np.zeros(3), 15.0, 10.0)


@BOTH
def test_clip_keeps_missing_values(z, kind):
    out = np.asarray(clip_reflectivity(kind(z), 15.0))
    assert np.isnan(out[1, 2, 3]) and np.nanmin(out) == 15.0 and np.nanmax(out) == np.nanmax(z)


@BOTH
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_coarsen_in_dbz_is_the_mean_of_floored_blocks(z, kind, factor):
    out = np.asarray(coarsen(kind(z), factor, floor=15.0))
    blocks = np.maximum(z, 15.0).reshape(3, 12 // factor, factor, 18 // factor, factor)
    np.testing.assert_allclose(out, blocks.mean((2, 4)), rtol=1e-5)
    assert np.isnan(out).sum() == 1 and out.dtype == np.float32


def test_coarsen_by_two_equals_bilinear_halving(z):
    floored = torch.from_numpy(np.nan_to_num(np.maximum(z, 15.0)))
    halved = F.interpolate(floored[None], scale_factor=0.5, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(coarsen(floored, 2), halved)


@BOTH
def test_coarsen_in_linear_z(kind):
    blocks = np.array([[20.0, 40.0], [40.0, 20.0]], dtype=np.float32)
    expected = 10 * np.log10((1e2 + 1e4) / 2)
    np.testing.assert_allclose(np.asarray(coarsen(kind(blocks), 2, "linear_z")), [[expected]], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(coarsen(kind(blocks), 2, "dbz")), [[30.0]])


@BOTH
@pytest.mark.parametrize("mode", COARSENING_MODES)
def test_blocks_without_echo_are_exactly_at_the_floor(kind, mode):
    """If dry blocks were above the floor, they would count as echo."""
    for floor, factor in itertools.product((0.0, 7.0, 15.0), (1, 2, 3)):
        dry = np.full((6, 6), floor if mode == "plain_dbz" else -32.5, dtype=np.float32)
        assert (np.asarray(coarsen(kind(dry), factor, mode, floor=floor)) == floor).all()


@BOTH
def test_plain_means_are_not_floored(kind):
    blocks = np.array([[-32.0, 40.0], [40.0, -32.0]], dtype=np.float32)
    np.testing.assert_allclose(np.asarray(coarsen(kind(blocks), 2, "plain_dbz", floor=15.0)), [[4.0]])


def test_coarsening_twice_equals_coarsening_once(z):
    for mode in COARSENING_MODES:
        z4 = np.nan_to_num(z[:, :, :16])
        np.testing.assert_allclose(coarsen(coarsen(z4, 2, mode), 2, mode), coarsen(z4, 4, mode), rtol=1e-4, atol=1e-4)


def test_coarsen_is_differentiable():
    z = torch.rand(1, 4, 4, dtype=torch.float64) * 40
    for mode in COARSENING_MODES:
        torch.autograd.gradcheck(lambda field, mode=mode: coarsen(field, 2, mode, floor=5.0), z.requires_grad_())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5,), r"the grid \(12, 18\) must be a multiple of factor 5"),
        ((0,), "factor must be a whole number >= 1, got 0"),
        ((2, "mean"), "mode must be one of dbz, linear_z, plain_dbz, got 'mean'"),
    ],
)
def test_coarsen_rejects_invalid_arguments(z, arguments, message):
    with pytest.raises(ValueError, match=message):
        coarsen(z, *arguments)


@BOTH
def test_masks_of_missing_values(z, kind):
    valid = valid_mask(kind(z))
    coarse = coarsen_mask(valid)
    np.testing.assert_array_equal(np.asarray(coarse), ~np.isnan(np.asarray(coarsen(kind(z), 2))))
    fine = np.asarray(refine_mask(coarse))
    assert fine.shape == z.shape and (~fine).sum() == 4 and not fine[1, 2:4, 2:4].any()


def test_cut_to_multiple(z):
    assert cut_to_multiple(z, 5).shape == (3, 10, 15) and cut_to_multiple(z, 6).shape == (3, 12, 18)


@BOTH
def test_echo_fraction_counts_valid_pixels_only(kind):
    z = kind(np.array([[20.0, 15.0], [-32.0, np.nan]]))
    assert echo_fraction(z) == pytest.approx(1 / 3) and echo_fraction(z, floor=0.0) == pytest.approx(2 / 3)
    assert echo_fraction(z, valid=kind(np.array([[True, False], [False, True]]))) == 1.0
    assert echo_fraction(z * np.nan) == 0.0


def test_samples_need_twenty_percent_echo():
    z = np.full((3, 10, 10), -32.0)
    z[0, :6] = 30.0  # 60 of 300
    assert has_enough_echo(z)
    z[0, 5, 9] = 15.0
    assert not has_enough_echo(z) and has_enough_echo(z, minimum=0.19)


def test_files_grids_and_preparation_do_not_load_torch_datasets():
    loaded = "'fastds.data.samples.radar_triples' in sys.modules"
    code = f"import sys, fastds.data; assert not {loaded}; fastds.data.RadarTriples; assert {loaded}"
    done = forked.run(code, imports=forked.TORCH)
    assert done.returncode == 0, done.stderr
