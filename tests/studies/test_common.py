# SPDX-License-Identifier: Apache-2.0
"""Tests of code that the studies share: budgets, resumed runs, intervals and tables."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastds.studies.common import config
from fastds.studies.common.bootstrap import Estimate
from fastds.studies.common.config import PaperConfig, compute_steps, parse_budget, time_call
from fastds.studies.common.figures import clear_below_floor, draw_field_maps, draw_validation_curves
from fastds.studies.common.plan import Costs, make_plan
from fastds.studies.common.radar import find_echo_window, split_frames
from fastds.studies.common.runs import StudyFolder
from fastds.studies.common.study import PaperStudy
from fastds.studies.common.tables import ResultTable


def test_parse_budget():
    assert [parse_budget(text) for text in ("45min", "90 s", "2h", "paper")] == [2700.0, 90.0, 7200.0, None]
    with pytest.raises(ValueError, match="budget must be a duration such as 45min or the word paper, got 'soon'"):
        parse_budget("soon")


def test_compute_steps_fills_the_budget():
    """The steps fill the budget after subtracting the reserve and the fixed time."""
    assert compute_steps(1000.0, 2.0, 280.0) == int((0.88 * 1000 - 280) / 2)
    with pytest.raises(ValueError, match="budget must be at least 3min on this machine"):
        compute_steps(120.0, 5.0, 50.0)
    assert compute_steps(60 * 2.85, 5.0, 50.0) == 20


def test_time_call_skips_the_first_call(monkeypatch):
    """The calls move the clock, by 9 s in the first call and by 2 s in each later one."""
    now, durations = [0.0], iter([9.0] + 20 * [2.0])
    monkeypatch.setattr(config.time, "perf_counter", lambda: now[0])

    def call():
        now[0] += next(durations)

    assert time_call(call, least=5.0) == 2.0 and now[0] == 9 + 3 * 2
    now[0] = 0.0
    assert time_call(call, least=0.0) == 2.0 and now[0] == 3 * 2  # two are measured at least


def test_load_or_compute_runs_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": (1, 2.5)}

    folder = tmp_path / "study"
    for _ in range(2):
        assert StudyFolder(folder, {"steps": 4}).load_or_compute("scores/a-0", make) == {"x": [1, 2.5]}
    assert made == [1] and json.loads((folder / "scores" / "a-0.json").read_text()) == {"x": [1, 2.5]}
    with pytest.raises(ValueError, match="holds a study of other options: steps was 4 and is 5; output=FOLDER begins"):
        StudyFolder(folder, {"steps": 5})


def test_nested_options_that_differ_are_named(tmp_path):
    def options(crop):
        return {"data": {"path": "FILE", "crop": crop}, "methods": {}}

    StudyFolder(tmp_path, options(8)).load_or_compute("scores/a-0", dict)
    with pytest.raises(ValueError, match="other options: data.crop was 8 and is 9;"):
        StudyFolder(tmp_path, options(9))
    with pytest.raises(ValueError, match="other options: methods was {} and is None;"):
        StudyFolder(tmp_path, options(8) | {"methods": {"a": 1}})


def test_failed_study_leaves_no_file(tmp_path):
    def fails():
        raise ValueError("no time")

    with pytest.raises(ValueError, match="no time"):
        StudyFolder(tmp_path / "study", {"steps": 4}).load_or_compute("plan", fails)
    assert not (tmp_path / "study").exists()
    StudyFolder(tmp_path / "study", {"steps": 5})


def test_estimate_compare_sign():
    lower, around = Estimate(-1.0, -2.0, -0.5), Estimate(-1.0, -2.0, 0.5)
    assert [lower.compare_sign(-3.0), lower.compare_sign(3.0), around.compare_sign(-3.0)] == [
        "agrees",
        "opposite",
        "undecided",
    ]
    assert (
        Estimate(1.0, 0.5, 2.0).compare_sign(-1.0) == "opposite"
        and Estimate(1.0, 0.5, 2.0).compare_sign(2.0) == "agrees"
    )
    assert lower.format(2, "+") == "-1.00 [-2.00, -0.50]" and Estimate(1, 1, 1).format(1, "+") == "+1.0 [+1.0, +1.0]"


def test_estimates_draw_blocks():
    values, labels = np.repeat([1.0, 1.0, 1.0, 1.0, 6.0], 50), np.repeat([4, 9, 2, 3, 5], 50)[:, None]
    found = Estimate.from_samples(values, labels)
    assert found.mean == 2.0 and found.low == 1.0 and found.high >= 3.0
    assert Estimate.from_samples(np.full(5, 0.7), np.arange(5)[:, None]) == pytest.approx((0.7, 0.7, 0.7))


def test_estimate_with_few_blocks_has_no_interval():
    found = Estimate.from_samples(np.array([-1.0, -1.0, -1.0, -1.0]), np.arange(4)[:, None])
    assert found.mean == -1.0 and np.isnan([found.low, found.high]).all()
    assert found.format() == "-1.000" and found.compare_sign(-1.0) == "undecided"


def test_result_table_csv_and_markdown(tmp_path):
    rows = [("a", Estimate(1 / 3, 0.25, 0.5), "2.0"), ("b", "not run", "-")]
    table = ResultTable("Scores", ("method", "MSE", "paper"), rows, digits=2)
    table.write(tmp_path, "scores")
    with open(tmp_path / "scores.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["method", "MSE", "MSE low", "MSE high", "paper"],
            ["a", "0.333333", "0.25", "0.5", "2.0"],
            ["b", "not run", "", "", "-"],
        ]
    text = (tmp_path / "scores.md").read_text()
    assert text.startswith("Scores\n\n| method | MSE | paper |\n") and "| a | 0.33 [0.25, 0.50] | 2.0 |" in text
    assert [column.header for column in table.to_rich().columns] == ["method", "MSE", "paper"]


def test_make_plan_steps():
    config, costs = PaperConfig(seeds=[0, 1], budget="3000s"), Costs({"a": 2.0, "b": 0.5}, 100.0)
    never = lambda names: pytest.fail("measured")  # noqa: E731
    assert make_plan(dataclasses.replace(config, max_steps=7), ["a"], 90, never)["steps"] == 7
    assert make_plan(dataclasses.replace(config, budget="paper"), ["a"], 90, never)["steps"] == 90
    assert make_plan(config, [], 90, never)["steps"] == 90
    found = make_plan(config, ["a", "b"], 90, lambda names: costs)
    assert found["seconds_a_step"] == costs.step_seconds
    assert abs(found["steps"] - (0.88 * 3000 - 2 * 100 - 20) / (2 * 2.5)) < 2
    with pytest.raises(ValueError, match="budget must be at least .*min on this machine"):
        make_plan(dataclasses.replace(config, budget="60s"), ["a", "b"], 90, lambda names: costs)


def test_estimate_of_a_statistic_resamples_blocks():
    hits, events = np.array([1, 1, 1, 1, 90.0]), np.array([2, 2, 2, 2, 100.0])
    found = Estimate.from_statistic(lambda w: (w @ hits) / (w @ events), np.arange(5)[:, None])
    assert found.mean == pytest.approx(94 / 108) and found.low == pytest.approx(0.5) and 0.87 < found.high < 0.9
    assert np.isnan(Estimate.from_statistic(lambda w: w @ hits[:4], np.arange(4)[:, None]).low)
    with np.errstate(invalid="ignore"):
        none = Estimate.from_statistic(lambda w: (w @ (0 * hits)) / (w @ (0 * hits)), np.arange(5)[:, None])
    assert np.isnan(none).all()
    for share, there in ((0.4, True), (0.6, False)):

        def partly(w, share=share):  # all samples have one, which are a single draw
            return np.where(np.arange(len(w)) < (len(w) > 1) * share * len(w), np.nan, w @ hits)

        assert np.isfinite(Estimate.from_statistic(partly, np.arange(5)[:, None]).low) == there


# ---- radar files


def test_split_frames_are_disjoint():
    assert split_frames(40, "a", 3) == {"train": [0, 22], "validation": [24, 28], "test": [30, 40]}
    assert split_frames(13, "a", 3) == {"train": [0, 3], "validation": [5, 8], "test": [10, 13]}
    with pytest.raises(ValueError, match="a has 12 times, too few to train, validate and test on: at least 13"):
        split_frames(12, "a", 3)
    assert split_frames(44, "a", 10) == {"train": [0, 19], "validation": [21, 31], "test": [33, 44]}
    with pytest.raises(ValueError, match="at least 34"):
        split_frames(33, "a", 10)


def test_find_echo_window():
    echo = torch.zeros(48, 40)
    echo[14:26, 21:33] = 1
    assert find_echo_window(echo, 16) == (slice(12, 28), slice(20, 36))
    assert find_echo_window(echo, 400) == (slice(0, 48), slice(0, 40))


def test_draw_field_maps_layout():
    """The first map is the truth. Difference maps share a scale and have the RMS difference as title."""
    truth = np.arange(12.0).reshape(3, 4)
    figure = draw_field_maps({"a": truth + 2, "b": truth - 1}, truth, "humidity (%)", "one day")
    maps = {axes.get_title(): axes.images[0] for axes in figure.axes if axes.images}
    assert list(maps) == ["truth", "a", "b", "rms 2", "rms 1"]
    np.testing.assert_array_equal(maps["rms 1"].get_array(), np.full((3, 4), -1.0))
    assert maps["rms 1"].get_clim() == maps["rms 2"].get_clim() == (-2.0, 2.0)
    assert maps["b"].get_clim() == (0.0, 11.0)


def test_clear_below_floor():
    assert clear_below_floor(np.array([15.0, 15.4, 15.5, 40.0]), 15.0).tolist() == [0.0, 0.0, 15.5, 40.0]


def test_validation_curves_with_negative_values(tmp_path):
    (tmp_path / "v.csv").write_text("step,error\n10,0.5\n20,-1.5\n")
    axes = draw_validation_curves({"LTE": tmp_path / "v.csv"}, "dB", log_y=False).axes[0]
    assert axes.get_yscale() == "linear" and axes.get_ylim()[0] < -1.5
    assert [line.get_label() for line in axes.lines] == ["LTE"] and axes.lines[0].get_ydata().tolist() == [0.5, -1.5]


def test_notes_name_the_optimiser_of_the_trainings():
    def text(budget, **training):
        study = SimpleNamespace(
            config=SimpleNamespace(budget=budget), runs=SimpleNamespace(networks=["a"]),
            folder=SimpleNamespace(path="x"), make_training=lambda *given: SimpleNamespace(**training),
        )  # fmt: skip
        return PaperStudy.describe_optimiser(study)

    assert text("45min") == "AdamW with warm-up and cosine decay"
    assert text("paper", optimizer="adam", schedule="constant") == "Adam, constant learning rate"
    assert text("paper", optimizer="adam", schedule="steps") == "Adam, learning rate reduced in steps"
