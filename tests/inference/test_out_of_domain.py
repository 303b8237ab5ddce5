# SPDX-License-Identifier: Apache-2.0
"""Tests of the out-of-distribution score: statistics, warning and attributes."""

import math
import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import fastds
from fastds import models
from fastds.data import coarsen_dataset, synthetic_event
from fastds.inference.ood import statistics
from fastds.inference.ood.score import assess_inputs, compute_ranges, select_evenly
from fastds.inference.ood.statistics import compute_field_statistics, compute_motion_statistics, compute_texture
from fastds.models import ModelCard
from fastds.tasks.humidity import pipeline as humidity_job
from fastds.tasks.radar.pipeline import assess_statistics
from tests.support.small_models import HUMIDITY, TEMPERATURE, field_model, generator, gridded, nowcaster, radar_model


def seen(make):
    """Return the result of make() and its warnings about ranges."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
    return made, [str(w.message) for w in caught if "trained for" in str(w.message)]


# ---- statistics


def test_texture_of_a_plane_and_of_noise():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
    plane = 2 * x + 6 * y
    assert compute_texture(plane) == pytest.approx(
        {"mean": float(plane.mean()), "gradient": 4.0, "slope": 1.0}, rel=0.02
    )
    assert compute_texture(torch.stack([plane, plane])) == pytest.approx(compute_texture(plane))
    noise = compute_texture(torch.randn(200, 200))
    assert noise["slope"] == pytest.approx(0, abs=0.01) and noise["gradient"] == pytest.approx(
        2 / math.pi**0.5, rel=0.02
    )
    assert compute_texture(torch.full((9, 9), 3.0)) == {"mean": 3.0, "gradient": 0.0}
    assert set(compute_texture(torch.rand(3, 3))) == {"mean", "gradient"}
    assert set(compute_texture((x + y) % 4)) == {"mean", "gradient"}  # pixels at a distance of 4 are equal


def test_ood_statistics_ignore_missing_pixels():
    field = torch.arange(64.0).reshape(8, 8)
    holed = field.clone()
    holed[2, 3] = float("nan")
    assert compute_texture(holed)["gradient"] == pytest.approx((54 * 8 + 54 * 1) / 108)  # 56 pairs each way, less two
    assert compute_texture(torch.full((8, 8), float("nan"))) == {}


def test_field_statistics_are_named_by_variable():
    found = compute_field_statistics(torch.stack([torch.rand(9, 9), 5 + torch.rand(9, 9)]), ["r", "t"])
    assert set(found) == {f"{name} {key}" for name in "rt" for key in ("mean", "gradient", "slope")}
    assert 5 < found["t mean"] < 6 and found["r mean"] < 1


def blobs(shift=0):
    y, x = np.mgrid[:96, :96]
    z = sum(np.exp(-((y - a) ** 2 + (x - b - shift) ** 2) / 60) for a, b in ((30, 30), (60, 40), (45, 65)))
    return torch.from_numpy(np.where(z > 0.05, z, 0).astype("f4"))


def test_motion_statistics_of_pure_translation():
    moved = compute_motion_statistics(torch.stack([blobs(), blobs(3)]))
    assert moved["motion"] == pytest.approx(3, abs=0.5)
    assert moved["flow residual"] < 0.5 and moved["flow disagreement"] < 0.3


def test_echo_without_coherent_motion_has_a_residual():
    steady = compute_motion_statistics(torch.stack([blobs(), blobs(3)]))
    torn = compute_motion_statistics(torch.stack([blobs(), blobs(3) * (torch.rand(96, 96) > 0.5)]))
    assert torn["flow residual"] > 3 * steady["flow residual"]
    assert torn["flow disagreement"] > 3 * steady["flow disagreement"]
    assert compute_motion_statistics(torch.stack([blobs(), torch.zeros(96, 96)])) == {}


def test_motion_statistics_use_the_window_with_echo():
    whole = torch.zeros(2, 900, 1400)
    whole[0, 700:796, 1200:1296], whole[1, 700:796, 1200:1296] = blobs(), blobs(3)
    small = compute_motion_statistics(torch.stack([blobs(), blobs(3)]))
    assert compute_motion_statistics(whole)["motion"] == pytest.approx(small["motion"], abs=0.3)


@pytest.mark.parametrize("place", [(0, 0), (420, 700), (899, 1399)])
def test_motion_window_contains_a_single_echo_pixel(place):
    x = torch.zeros(2, 900, 1400)
    x[1, *place] = 0.5
    rows, columns = statistics._find_window(x)
    assert x[1, rows, columns].sum() == 0.5 and x[0, rows, columns].shape == (512, 512)


# ---- score


CARD = ModelCard(name="net", input_ranges={"mean": [10.0, 30.0], "gradient": [1.0, 100.0], "flow residual": [0.0, 2.0]})


@pytest.mark.parametrize(
    ("inputs", "score"),
    [
        ({"mean": 20.0}, 0.0),
        ({"mean": 30.0}, 1.0),
        ({"mean": 0.0}, 2.0),
        ({"gradient": 10.0}, 0.0),
        ({"gradient": 1.0}, 1.0),
        ({"gradient": 1000.0}, 2.0),
        ({"flow residual": 0.5}, 0.25),
        ({"flow residual": 3.0, "mean": 25.0}, 1.5),
        ({"mean": 1e9}, 99.0),
        ({"gradient": 0.0}, 99.0),
    ],
)
def test_deviations_by_hand(inputs, score):
    assert assess_inputs(CARD, inputs=[inputs]).score == pytest.approx(score)


def test_explicit_ranges_score_only_outside():
    def score(value):
        return assess_inputs(CARD, [("grid spacing", value, (1000.0, 4000.0), "m")]).score

    assert [score(v) for v in (1000, 2000, 4000, 8000, 250)] == [0, 0, 0, 2, 4]
    assert assess_inputs(CARD, [("grid spacing", None, (1, 2), "m"), ("cadence", 3, None, "s")]).score is None


def test_median_of_the_inputs_is_scored():
    inputs = [{"mean": 20.0}, {"mean": 25.0}, {"mean": 500.0}, {}]
    assert assess_inputs(CARD, inputs=inputs).score == pytest.approx(0.5)
    assert assess_inputs(ModelCard(), inputs=inputs).attributes() == {} and assess_inputs(CARD).score is None
    assert select_evenly(3) == [0, 1, 2] and select_evenly(101) == [0, 20, 40, 60, 80, 100]


def test_one_warning_names_all_deviations():
    ranges = [("grid spacing", 250.0, (1000.0, 4000.0), "m"), ("pace", 2.0, (1.0, 3.0), "")]
    found = assess_inputs(
        CARD, ranges, [{"mean": 35.0, "gradient": 10.0}], [("pressure", 300.0, (500.0, 500.0), "hPa")]
    )
    _, messages = seen(lambda: found.warn(1))
    assert messages == [
        "the grid spacing of 250 m, the pressure of 300 hPa and the mean of 35 are outside the ranges that net was "
        "trained for, 1000 to 4000 m, 500 hPa and 10 to 30: expect larger errors"
    ]
    by = "grid spacing, pressure, mean"
    assert found.attributes() == {"fastds_out_of_domain": 4.0, "fastds_out_of_domain_by": by}
    assert seen(lambda: assess_inputs(CARD, inputs=[{"mean": 30.4}]).warn(1))[1] == []


def test_ranges_of_training_inputs():
    rng = np.random.default_rng(0)
    inputs = [
        {"mean": 5 + m, "gradient": float(np.exp(g)), "flow residual": 2 + r, "motion": 1.0, "slope": 0.5}
        for m, g, r in rng.normal(size=(4000, 3))
    ]
    found = compute_ranges(inputs)
    assert set(found) == {"mean", "gradient", "flow residual"}  # a slope that never varies has none
    assert found["mean"] == pytest.approx([2.5, 7.5], abs=0.15) and found["flow residual"][0] == 0
    assert found["flow residual"][1] == pytest.approx(4.5, abs=0.1)
    assert np.log(found["gradient"]) == pytest.approx([-2.5, 2.5], abs=0.15)
    assert ModelCard.from_json(ModelCard(input_ranges=found).to_json()).input_ranges == found


@pytest.mark.parametrize("limits", [[2, 1], [1], [1, "2"], [0, math.inf], None, [1, 1]])
def test_invalid_input_ranges_are_rejected(limits):
    text = ModelCard(input_ranges={"mean": limits}).to_json()
    with pytest.raises(ValueError, match="input_ranges has .* for mean, expected two growing numbers"):
        ModelCard.from_json(text)


# ---- every verb


def test_ood_score_of_radar():
    model, coarse = radar_model(), coarsen_dataset(synthetic_event(5, 5, (64, 64)))
    assert "fastds_out_of_domain" not in fastds.downscale(model, coarse).attrs
    model.card.input_ranges = {"flow residual": [0.0, 1e6]}
    inside, messages = seen(lambda: fastds.downscale(model, coarse))
    assert 0 <= inside.attrs["fastds_out_of_domain"] < 0.01 and not messages
    model.card.input_ranges = {"flow residual": [0.0, 1e-3]}
    outside, messages = seen(lambda: fastds.downscale(model, coarse))
    assert outside.attrs["fastds_out_of_domain_by"] == "flow residual" and len(messages) == 1
    lazy, again = seen(lambda: fastds.downscale(model, coarse.chunk(time=1)))
    assert lazy.attrs["fastds_out_of_domain"] == outside.attrs["fastds_out_of_domain"] and again == messages


def test_motion_per_step_is_that_of_most_pairs():
    card = ModelCard(motion_px=(0.5, 2.0))
    inputs = [{"motion": 1.0}, {}, {"motion": 9.0}, {"motion": 1.5}]
    assert (
        assess_statistics(card, None, 300.0, inputs).score == 0
        and assess_statistics(card, None, 300.0, inputs[2:3]).score == 4.5
    )
    assert assess_statistics(card, None, 300.0, [{}]).score is None


def test_ood_score_of_nowcasts():
    model, known = nowcaster(), synthetic_event(3, frames=12, shape=(40, 44))
    model.card.input_ranges = {"flow disagreement": [0.0, 0.1]}
    out, messages = seen(lambda: fastds.nowcast(model, known, steps=2))
    assert 1 < out.attrs["fastds_out_of_domain"] < 99 and len(messages) == 1 and "flow disagreement" in messages[0]
    assert "fastds_out_of_domain" not in fastds.nowcast("extrapolation", known, steps=2).attrs
    before = known.reflectivity.copy()
    before.values[-3] = before.values[-3, ::-1]  # by the last two of three fields that the network gets
    again, _ = seen(lambda: fastds.nowcast(model, known.assign(reflectivity=before), steps=2))
    assert again.attrs["fastds_out_of_domain"] == out.attrs["fastds_out_of_domain"]


def test_ood_score_of_humidity():
    model, field = generator(), gridded(HUMIDITY)
    model.card.input_ranges = {"mean": [-100.0, -90.0]}
    out, messages = seen(lambda: fastds.downscale(model, field))
    assert out.attrs["fastds_out_of_domain_by"] == "mean" and len(messages) == 1 and "the mean of" in messages[0]


def test_levels_between_those_of_the_training_are_inside():
    card = ModelCard(input_variables=[{"name": "r", "levels_hPa": [500.0, 850.0]}])
    outside = {
        level: [one.what for one in humidity_job.assess_statistics(card, level, []).outside]
        for level in (300, 700, 1000)
    }
    assert outside == {300: ["pressure"], 700: [], 1000: ["pressure"]}


@pytest.mark.parametrize(("make", "variable", "options"), [
    (generator, HUMIDITY, {}), (field_model, TEMPERATURE, {"scale": 2}),
])  # fmt: skip
def test_score_includes_the_last_time(make, variable, options):
    model, fields = make(), gridded(variable)
    model.card.input_ranges = {"mean": [0.0, 1000.0], "t mean": [0.0, 1000.0]}
    other = fields.copy(deep=True)
    other[variable["name"]][-1] -= 10
    scores = [fastds.downscale(model, data, **options).attrs["fastds_out_of_domain"] for data in (fields, other)]
    assert scores[1] - scores[0] == pytest.approx(0.01, abs=1e-3)  # half of 10 of 500


def test_ood_score_of_fields_and_queries():
    torch.manual_seed(1)
    options = {"encoder_options": {"channels": 8, "blocks": 2}, "dpfa_count": 1}
    model = models.create("inr-small", in_channels=1, **options, decoder_options={"width": 16, "heads": 2})
    model.card.input_variables = model.card.output_variables = [TEMPERATURE]
    model.card.input_ranges = {"t mean": [1.0, 2.0], "t slope": [-9.0, 9.0]}
    fields = gridded(TEMPERATURE)
    out, messages = seen(lambda: fastds.downscale(model, fields, scale=2))
    assert out.attrs["fastds_out_of_domain_by"] == "t mean" and out.attrs["fastds_out_of_domain"] == 99.0
    assert len(messages) == 1
    rows, again = seen(lambda: fastds.query(model, fields, [(45.0, 110.0)]))
    assert {row["fastds_out_of_domain"] for row in rows} == {99.0} and again == messages
    plain = fastds.downscale("bicubic", fields, scale=2)
    assert not any("domain" in name for name in plain.attrs)


# ---- the shipped cards


LAWS = {"nowcast-errors", "downscaling-errors"}


@pytest.mark.parametrize("name", sorted(set(models.available(pretrained=True)) - LAWS))
def test_shipped_cards_have_ranges(name):
    card = models.load_card(name)
    radar = {"flow residual", "flow disagreement"}
    texts = {"mean", "gradient", "slope"}
    expected = {"radar": radar, "nowcast": radar, "humidity": texts}.get(card.task)
    of_fields = {"slope"} if card.any_variable else {f"{v} {key}" for v in "rtuz" for key in texts}
    assert set(card.input_ranges) == (expected or of_fields)


def test_levels_outside_the_training_have_a_high_score(data_dir):
    """The second input is shifted to be as cold and dry as at 200 hPa, unlike the training data."""
    with xr.open_dataset(data_dir / "era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc") as dataset:
        known = dataset.isel(time=slice(1, 2), longitude=slice(272, 360), latitude=slice(10, 70)).load()
    foreign = known.copy()
    foreign["t"] = known.t - 45
    scores = []
    for fields in (known, foreign):
        out, messages = seen(lambda fields=fields: fastds.downscale("inr-small", fields, scale=1.5))
        scores.append(out.attrs["fastds_out_of_domain"])
    assert scores[0] < 1.5 and scores[1] > 2 and "the t mean of" in messages[0]
