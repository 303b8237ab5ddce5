# SPDX-License-Identifier: Apache-2.0
"""Options of every training: network, limits, output folder."""

import dataclasses
from typing import TYPE_CHECKING, Any

from fastds._options import OptionError, spell_name
from fastds.inference.execution import GRAPHS

# Types of a model-card field. With Any, jsonargparse would parse text with a colon as a dict.
CardValue = int | float | str | list | dict | None
DEFAULT_MINUTES = 60.0  # time limit of a training for which no limit is given
OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("cosine", "constant", "steps")


@dataclasses.dataclass
class ModelConfig:
    """Network to train.

    Args:
        name: name of a network, see fastds.models.available().
        options: keyword arguments of fastds.models.create that override the preset.
        start: safetensors file or shipped name of weights to start from; it replaces name and options. Default: random
            weights.
        card: fields of the model card in the exported weights (licence, training_data, ...).
    """

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    start: str | None = None
    card: dict[str, CardValue] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(kw_only=True)
class RunConfig:
    """Options of every training: seed, limits, learning rate, output folder, processes.

    Args:
        output: folder for checkpoints, logs and exported weights.
        seed: random seed of the initial weights and the samples.
        max_steps: number of optimizer steps. With the cosine schedule, the learning rate reaches zero at max_steps or
            max_minutes, whichever comes first. Default: no limit.
        max_minutes: time limit in minutes of wall-clock time; pauses between resumed runs do not count. Default: 60 if
            the number of steps is not limited, else no limit.
        learning_rate: highest learning rate.
        early_stopping: number of validations in a row without a lower error after which the training ends. There are at
            least five validations in a training. Default: the training does not end early.
        ema_decay: decay of the exponential moving average of the weights, which is validated and exported; 0: no
            averaging.
        resume: resume from the last checkpoint in output, if there is one, with the present options.
        validate_start: also validate before the first step, so that best.safetensors is never worse than model.start.
        progress: print the progress to standard error.
        threads: number of CPU threads. Default: torch's setting.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        devices: number of processes that share each batch, one per GPU or on the CPU; gradients are averaged. Only a
            training with one process accepts max_minutes and is reproduced bit by bit when resumed.
        graph: "auto" (with one process on a GPU, forward and backward are replayed as CUDA graphs, if their outputs and
            gradients are those without graphs) or "never".
        report: HTML file with learning curves, validation scores and the configuration. Default: no report.
    """

    output: str = "training"
    seed: int = 0
    max_steps: int | None = None
    max_minutes: float | None = None
    learning_rate: float = 1e-3
    early_stopping: int | None = None
    ema_decay: float = 0.999
    resume: bool = True
    validate_start: bool = False
    progress: bool = True
    threads: int | None = None
    device: str = "auto"
    devices: int = 1
    graph: str = "auto"
    report: str | None = None

    if TYPE_CHECKING:  # subclasses define further options

        def __getattr__(self, name: str) -> Any: ...

    def __post_init__(self):
        bounds = (self.max_steps is None or self.max_steps >= 1, self.max_minutes is None or self.max_minutes > 0)
        if not all(bounds):
            raise ValueError(
                f"{spell_name('max_steps')} and {spell_name('max_minutes')} must be positive, got "
                f"{self.max_steps} and {self.max_minutes}"
            )
        if self.early_stopping is not None:
            check_minimum("early_stopping", self.early_stopping, 1)
            if self.devices > 1:
                raise OptionError("early_stopping", f"is for one process, got {spell_name('devices')}={self.devices}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise OptionError("ema_decay", f"must lie in [0, 1), got {self.ema_decay}")
        if self.graph not in GRAPHS:
            raise OptionError("graph", f"must be {' or '.join(GRAPHS)}, got {self.graph!r}")
        if not 0 <= self.seed < 1 << 32:
            raise OptionError("seed", f"must lie in 0 to 2^32 - 1, got {self.seed}")
        if self.output.endswith(".safetensors"):
            raise OptionError("output", f"must be a folder, which gets best.safetensors, got {self.output!r}")
        check_positive("learning_rate", self.learning_rate)
        for name, least in (("crop", 1), ("halo", 0), ("queries", 1), ("workers", 0)):
            value = getattr(self.data, name, None)
            check_minimum(f"data.{name}", least if value is None else value, least)
        sizes = {name: getattr(self.data, name, 1) for name in ("batch_size", "validation_samples", "epoch_samples")}
        for name, value in sizes.items():
            if name == "epoch_samples" and value < sizes["batch_size"]:
                raise OptionError(
                    "data.epoch_samples", f"must be at least {spell_name('data.batch_size')}, got {value}"
                )
            check_minimum(f"data.{name}", value, 1)
        if self.devices < 1 or self.data.batch_size % self.devices:
            raise OptionError(
                "devices",
                f"must be positive and divide {spell_name('data.batch_size')}={self.data.batch_size}, "
                f"got {self.devices}",
            )
        self.end_given = self.max_minutes is not None or self.last_step() is not None
        if self.max_minutes is None and not self.has_last_step():
            self.max_minutes = DEFAULT_MINUTES
        if self.devices > 1 and self.max_minutes is not None:
            raise OptionError(
                "max_minutes",
                f"is for one process, several processes have separate clocks: give {spell_name('max_steps')}",
            )

    def has_last_step(self) -> bool:
        """Return whether the number of steps is limited."""
        return self.last_step() is not None

    def last_step(self) -> int | None:
        """Return the last optimizer step of the run, or None if the number of steps is not limited."""
        return self.max_steps


@dataclasses.dataclass(kw_only=True)
class SupervisedConfig(RunConfig):
    """Options of trainings with a single network: optimizer and learning-rate schedule.

    Args:
        optimizer: "adamw" (decoupled weight decay) or "adam" (weight decay added to the gradient, as in torch).
        betas: coefficients of the optimizer's moving averages.
        weight_decay: weight decay of the optimizer.
        schedule: learning rate after the warm-up: "cosine" (zero at the end of the run), "constant" or "steps"
            (multiplied by gamma at each milestone).
        milestones: steps at which schedule "steps" changes the learning rate.
        gamma: factor of the learning rate at each milestone.
        warmup_steps: number of steps of the linear warm-up of the learning rate; 0: no warm-up.
        max_epochs: number of epochs of data.epoch_samples after which the run ends; ignored if max_steps is given.
        gradient_clip: largest norm of the gradient; null: no clipping. Steps with a loss or gradient that is not finite
            are always skipped.
    """

    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    schedule: str = "cosine"
    milestones: list[int] = dataclasses.field(default_factory=list)
    gamma: float = 0.5
    warmup_steps: int = 100
    weight_decay: float = 0.0
    max_epochs: int | None = None
    gradient_clip: float | None = 1.0

    def __post_init__(self):
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise OptionError(name, f"must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.max_epochs is not None:
            check_minimum("max_epochs", self.max_epochs, 1)
        super().__post_init__()
        if self.gradient_clip is not None:
            check_positive("gradient_clip", self.gradient_clip)
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise OptionError("betas", f"must lie in [0, 1), got {list(self.betas)}")
        if (self.schedule == "steps") != bool(self.milestones) or self.milestones != sorted(set(self.milestones)):
            raise OptionError(
                "milestones",
                "must be growing numbers of steps with schedule 'steps' and empty with any other, got "
                f"{self.milestones} with {self.schedule!r}",
            )
        check_positive("gamma", self.gamma)
        check_minimum("weight_decay", self.weight_decay, 0)
        check_minimum("warmup_steps", self.warmup_steps, 0)

    def last_step(self) -> int | None:
        if self.max_steps is not None or self.max_epochs is None:
            return self.max_steps
        return self.max_epochs * (self.data.epoch_samples // self.data.batch_size)


def check_minimum(name: str, value: float, least: float) -> None:
    """Check that the value of an option is not below its minimum.

    Args:
        name: name of the option.
        value: value of the option.
        least: smallest valid value.

    Raises:
        ValueError: the value is below the minimum.
    """
    if value < least:
        raise OptionError(name, f"must be at least {least}, got {value}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError if the value of an option is not positive."""
    if not value > 0:
        raise OptionError(name, f"must be positive, got {value}")


def check_radar_samples(data) -> None:
    """Raise ValueError if the sampling options of a training on radar files are invalid."""
    if not data.floor < data.ceiling:
        raise OptionError(
            "data.floor", f"must be below {spell_name('data.ceiling')}, got {data.floor} and {data.ceiling}"
        )
    if not 0 <= data.minimum_echo <= 1:
        raise OptionError("data.minimum_echo", f"must lie in [0, 1], got {data.minimum_echo}")
    for name in ("scales", "intervals"):
        if min(values := getattr(data, name), default=0) < 1:
            raise OptionError(f"data.{name}", f"must be one whole number or more, each at least 1, got {values}")


def remove_files_without(data) -> None:
    """Remove the files of data.without from data.blocks, together with their weights, and empty data.without.

    Raises:
        ValueError: a file is not in data.blocks, or no file is left.
    """
    for file in data.without:
        if file not in data.blocks:
            known = ", ".join(data.blocks) or "none"
            raise OptionError(
                "data.without", f"must name files of {spell_name('data.blocks')}, which are {known}, got {file}"
            )
        if len(data.blocks) == 1:
            raise OptionError(
                "data.without",
                f"leaves no file of {spell_name('data.blocks')} to train on, got all: {file} is the last",
            )
        place = list(data.blocks).index(file)
        data.blocks = {name: part for name, part in data.blocks.items() if name != file}
        data.weights = [*data.weights[:place], *data.weights[place + 1 :]]
    data.without = []
