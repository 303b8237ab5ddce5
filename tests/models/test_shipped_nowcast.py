# SPDX-License-Identifier: Apache-2.0
"""Tests of nowcast-small on radars that are not in the training data."""

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the test starts belong to the training extra")

import fastds
from fastds import models
from fastds.data import open_dataset, to_reflectivity
from fastds.models.weight_files import WEIGHTS
from fastds.studies.nowcast import RATES, compare_with_reference, score_file, summarize
from fastds.tasks.nowcast.methods import pick_method

SWISS, OPERA = "radar_mch_20160711_5min.nc", "radar_opera_20180824_15min.nc"
STARTS = {SWISS: 1, OPERA: 4, "radar_bom_melbourne_20180616_6min.nc": 4}


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    """Make a folder with the radar files; the Swiss file is cropped to its 320 x 320 pixels with most rain."""
    folder = tmp_path_factory.mktemp("radars")
    for file in STARTS:
        (folder / file).symlink_to(data_dir / file)
    with open_dataset(data_dir / SWISS) as dataset:
        rainiest = dataset.isel(y=slice(78, 398), x=slice(298, 618)).load()
    (folder / SWISS).unlink()
    rainiest.to_netcdf(folder / SWISS, engine="h5netcdf")
    return folder


def test_card_and_size():
    assert (WEIGHTS / "nowcast-small.safetensors").stat().st_size <= 2_000_000
    card = models.load_card("nowcast-small")
    assert card.name == "nowcast-small" and card.licence and card.description
    assert any("Finnish Meteorological Institute" in source for source in card.training_data)
    assert any("KNMI" in source for source in card.training_data)
    assert (card.floor_dbz, card.ceiling_dbz, card.input_steps) == (0.0, 60.0, 5)
    assert set(card.metrics["test"]) >= set(STARTS) and card.grid_spacing_m and card.cadence_s


def test_shipped_nowcast_is_the_default():
    method, note = pick_method()
    assert method.name == "nowcast-small" and "model nowcast-small" in note


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("file", STARTS)
def test_scores_on_radars_never_trained_on(file, folder):
    scores = score_file(models.load("nowcast-small"), folder, file, starts=STARTS[file])
    if file == OPERA:
        # All starts of this file are scored, so that the scores must equal those in the model card.
        expected = models.load_card("nowcast-small").metrics["test"][file]
        assert summarize(scores) == pytest.approx(expected, rel=0.005, abs=2e-3)
    gain = compare_with_reference(scores)
    wet = scores.rows["nowcast-small"]["wet"]
    assert wet.min() > 0.8 and wet.max() < 1.28
    assert gain["mse"].max() < 1.0 and compare_with_reference(scores, "persistence")["mse"].max() < 1.0
    for rate in RATES:
        assert gain[f"csi {rate:g}"].min() > -0.01, rate
        assert compare_with_reference(scores, "persistence")[f"csi {rate:g}"].min() > 0, rate
        assert compare_with_reference(scores, "blurred-persistence")[f"csi {rate:g}"].min() > 0, rate


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("smooth", [False, True])
def test_shipped_nowcast_keeps_dry(folder, smooth):
    """A rain rate is 0 or at least the threshold in the attributes of the result."""
    with open_dataset(folder / SWISS) as dataset:
        known, truth = dataset.isel(time=slice(0, 12)).load(), to_reflectivity(dataset).frames(slice(12, 24))
    out = fastds.nowcast("nowcast-small", known, smooth=smooth)
    rain = out.rainfall_rate.values
    there = np.isfinite(rain) & np.isfinite(truth)
    least = out.attrs["fastds_dry_below_mm_h"]
    assert (rain[rain > 0] >= 0.99 * least).all() and 0.02 < least < 0.06
    dry = [(rain[k][there[k]] == 0).sum() / (truth[k][there[k]] <= 0).sum() for k in range(12)]
    assert min(dry) > 0.5 and max(dry) < 1.1, dry


@pytest.mark.usefixtures("native")
def test_smooth_forecasts_have_less_squared_error_than_blurred_persistence(data_dir):
    """The comparison covers the first hour of OPERA, whose time step is 15 minutes."""
    file, options = OPERA, {"steps": 4, "starts": 2}
    model = models.load("nowcast-small")
    smooth = score_file(model, data_dir, file, smooth=True, baselines=("blurred-persistence",), **options)
    matched = score_file(model, data_dir, file, baselines=(), **options)
    assert compare_with_reference(smooth, "blurred-persistence")["mse"].max() < 0.95
    assert (smooth.rows["nowcast-small"]["mse"] < matched.rows["nowcast-small"]["mse"]).all()
