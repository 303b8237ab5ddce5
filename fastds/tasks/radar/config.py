# SPDX-License-Identifier: Apache-2.0
"""What a training run is made of: dataclasses and the command line."""

import dataclasses

from fastds.tasks.common.command import read_command_line


@dataclasses.dataclass
class ModelConfig:
    """The network.

    Args:
        name: a name of fastds.models.available().
        options: keyword arguments of fastds.models.create that replace the preset's.
        start: a safetensors file or a shipped name to start from instead of random weights.
        input_gain: of fresh weights: factor of the first convolution, see run.strengthen; 1 leaves all weights alone.
        card: fields of the model card written into the exported weights (licence, training_data, ...).
    """

    name: str = "fczsm-small"
    options: dict = dataclasses.field(default_factory=dict)
    start: str | None = None
    input_gain: float = 10.0
    card: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class DataConfig:
    """The samples.

    Args:
        path: a NetCDF file or a folder of them.
        blocks: per file name the frames {"train": [start, stop], "validation": [start, stop]}; only files named here
            count.
            Empty: every *.nc under path, its last fifth for validation with two frames left out between.
        synthetic_events: number of seeded synthetic events (wind 5 to 25 m/s) that join the training samples.
        weights: relative share of each training source, files in the order of blocks, then the synthetic events;
            empty: equal.
        var: name of the reflectivity variable; None finds it.
        statics: maps for a network with static_channels, such as fczsm-s: FILE.nc:VARIABLE for each of its channels, on
            any grid that covers the files; not with synthetic events, which lie nowhere.
        crop: side of a coarse training crop, pixels.
        scales: coarsenings of the truth to draw from.
        intervals: multiples of the cadence to draw from.
        floor: dBZ that become 0.
        ceiling: dBZ that become 1.
        minimum_echo: share of echo that a crop should have.
        batch_size: samples per step.
        epoch_samples: samples between validations.
        validation_samples: fixed validation crops.
        workers: processes that prepare samples.
    """

    path: str
    blocks: dict[str, dict[str, list[int]]] = dataclasses.field(default_factory=dict)
    synthetic_events: int = 0
    weights: list[float] = dataclasses.field(default_factory=list)
    var: str | None = None
    statics: list[str] = dataclasses.field(default_factory=list)
    crop: int = 48
    scales: list[int] = dataclasses.field(default_factory=lambda: [1, 2, 4])
    intervals: list[int] = dataclasses.field(default_factory=lambda: [1, 2, 3])
    floor: float = 15.0
    ceiling: float = 70.0
    minimum_echo: float = 0.2
    batch_size: int = 4
    epoch_samples: int = 1000
    validation_samples: int = 48
    workers: int = 1


@dataclasses.dataclass(kw_only=True)
class RunConfig:
    """What the trainings of one network share: AdamW with a warm-up and a cosine decay, its bounds and its folder.

    Args:
        seed: of weights and samples.
        max_steps: optimiser steps; the learning rate reaches zero here or at max_minutes, whichever comes first.
        max_minutes: wall-clock bound, pauses between resumed runs not counted; None: no bound.
        learning_rate: the highest.
        warmup_steps: in which it grows to that.
        weight_decay: of AdamW.
        gradient_clip: largest norm of the gradient.
        ema_decay: of the averaged weights that are validated and exported; 0 switches averaging off.
        resume: continue from the last checkpoint in output, where there is one.
        progress: show a progress bar.
        threads: of torch; None leaves them as they are.
    """

    seed: int = 0
    max_steps: int = 20_000
    max_minutes: float | None = None
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    resume: bool = True
    progress: bool = False
    threads: int | None = None

    def __post_init__(self):
        if self.max_steps < 1 or (self.max_minutes is not None and not self.max_minutes > 0):
            raise ValueError(f"max_steps and max_minutes must be positive, got {self.max_steps} and {self.max_minutes}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")


@dataclasses.dataclass
class TrainingConfig(RunConfig):
    """A training run of FC-ZSM.

    Args:
        data: the samples.
        model: the network.
        output: folder for checkpoints, logs and the exported weights.
        loss: "mse", "charbonnier", or "relative_mse": squared error of a sample over that of trilinear interpolation.
    """

    data: DataConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    output: str = "training"
    loss: str = "relative_mse"
    progress: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")


LOSSES = ("mse", "charbonnier", "relative_mse")


def parse_arguments(arguments: list[str]) -> TrainingConfig:
    """Read `arguments`, a command line, into a TrainingConfig; `--config NAME` takes a shipped configuration by its
    name."""
    description = "Train a network on radar files; the best weights are exported as safetensors."
    return read_command_line(TrainingConfig, arguments, "radar", description)
