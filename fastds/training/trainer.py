# SPDX-License-Identifier: Apache-2.0
"""Training runs: run directory, Lightning trainer, resuming, exported weights."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch.utils._pytree import tree_leaves

from fastds import models
from fastds._options import spell_name
from fastds._outputs import Interrupted
from fastds.inference.execution import check_execution
from fastds.inference.tables import write_csv
from fastds.models.card import Network
from fastds.training.checkpoints import (
    AtomicCheckpointIO,
    LastCheckpoint,
    TrainingInterrupted,
    check_checkpoint,
    format_finished,
    make_resume_error,
)
from fastds.training.config import RunConfig
from fastds.training.early_stopping import ERROR, EarlyStopping, FrequentValidation
from fastds.training.lightning_extra import DDPStrategy, L, callbacks, loggers
from fastds.training.model_card import add_file_names
from fastds.training.modules import BaseDataModule
from fastds.training.progress import TrainingProgress

_SAMPLE_TOLERANCE = 1e-6  # relative tolerance; optical flow differs by less between numbers of threads


def prepare_run(config: RunConfig) -> None:
    """Set the random seed and the number of threads.

    Raises:
        ValueError: fewer than one thread, or a device that does not exist.
    """
    check_execution(config.threads, device=config.device)
    L.seed_everything(config.seed, verbose=False)
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def create_run_dir(config: RunConfig) -> pathlib.Path:
    """Create the folder config.output with config.yaml and return its path.

    Call this after data and network have been created, so that a run that cannot start leaves no files and does not
    change an earlier run. An earlier csv/metrics.csv, which Lightning would delete, is renamed to metrics.0.csv,
    metrics.1.csv, ...
    """
    output = pathlib.Path(config.output)
    log = output / "csv" / "metrics.csv"
    if log.exists():
        log.rename(log.with_name(f"metrics.{len(list(log.parent.glob('metrics.*.csv')))}.csv"))
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(yaml.safe_dump(_to_lists(dataclasses.asdict(config)), sort_keys=False))
    return output


def _to_lists(value):
    """Convert tuples to lists, because YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _to_lists(item) for key, item in value.items()}
    return [_to_lists(item) for item in value] if isinstance(value, list | tuple) else value


def run_training(
    config: RunConfig,
    module: Any,
    data: BaseDataModule,
    export: type[ExportBest],
    *,
    further: Sequence[callbacks.Callback] = (),
    **options,
) -> pathlib.Path:
    """Train in the folder config.output, from the last checkpoint if there is one and config.resume is set.

    The folder then has best.safetensors, last.safetensors, checkpoints/, the logs csv/ and (if TensorBoard is
    installed) tensorboard/, validation.csv and config.yaml.

    Args:
        config: configuration of the training.
        module: network, loss and optimizer.
        data: training and validation samples.
        export: callback class that writes the weights. It runs first, then the checkpoint callback.
        further: callbacks that run after these two.
        options: options of the Trainer that override the defaults below.

    Returns:
        Path of best.safetensors.

    Raises:
        ValueError: no validation error was finite, or the checkpoint does not fit.
        Interrupted: a signal arrived, and the checkpoint is written. It is a KeyboardInterrupt.
    """
    add_file_names(module.exported.card, config, data.files)
    output = create_run_dir(config)
    best = export(output, data.compute_input_ranges())
    stop = [] if config.early_stopping is None else [EarlyStopping(config.early_stopping)]
    chosen = {
        "accelerator": config.device,
        "devices": config.devices,
        "strategy": "auto" if config.devices == 1 else DDPStrategy(find_unused_parameters=True),
        "use_distributed_sampler": False,
        "max_steps": -1 if (last := config.last_step()) is None else last,
        "max_epochs": -1,
        "logger": _make_loggers(output),
        "callbacks": [
            best,
            FrequentValidation(),
            LastCheckpoint(output),
            *further,
            *stop,
            *([TrainingProgress(best)] if config.progress else []),
        ],
        "num_sanity_val_steps": 0,
        "log_every_n_steps": min(10, max(1, config.data.epoch_samples // config.data.batch_size)),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(output),
        "deterministic": "warn",
        "plugins": [AtomicCheckpointIO()],
    }
    with _preserve_determinism():
        weights = run_trainer(L.Trainer(**chosen | options), module, data, config)
    for one in stop:
        if message := one.describe(module.steps_done(), best.best_step):
            print(message, flush=True)
    return weights


@contextlib.contextmanager
def _preserve_determinism() -> Iterator[None]:
    """Context manager that restores torch's setting of deterministic algorithms, which the trainer changes globally."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def make_averaging_callbacks(config: RunConfig) -> list[callbacks.Callback]:
    """Return the callback that averages the weights, or no callback if config.ema_decay is 0."""
    return [callbacks.EMAWeightAveraging(decay=config.ema_decay)] if config.ema_decay > 0 else []


def _make_loggers(output: pathlib.Path) -> list:
    kinds: dict[str, Any] = {"csv": loggers.CSVLogger}
    if importlib.util.find_spec("tensorboard"):
        kinds["tensorboard"] = loggers.TensorBoardLogger
    return [kind(str(output), name=name, version="") for name, kind in kinds.items()]


def run_trainer(trainer: L.Trainer, module: Any, data: L.LightningDataModule, config: RunConfig) -> pathlib.Path:
    """Run the trainer, from the last checkpoint if there is one and config.resume is set. See run_training.

    Args:
        trainer: the trainer.
        module: the module to train.
        data: data of the training and the validation.
        config: configuration of the training.

    Returns:
        Path of best.safetensors.

    Raises:
        Interrupted: a signal arrived, and the checkpoint is written.
        KeyboardInterrupt: the trainer was interrupted otherwise.
        ValueError: the last checkpoint cannot be resumed, or no validation error was finite.
    """
    output = pathlib.Path(config.output)
    last, best = output / "checkpoints" / "last.ckpt", output / "best.safetensors"
    resume = config.resume and last.exists()
    checkpoint: Any = trainer.checkpoint_callback
    if resume:
        check_checkpoint(last, module)
    if config.validate_start and not resume:
        trainer.validate(module, datamodule=data, verbose=False)
        module.train()  # the weights were loaded in evaluation mode
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(last) if resume else None, weights_only=True)
        if resume and not checkpoint.started and trainer.is_global_zero:
            print(format_finished(module), flush=True)
    except TrainingInterrupted as stop:
        go_on = "the same command goes on from there" + ("" if config.resume else f" with {spell_name('resume')}=true")
        message = f"interrupted, step {stop.step} is in {last}: {go_on}" if trainer.is_global_zero else ""
        raise Interrupted(stop.number, message) from None
    except SystemExit:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None
    except Exception as error:
        if resume and not checkpoint.started:
            # a foreign checkpoint can raise any type of error in loops and optimizers
            raise make_resume_error(last, type(error).__name__) from error
        raise
    if trainer.is_global_zero and not best.exists():
        raise ValueError(
            f"the run ended at step {module.steps_done()} without a finite validation error, and has exported no best "
            f"weights; its checkpoint in {output} is kept: resume with a smaller {spell_name('learning_rate')}, or "
            "with other validation data where these are dry"
        )
    return best


class ExportBest(callbacks.Callback):
    """Callback that writes last.safetensors at each validation and best.safetensors at the lowest error so far.

    It also writes errors and scores by step to validation.csv. Errors and scores are part of the checkpoint, so that an
    interruption does not change validation.csv. Errors are compared only if the validation samples are the same: if a
    resumed run has other validation samples, the lowest error is reset.

    The callback must be the first in the list, so that it runs while the averaged weights are active. Subclasses
    implement validate(trainer, module), which returns the network to save, the metrics for its card, and the error.

    Args:
        folder: run directory.
        input_ranges: ranges of the input statistics for the model card.
    """

    def __init__(self, folder: pathlib.Path, input_ranges: dict[str, list[float]] | None = None):
        self.folder, self.input_ranges, self.best = folder, input_ranges or {}, float("inf")
        self.start: dict = {}  # scores of the initial weights
        self.errors: dict[int, float] = {}  # by step
        self.scores: dict[int, dict[str, float]] = {}  # by step
        # sum of the absolute values of all validation samples; identifies the samples
        self.samples: float | None = None
        self._sum = 0.0

    if TYPE_CHECKING:

        def validate(self, trainer: L.Trainer, module: Any) -> tuple[Network, dict, float]: ...

    def on_validation_batch_start(
        self, trainer: L.Trainer, module: Any, batch: Any, batch_index: int, dataloader_index: int = 0
    ) -> None:
        """Add the batch to the sum that identifies the validation samples.

        Args:
            trainer: the trainer, not used.
            module: the module that is trained, not used.
            batch: the batch.
            batch_index: index of the batch. The sum is reset at index 0.
            dataloader_index: not used.
        """
        numbers = (value for value in tree_leaves(batch) if isinstance(value, torch.Tensor))
        of_batch = sum(float(value.nan_to_num().double().abs().sum()) for value in numbers)
        self._sum = of_batch + (self._sum if batch_index else 0.0)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        network: Network
        network, network.card.metrics, error = self.validate(trainer, module)
        network.card.input_ranges, network.card.seeds = self.input_ranges, [module.config.seed]
        if trainer.state.fn == "validate":  # validation before the first step
            self.start = network.card.metrics.get("validation", {})
        if self.start:
            network.card.metrics = {**network.card.metrics, "start": self.start}
        if self.samples is not None and not math.isclose(self._sum, self.samples, rel_tol=_SAMPLE_TOLERANCE):
            print("the validation samples have changed: the best weights are selected again", flush=True)
            self.best = float("inf")
        self.samples, step = self._sum, module.steps_done()
        trainer.callback_metrics[ERROR] = torch.tensor(error)
        self.errors[step], self.scores[step] = error, dict(network.card.metrics.get("validation", {}))
        self._write_scores()
        models.save(network, self.folder / "last.safetensors")
        if error < self.best:
            self.best = error
            models.save(network, self.folder / "best.safetensors")

    @property
    def best_step(self) -> int:
        """Step of the weights in best.safetensors; 0: before the first step."""
        return next((step for step, error in self.errors.items() if error == self.best), 0)

    def _write_scores(self) -> None:
        names = sorted({name for scores in self.scores.values() for name in scores})
        rows = [
            [str(k), str(v), *(str(self.scores.get(k, {}).get(n, "")) for n in names)] for k, v in self.errors.items()
        ]
        write_csv(self.folder / "validation.csv", ["step", "error", *names], rows)

    def state_dict(self) -> dict:
        state = {"errors": self.errors, "scores": self.scores}
        return {"best": self.best, "start": self.start, "samples": self.samples, **state}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.start = state["best"], state.get("start", {})
        self.errors, self.samples = dict(state.get("errors", {})), state.get("samples")
        self.scores = dict(state.get("scores", {}))
