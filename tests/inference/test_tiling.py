# SPDX-License-Identifier: Apache-2.0
"""Tests of tiles: coverage of the grid, alignment and halo."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastds.data import coarsen_dataset, synthetic_event, to_reflectivity
from fastds.inference.execution import ExecutionConfig
from fastds.inference.tiling import ALIGNMENT, choose_tile, measure_receptive_field, plan_tiles, round_up, run_tiles
from fastds.tasks.radar import tiled_run
from fastds.tasks.radar.run import downscale
from tests.support.downscaling_cases import awake
from tests.support.small_models import radar_model


@pytest.mark.parametrize("size", [(16, 16), (37, 101), (96, 64), (1, 300)], ids=str)
@pytest.mark.parametrize("halo", [0, 16, 48])
def test_cores_cover_the_grid_once(size, halo):
    count = torch.zeros(size)
    for tile in plan_tiles(*size, 32, halo):
        count[tile.core] += 1
        for core, window, length in zip(tile.core, tile.window, size, strict=True):
            assert window.start == max(core.start - halo, 0) and window.stop == min(core.stop + halo, length)
            assert window.start % ALIGNMENT == 0
    assert (count == 1).all()


@pytest.mark.parametrize(
    ("tile", "halo", "name"), [(20, 16, "tile"), (0, 16, "tile"), (32, 8, "halo"), (32, -16, "halo")]
)
def test_sizes_must_be_multiples_of_16(tile, halo, name):
    with pytest.raises(ValueError, match=f"{name} must be a multiple of 16 and at least"):
        plan_tiles(64, 64, tile, halo)


def blur(radius):
    """Return a network with a receptive field of `radius` coarse pixels and a trilinear middle frame."""

    def network(x, flow):
        y = F.avg_pool2d(x[:, :, 0], 2 * radius + 1, stride=1, padding=radius)
        y = torch.stack([y[:, 0], y.mean(1), y[:, 1]], 1)
        return F.interpolate(y, scale_factor=2, mode="nearest")[:, :, None]

    return network


@pytest.mark.parametrize("radius", [1, 5, 40])
def test_receptive_field_is_measured(radius):
    assert measure_receptive_field(blur(radius), 2, 55.0, motion=3.0) == radius


def test_receptive_field_depends_on_motion():
    def network(x, flow):
        shift = int(flow[0, 0, 0, 1, 0, 0])
        y = torch.roll(x[:, :, 0], shift, -1)
        return F.interpolate(y[:, [0, 0, 1]], scale_factor=2)[:, :, None]

    assert measure_receptive_field(network, 2, 55.0, motion=7.0) == 7


@pytest.mark.parametrize("side", ["left", "right"])
def test_receptive_field_is_the_larger_side(side):
    """The network reads seven pixels on one side and none on the other."""

    def network(x, flow):
        shift = 7 if side == "right" else -7
        y = F.interpolate((x + 0.5 * torch.roll(x, shift, -1))[:, [0, 0, 1], 0], scale_factor=2)
        return y[:, :, None]

    assert measure_receptive_field(network, 2, 55.0, uses_flow=False) == 7


def test_receptive_field_below_a_coarse_pixel():
    def network(x, flow):
        y = F.interpolate(x[:, [0, 0, 1], 0], scale_factor=2)
        y[..., 1::2] = 0.0
        return torch.roll(y, 10, -1)[:, :, None]

    assert measure_receptive_field(network, 2, 55.0, uses_flow=False) == 5
    assert measure_receptive_field(lambda x, flow: torch.zeros(1, 3, 1, 96, 512), 2, 55.0, uses_flow=False) == 0


@pytest.mark.parametrize("size", [(70, 90), (64, 33)], ids=str)
def test_tiled_equals_whole_with_sufficient_halo(size):
    x = torch.rand(2, *size)
    flow = torch.randn(1, 2, 2, *size)
    network = blur(6)
    whole = network(x[None, :, None], flow[None])[0, :, 0]
    (tiled,) = run_tiles(network, [x], [flow], plan_tiles(*size, 32, 16), 2)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-6)
    (cut,) = run_tiles(network, [x], [flow], plan_tiles(*size, 32, 0), 2)
    assert (cut - whole).abs().max() > 1e-3


def test_flow_is_cropped_with_the_tile():
    seen = []

    def network(x, flow):
        seen.append(flow)
        return torch.zeros(1, 3, 1, 2 * x.shape[-2], 2 * x.shape[-1])

    flow = torch.randn(1, 2, 2, 48, 32)
    run_tiles(network, [torch.rand(2, 48, 32)], [flow], plan_tiles(48, 32, 32, 16), 2)
    assert [tuple(f.shape) for f in seen] == [(1, 1, 2, 2, 48, 32), (1, 1, 2, 2, 32, 32)]
    torch.testing.assert_close(seen[1][0], flow[..., 16:48, :])


def test_context_is_cropped_with_the_tile():
    seen = []

    def network(x, flow, context):
        seen.append(context)
        return torch.zeros(1, 3, 1, 2 * x.shape[-2], 2 * x.shape[-1])

    context = torch.rand(2, 48, 32)
    run_tiles(network, [torch.rand(2, 48, 32)], None, plan_tiles(48, 32, 32, 16), 2, contexts=[context])
    assert [tuple(z.shape) for z in seen] == [(1, 2, 1, 48, 32), (1, 2, 1, 32, 32)]
    assert torch.equal(seen[1][0, :, 0], context[:, 16:48])


def test_dry_tiles_are_skipped():
    calls = []

    def network(x, flow):
        calls.append(x)
        return torch.ones(1, 3, 1, 2 * x.shape[-2], 2 * x.shape[-1])

    x = torch.zeros(2, 64, 64)
    x[:, 5, 5] = 1
    done = []
    (y,) = run_tiles(network, [x], None, plan_tiles(64, 64, 32, 0), 2, after_tile=lambda: done.append(1))
    assert len(calls) == 1 and len(done) == 4
    assert (y[:, :64, :64] == 1).all() and y.sum() == 3 * 64 * 64


@pytest.mark.parametrize(("at_once", "calls"), [(1, 11), (2, 6), (3, 5), (100, 2)])
def test_windows_of_one_size_run_as_a_batch(at_once, calls):
    torch.manual_seed(1)
    sequences, flows = list(torch.rand(2, 2, 64, 80)), list(torch.randn(2, 1, 2, 2, 64, 80))
    static = torch.rand(1, 64, 80)
    sequences[1][:, :32, 32:64] = 0
    seen = []

    def network(x, flow, maps):
        seen.append(len(x))
        y = x[:, [0, 0, 1], 0] + 2 * flow[:, 0].sum((1, 2))[:, None] + 3 * maps
        return F.interpolate(y, scale_factor=2)[:, :, None]

    tiles = plan_tiles(64, 80, 32, 0)
    made = run_tiles(network, sequences, flows, tiles, 2, static=static, batch_size=at_once)
    assert len(seen) == calls and max(seen) <= at_once and sum(seen) == 11
    for x, flow, y in zip(sequences, flows, made, strict=True):
        whole = network(x[None, :, None], flow[None], static[None])[0, :, 0]
        whole[:, :64, 64:128] *= x[:, :32, 32:64].any()
        assert torch.equal(y, whole)


def test_tile_is_chosen_within_the_memory_budget():
    assert choose_tile(400, 400, 48, 1000.0, 1e9) is None
    side = choose_tile(4000, 4000, 48, 1000.0, 1e9)
    assert side % ALIGNMENT == 0 and (side + 96) ** 2 * 1000 <= 1e9 < (side + 16 + 96) ** 2 * 1000
    assert choose_tile(4000, 4000, 480, 1000.0, 1e6) == ALIGNMENT
    assert [round_up(v) for v in (0, 1, 16, 16.5)] == [0, 16, 16, 32]


@pytest.fixture(scope="module")
def coarse():
    return coarsen_dataset(synthetic_event(3, 5, (64, 96)))


@pytest.fixture(scope="module")
def network():
    return awake(radar_model())


@pytest.mark.parametrize(
    ("at_once", "tile", "time_factor", "most"),
    [(2, None, 2, 2), (16, None, 4, 4), (2, 16, 2, 2), (16, 32, 4, 4)],
)
def test_batched_pairs_and_tiles_are_identical(coarse, network, monkeypatch, at_once, tile, time_factor, most):
    form = {"tile": tile, "halo": 0 if tile else None, "time_factor": time_factor}
    alone = downscale(network, coarse, **form)
    monkeypatch.setattr(tiled_run.TiledInference, "_find_batch_size", lambda self: at_once)
    sizes, forward = [], network.forward
    monkeypatch.setattr(network, "forward", lambda x, **given: sizes.append(len(x)) or forward(x, **given))
    together = downscale(network, coarse, **form)
    assert max(sizes) == most
    np.testing.assert_allclose(together.reflectivity, alone.reflectivity, rtol=0, atol=2e-3)


PIXEL = 4 * 8 * (60 + 4)  # bytes of the working memory of a network of 8 features at twice the resolution


@pytest.mark.parametrize(
    ("free", "tile_option", "tile", "at_once"),
    [
        (1e12, None, None, 16),
        (2 * 5.5 * 32 * 48 * PIXEL, None, None, 5),
        (2 * 5.5 * 32 * 32 * PIXEL, 32, 32, 5),
        (2 * 0.5 * 32 * 48 * PIXEL, None, 16, 1),
        (1, None, 16, 1),
    ],
)
def test_gpu_tile_size_uses_half_of_free_memory(coarse, network, monkeypatch, free, tile_option, tile, at_once):
    """The free memory is read once, before the network runs and torch reserves GPU memory."""
    gpu = torch.device("cuda", 1)
    free_memory = {gpu: (free, 1e13)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", free_memory.pop)
    monkeypatch.setattr(tiled_run, "measure_receptive_field", lambda *args: 0)
    run = tiled_run.TiledInference(
        network, to_reflectivity(coarse), tile_option, tile_option and 0, ExecutionConfig(None, gpu, "bf16"), 2
    )
    assert (run.tile, run.refiner.batch_size) == (tile, at_once)
