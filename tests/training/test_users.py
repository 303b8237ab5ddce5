# SPDX-License-Identifier: Apache-2.0
"""Tests of trainings from the view of a user: remaining time, summary, TensorBoard and other files."""

import importlib
import io
import shutil
import warnings
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from tests.support import training_runs

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds import cli, models
from fastds.data import open_dataset, save_dataset
from fastds.training import trainer
from fastds.training.baseline_comparison import compare_to_baseline, format_comparison
from fastds.training.command import TASKS, main
from fastds.training.folders import scan_folder
from fastds.training.progress import TrainingProgress


def parse(task, *words):
    return importlib.import_module(f"fastds.tasks.{task}.config").parse_arguments(["--data.path=x", *words])


@pytest.mark.parametrize("task", TASKS)
def test_a_run_without_bounds_ends_in_an_hour(task):
    def bounds(*words):
        return parse(task, *words).max_steps, parse(task, *words).max_minutes

    assert bounds() == (None, 60.0)
    assert bounds("--max-steps=7") == (7, None) and bounds("--max-minutes=2") == (None, 2.0)
    with pytest.raises(ValueError, match="max_minutes is for one process, .*: give max_steps"):
        parse(task, "--devices=2")
    assert parse(task, "--devices=2", "--max-steps=7").max_minutes is None
    if task == "humidity":
        assert bounds("--optimiser.epochs=3") == (None, None)


@pytest.fixture(scope="module", params=TASKS)
def run(request, files, tmp_path_factory):
    """Run a short training with the command; return its task, its folder, standard output and standard error."""
    folder, out, err = tmp_path_factory.mktemp(request.param) / "o", io.StringIO(), io.StringIO()
    words = training_runs.arguments(files, request.param, folder, progress=True)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("fastds.training.progress.LINE_EVERY", 0.0)
        assert main(words) == 0
    return request.param, folder, out.getvalue(), err.getvalue()


def test_run_announces_its_end_and_duration(run):
    _, _, _, stderr = run
    assert "training ends" not in stderr  # the command gave --max-steps
    lines = [line for line in stderr.splitlines() if line.startswith("training: ")]
    assert lines[0].startswith("training: step 1 of 8") and all(line.endswith(" left") for line in lines[:7])


@pytest.mark.parametrize(
    ("last", "minutes", "step", "left", "end"),
    [
        (80, None, "step 20 of 80", "about 0:03:00 left", "after 80 steps"),
        (None, 4.0, "step 20", "about 0:03:00 left", "after 4 minutes"),
        (80, 2.0, "step 20", "about 0:01:00 left", "after 80 steps or after 2 minutes"),
        (80, 40.0, "step 20 of 80", "about 0:03:00 left", "after 80 steps or after 40 minutes"),
    ],
)
def test_remaining_time_uses_the_first_limit(last, minutes, step, left, end):
    """The training is at step 20 and has run for one minute."""
    bounds = {"config": SimpleNamespace(max_minutes=minutes), "last_step": lambda: last}
    module = SimpleNamespace(**bounds, training_seconds=lambda: 60.0, steps_done=lambda: 20)
    found = TrainingProgress(SimpleNamespace(best=0.25))
    assert found._parts(module, {"loss": 2.0}) == [step, "loss 2", "lowest validation error 0.25", "0:01:00", left]
    found = TrainingProgress(SimpleNamespace(best=float("inf")))
    assert found._parts(module, None) == [step, "0:01:00", left] and found._end(module) == end


def test_remaining_time_with_epochs(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastds.training.progress.LINE_EVERY", 0.0)
    optimiser = {"optimiser": {"warmup_epochs": 1, "epochs": 2}}
    bounds = {"max_steps": None, **optimiser}
    assert main(training_runs.arguments(files, "humidity", tmp_path / "o", progress=True, **bounds)) == 0
    stderr = capsys.readouterr().err
    assert (
        "training ends after 8 steps; --max-steps or --max-minutes change that\n" in stderr
        and "training: step 1 of 8, " in stderr
    )


def test_model_card_compares_with_the_baseline(run):
    task, folder, printed, _ = run
    metrics = models.load_card(folder / "best.safetensors").metrics
    found, scores = metrics["simple_method"], metrics["validation"]
    score, simple = {
        "radar": ("mse_total", "mse_total_advection"),
        "fields": ("val_gain_db", None),
        "humidity": ("val_mse_noise_free", "val_mse_bicubic"),
        "nowcast": ("val_mse", "val_mse_reference"),
    }[task]
    assert found["own"] == scores[score] and found["simple"] == (scores[simple] if simple else 0.0)
    assert found["better"] == (found["own"] > 0 if task == "fields" else found["own"] < found["simple"])
    comparison = f"{found['score']} on the validation samples: {found['own']:.4g} against {found['simple']:.4g})"
    assert comparison in printed.splitlines()[0] and ("no better" in printed) == (not found["better"])
    if task == "radar":
        assert found["simple"] == min(scores["mse_total_trilinear"], scores["mse_total_advection"])


def test_tensorboard_has_the_log_of_every_task(run):
    _, folder, _, _ = run
    assert list((folder / "tensorboard").glob("events.out.tfevents.*")) and (folder / "csv" / "metrics.csv").exists()


def test_csv_log_without_tensorboard(files, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.importlib.util, "find_spec", lambda name: None)
    assert main(training_runs.arguments(files, "fields", tmp_path / "o")) == 0
    assert (tmp_path / "o" / "csv").is_dir() and not (tmp_path / "o" / "tensorboard").exists()


@pytest.mark.parametrize("higher", [False, True])
@pytest.mark.parametrize("value", [1.0, 2.0, 3.0])
def test_weights_worse_than_baseline_warn_on_load(tmp_path, value, higher):
    model, path = models.create("fczsm-small", num_features=8, offset_groups=1), tmp_path / "w.safetensors"
    model.card.metrics = compare_to_baseline("advection", "squared error", value, 2.0, higher)
    models.save(model, path)
    lost = value <= 2.0 if higher else value >= 2.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert models.load(path).card.worse_than == ("advection" if lost else "")
    message = "w.safetensors was no better than advection on the validation samples of its training"
    assert [str(one.message) for one in caught] == [message] * lost
    assert ("This is noted in the weights file; train longer" in format_comparison(path)) == lost


def test_weights_without_comparison_do_not_warn(tmp_path):
    model = models.create("fczsm-small", num_features=8, offset_groups=1)
    for metrics in ({}, {"simple_method": "advection"}):
        model.card.metrics = metrics
        models.save(model, tmp_path / "w.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert models.load(tmp_path / "w.safetensors").card.worse_than == ""


@pytest.fixture
def mixed(files, tmp_path):
    """Make a folder with files of every kind."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("radar.nc", "grid.nc"):
        shutil.copy(files / name, folder / name)
    (folder / "broken.nc").write_bytes((files / "radar.nc").read_bytes()[:3000])
    (folder / "notes.txt").write_text("a bar")
    (folder / ".hidden").write_text("")
    with open_dataset(files / "radar.nc") as event:
        save_dataset(event.isel(time=slice(3)), folder / "short.nc")
        save_dataset(event.isel(x=slice(12)), folder / "narrow.nc")
    return folder


def train_on(folder, task, output):
    """Run `fastds train` on a folder."""
    words = training_runs.arguments(folder, task, output, max_steps=2)
    return cli.main(["train", *words, f"--data.path={folder}"])


REASONS = ["broken.nc (", "notes.txt (not NetCDF)"]
NARROW = "narrow.nc (the grid of narrow.nc is"
NO_RADAR = "grid.nc (no variable of reflectivity was found"


@pytest.mark.parametrize(
    ("task", "others", "reasons"),
    [
        ("radar", ["grid.nc"], [*REASONS, "short.nc (short.nc has 3 time steps, too few for training and", NARROW]),
        ("nowcast", ["narrow.nc"], [*REASONS, NO_RADAR, "short.nc (short.nc has 3 time steps"]),
        ("humidity", ["radar.nc", "short.nc", "narrow.nc"], REASONS),
    ],
)
def test_other_files_are_named_and_skipped(mixed, tmp_path, capfd, task, others, reasons):
    for name in others:
        (mixed / name).unlink()
    assert train_on(mixed, task, tmp_path / "o") == 0
    (message,) = [line for line in capfd.readouterr().err.splitlines() if " are left out: " in line]
    assert f"{len(reasons)} of {len(reasons) + 1} files in {mixed} are left out: " in message
    assert all(reason in message for reason in reasons) and ".hidden" not in message


@pytest.mark.parametrize("task", TASKS)
def test_the_card_names_the_files_of_all_runs_in_a_folder(files, tmp_path, task):
    """A resumed run adds its files to those of the run before."""
    name, output = "radar.nc" if task in ("radar", "nowcast") else "grid.nc", tmp_path / "o"
    for copy in ("first/a.nc", "first/b.nc", "second/c.nc"):
        (tmp_path / copy).parent.mkdir(exist_ok=True)
        shutil.copy(files / name, tmp_path / copy)
    first, second = ("first/a.nc", "second/c.nc") if task == "fields" else ("first", "second")  # it takes one file
    found = ["a.nc"] if task == "fields" else ["a.nc", "b.nc"]
    for path, steps, expected in ((first, 4, found), (second, 8, [*found, "c.nc"])):
        words = training_runs.arguments(files, task, output, max_steps=steps)
        assert main([*words, f"--data.path={tmp_path / path}"]) == 0
        assert models.load_card(output / "last.safetensors").training_data == expected


def test_folder_without_usable_files_error(mixed, tmp_path, capfd):
    for name in ("radar.nc", "grid.nc", "short.nc", "narrow.nc"):
        (mixed / name).unlink()
    for task in ("radar", "nowcast", "humidity"):
        assert train_on(mixed, task, tmp_path / "o") == 2
        assert f"--data.path: no file to train on in {mixed}: broken.nc (" in capfd.readouterr().err
    (mixed / "broken.nc").unlink()
    assert train_on(mixed, "radar", tmp_path / "o") == 2
    assert f"no file to train on in {mixed}: notes.txt (" in capfd.readouterr().err
    assert train_on(mixed, "fields", tmp_path / "o") == 2
    assert f"--data.path must be one file of fields, got the folder {mixed}" in capfd.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_folder_with_many_other_files_names_some(files, tmp_path):
    for k in range(12):
        (tmp_path / f"{k:02d}.txt").write_text("")
    shutil.copy(files / "radar.nc", tmp_path)
    with pytest.warns(UserWarning, match=r"12 of 13 files .*: 00.txt .*; 07.txt \(.*\) and 4 more$") as caught:
        assert list(scan_folder(tmp_path, lambda path: 1)) == [tmp_path / "radar.nc"]
    assert "08.txt" not in str(caught[0].message)
