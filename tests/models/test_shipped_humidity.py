# SPDX-License-Identifier: Apache-2.0
"""Tests of the shipped humidity generators on regions that are not in the training data."""

import pytest

pytest.importorskip("lightning", reason="the test regions are those of a training configuration")

from fastds import models
from fastds.data.samples.fields import HUMIDITY_RANGE
from fastds.models.weight_files import WEIGHTS
from fastds.tasks.humidity.config import parse_arguments
from fastds.tasks.humidity.evaluation import evaluate_region
from fastds.tasks.humidity.samples import read_regions

NAMES = [name for name in models.available(pretrained=True) if name.startswith("wgan-gp-small")]
GAIN = {2: 1.2, 8: 0.1}  # decibels over coordinate-true bicubic interpolation


@pytest.mark.parametrize("name", NAMES)
def test_card_and_size(name):
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size <= 2_000_000
    card = models.load_card(name)
    assert card.name == name and card.licence and card.description
    assert any("Copernicus" in source for source in card.training_data)
    assert (card.offset, card.range, card.coarsening, card.time_factor) == (0.0, 100.0, "mean", 1)
    assert f"x{card.space_factor}" == name.rpartition("-")[2] and card.metrics["test"]
    assert card.input_variables[0]["standard_name"] == "relative_humidity" and card.valid_range == HUMIDITY_RANGE


@pytest.mark.parametrize("name", NAMES)
def test_gains_on_held_out_longitudes(name, data_dir):
    generator = models.load(name)
    config = parse_arguments(["--config", "wgan-gp-small", "--data.path", str(data_dir)])
    table = evaluate_region({"generator": generator}, read_regions(config.data, "test")[0] * 100, members=3, seed=0)
    mean, plain, bicubic = (table[k] for k in ("generator, ensemble mean", "generator, no noise", "bicubic"))
    assert plain["psnr"] >= bicubic["psnr"] + GAIN[generator.config["scale"]]
    assert mean["crps"] < mean["mae"] and 0.7 <= mean["spread_skill"] <= 1.3
    assert abs(plain["power 4-8 px"] - 1) < abs(bicubic["power 4-8 px"] - 1)
    assert table["bicubic, wrong convention"]["psnr"] < bicubic["psnr"]
