# SPDX-License-Identifier: Apache-2.0
"""The options of `fastds train radar`."""

import dataclasses

from fastds.tasks.common import config
from fastds.tasks.common.command import read_command_line

LOSSES = ("mse", "charbonnier", "relative_mse")
SPLITS = ("blocks", "random")


@dataclasses.dataclass
class ModelConfig(config.ModelConfig):
    """The network.

    Args:
        name: a name of fastds.models.available(), of an FC-ZSM or a U-Net.
        input_gain: of fresh weights: factor of the first convolution, see training.scale_initial_weights; 1 leaves all
            weights alone.
    """

    name: str = "fczsm-small"
    input_gain: float = 10.0


@dataclasses.dataclass
class DataConfig:
    """The samples.

    Args:
        path: a NetCDF file or a folder of them.
        blocks: per file name the frames {"train": [start, stop], "validation": [start, stop]}; only files named here
            count.
            Empty: every *.nc under path, its last fifth for validation with two frames left out between.
        without: files of blocks to leave out, with their weights: a radar that the network shall be tested on.
        synthetic_events: number of seeded synthetic events (wind 5 to 25 m/s) that join the training samples.
        weights: relative share of each training source, files in the order of blocks, then the synthetic events;
            empty: equal.
        var: name of the reflectivity variable; None finds it.
        statics: maps for a network with static_channels, such as fczsm-s: FILE.nc:VARIABLE for each of its channels, on
            any grid that covers the files; not with synthetic events, which lie nowhere.
        dynamics: further variables of the files, such as {probability: [0, 100]}: the ends of the range, in its units,
            that become 0 and 1; one for each channel beyond the first of a network with in_channels, such as fczsm-d;
            not with synthetic events, which have none.
        crop: side of a coarse training crop, pixels.
        scales: coarsenings of the truth to draw from.
        intervals: multiples of the cadence to draw from.
        modes: ways of coarsening to draw from, see fastds.data.coarsen: dbz, linear_z, plain_dbz.
        floor: dBZ that become 0.
        ceiling: dBZ that become 1.
        minimum_echo: share of echo that a crop should have, also in the validation.
        minimum_valid: share of its pixels that should not be missing.
        augment: flips and transposes at random.
        reverse: half of the training samples run backwards in time.
        batch_size: samples per step.
        epoch_samples: samples between validations.
        validation_samples: fixed validation crops, of split "blocks".
        split: "blocks": training and validation are those of blocks. "random": fixed samples are drawn from all times
            of all files, each of at least minimum_echo and minimum_valid, none twice; a sample of the validation may be
            some minutes away from one of the training.
        fixed_samples: numbers of training, validation and test samples of split "random". Every training sample comes
            once in a pass over them; the order is drawn anew for each pass.
        split_seed: of the draw of the fixed samples, so that trainings of several seeds are tested on the same ones.
        workers: processes that prepare samples.
    """

    path: str
    blocks: dict[str, dict[str, list[int]]] = dataclasses.field(default_factory=dict)
    without: list[str] = dataclasses.field(default_factory=list)
    synthetic_events: int = 0
    weights: list[float] = dataclasses.field(default_factory=list)
    var: str | None = None
    statics: list[str] = dataclasses.field(default_factory=list)
    dynamics: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    crop: int = 48
    scales: list[int] = dataclasses.field(default_factory=lambda: [1, 2, 4])
    intervals: list[int] = dataclasses.field(default_factory=lambda: [1, 2, 3])
    modes: list[str] = dataclasses.field(default_factory=lambda: ["dbz", "linear_z", "plain_dbz"])
    floor: float = 15.0
    ceiling: float = 70.0
    minimum_echo: float = 0.2
    minimum_valid: float = 0.5
    augment: bool = True
    reverse: bool = True
    batch_size: int = 4
    epoch_samples: int = 1000
    validation_samples: int = 48
    split: str = "blocks"
    fixed_samples: list[int] = dataclasses.field(default_factory=list)
    split_seed: int = 0
    workers: int = 1

    def __post_init__(self):
        config.check_radar_samples(self)
        if not 0 <= self.minimum_valid <= 1:
            raise ValueError(f"data.minimum_valid must lie in [0, 1], got {self.minimum_valid}")
        self._check_split()
        for file in self.without:
            self._leave_out(file)
        self.without = []

    def _check_split(self) -> None:
        """ValueError for a split that there is not, and for options that do not fit it."""
        if self.split not in SPLITS:
            raise ValueError(f"data.split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.split == "blocks":
            if self.fixed_samples:
                raise ValueError(f"data.fixed_samples is for data.split=random, got {self.fixed_samples}")
            return
        if len(self.fixed_samples) != 3 or min(self.fixed_samples[:2]) < 1 or self.fixed_samples[2] < 0:
            raise ValueError(
                "data.fixed_samples must be the numbers of training, validation and test samples with "
                f"data.split=random, such as [6000, 100, 1000], got {self.fixed_samples}"
            )
        if self.blocks or self.synthetic_events:
            raise ValueError("data.split=random draws from whole files: leave out data.blocks and synthetic_events")

    def _leave_out(self, file: str) -> None:
        """Take a file from blocks, and its weight."""
        if file not in self.blocks:
            known = ", ".join(self.blocks) or "none"
            raise ValueError(f"data.without must name files of data.blocks, which are {known}, got {file}")
        if len(self.blocks) == 1:
            raise ValueError(f"data.without leaves no file of data.blocks to train on, got all: {file} is the last")
        place = list(self.blocks).index(file)
        self.blocks = {name: part for name, part in self.blocks.items() if name != file}
        self.weights = [*self.weights[:place], *self.weights[place + 1 :]]


@dataclasses.dataclass
class TrainingConfig(config.SupervisedConfig):
    """A training run of FC-ZSM or of a U-Net.

    Args:
        data: the samples.
        model: the network.
        loss: "mse", "charbonnier", or "relative_mse": squared error of a sample over that of trilinear interpolation.
    """

    data: DataConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: str = "relative_mse"

    def __post_init__(self):
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")


def parse_arguments(arguments: list[str]) -> TrainingConfig:
    """Read `arguments`, a command line, into a TrainingConfig; `--config NAME` takes a shipped configuration by its
    name."""
    description = "Train a network on radar files; the best weights are exported as safetensors."
    return read_command_line(TrainingConfig, arguments, "fastds train radar", description)
