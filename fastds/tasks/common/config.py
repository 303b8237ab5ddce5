# SPDX-License-Identifier: Apache-2.0
"""The options that every training has: its network, its bounds, its folder."""

import dataclasses
from typing import Any

# A field of a card. As Any, text with a colon would be read as a dict.
Written = int | float | str | list | dict | None
MINUTES = 60.0  # of a training that is given no bound
OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("cosine", "constant", "steps")


@dataclasses.dataclass
class ModelConfig:
    """The network.

    Args:
        name: a name of fastds.models.available().
        options: keyword arguments of fastds.models.create that replace the preset's.
        start: a safetensors file or a shipped name to start from instead of random weights; it replaces name and
            options.
        card: fields of the model card written into the exported weights (licence, training_data, ...).
    """

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    start: str | None = None
    card: dict[str, Written] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(kw_only=True)
class RunConfig:
    """What every training has: seed, bounds, learning rate, folder and processes.

    Args:
        output: folder for checkpoints, logs and the exported weights.
        seed: of weights and samples.
        max_steps: optimiser steps; the learning rate reaches zero here or at max_minutes, whichever comes first. None:
            as many as there is time for.
        max_minutes: wall-clock bound, pauses between resumed runs not counted; None: an hour where no number of steps
            is given, else no bound.
        learning_rate: the highest.
        ema_decay: of the averaged weights that are validated and exported; 0 switches averaging off.
        resume: continue from the last checkpoint in output, where there is one, with the options given now.
        validate_start: validate before the first step, too, so that best.safetensors is never worse than model.start.
        progress: say how far it is, on standard error.
        threads: of torch; None leaves them as they are.
        device: "auto", a GPU where there is one, "cpu" or "cuda".
        devices: processes that share each batch, one for each GPU, else on the CPU; gradients are averaged. Only one
            process resumes bit by bit and takes max_minutes.
        report: an HTML page to write at the end: learning curves, validation scores, configuration; None: none.
    """

    output: str = "training"
    seed: int = 0
    max_steps: int | None = None
    max_minutes: float | None = None
    learning_rate: float = 1e-3
    ema_decay: float = 0.999
    resume: bool = True
    validate_start: bool = False
    progress: bool = True
    threads: int | None = None
    device: str = "auto"
    devices: int = 1
    report: str | None = None

    def __post_init__(self):
        bounds = (self.max_steps is None or self.max_steps >= 1, self.max_minutes is None or self.max_minutes > 0)
        if not all(bounds):
            raise ValueError(f"max_steps and max_minutes must be positive, got {self.max_steps} and {self.max_minutes}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed must lie in 0 to 2^32 - 1, got {self.seed}")
        if self.output.endswith(".safetensors"):
            raise ValueError(f"output must be a folder, which gets best.safetensors, got {self.output!r}")
        check_positive("learning_rate", self.learning_rate)
        for name, least in (("crop", 1), ("halo", 0), ("queries", 1), ("workers", 0)):
            check_least(f"data.{name}", getattr(self.data, name, least), least)
        sizes = {name: getattr(self.data, name, 1) for name in ("batch_size", "validation_samples", "epoch_samples")}
        for name, value in sizes.items():
            if name == "epoch_samples" and value < sizes["batch_size"]:
                raise ValueError(f"data.epoch_samples must be at least data.batch_size, got {value}")
            check_least(f"data.{name}", value, 1)
        if self.devices < 1 or self.data.batch_size % self.devices:
            raise ValueError(
                f"devices must be positive and divide data.batch_size={self.data.batch_size}, got {self.devices}"
            )
        self.end_given = self.max_minutes is not None or self.last_step() is not None
        if self.max_minutes is None and not self.ends():
            self.max_minutes = MINUTES
        if self.devices > 1 and self.max_minutes is not None:
            raise ValueError("max_minutes is for one process, others have clocks of their own: give max_steps")

    def ends(self) -> bool:
        """Whether a number of steps ends the run."""
        return self.last_step() is not None

    def last_step(self) -> int | None:
        """The optimiser step that ends the run, None where none does."""
        return self.max_steps


@dataclasses.dataclass(kw_only=True)
class SupervisedConfig(RunConfig):
    """What the trainings of one network share: the optimiser, and how the learning rate changes.

    Args:
        optimizer: "adamw", whose weight decay is apart from the gradient, or "adam", with torch's weight decay.
        betas: of the optimiser.
        weight_decay: of the optimiser.
        schedule: of the learning rate after the warm-up: "cosine", to zero at the end of the run; "constant"; "steps",
            times gamma at each of the milestones.
        milestones: steps at which the rate of schedule "steps" changes.
        gamma: factor of the rate at each milestone.
        warmup_steps: in which the learning rate grows to its highest; 0: none.
        max_epochs: epochs of data.epoch_samples after which the run ends; max_steps replaces it where it is given.
        gradient_clip: largest norm of the gradient; null: gradients stay as they are. Steps whose loss or gradient is
            not finite are left out in either case.
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
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.max_epochs is not None:
            check_least("max_epochs", self.max_epochs, 1)
        super().__post_init__()
        if self.gradient_clip is not None:
            check_positive("gradient_clip", self.gradient_clip)
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        if (self.schedule == "steps") != bool(self.milestones) or self.milestones != sorted(set(self.milestones)):
            raise ValueError(
                "milestones must be growing numbers of steps with schedule 'steps' and empty with any other, got "
                f"{self.milestones} with {self.schedule!r}"
            )
        check_positive("gamma", self.gamma)
        check_least("weight_decay", self.weight_decay, 0)
        check_least("warmup_steps", self.warmup_steps, 0)

    def last_step(self) -> int | None:
        if self.max_steps is not None or self.max_epochs is None:
            return self.max_steps
        return self.max_epochs * (self.data.epoch_samples // self.data.batch_size)


def check_least(name: str, value: float, least: float) -> None:
    """ValueError for an option below its least value."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_positive(name: str, value: float) -> None:
    """ValueError for an option that is zero, with which no weight would move, or negative."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def check_radar_samples(data) -> None:
    """ValueError for samples of radar files, `data`, that there are none of."""
    if not data.floor < data.ceiling:
        raise ValueError(f"data.floor must be below data.ceiling, got {data.floor} and {data.ceiling}")
    if not 0 <= data.minimum_echo <= 1:
        raise ValueError(f"data.minimum_echo must lie in [0, 1], got {data.minimum_echo}")
    for name in ("scales", "intervals"):
        if min(values := getattr(data, name), default=0) < 1:
            raise ValueError(f"data.{name} must be one whole number or more, each at least 1, got {values}")
