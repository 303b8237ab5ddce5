# SPDX-License-Identifier: Apache-2.0
"""Tests of downscaling radar fields against separate computations."""

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import nn

from fastds.tasks.radar import motion as flows
from fastds.tasks.radar import refinement
from fastds.tasks.radar.run import downscale
from tests.support.downscaling_cases import CEILING, FLOOR, NO_ECHO, Stub, fill, give_card


class Blur(Stub):
    """Returns the mean over 5 x 5 coarse pixels for each time."""

    def forward(self, x, static=None, flow=None):
        y = nn.functional.avg_pool2d(x[:, :, 0], 5, 1, 2).mean(1, keepdim=True)
        return y.expand(-1, 3, -1, -1).repeat_interleave(2, -1).repeat_interleave(2, -2)[:, :, None]


def test_reported_seam_error_is_of_the_wettest_tile(coarse):
    """The error is the largest difference in dB between the tile alone and the whole grid, for the first two frames."""
    out = downscale(Blur(), coarse, tile=16, halo=0)
    x = (coarse.reflectivity.values[:2].clip(FLOOR, CEILING) - FLOOR) / (CEILING - FLOOR)
    tiles = [(slice(r, r + 16), slice(c, c + 16)) for r in range(0, 48, 16) for c in range(0, 64, 16)]
    rows, columns = max(tiles, key=lambda tile: x[:, *tile].sum())
    alone, whole = (uniform_filter(np.pad(z.mean(0), 2), 5)[2:-2, 2:-2] for z in (x[:, rows, columns], x))
    expected = 55 * np.abs(alone - whole[rows, columns]).max()
    assert out.attrs["fastds_seam_error_dBZ"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.filterwarnings("ignore:the motion")
def test_halo_covers_the_motion_of_the_model_card(coarse):
    """The halo is at least NEAR_PIXELS (4) plus the motion in the card, rounded up to a multiple of 16."""
    for motion, halo in ((None, 16), ((0.0, 0.5), 16), ((0.0, 11.5), 16), ((0.0, 12.5), 32), ((0.0, 30.0), 48)):
        out = downscale(give_card(Blur(), motion_px=motion), coarse, tile=16)
        assert out.attrs["fastds_halo"] == halo, motion


def test_network_weight_extends_with_echo_motion(monkeypatch, coarse):
    """A cell moves by 20 pixels. Half way, where no echo is near in either frame, the output of the network is used."""
    flow = torch.zeros(1, 2, 2, 48, 64)
    flow[:, 0, 1], flow[:, 1, 1] = 20.0, -20.0
    monkeypatch.setattr(flows, "optical_flow", lambda x, fine: flow[None])
    z = np.full((3, 48, 64), NO_ECHO, np.float32)
    z[0, 20:27, 10:17] = z[1:, 20:27, 30:37] = 30.0
    out = downscale(Stub(constants=[0.2, 0.8, 0.2]), fill(coarse, z), smooth=True).reflectivity.values
    middle = out[1, 44:50, 44:50]  # fine pixels around row 23, column 23
    np.testing.assert_allclose(middle, FLOOR + 0.8 * 55, atol=1e-3)


def test_time_factor_4_applies_factor_2_twice(coarse, network):
    """The intermediate frame of the first pass is coarsened before the second pass.

    Above the floor, its cells are means of floored reflectivity; below the floor, they are means of weak echo.
    """
    fine = downscale(network, coarse).reflectivity.values[1::2].astype(np.float64)
    cells = fine.reshape(2, 48, 2, 64, 2)
    strong, echo = cells.clip(min=FLOOR).mean((2, 4)), cells > NO_ECHO
    weak = np.where(echo, cells, 0).sum((2, 4)) / echo.sum((2, 4)).clip(1)
    middle = np.where(strong > FLOOR, strong, np.where(echo.any((2, 4)), weak.clip(max=FLOOR), NO_ECHO))
    given = coarse.reflectivity.values
    frames = np.stack([given[0], middle[0], given[1], middle[1], given[2]]).astype(np.float32)
    times = coarse.time.values[0] + np.arange(5) * np.timedelta64(5, "m")
    twice = coarse.isel(time=[0, 0, 1, 1, 2]).assign_coords(time=("time", times, coarse.time.attrs))
    expected = downscale(network, twice.assign(reflectivity=twice.reflectivity.copy(data=frames)))
    found = downscale(network, coarse, time_factor=4)
    np.testing.assert_allclose(found.reflectivity, expected.reflectivity, rtol=0, atol=2e-2)


class Remember(Stub):
    """Remembers the context of each pair."""

    def __init__(self):
        super().__init__()
        self.config["middle_frame"], self.seen = True, []

    def forward(self, x, static=None, flow=None, context=None):
        self.seen.append((x[0, :, 0], context[0, :, 0]))
        return super().forward(x)


def test_each_pair_has_the_frames_before_and_after_as_context(coarse):
    """The series has five times; a frame that is missing everywhere and frames beyond the ends are not known."""
    z = coarse.reflectivity.values[[0, 1, 2, 1, 0]].copy()
    z[4] = np.nan
    times = coarse.time.values[0] + np.arange(5) * np.timedelta64(10, "m")
    series = coarse.isel(time=[0, 1, 2, 1, 0]).assign_coords(time=("time", times, coarse.time.attrs))
    model = Remember()
    downscale(model, series.assign(reflectivity=series.reflectivity.copy(data=z)))
    scaled = torch.from_numpy((z.clip(FLOOR, CEILING) - FLOOR) / (CEILING - FLOOR))
    unknown = torch.full_like(scaled[0], torch.nan)
    expected = [(unknown, scaled[2]), (scaled[0], scaled[3]), (scaled[1], unknown), (scaled[2], unknown)]
    assert len(model.seen) == 4
    for k, ((x, context), around) in enumerate(zip(model.seen, expected, strict=True)):
        torch.testing.assert_close(x[0], scaled[k])
        torch.testing.assert_close(context, torch.stack(around), equal_nan=True, msg=str(k))


@pytest.mark.parametrize("floor", [15.0, -5.0])
def test_refinement_pixel_by_pixel(floor):
    """Compare the output of FrameRefiner with a computation for each pixel.

    Near echo above the floor, the output is that of the network, with a correction at the edge of the echo. Elsewhere
    it is the interpolated input or no echo.
    """
    ceiling, low = 70.0, min(floor, 0.0)
    refiner = refinement.FrameRefiner(None, scale=2, floor=floor, ceiling=ceiling, no_echo=NO_ECHO, tiles=[])
    g = torch.Generator().manual_seed(0)
    draw = lambda a, b: a + (b - a) * torch.rand(8, 10, generator=g)  # noqa: E731
    alone, known = draw(-35, 40), draw(-40, 45)
    fine = torch.stack([alone, draw(0, 1), known, known + draw(0, 20)])
    y = torch.cat([draw(-0.05, 0.1)[:4], draw(0, 1.05)[:4]])
    near, wet = draw(0, 1) < 0.6, draw(0, 1) < 0.6
    missing = torch.rand(4, 5, generator=g) < 0.1
    found = refiner._merge(y, near, fine, wet, missing)
    for i in range(8):
        for j in range(10):
            alone, _, known, lifted = fine[:, i, j].tolist()
            z = floor + y[i, j].item() * (ceiling - floor)
            z += min(max(1 - (z - floor) / 3, 0), 1) * (known - lifted)
            z = min(known + min(max((known - (floor - 10)) / 10, 0), 1) * (z - known), ceiling)
            if known <= low:
                below = alone
            elif near[i, j]:
                below = max(min(known, z), low)
            else:
                below = known
            expected = min(max(below, NO_ECHO), floor) if wet[i, j] else NO_ECHO
            expected = z if near[i, j] and z > floor else expected
            if missing[i // 2, j // 2]:
                assert found[i, j].isnan()
            else:
                assert found[i, j].item() == pytest.approx(expected, abs=1e-4), (i, j)


def test_interpolated_part_of_a_frame():
    refiner = refinement.FrameRefiner(None, scale=2, floor=15.0, ceiling=70.0, no_echo=NO_ECHO, tiles=[])
    lower = refinement.FrameRefiner(None, scale=2, floor=-5.0, ceiling=70.0, no_echo=NO_ECHO, tiles=[])
    z = torch.tensor([[-32.0, -10.0, 4.0, 30.0, float("nan")]])
    channels = refiner._make_channels(z)
    expected = [[0, 22, 36, 62, 0], [0, 128, 128, 128, 0], [0, 0, 4, 30, 0], [15, 15, 15, 30, 15]]
    torch.testing.assert_close(256 * channels[:, 0], torch.tensor(expected, dtype=torch.float32))
    mixed = torch.stack([channels[..., 3], channels[..., [0, 2]].mean(-1), channels[..., 0]], -1)
    fine = refiner._interpolate(mixed)[:, 0]
    torch.testing.assert_close(fine, torch.tensor([[30, 4, -32], [1, 0.5, 0], [30, 2, 0], [30, 15, 15.0]]))
    torch.testing.assert_close(lower._interpolate(lower._make_channels(z))[2], torch.tensor([[-5, -5, 4, 30, -5.0]]))


def test_near_echo_mask_radius():
    mask = torch.zeros(9, 12, dtype=torch.bool)
    mask[4, 5] = mask[0, 11] = True
    expected = torch.zeros_like(mask)
    expected[2:7, 3:8] = expected[:3, 9:] = True
    assert torch.equal(refinement._dilate(mask, 2), expected)
