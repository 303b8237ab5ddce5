# SPDX-License-Identifier: Apache-2.0
"""The options that every training has: its network, its bounds, its folder."""

import dataclasses
from typing import Any

# A field of a card. As Any, text with a colon would be read as a dict.
Written = int | float | str | list | dict | None
MINUTES = 60.0  # of a training that is given no bound


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
        sizes = {name: getattr(self.data, name, 1) for name in ("batch_size", "validation_samples", "epoch_samples")}
        for name, value in sizes.items():
            least = sizes["batch_size"] if name == "epoch_samples" else 1
            if value < least:
                said = "data.batch_size" if name == "epoch_samples" else "1"
                raise ValueError(f"data.{name} must be at least {said}, got {value}")
        if self.devices < 1 or self.data.batch_size % self.devices:
            raise ValueError(
                f"devices must be positive and divide data.batch_size={self.data.batch_size}, got {self.devices}"
            )
        if self.max_minutes is None and not self.ends():
            self.max_minutes = MINUTES
        if self.devices > 1 and self.max_minutes is not None:
            raise ValueError("max_minutes is for one process, others have clocks of their own: give max_steps")

    def ends(self) -> bool:
        """Whether a number of steps ends the run."""
        return self.max_steps is not None


@dataclasses.dataclass(kw_only=True)
class SupervisedConfig(RunConfig):
    """What the trainings of one network share: AdamW with a warm-up and a cosine decay.

    Args:
        warmup_steps: in which the learning rate grows to its highest.
        weight_decay: of AdamW.
        gradient_clip: largest norm of the gradient.
    """

    warmup_steps: int = 100
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
