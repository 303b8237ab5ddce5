# SPDX-License-Identifier: Apache-2.0
"""Checkpoints for resuming a training: written atomically after each epoch and after a signal."""

from __future__ import annotations

import pathlib
import signal
from types import FrameType
from typing import Any

import torch

from fastds._options import spell_name, spell_value
from fastds._outputs import atomic_write, set_signal_handlers
from fastds.training.early_stopping import needs_validation
from fastds.training.lightning_extra import L, TorchCheckpointIO, callbacks


class TrainingInterrupted(BaseException):
    """A signal ended a training after its checkpoint was written.

    Attributes:
        number: number of the signal.
        step: training step at which the checkpoint was written.
    """

    def __init__(self, number: int, step: int):
        super().__init__(number, step)
        self.number, self.step = number, step


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that replaces the previous file only when the new file is complete."""

    def save_checkpoint(self, checkpoint: dict, path: str | pathlib.Path, storage_options: None = None) -> None:
        """Write a checkpoint atomically, and create its folder if needed.

        Args:
            checkpoint: contents of the checkpoint.
            path: path of the file.
            storage_options: not used.
        """
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            torch.save(checkpoint, part)


class LastCheckpoint(callbacks.ModelCheckpoint):
    """Callback that writes checkpoints/last.ckpt.

    The callback writes after each epoch. When SIGINT or SIGTERM arrives, it finishes the training step, writes, and
    raises TrainingInterrupted; after the last step of an epoch, the validation runs before the exception is raised. A
    second signal calls the handler that was installed before the training.

    Attributes:
        started: True once the training has begun.
    """

    def __init__(self, output: pathlib.Path):
        super().__init__(str(output / "checkpoints"), filename="last", save_top_k=1, enable_version_counter=False)
        self.started, self._number = False, 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        super().on_train_start(trainer, module)
        self.started = True
        self._before = set_signal_handlers(
            self._handle_signal
        )  # Lightning restores the previous handlers after the training
        if module.steps_done() and trainer.is_global_zero:
            print(
                format_finished(module) if module.is_finished() else f"resumed from step {module.steps_done()}",
                flush=True,
            )

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Write a checkpoint and end the training after a signal, unless a validation follows.

        Args:
            trainer: the trainer.
            module: the module that is trained.
            outputs: result of the training step.
            batch: the batch.
            batch_index: index of the batch in the epoch.
        """
        super().on_train_batch_end(trainer, module, outputs, batch, batch_index)
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or module.is_finished()
        last = last or needs_validation(trainer, batch_index)
        if not last and self._is_interrupted(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            raise TrainingInterrupted(self._number, module.steps_done())

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        super().on_train_epoch_end(trainer, module)
        if not module.is_finished() and self._is_interrupted(trainer):
            raise TrainingInterrupted(self._number, module.steps_done())

    def _is_interrupted(self, trainer: L.Trainer) -> bool:
        """Return whether any of the processes received a signal."""
        if trainer.world_size == 1:
            return self._number > 0
        if not trainer.strategy.reduce_boolean_decision(self._number > 0, all=False):
            return False
        self._number = self._number or signal.SIGTERM
        return True

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if self._number and callable(self._before[number]):
            self._before[number](number, frame)
        self._number = number


def format_finished(module: Any) -> str:
    """Return the message for a resumed run that had already reached its last step or time limit."""
    done = f"{module.steps_done()} steps in {module.training_seconds() / 60:.3g} minutes"
    limits = f"{spell_name('max_steps')} or {spell_name('max_minutes')}"
    return f"nothing is left to train: {done} were trained before; a larger {limits} goes on"


def check_checkpoint(path: pathlib.Path, module: Any) -> None:
    """Raise ValueError if a file is not a checkpoint of this network. No code in the file is executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        found = {name: tuple(value.shape) for name, value in state.items()}
    except Exception:  # damaged files raise many types: errors of torch, zipfile and pickle
        raise make_resume_error(path, "it is damaged, or no checkpoint of fastds") from None
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if found != expected:
        name = next(name for name in (*expected, *found) if expected.get(name) != found.get(name))
        raise make_resume_error(
            path, f"{name} is {_format_shape(found.get(name))} there and {_format_shape(expected.get(name))} here"
        )


def make_resume_error(path: pathlib.Path, why: str) -> ValueError:
    """Make the error for a checkpoint that cannot be resumed from."""
    remedy = f"{spell_value('resume', False)} starts anew, {spell_name('output')}=FOLDER elsewhere"
    return ValueError(f"{path} is no checkpoint to resume this training from: {why}; {remedy}")


def _format_shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape)) or "a number"
