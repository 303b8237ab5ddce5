# SPDX-License-Identifier: Apache-2.0
"""Tests of the shipped weights: size, model card and errors on held-out radar data."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import fastds

pytest.importorskip("lightning", reason="the evaluation table belongs to the training extra")

from fastds import models
from fastds.metrics import interior
from fastds.models.weight_files import WEIGHTS
from fastds.ops.impl.conv3x3.algorithm import winograd_unsupported_reason
from fastds.studies.radar import (
    BASELINES,
    MARGIN,
    TEST_BLOCKS,
    compute_errors,
    read_test_block,
    wrap_baseline,
    wrap_network,
)

MOST = {  # total squared error above 15 dBZ: of trilinear, of advection; inputs of floored means, of plain ones
    "radar_fmi_20160928_5min.nc": (0.57, 0.95, 0.59, 0.97),
    "radar_knmi_20100826_5min.nc": (0.28, 0.94, 0.28, 0.96),
    "radar_mch_20160711_5min.nc": (0.17, 0.84, 0.18, 0.88),
    "radar_opera_20180824_15min.nc": (0.53, 0.93, 0.55, 0.95),
    "radar_bom_melbourne_20180616_6min.nc": (0.15, 0.92, 0.16, 0.90),
    "radar_dpc_north_20250416_5min.nc": (0.38, 0.94, 0.40, 0.95),
    "radar_dpc_sardinia_20250416_5min.nc": (0.31, 0.94, 0.33, 0.92),
    "radar_dwd_yw_20170816_5min.nc": (0.52, 0.94, 0.55, 0.96),
    "radar_dwd_yw_crop_20180514_5min.nc": (0.57, 0.94, 0.64, 0.95),
    "radar_meteonet_nw_20180312_5min.nc": (0.38, 0.87, 0.50, 0.94),
    "radar_unica_xband_20250416_5min.nc": (0.89, 0.98, 0.90, 0.94),
}
SIDE = 160
read_test_block.__test__ = False


def rainiest(sample):
    """Crop a sample to the 160 x 160 coarse pixels with most rain."""
    wet = (sample["x"] > 0).float().mean(dim=(0, 1))[None, None]
    rows, columns = (min(SIDE, n) for n in wet.shape[-2:])
    if (rows, columns) == wet.shape[-2:]:
        return sample
    share = F.avg_pool2d(wet, (rows, columns), stride=8)[0, 0]
    top, left = (8 * int(k) for k in divmod(int(share.argmax()), share.shape[1]))

    def part(z, scale):
        return z[..., scale * top : scale * (top + rows), scale * left : scale * (left + columns)]

    cut = {"x": part(sample["x"], 1), "y": part(sample["y"], 2)}
    cut["neighbours"] = [pair if pair is None else part(pair, 1) for pair in sample["neighbours"]]
    return sample | cut | {"valid": interior(part(sample["valid"], 2), MARGIN)}


def first_sample(folder, file, *options, **named):
    """Return the test block of a file with only the rainiest part of its first sample."""
    start, stop, _ = TEST_BLOCKS[file]
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(TEST_BLOCKS, file, (start, stop, 1000))
        block = read_test_block(folder, file, *options, **named)
    (sample,) = block.samples
    return dataclasses.replace(block, samples=[rainiest(sample)])


@pytest.fixture(scope="module")
def small():
    return models.load("fczsm-small")


@pytest.mark.parametrize("name", [name for name in models.available(pretrained=True) if name.startswith("fczsm")])
def test_card_and_size(name):
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size <= 2_000_000
    card = models.load_card(name)
    assert card.name == name and card.licence and card.description and card.training_data and card.metrics["test"]


@pytest.mark.parametrize("name", ["fczsm-small", "fczsm-small-pure"])
def test_card_of_radar_weights(name):
    card = models.load_card(name)
    assert any("Finnish Meteorological Institute" in source for source in card.training_data)
    assert any("KNMI" in source for source in card.training_data)
    assert (card.floor_dbz, card.ceiling_dbz, card.space_factor, card.time_factor) == (15.0, 70.0, 2, 2)
    assert card.grid_spacing_m and card.cadence_s and card.motion_px
    files = TEST_BLOCKS if name == "fczsm-small" else list(TEST_BLOCKS)[:5]
    assert set(card.metrics["test"]) >= {f"{file}, floor 15 dBZ" for file in files}


@pytest.mark.parametrize("file", TEST_BLOCKS)
def test_errors_on_held_out_blocks(file, small, data_dir):
    for mode, most in (("dbz", MOST[file][:2]), ("plain_dbz", MOST[file][2:])):
        block = first_sample(data_dir, file, mode=mode)
        ours = compute_errors(block, wrap_network(small, 15.0))["mse_total"]
        for share, name in zip(most, ("trilinear", "advection"), strict=True):
            assert ours <= share * compute_errors(block, wrap_baseline(BASELINES[name]))["mse_total"], (mode, name)


def test_errors_with_weak_echo(small, data_dir):
    """With a floor of 0 dBZ, dry pixels must not be at the floor of the network."""
    block = first_sample(data_dir, "radar_mch_20160711_5min.nc", 0.0)
    ours = compute_errors(block, wrap_network(small, 0.0))["mse_total"]
    assert ours <= 1.1 * compute_errors(block, wrap_baseline(BASELINES["advection"]))["mse_total"]


@pytest.mark.skipif(
    winograd_unsupported_reason(torch.zeros(1)) is not None, reason="the engine runs in the native module"
)
def test_errors_do_not_depend_on_the_algorithm_of_the_convolutions(small, data_dir):
    block = first_sample(data_dir, "radar_mch_20160711_5min.nc")
    found = {}
    for algorithm in ("direct", "winograd"):
        with fastds.use_conv_algorithm(algorithm):
            found[algorithm] = compute_errors(block, wrap_network(small, 15.0))
    assert found["winograd"] == pytest.approx(found["direct"], rel=1e-4, nan_ok=True)


def test_weights_without_flow_beat_interpolation(data_dir):
    model = models.load("fczsm-small-pure")
    assert not model.config["flow_guided"] and model.config["residual"] is None
    block = first_sample(data_dir, "radar_mch_20160711_5min.nc")
    ours = compute_errors(block, wrap_network(model, 15.0))["mse_total"]
    assert ours <= 0.8 * compute_errors(block, wrap_baseline(BASELINES["trilinear"]))["mse_total"]
