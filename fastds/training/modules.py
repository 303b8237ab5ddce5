# SPDX-License-Identifier: Apache-2.0
"""Base classes of the Lightning modules and data modules: time limit, learning rate, skipped steps, exact resuming."""

from __future__ import annotations

import bisect
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fastds._options import spell_name
from fastds.inference.ood.score import compute_ranges
from fastds.models.card import Network
from fastds.models.graph_cache import GraphCache, use_graphs
from fastds.training.config import RunConfig, SupervisedConfig
from fastds.training.lightning_extra import L, loggers
from fastds.training.maps import SampleMaps
from fastds.training.model_card import add_training_data

_STATISTICS_SAMPLES = 64  # number of samples from which the input ranges of a card are computed
_MAX_BAD_STEPS = 5  # number of consecutive steps whose loss or gradient may be not finite


class OffsetSampler(Sampler):
    """Sampler of the indices start(), start() + 1, ...: new samples in each epoch, also after a resume.

    The epoch number that Lightning passes to samplers is off by one after a resume at the end of an epoch, so it is not
    used.

    Args:
        length: number of samples in an epoch.
        start: function that returns the first index of an epoch.
    """

    def __init__(self, length: int, start: Callable[[], int]):
        self.length, self.start = length, start

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        first = self.start()
        return iter(range(first, first + self.length))


class DistributedBatchSampler(Sampler):
    """Sampler of the share of one process in each batch: `size` samples out of `size * devices`."""

    def __init__(self, sampler: OffsetSampler, size: int, devices: int, rank: int):
        self.sampler, self.size, self.devices, self.rank = sampler, size, devices, rank

    def __len__(self) -> int:
        return len(self.sampler) // self.devices

    def __iter__(self) -> Iterator[int]:
        return (index for k, index in enumerate(self.sampler) if k // self.size % self.devices == self.rank)


class BaseDataModule(L.LightningDataModule):
    """Data module with new training samples in each epoch and fixed validation samples.

    Subclasses set `training` and `validation` (datasets) and `files` (names of the training files) in __init__ or
    setup().

    Args:
        config: configuration with batch_size and, if worker processes prepare the samples, workers.
        seed: random seed of the samples.
        devices: number of processes that share each batch; each process validates on all validation samples.
        start: function that returns the number of training samples used so far; None: computed from the trainer's
            steps.
    """

    def __init__(self, config, seed: int, devices: int = 1, start: Callable[[], int] | None = None):
        super().__init__()
        self.config, self.seed, self.devices = config, seed, devices
        self.trainer: L.Trainer
        self.start = start or (lambda: self.trainer.global_step * config.batch_size)
        self.validation_batch = config.batch_size
        self.training: Any = None
        self.validation: Any = None
        self.files: list[str] = []

    def compute_statistics(self, sample: dict) -> dict[str, float]:
        """Return the statistics of the input of a training sample, see fastds.inference.ood.statistics.

        This default implementation returns none.
        """
        return {}

    def compute_input_ranges(self, samples: int = _STATISTICS_SAMPLES) -> dict[str, list[float]]:
        """Return the ranges of the statistics of the first `samples` training samples, for the model card."""
        return compute_ranges(
            self.compute_statistics(self.training[i]) for i in range(min(samples, len(self.training)))
        )

    def train_dataloader(self) -> DataLoader:
        size = self.config.batch_size
        indices = OffsetSampler(len(self.training) // size * size, self.start)
        sampler: Sampler = indices
        if self.devices > 1:
            sampler = DistributedBatchSampler(indices, size // self.devices, self.devices, self.trainer.global_rank)
        n = getattr(self.config, "workers", 0)
        processes = {"num_workers": n, "persistent_workers": n > 0}
        return self.make_loader(self.training, batch_size=size // self.devices, sampler=sampler, **processes)

    def val_dataloader(self) -> DataLoader:
        return self.make_loader(self.validation, batch_size=self.validation_batch, sampler=range(len(self.validation)))

    def make_loader(self, samples: Dataset, **options) -> DataLoader:
        """Return a DataLoader. Subclasses add options."""
        return DataLoader(samples, **options)


class BaseLightningModule(L.LightningModule):
    """Lightning module that ends after config.max_minutes of training or at config.last_step(), with a validation.

    The checkpoint contains the training time, the random state and the names of the training data so far. Subclasses
    define `exported`, the network that is validated and saved with its card.

    Attributes:
        maps: maps of a sample, whose rows validation_step sets if this is not None; None without a TensorBoard log.
    """

    exported: Network

    def __init__(self, config: RunConfig):
        super().__init__()
        self.config = config
        self.elapsed = 0.0
        self._since: float | None = None
        self.graphs: GraphCache | None = None
        self._shown_failures: set[str] = set()
        self._random_state: Tensor | None = None
        self.maps: SampleMaps | None = None

    def training_seconds(self) -> float:
        """Return the training time in seconds, including the time before a resume."""
        return self.elapsed + (0.0 if self._since is None else time.monotonic() - self._since)

    def steps_done(self) -> int:
        """Return the number of batches trained on so far."""
        return self.global_step

    def last_step(self) -> int | None:
        """Return the last step of the run, or None if the number of steps is not limited."""
        return self.config.last_step()

    def on_train_start(self) -> None:
        _apply_present_options(self.trainer)
        self._since = time.monotonic()
        if self.config.graph != "never" and self.trainer.world_size == 1:
            self.graphs = GraphCache(train=True)
        if self.is_finished():  # the resumed run was already complete
            self.trainer.should_stop = True
        if self.trainer.world_size > 1:  # each process draws different random numbers
            torch.manual_seed(self.config.seed + 1_000_003 * (self.global_rank + 1) + self.steps_done())

    def use_graphs(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which forwards with gradients are replayed as CUDA graphs, see config.graph."""
        return use_graphs(self.graphs)

    def _report_graph_failures(self) -> None:
        """Print once for each network why it is trained without a graph."""
        for name, reason in self.graphs.failures.items() if self.graphs is not None else ():
            if name not in self._shown_failures:
                self._shown_failures.add(name)
                print(f"trained without a graph: {name}: {reason}", flush=True)

    def is_finished(self) -> bool:
        """Return whether the last step or the time limit is reached."""
        limit, last = self.config.max_minutes, self.config.last_step()
        return (limit is not None and self.training_seconds() >= 60.0 * limit) or (
            last is not None and self.steps_done() >= last
        )

    def on_train_batch_end(self, outputs, batch: dict, batch_index: int) -> None:
        """Stop the training at its last step or time limit, and report networks that are trained without a graph.

        Args:
            outputs: result of the training step, not used.
            batch: the batch, not used.
            batch_index: index of the batch in the epoch, not used.
        """
        self._report_graph_failures()
        # Lightning validates before stopping because of should_stop, but not when it stops at its own max_steps.
        if self.is_finished():
            self.trainer.should_stop = True

    def on_validation_start(self) -> None:
        found = [one.experiment for one in self.trainer.loggers if isinstance(one, loggers.TensorBoardLogger)]
        self.maps = SampleMaps(found) if found and self.trainer.is_global_zero else None

    def on_validation_end(self) -> None:
        if self.maps is not None:
            self.maps.write(self.steps_done())
            self.maps = None

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["elapsed"] = self.training_seconds()
        checkpoint["random_state"] = torch.get_rng_state()
        checkpoint["training_data"] = list(self.exported.card.training_data)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.elapsed, self._random_state = float(checkpoint["elapsed"]), checkpoint["random_state"]
        # raises an exception for a damaged state before the training begins
        torch.Generator().set_state(checkpoint["random_state"])
        now = self.exported.card.training_data
        self.exported.card.training_data = list(checkpoint.get("training_data", ()))
        add_training_data(self.exported.card, now)
        if self.trainer.world_size > 1:
            self._random_state = None  # the saved state belongs to the first process

    def on_train_epoch_start(self) -> None:
        self._restore_random_state()

    def on_train_batch_start(self, batch: dict, batch_index: int) -> None:
        self._restore_random_state()  # for a checkpoint within an epoch, where on_train_epoch_start is not called

    def _restore_random_state(self) -> None:
        # Restored only after all random draws at the start of a resumed run.
        state, self._random_state = self._random_state, None
        if state is not None:
            torch.set_rng_state(state)


def _apply_present_options(trainer: L.Trainer) -> None:
    """Apply the present options to the optimizers after a checkpoint has restored those of the previous run."""
    for optimiser in trainer.optimizers:
        rate, options = optimiser.defaults["lr"], {k: v for k, v in optimiser.defaults.items() if k != "lr"}
        for group in optimiser.param_groups:
            before = group["initial_lr"]
            if before != rate:
                group["lr"] = rate * (group["lr"] / before if before else 1.0)
            group |= options | {"initial_lr": rate}
    for config in trainer.lr_scheduler_configs:
        config.scheduler.base_lrs = [group["initial_lr"] for group in config.scheduler.optimizer.param_groups]


class SupervisedModule(BaseLightningModule):
    """Training of a single network, with a learning-rate schedule by steps and time.

    Steps with a loss or gradient that is not finite are skipped. Subclasses implement forward(batch), loss(prediction,
    batch) and validation_step.
    """

    def __init__(self, model: Network, config: SupervisedConfig):
        super().__init__(config)
        self.model = model
        self._bad_steps, self._finite_loss = 0, True

    if TYPE_CHECKING:

        def loss(self, prediction: Any, batch: dict) -> Tensor: ...

    @property
    def exported(self) -> Network:
        return self.model

    def training_step(self, batch: dict, batch_index: int) -> Tensor | None:
        with self.use_graphs():
            prediction = self(batch)
        loss = self.loss(prediction, batch)
        self._finite_loss = bool(torch.isfinite(loss))
        if not self._finite_loss:
            # With several processes, one process cannot skip a step that the others make.
            self._count_bad_step("loss", 1 if self.trainer.world_size > 1 else _MAX_BAD_STEPS)
            return None
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        c = self.config
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[c.optimizer]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimiser = kind(trained, lr=c.learning_rate, weight_decay=c.weight_decay, betas=tuple(c.betas))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._compute_rate_factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _compute_rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate: linear warm-up, then config.schedule.

        The cosine schedule reaches zero at the last step or at max_minutes, whichever comes first.
        """
        c = self.config
        warmup = min(1.0, (step + 1) / max(1, c.warmup_steps))
        if c.schedule == "constant":
            return warmup
        if c.schedule == "steps":
            return warmup * c.gamma ** bisect.bisect_right(c.milestones, step)
        return warmup * 0.5 * (1.0 + math.cos(math.pi * self.compute_progress(step)))

    def compute_progress(self, step: int) -> float:
        """Return the completed fraction of the training, 0 to 1, by steps or by time, whichever is larger."""
        last, minutes = self.last_step(), self.config.max_minutes
        done = 0.0 if last is None else step / last
        if minutes is not None:
            done = max(done, self.training_seconds() / (60.0 * minutes))
        return min(1.0, done)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip the norm of the gradient to config.gradient_clip, if that is set.

        A step with a gradient that is not finite is skipped.

        Args:
            optimizer: optimizer of the step.
            gradient_clip_val: not used.
            gradient_clip_algorithm: not used.

        Raises:
            FloatingPointError: too many successive steps are not finite.
        """
        parameters, largest = list(self.model.parameters()), self.config.gradient_clip
        if largest is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        else:
            norm = torch.nn.utils.clip_grad_norm_(parameters, largest)
        if not torch.isfinite(norm):
            self._count_bad_step("gradient")
            optimizer.zero_grad(set_to_none=True)
        elif self._finite_loss:  # Lightning also calls this method after a skipped loss, without gradients
            self._bad_steps = 0

    def _count_bad_step(self, what: str, patience: int = _MAX_BAD_STEPS) -> None:
        self._bad_steps += 1
        if self._bad_steps >= patience:
            steps = f"{patience} steps in a row (step" if patience > 1 else "a step of several processes ("
            raise FloatingPointError(
                f"the {what} was not finite in {steps} {self.steps_done()}); "
                f"the last checkpoint is kept: resume with a smaller {spell_name('learning_rate')}"
            )
