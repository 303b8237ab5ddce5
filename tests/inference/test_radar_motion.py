# SPDX-License-Identifier: Apache-2.0
"""Tests of optical flow that is averaged with the flow of adjacent pairs of fields."""

import numpy as np
import pytest
import torch

from fastds import data as fd
from fastds.inference.chunking import Chunk
from fastds.models.baselines import advection, optical_flow
from fastds.tasks.radar.motion import Motion, smooth_flow, smooth_pair_flow
from fastds.tasks.radar.pipeline import RadarPipeline
from tests.support.small_models import radar_model


def motion(rows, columns, known=1.0, size=(24, 32)):
    """Return a Motion with a uniform displacement from the first field and the opposite one from the second."""
    flow = torch.tensor([[[rows, columns], [-rows, -columns]]]).view(1, 2, 2, 1, 1).expand(1, 2, 2, *size).clone()
    made = Motion(torch.zeros(2, *size))
    made.flow, made.confidence = flow, torch.full((2, 1, *size), known)
    return made


def test_flow_is_averaged_by_confidence():
    this, before, after = motion(2.0, 4.0), motion(5.0, 1.0, 0.5), motion(-1.0, 1.0, 0.25)
    expected = torch.tensor([(2 + 0.5 * 5 - 0.25) / 1.75, (4 + 0.5 + 0.25) / 1.75])
    found = smooth_flow(this, before, after)
    torch.testing.assert_close(found[0, 0], expected.view(2, 1, 1).expand(2, 24, 32))
    torch.testing.assert_close(found[0, 1], -found[0, 0])
    unknown = motion(9.0, 9.0, 0.0)
    assert torch.equal(smooth_flow(this, unknown, unknown), this.flow)


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize(("neighbour", "sign"), [("before", 1), ("after", -1)])
def test_flow_is_averaged_along_trajectories(way, neighbour, sign):
    this, other, nothing = motion(0.0, 4.0), motion(0.0, 8.0, 0.0), motion(0.0, 0.0, 0.0)
    other.confidence[way, 0, 10, 16] = 1.0
    found = smooth_flow(this, **{"before": nothing, "after": nothing, neighbour: other})[0, way, 1].abs()
    column = 16 + 4 * sign
    assert ((found - 4).abs() > 1e-6).nonzero().tolist() == [[10, column]]
    assert found[10, column] == pytest.approx(6.0)


def test_flow_of_dry_frames_is_zero():
    x = torch.zeros(2, 24, 32)
    still = Motion(x)
    assert not still.flow.any() and not still.confidence.any() and still.flow.shape == (1, 2, 2, 24, 32)
    x[0, 12, 16] = 0.5
    assert Motion(x).confidence[0, 0, 10, 14] == pytest.approx(1 / 25) and not Motion(x).confidence[1].any()
    this = torch.rand(2, 24, 32)
    dry = torch.zeros(2, 24, 32)
    assert torch.equal(smooth_pair_flow(dry, this, dry), optical_flow(this[None], fine=True)[0])
    for ends in (None, None), (dry, None), (None, dry):  # of a series
        assert torch.equal(smooth_pair_flow(ends[0], this, ends[1]), optical_flow(this[None])[0])


def test_averaged_flow_reduces_the_error():
    z = fd.synthetic_event(seed=4, frames=7, speed=15.0)["reflectivity"].values
    x = torch.from_numpy(fd.prepare(fd.coarsen(np.nan_to_num(z, nan=-32.0), 2), 15.0, 70.0)).float()
    pairs = [x[k : k + 3 : 2] for k in (0, 2, 4)]
    errors = []
    for flow in (optical_flow(pairs[1][None])[0], smooth_pair_flow(*pairs)):
        middle = advection(pairs[1][None, :, None], 1, flow[None])[0, 1, 0]
        errors.append((middle - x[3])[8:-8, 8:-8].square().mean().item())
    assert errors[1] < 0.99 * errors[0]


@pytest.mark.parametrize("factor", [2, 4])
def test_flow_in_chunks_is_identical(factor):
    """A chunk also reads neighbouring fields, from which the motion is estimated."""
    many = fd.coarsen_dataset(fd.synthetic_event(seed=2, frames=23, shape=(64, 64)))
    job = RadarPipeline(radar_model(), many, time_factor=factor)
    count = job.source.shape[0]
    (whole,) = job.compute(Chunk((0, count), (0, count), (0, factor * (count - 1) + 1))).values()
    for steps in (4, 5):
        for piece in job.make_chunks(steps):
            assert piece.reads == (max(piece.steps[0] - 2, 0), min(piece.steps[1] + factor // 2 + 1, count))
            (part,) = job.compute(piece).values()
            np.testing.assert_array_equal(part, whole[slice(*piece.outputs)])
