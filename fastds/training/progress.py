# SPDX-License-Identifier: Apache-2.0
"""Progress of a training on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console

from fastds._options import spell_name
from fastds.inference.progress import LINE_EVERY, format_duration
from fastds.training.lightning_extra import L, callbacks


class TrainingProgress(callbacks.Callback):
    """Callback that prints step, loss, lowest validation error, elapsed and remaining time.

    In a terminal, it updates a line every second. Elsewhere, it prints a line every LINE_EVERY seconds.

    Args:
        export: the ExportBest callback of the run, which has the lowest error.
    """

    def __init__(self, export):
        self.export, self._line, self._printed = export, None, 0.0

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        console = Console(stderr=True)
        self._printed = time.monotonic()
        if trainer.is_global_zero and not module.is_finished() and not module.config.end_given:
            limits = f"{spell_name('max_steps')} or {spell_name('max_minutes')}"
            print(f"training ends {self._end(module)}; {limits} change that", file=sys.stderr)
        if console.is_terminal and trainer.is_global_zero:
            self._line = console.status("training")
            self._line.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs, *_) -> None:
        """Print or update the progress, if the last output is old enough.

        Args:
            trainer: the trainer.
            module: the module that is trained.
            outputs: result of the training step.
            _: further arguments of Lightning, not used.
        """
        now = time.monotonic()
        if not trainer.is_global_zero or now - self._printed < (LINE_EVERY if self._line is None else 1.0):
            return
        self._printed = now
        text = f"training: {', '.join(self._parts(module, outputs))}"
        if self._line is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._line.update(text)

    def _parts(self, module: Any, outputs) -> list[str]:
        config, taken, steps = module.config, module.training_seconds(), module.steps_done()
        last = module.last_step()
        by_steps = steps / (last or float("inf"))
        done = max(by_steps, taken / (60 * (config.max_minutes or float("inf"))))
        # the total is printed only if the number of steps, not the time, limits the run
        of = f" of {last}" if last and done == by_steps else ""
        parts = [f"step {steps}{of}"]
        if isinstance(outputs, dict) and "loss" in outputs:
            parts.append(f"loss {float(outputs['loss']):.4g}")
        if self.export.best < float("inf"):
            parts.append(f"lowest validation error {self.export.best:.4g}")
        parts.append(format_duration(taken))
        return [*parts, f"about {format_duration(taken / done - taken)} left"] if 0 < done < 1 else parts

    @staticmethod
    def _end(module: Any) -> str:
        last, minutes = module.last_step(), module.config.max_minutes
        bounds = [f"after {last} steps"] if last else []
        return " or ".join(bounds + ([f"after {minutes:g} minutes"] if minutes else []))

    def teardown(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        """Stop the line in the terminal.

        Args:
            trainer: the trainer, not used.
            module: the module that is trained, not used.
            stage: stage of the trainer, not used.
        """
        if self._line is not None:
            self._line.stop()
