# SPDX-License-Identifier: Apache-2.0
"""Times of validations within an epoch, and the end of a training whose validation error does not decrease."""

from __future__ import annotations

from typing import Any

from fastds._options import spell_name
from fastds.training.lightning_extra import L, callbacks

MIN_VALIDATIONS = 5  # smallest number of validations of a training of at least MIN_VALIDATIONS * MIN_STEPS steps
MIN_STEPS = 10  # smallest number of steps between validations within an epoch
ERROR = "validation_error"  # metric by which the best weights are selected


class FrequentValidation(callbacks.Callback):
    """Callback that adds validations within epochs, so that a training has at least MIN_VALIDATIONS.

    The validations are at multiples of a fifth of the steps or of the minutes of the training, but not within the first
    MIN_STEPS steps after another one. If epochs are shorter, nothing changes.
    """

    def __init__(self) -> None:
        self._parts = self._step = 0  # number of fifths of the time that are over, and step of the last validation

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._parts, self._step = self._count_parts(module), module.steps_done()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Set the trainer's number of batches between validations so that it validates now, if it is time.

        Args:
            trainer: the trainer.
            module: the module that is trained.
            outputs: result of the training step, not used.
            batch: the batch, not used.
            batch_index: index of the batch in the epoch.
        """
        last, step = module.last_step(), module.steps_done()
        interval = 0 if last is None else last // MIN_VALIDATIONS
        due = MIN_STEPS <= interval < trainer.num_training_batches and step % interval == 0
        due = due or (step - self._step >= MIN_STEPS and self._count_parts(module) > self._parts)
        trainer.val_check_batch = batch_index + 1 if due else trainer.num_training_batches

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self._parts, self._step = self._count_parts(module), module.steps_done()

    @staticmethod
    def _count_parts(module: Any) -> int:
        minutes = module.config.max_minutes
        return 0 if minutes is None else int(MIN_VALIDATIONS * module.training_seconds() / (60.0 * minutes))


def needs_validation(trainer: L.Trainer, batch_index: int) -> bool:
    """Return whether the trainer validates after a batch of an epoch."""
    return trainer.val_check_batch == batch_index + 1


class EarlyStopping(callbacks.EarlyStopping):
    """Callback that ends a training after a number of validations without a lower error.

    Args:
        patience: number of validations.
    """

    def __init__(self, patience: int):
        # The error is compared after each validation. Lightning's default compares it at the end of an epoch.
        form: dict[str, Any] = {"check_finite": False, "check_on_train_epoch_end": False}
        super().__init__(ERROR, patience=patience, mode="min", **form)

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the lowest error and the number of validations since, but not the patience of the run before.

        Args:
            state_dict: state of the callback in a checkpoint.
        """
        super().load_state_dict({**state_dict, "patience": self.patience})

    def describe(self, step: int, best_step: int) -> str:
        """Return the message for the end of the training, or "" if this callback did not end it.

        Args:
            step: last step.
            best_step: step of the weights with the lowest error.
        """
        if self.wait_count < self.patience:
            return ""
        return (
            f"ended at step {step}: {self.patience} validations in a row had no lower error "
            f"({spell_name('early_stopping')}); best.safetensors has the weights of step {best_step}"
        )
