# SPDX-License-Identifier: Apache-2.0
"""Tests of trainings that are ended by signals, and of damaged or foreign checkpoints."""

import functools
import io
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds import models
from fastds.training.checkpoints import LastCheckpoint
from fastds.training.command import main
from tests.support.training_runs import arguments, same_weights, signalled


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """Return whole(task), the cached folder of an uninterrupted run."""

    @functools.cache
    def run(task):
        folder = tmp_path_factory.mktemp(task) / "whole"
        assert main(arguments(files, task, folder)) == 0
        return folder

    return run


@pytest.mark.parametrize(
    ("task", "number", "step", "saved_step"),
    [
        ("radar", signal.SIGINT, 0, 1),
        ("radar", signal.SIGTERM, 5, 6),
        ("nowcast", signal.SIGTERM, 1, 2),
        ("fields", signal.SIGINT, 6, 7),
        ("humidity", signal.SIGTERM, 2, 3),
        ("humidity", signal.SIGINT, 3, 4),
    ],
)
def test_signal_leaves_a_checkpoint_that_resumes_exactly(files, tmp_path, capfd, whole, task, number, step, saved_step):
    cut = tmp_path / "cut"
    command = arguments(files, task, cut)
    done = signalled(command, number, step)
    last = cut / "checkpoints" / "last.ckpt"
    message = f"fastds train: interrupted, step {saved_step} is in {last}: the same command goes on from there\n"
    assert (done.returncode, done.stderr) == (128 + number, message)
    assert os.listdir(last.parent) == ["last.ckpt"]
    uncut = whole(task)
    assert "resumed" not in capfd.readouterr().out
    assert main(command) == 0 and f"resumed from step {saved_step}\n" in capfd.readouterr().out
    assert same_weights(uncut, cut) and same_weights(uncut, cut, "best.safetensors")


def test_signal_during_validation_is_deferred(files, tmp_path):
    command = arguments(files, "radar", tmp_path / "o")
    done = signalled(command, signal.SIGINT, 4, "on_validation_start")
    assert done.returncode == 130 and "interrupted, step 4 is in" in done.stderr
    assert (tmp_path / "o" / "best.safetensors").exists()


def test_a_signal_in_the_last_step_lets_the_run_end(files, tmp_path):
    done = signalled(arguments(files, "radar", tmp_path / "o", max_steps=3), signal.SIGINT, 2)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == f"wrote {tmp_path}/o/best.safetensors", done.stderr


@pytest.mark.parametrize("somewhere", [True, False])
def test_a_signal_to_one_of_several_processes_ends_all(tmp_path, somewhere):
    """The processes exchange after each step whether a signal arrived. If so, all of them end."""
    calls = []
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: calls.append((decision, all)) or somewhere)
    callback = LastCheckpoint(tmp_path)
    assert callback._is_interrupted(SimpleNamespace(world_size=2, strategy=strategy)) == somewhere
    assert calls == [(False, False)] and callback._number == (signal.SIGTERM if somewhere else 0)


class Harm:
    """Pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def four_steps(files, tmp_path_factory):
    """Return the folder of a run of four steps."""
    output = tmp_path_factory.mktemp("trained") / "o"
    assert main(arguments(files, "radar", output, max_steps=4)) == 0
    return output


@pytest.fixture(scope="module")
def trained(four_steps):
    """Return the checkpoint of the run."""
    return (four_steps / "checkpoints" / "last.ckpt").read_bytes()


def test_checkpoint_holds_only_tensors_numbers_and_strings(four_steps, trained):
    """The checkpoint can therefore be loaded with weights_only=True; it includes the exported weights."""
    state = torch.load(io.BytesIO(trained), weights_only=True)
    kinds = {type(leaf) for leaf in tree_leaves(state)}
    assert torch.Tensor in kinds and kinds <= {torch.Tensor, bool, int, float, str, type(None)}
    weights = models.load(four_steps / "last.safetensors").state_dict()
    saved = {name.removeprefix("model."): value for name, value in state["state_dict"].items()}
    assert weights.keys() <= saved.keys() and all(torch.equal(saved[name], weights[name]) for name in weights)


def changed(content, change):
    state = torch.load(io.BytesIO(content), weights_only=True)
    change(state)
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


DAMAGE = {
    "empty": lambda whole: b"",
    "truncated": lambda whole: whole[: len(whole) // 2],
    "text": lambda whole: b"no checkpoint",
    "flipped": lambda whole: whole[:300] + bytes(200) + whole[500:],
    "weights alone": lambda whole: changed(whole, dict.clear),
    "list": lambda whole: changed(whole, lambda state: state.update(state_dict=[1])),
    "no loops": lambda whole: changed(whole, lambda state: state.update(loops=3)),
    "no optimiser": lambda whole: changed(whole, lambda state: state.pop("optimizer_states")),
    "no clock": lambda whole: changed(whole, lambda state: state.pop("elapsed")),
    "words for a clock": lambda whole: changed(whole, lambda state: state.update(elapsed="never")),
    "short random state": lambda whole: changed(whole, lambda state: state.update(random_state=torch.zeros(3))),
    "another network": lambda whole: changed(whole, lambda s: s["state_dict"].update({"model.x": torch.zeros(2, 3)})),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_or_foreign_checkpoint_error(files, tmp_path, capfd, trained, kind):
    last = tmp_path / "o" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes(DAMAGE[kind](trained))
    damaged = last.read_bytes()
    assert main(arguments(files, "radar", tmp_path / "o")) == 2
    stderr = capfd.readouterr().err
    assert stderr.startswith(f"fastds train: {last} is no checkpoint to resume this training from: "), stderr
    assert stderr.count("\n") == 1 and len(stderr) < 500 and last.read_bytes() == damaged


def test_checkpoint_executes_no_code(files, tmp_path, capfd):
    last = tmp_path / "o" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    torch.save({"state_dict": Harm(tmp_path / "harm")}, last)
    assert main(arguments(files, "radar", tmp_path / "o")) == 2 and not (tmp_path / "harm").exists()
    assert "is damaged, or no checkpoint of fastds" in capfd.readouterr().err


def test_previous_checkpoint_remains_until_replaced(files, tmp_path, trained, monkeypatch):
    """The temporary file is in the folder of the checkpoint, so that renaming it is atomic."""
    from fastds.training import checkpoints

    path, seen = tmp_path / "last.ckpt", []
    path.write_bytes(trained)

    def torn(checkpoint, part):
        part.write_bytes(b"half")
        seen.append((part.parent, path.read_bytes() == trained))
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.AtomicCheckpointIO().save_checkpoint({}, str(path))
    assert seen == [(tmp_path, True)] and path.read_bytes() == trained and os.listdir(tmp_path) == ["last.ckpt"]
