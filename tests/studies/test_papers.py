# SPDX-License-Identifier: Apache-2.0
"""Tests of the paper studies as commands: complete, repeated and killed runs, and wrong options."""

import re
import signal

import pytest

pytest.importorskip("lightning", reason="training extra is not installed")

from fastds import cli
from fastds.training import trainer
from tests.support import forked
from tests.support.study_cases import CASES, outputs, words

# What a tiny study leaves: scores of methods, figures, texts of the page.
EXPECTED = {
    "fczsm": (
        {"trilinear", "bicubic", "advection", "UNet", "ZSM-DS"},
        {"figure-07", "figure-08-09", "figure-10", "figure-11-12"},
        ("UNet less trilinear", "0.675", "Figure 7"),
    ),
    "db-rnn": (
        {"persistence", "extrapolation", "MS-ConvLSTM", "MS-ConvLSTM-S"},
        {"figure-maps-ConvLSTM", "figure-validation-ConvLSTM", "figure-04-ConvLSTM-CSI", "figure-08"},
        ("MS-ConvLSTM-S less MS-ConvLSTM", "0.285", "CSI by lead, ConvLSTM"),
    ),
    "wgan-gp": (
        {*(f"{name}{how}" for name in ("Lanczos", "bilinear", "bicubic") for how in ("", "-misaligned"))}
        | {"SRCNN", "WGAN-GP"},
        {"figure-08", "figure-08-psnr", "figure-09-mse", "figure-09-psnr", "figure-09-tcc", "figure-10"},
        ("WGAN-GP less SRCNN", "36.185", "Figure 9", "Factor 2 from first points of blocks."),
    ),
    "inr": (
        {"bilinear", "bicubic", "bicubic-0.75", "EDSR-x2", "ours-mask"},
        {"figure-maps", "figure-validation", "figure-factors-clean", "figure-factors-degraded"},
        ("ours-mask", "PSNR above bicubic interpolation", "from degraded fields"),
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write the files of each study."""
    return {name: make(tmp_path_factory.mktemp(name)) for name, (make, _) in CASES.items()}


@pytest.fixture(scope="module", params=CASES)
def case(request, folders, tmp_path_factory):
    """Run a study without interruption and return its name, the folder of its files, and its output folder."""
    name, folder = request.param, folders[request.param]
    output = tmp_path_factory.mktemp("study") / "whole"
    assert cli.main(words(name, folder, output, report=output.with_suffix(".html"))) == 0
    return name, folder, output


def test_plan_trains_nothing(case, tmp_path, capsys):
    """The plan has files, networks, steps, hours and configurations, and nothing is written."""
    name, folder, whole = case
    output = tmp_path / "planned"
    assert cli.main([*words(name, folder, output), "--plan"]) == 0
    printed = capsys.readouterr().out
    assert f"plan of fastds study {name}" in printed and "hours together on this machine" in printed
    assert "configuration of" in printed and "learning_rate: " in printed and not output.exists()
    networks = {path.name.rsplit("-", 1)[0] for path in (whole / "runs").iterdir()}
    rows = [line.split("|") for line in printed.splitlines() if line.startswith("|")]
    trained = {row[1].strip(): row for row in rows if len(row) == 10 and row[1].strip() in networks}
    assert set(trained) == networks and all(row[4].strip() == "3" for row in trained.values())


def test_study_writes_all_outputs(case):
    name, _, whole = case
    ran, figures, texts = EXPECTED[name]
    found = outputs(whole)
    assert {f"{figure}.png" for figure in figures} <= set(found)
    assert all(content.startswith(b"\x89PNG") for path, content in found.items() if path.endswith(".png"))
    assert {n for n in found if n.startswith("scores/")} == {f"scores/{method}-0.json" for method in ran}
    logs = [path.read_text().splitlines() for path in sorted((whole / "runs").glob("*/validation.csv"))]
    assert logs and all(log[-1].startswith("3,") for log in logs)  # steps, not those of each of two optimisers
    tables = [n for n in found if n.endswith(".md")]
    assert len(tables) >= 4 and all(f"{n[:-3]}.csv" in found for n in tables)
    assert "in 3 steps on the same samples" in found["notes.txt"].decode()
    assert all(b"small networks, 3 steps each, not the paper's training" in found[n] for n in tables)
    page = whole.with_suffix(".html").read_text()
    assert all(text in page for text in texts)
    assert name != "wgan-gp" or re.search(r"\bday [12]\b", page)  # the test has two


def test_finished_study_trains_nothing(case, monkeypatch, capsys):
    """The same options give the same output, and other options are refused."""
    name, folder, whole = case
    before = outputs(whole)
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "run_trainer", lambda *arguments: pytest.fail("trained again"))
        assert cli.main(words(name, folder, whole)) == 0 and outputs(whole) == before
    capsys.readouterr()
    assert cli.main(words(name, folder, whole, max_steps=4)) == 2
    assert "--output" in (stderr := capsys.readouterr().err) and "--max-steps was 3 and is 4" in stderr


KILLED = """
import os, signal, sys
import fastds._outputs as outputs
from fastds.cli import main
from fastds.training.modules import BaseLightningModule
left, rename, step = [int(sys.argv.pop(1))], outputs.commit_output, BaseLightningModule.on_train_batch_start
def counted(before):
    def call(*arguments):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments)
    return call
outputs.commit_output, BaseLightningModule.on_train_batch_start = counted(rename), counted(step)
sys.exit(main(sys.argv[1:]))
"""


def test_killed_study_resumes_identically(case, tmp_path):
    """The process is killed at several moments, before a file is renamed or before a training step."""
    name, folder, whole = case
    output, ends = tmp_path / "killed", []
    for moment in (1, 9, 12, 1000):
        done = forked.run(KILLED, moment, *words(name, folder, output))
        ends.append(done.returncode)
        if done.returncode != -signal.SIGKILL:
            break
    assert ends == [-signal.SIGKILL] * 3 + [0], (ends, done.stderr)
    found, expected = outputs(output), outputs(whole)
    assert found.keys() == expected.keys() and [n for n in found if found[n] != expected[n]] == []


ALL = [
    ({"budget": "soon"}, "--budget must be a duration such as 45min or the word paper, got 'soon'"),
    ({"run": "[LSTM]"}, "run must name some of "),
    ({"seeds": "[]"}, "seeds must be one number or more, got none"),
    ({"max_steps": 0}, "--max-steps must be positive, got 0"),
    ({"data.path": "none"}, "no such file"),
    ({"report": "page.txt"}, "report must be a file that ends in .html"),
]
RADAR = [
    ({"data.window": 30}, "--data.window a multiple of "),
    ({"data.block": "long"}, "--data.block must be a duration with its unit"),
    ({"data.files": "[no.nc]"}, "--data.files: no such file"),
]
WRONG = {
    "fczsm": [*ALL, *RADAR, ({"data.statics": "[none.nc:z]"}, "none.nc")],
    "db-rnn": [
        *ALL,
        *RADAR,
        ({"data.z_r": "[200]"}, "--data.z-r two positive numbers, got 1 and [200.0]"),
        ({"ablation": "GRU"}, "ablation must be one of ConvLSTM, "),
        ({"data.files": "[short.nc]"}, "short.nc has 20 times, too few to train, validate and test on: at least 34"),
    ],
    "wgan-gp": [
        *ALL,
        ({"members": 1}, "members must be at least 2 and --data.tile at least 11, got 1 and 11"),
        ({"data.tile": 64}, "--data.path: the training names no test region of 2 times and 64 x 64 points"),
        ({"training": "none"}, "none"),
    ],
    "inr": [
        *ALL,
        (
            {"data.crop": 8},
            "--data.crop must be at least 32, --data.per-cell and --data.together positive",
        ),
        ({"data.crop": 64}, "--data.crop: test region of 168 x 38 is smaller than the crops of 64 x 64"),
        ({"data.variables": "[w]"}, "--data.variables: 'w' is not in "),
    ],
}


@pytest.mark.parametrize(
    ("name", "options", "sentence"), [(name, *wrong) for name, every in WRONG.items() for wrong in every]
)
def test_study_errors_are_one_sentence(folders, tmp_path, capsys, name, options, sentence):
    assert cli.main(words(name, folders[name], tmp_path / "o", **options)) == 2
    *warnings, message = capsys.readouterr().err.splitlines()
    assert (
        sentence in message
        and message.startswith("fastds study: ")
        and all(w.startswith("warning: ") for w in warnings)
    )
    assert not (tmp_path / "o").exists()
