# SPDX-License-Identifier: Apache-2.0
"""Tests of the leaderboard: adding rows, error messages and the output of `fastds models`."""

import json
import sys

import numpy as np
import pytest

from fastds import models
from fastds.cli import main
from fastds.inference.ood.score import Deviation, OODReport
from fastds.models import card, leaderboard, registry
from fastds.models.leaderboard import Row, add, read, table
from fastds.studies import humidity, nowcast, radar, report
from fastds.studies.common.bootstrap import Estimate
from fastds.studies.domain import study as domain
from fastds.studies.domain.cases import Case

ROW = {
    "task": "radar", "model": "mine", "data": "a.nc", "score": "error", "better": "lower", "value": 0.9,
    "command": "fastds study radar", "low": 0.8, "high": 1.0, "cases": 3,
}  # fmt: skip


def test_rows_are_added_replaced_and_read_again(tmp_path):
    file = tmp_path / "board.json"
    add(file, [Row(**ROW), Row(**ROW | {"model": "other", "value": 0.85})])
    add(file, [Row(**ROW | {"value": 0.95})])
    assert {row.model: row.value for row in read(file)} == {"mine": 0.95, "other": 0.85}
    assert file.read_text().count("\n") == 4  # a line a row, so that two people's rows merge
    add(file, [Row(**ROW | {"data": "0.nc"})])
    assert [(row.data, row.model) for row in read(file)] == [("0.nc", "mine"), ("a.nc", "mine"), ("a.nc", "other")]
    assert [p.name for p in tmp_path.iterdir()] == ["board.json"]


def test_the_best_row_comes_first():
    lower = [Row(**ROW), Row(**ROW | {"model": "best", "value": 0.85, "low": None, "high": None, "cases": None})]
    assert table(lower).splitlines() == [
        "radar, a.nc: error (lower is better)",
        "  best                     0.85",
        "  mine                     0.9 [0.8, 1], 3 cases",
    ]
    higher = [Row(**ROW | {"better": "higher"}), Row(**ROW | {"better": "higher", "model": "best", "value": 1.0})]
    assert table(higher).splitlines()[1].split()[0] == "best"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"value": "x"}, "row 2: value must be a number, got 'x'"),
        ({"value": float("nan")}, "row 2: value must be a number, got nan"),
        ({"cases": 0}, "row 2: cases must be a whole number above 0, got 0"),
        ({"cases": 1.5}, "row 2: cases must be a whole number above 0, got 1.5"),
        ({"data": ""}, "row 2: data must be a text, got ''"),
        ({"task": "rain"}, "row 2: task must be one of radar, nowcast, fields, humidity, got 'rain'"),
        ({"better": "most"}, "row 2: better must be one of lower, higher, got 'most'"),
        ({"low": 0.95}, "row 2: low and high must enclose value 0.9, got 0.95 and 1.0"),
        ({"low": None}, "row 2: low and high must enclose value 0.9, got None and 1.0"),
        ({"speed": 1}, "row 2: there is no key 'speed'; the keys are task, model"),
        ({"command": ...}, "row 2: the key command is missing"),
        ([], "row 2: expected an object with the keys task, model"),
    ],
)
def test_invalid_row_is_rejected(tmp_path, capsys, change, sentence):
    bad = change if isinstance(change, list) else {k: v for k, v in (ROW | change).items() if v is not ...}
    (tmp_path / "board.json").write_text(json.dumps([ROW, bad]))
    assert main(["models", "--leaderboard", str(tmp_path / "board.json")]) == 2
    stderr = capsys.readouterr().err
    assert sentence in stderr and stderr.count("\n") == 1
    with pytest.raises(ValueError, match="row 2"):
        add(tmp_path / "board.json", [Row(**ROW)])


@pytest.mark.parametrize(("text", "sentence"), [("{}", "a list of rows, got dict"), ("[", "is not JSON")])
def test_non_leaderboard_file_is_rejected(tmp_path, text, sentence):
    (tmp_path / "board.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path / "board.json")


def test_study_with_invalid_row_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="the row of mine: value must be a number"):
        add(tmp_path / "board.json", [Row(**ROW | {"value": float("nan")})])
    assert not list(tmp_path.iterdir())


def test_the_shipped_rows(capsys):
    rows = read()
    assert rows and len({row.key for row in rows}) == len(rows)
    names = {*models.available(), *models.available(pretrained=True)}
    assert {row.model for row in rows} <= names and not any("/work" in row.command for row in rows)
    assert main(["models", "--leaderboard"]) == 0
    assert all(row.text() in capsys.readouterr().out for row in rows[:1])


def test_weights_of_a_user_have_no_rows_of_the_weights_of_their_name(tmp_path, capsys):
    model = models.create("inr-small")
    models.save(model, tmp_path / "best.safetensors")
    assert main(["models", str(tmp_path / "best.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "name: inr-small" in printed and "leaderboard" not in printed


def test_a_card_shows_its_rows_limits_and_training(capsys):
    assert main(["models", "inr-small"]) == 0
    printed = capsys.readouterr().out
    assert "leaderboard:" in printed and "limits:" in printed and "seeds: [0]" in printed and "input_ranges:" in printed
    assert "picture: fastds/models/pictures/inr-small.png" in printed
    assert main(["models", "fczsm-small"]) == 0
    assert "training_hours: 3.6" in capsys.readouterr().out


# ---- what studies add


def config(tmp_path, study, **options):
    return study.StudyConfig(data=radar.Files("/data/folder"), leaderboard=str(tmp_path / "board.json"), **options)


def test_radar_rows(tmp_path, capsys):
    results = {
        (f"{k}.nc", 15.0, mode): radar.Row(
            {name: [{"mse_total": mse, "pixels": 3}] for name, mse in (("model", value), ("advection", 2.0))}, [0]
        )
        for mode in ("dbz", "linear_z")
        for k, value in enumerate((1.6, 1.8, 2.0, 1.7, 1.9))
    }
    report.write_rows(config(tmp_path, radar), "net", radar.make_leaderboard_rows(results))
    rows = {(row.data, row.score): row for row in read(tmp_path / "board.json")}
    assert len(rows) == 12 and "added 12 rows" in capsys.readouterr().out
    score = "squared error above 15 dBZ over advection's, coarsened by dbz"
    assert rows["1.nc", score].value == 0.9 and rows["1.nc", score].low is None
    mean = rows["mean of the test radars", score]
    assert mean.value == pytest.approx(0.9) and 0.8 < mean.low < mean.value < mean.high < 1 and mean.cases == 5


def test_humidity_rows_and_errors(tmp_path):
    table = {"generator, ensemble mean": {"psnr": 23.0}, "generator, no noise": {"psnr": 22.5}, "bicubic": {"psnr": 22}}
    found = {row["score"]: row["value"] for row in humidity.make_leaderboard_rows([table], "small")}
    assert found == {"PSNR less bicubic's in dB, ensemble mean": 1.0, "PSNR less bicubic's in dB, no noise": 0.5}
    with pytest.raises(ValueError, match="leaderboard needs the argument model"):
        humidity.study(config(tmp_path, humidity))


def test_nowcast_rows():
    found = {"starts": 3, "mse": 8.0, "mse of extrapolation": 10.0, "csi 2": 0.5, "csi 2 of extrapolation": 0.45}
    error, skill = nowcast.make_leaderboard_rows({"a.nc": found})
    assert (error["value"], error["better"], error["cases"], error["data"]) == (0.8, "lower", 3, "a.nc")
    assert (skill["value"], skill["better"], skill["cases"], skill["data"]) == (0.05, "higher", 3, "a.nc")


@pytest.mark.parametrize("other", [{"against": "b"}, {"members": 4}])
def test_nowcast_rows_are_of_one_model_and_its_forecasts(tmp_path, other):
    with pytest.raises(ValueError, match="leaderboard must be left out with"):
        nowcast.study(config(tmp_path, nowcast, **other))


def cases(noise=0.0):
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 3, 60)
    made = []
    for k, size in enumerate(scores):
        what = Deviation("grid spacing", 1.0, 2.0, 3.0, "m", float(size))
        made.append(Case(f"case {k}", f"file {k % 6}", OODReport("net", (what,)), float(size + noise * rng.normal())))
    return made


def test_rank_correlation_detects_dependence(tmp_path):
    exact, none = (domain.make_leaderboard_row("radar", cases(noise)) for noise in (0.0, 100.0))
    assert exact["value"].mean == pytest.approx(1) and exact["value"].low == pytest.approx(1)
    assert abs(none["value"].mean) < 0.5 and none["value"].low < 0 < none["value"].high
    report.write_rows(config(tmp_path, domain), "net", [exact])
    (row,) = read(tmp_path / "board.json")
    assert (row.value, row.low, row.high, row.cases) == (1.0, 1.0, 1.0, 60)
    text = domain.summarize(cases()).to_markdown()
    assert "Of 6 files" in text and "1.00 [1.00, 1.00]" in text
    outside = sum(case.domain.score > 1.05 for case in cases())
    assert f"| median error, outside | {outside} |" in text
    assert domain.tabulate_cases(cases()).rows[-1][2] == "grid spacing"


@pytest.mark.parametrize("board", [["--leaderboard=/data/board.json"], ["--leaderboard", "/data/board.json"]])
def test_the_command_of_a_row_names_no_folder_of_the_machine(tmp_path, monkeypatch, board):
    monkeypatch.setattr(report, "is_running_as_cli", lambda: True)
    words = ["study", "radar", "--data.path=/data/folder", *board, "--floors=[15]"]
    monkeypatch.setattr(sys, "argv", ["fastds", *words])
    assert report.format_command(config(tmp_path, radar)) == "fastds study radar --data.path=FOLDER '--floors=[15]'"


def test_estimates_without_an_interval():
    assert report._format_value(Estimate(0.5, np.nan, np.nan)) == {"value": 0.5, "low": None, "high": None}
    assert leaderboard.LEADERBOARD.name == "leaderboard.json"


def test_task_names_are_those_of_the_registry():
    assert tuple(registry.TASKS) == card.TASK_NAMES
