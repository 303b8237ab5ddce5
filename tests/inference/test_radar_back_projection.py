# SPDX-License-Identifier: Apache-2.0
"""Tests of back-projection of radar fields onto the coarse input."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastds
from fastds.data import EvaluationTriples, TimeBlock, coarsen, coarsen_dataset, synthetic_event
from fastds.models.baselines import advection, optical_flow, trilinear
from fastds.studies import radar
from fastds.tasks.radar import refinement
from fastds.tasks.radar.back_projection import CLEAR_DB, back_project
from fastds.tasks.radar.run import downscale

MODES = "dbz", "linear_z", "plain_dbz"
SPAN = 55.0


def fields(seed=3, size=48):
    """Return coarse frames (2, h, w), their flow, and inconsistent fine fields (3, 2 h, 2 w), scaled to [0, 1]."""
    event = synthetic_event(seed, 3, (2 * size, 2 * size)).reflectivity.values
    z = torch.from_numpy(event).float().clamp(15.0, 70.0) - 15.0
    x = coarsen(z[::2], 2, "linear_z", floor=0.0) / SPAN
    return x, optical_flow(x[None])[0], trilinear(x[None, :, None], 2)[0, :, 0].clamp(0, 1)


def agreed(y, x, flow, mode, known=None):
    y = y.clone()
    back_project(y, x, flow, torch.ones_like(x).bool() if known is None else known, mode, SPAN)
    return y


@pytest.mark.parametrize("mode", MODES)
def test_back_projection_preserves_the_coarse_field(mode):
    """Cells are compared whose pixels are all well above the floor."""
    x, flow, y = fields(size=96)
    way = "linear_z" if mode == "linear_z" else "dbz"
    before, after = (
        (coarsen(v[::2] * SPAN, 2, way, floor=0.0) - x * SPAN).abs() for v in (y, agreed(y, x, flow, mode))
    )
    clear = -F.max_pool2d(-y[::2], 2) > (CLEAR_DB + 2) / SPAN
    assert clear.sum() > 1000 and before[clear].max() > 3
    assert after[clear].max() < 0.4 and after[clear].mean() < before[clear].mean() / 10


def test_back_projection_of_means_skips_cells_near_the_floor():
    x, flow, y = fields()
    low = F.max_pool2d(-y[::2], 2) >= -CLEAR_DB / SPAN
    alone = -F.max_pool2d(-low.float(), 3, stride=1, padding=1) == 1  # among such cells: no correction reaches them
    same = agreed(y, x, flow, "plain_dbz")[::2] == y[::2]
    assert alone.sum() > 100 and same[alone.repeat_interleave(2, 1).repeat_interleave(2, 2)].all()


def test_back_projection_ignores_missing_cells():
    x, flow, y = fields()
    known = torch.ones_like(x).bool()
    known[:, 10:14, 20:24] = False
    changed = x.clone()
    changed[:, 10:14, 20:24] = 0.0
    results = [agreed(y, given, flow, "dbz", known) for given in (x, changed)]
    assert torch.equal(*results) and not torch.equal(results[0], agreed(y, x, flow, "dbz"))


def test_back_projection_of_the_middle_frame_is_advected():
    """The correction is advected from both input frames; without motion, it is their mean."""
    x, flow, y = fields()
    result = agreed(y, x, flow, "linear_z")
    of_cells = F.avg_pool2d(result[::2] - y[::2], 2)
    moved = 2 * advection((1 + of_cells)[None, :, None] / 2, 2, flow[None])[0, 1, 0] - 1
    torch.testing.assert_close(result[1], (y[1] + moved).clamp(0, 1), rtol=0, atol=1e-6)
    assert (result[1] - y[1]).abs().max() > 0.5 / SPAN
    still = agreed(y, x, torch.zeros_like(flow), "linear_z")
    mean = F.interpolate(of_cells.mean(0)[None, None], scale_factor=2, mode="bicubic", align_corners=False)[0, 0]
    torch.testing.assert_close(still[1], (y[1] + mean).clamp(0, 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_back_projection_reduces_the_error(mode):
    truth = synthetic_event(11, 5, (128, 128))
    coarse = coarsen_dataset(truth, mode=mode)
    echo = np.maximum(truth.reflectivity.values, 15.0)
    errors = []
    for coarsened in (None, mode):
        fine = downscale("fczsm-small", coarse, coarsened=coarsened, smooth=True)  # what is corrected: least squares
        assert fine.attrs.get("fastds_coarsened") == coarsened
        errors.append(np.square(np.maximum(fine.reflectivity.values, 15.0) - echo)[:, 4:-4, 4:-4].mean())
    assert errors[1] < {"linear_z": 0.97, "dbz": 0.995, "plain_dbz": 0.998}[mode] * errors[0]


def test_study_radar_uses_back_projection(data_dir):
    frames = TimeBlock(str(data_dir / "radar_mch_20160711_5min.nc"), 0, 3)
    sample = dict(EvaluationTriples(frames, mode="linear_z")[0]) | {"neighbours": (None, None)}
    block = radar.Block("MeteoSwiss", 15.0, [sample], [0])
    network = fastds.load("fczsm-small").eval()
    known, unknown = (
        radar.compute_errors(block, radar.wrap_network(network, 15.0, coarsened))["mse_total"]
        for coarsened in ("linear_z", None)
    )
    assert known < 0.92 * unknown


def test_back_projection_preserves_dry_and_missing():
    coarse = coarsen_dataset(synthetic_event(11, 3, (96, 96)))
    coarse.reflectivity[:, 5:9, 5:9] = np.nan
    plain, corrected = (downscale("advection", coarse, coarsened=mode).reflectivity for mode in (None, "linear_z"))
    assert (corrected.isnull() == plain.isnull()).all()
    dry = coarse.reflectivity.values == coarse.reflectivity.attrs["no_echo_value"]
    fine = corrected.values[::2][dry.repeat(2, 1).repeat(2, 2)]
    assert dry.any() and (fine == coarse.reflectivity.attrs["no_echo_value"]).all()


@pytest.mark.parametrize("mode", MODES)
def test_back_projection_in_bands_is_identical(mode, monkeypatch):
    monkeypatch.setattr(refinement, "_BAND_PIXELS", 1)
    refiner = refinement.FrameRefiner(None, scale=2, floor=15.0, ceiling=70.0, no_echo=-32.0, tiles=[])
    x, flow, y = fields()
    assert len(list(refiner._make_bands(x.shape[1:], 0.0))) == 8
    banded, known = y.clone(), torch.ones_like(x).bool()
    back_project(banded, x, flow, known, mode, SPAN, refiner._make_bands)
    torch.testing.assert_close(banded, agreed(y, x, flow, mode), rtol=0, atol=2e-6)


def test_unknown_coarsening_is_rejected():
    coarse = coarsen_dataset(synthetic_event(11, 2, (64, 64)))
    with pytest.raises(ValueError, match="coarsened must be one of dbz, linear_z, plain_dbz, got 'mean'"):
        fastds.downscale("advection", coarse, coarsened="mean")
