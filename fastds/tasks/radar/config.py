# SPDX-License-Identifier: Apache-2.0
"""Options of `fastds train radar`."""

import dataclasses

from fastds._options import OptionError, spell_name
from fastds.training import config
from fastds.training.command import read_command_line

LOSSES = ("mse", "charbonnier", "relative_mse")
SPLITS = ("blocks", "random")


@dataclasses.dataclass
class ModelConfig(config.ModelConfig):
    """Network to train.

    Args:
        name: name of an FC-ZSM or a U-Net in fastds.models.available().
        input_gain: factor of the first convolution of random initial weights, see training.scale_initial_weights; 1:
            initial weights are not scaled.
        middle_frame_only: whether only the correction of the frames between input times is trained
            (FCZSM(middle_frame=True)). It is added to the FC-ZSM of `start` if that has none.
    """

    name: str = "fczsm-small"
    input_gain: float = 10.0
    middle_frame_only: bool = False


@dataclasses.dataclass
class DataConfig:
    """Training samples.

    Args:
        path: NetCDF file or folder of NetCDF files.
        blocks: for each file name the frames {"train": [start, stop], "validation": [start, stop]}; other files are not
            used. Without "validation", a file is used for training only. Empty: each *.nc under path, with the last
            fifth for validation and a gap of two frames.
        without: files of blocks to exclude together with their weights, for example a radar that is for tests only.
        synthetic_events: number of synthetic events (motion of 5 to 25 m/s) that are added to the training files.
        weights: sampling weight of each training file in the order of blocks, then of all synthetic events; empty:
            equal.
        var: name of the reflectivity variable; default: found by its attributes.
        statics: static maps for a network with static_channels, such as fczsm-s: FILE.nc:VARIABLE for each channel, on
            any grid that covers the files; not with synthetic events, which have no location.
        dynamics: additional variables of the files, such as {probability: [0, 100]}, with the ends of the range, in the
            units of the variable, that are scaled to 0 and 1; one for each channel beyond the first of a network such
            as fczsm-d; not with synthetic events.
        crop: side of a coarse training crop in pixels.
        scales: coarsening factors of the truth, drawn at random.
        intervals: multiples of the time step, drawn at random.
        modes: coarsening operators, drawn at random, see fastds.data.coarsen: dbz, linear_z, plain_dbz.
        floor: reflectivity in dBZ that is scaled to 0.
        ceiling: reflectivity in dBZ that is scaled to 1.
        minimum_echo: fraction of pixels with echo that a crop should have, also in the validation.
        minimum_valid: fraction of pixels that should not be missing in a crop.
        augment: whether to flip and transpose samples at random.
        reverse: whether half of the training samples are reversed in time.
        batch_size: number of samples in a step.
        epoch_samples: number of samples between validations.
        validation_samples: number of fixed validation crops with split "blocks".
        split: "blocks": training and validation parts are those of blocks. "random": fixed samples are drawn from all
            times of all files, each with at least minimum_echo and minimum_valid, without repetition; validation
            samples may be some minutes away from training samples.
        fixed_samples: numbers of training, validation and test samples with split "random". Each training sample is
            used once in an epoch, in random order.
        split_seed: random seed of the fixed samples, so that trainings with several seeds have the same test samples.
        workers: number of processes that prepare samples.
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
            raise OptionError("data.minimum_valid", f"must lie in [0, 1], got {self.minimum_valid}")
        self._check_split()
        config.remove_files_without(self)

    def _check_split(self) -> None:
        """Raise ValueError for an unknown split, or for options that do not fit the split."""
        if self.split not in SPLITS:
            raise OptionError("data.split", f"must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.split == "blocks":
            if self.fixed_samples:
                raise OptionError(
                    "data.fixed_samples", f"is for {spell_name('data.split')}=random, got {self.fixed_samples}"
                )
            return
        if len(self.fixed_samples) != 3 or min(self.fixed_samples[:2]) < 1 or self.fixed_samples[2] < 0:
            raise OptionError(
                "data.fixed_samples",
                "must be the numbers of training, validation and test samples with "
                f"{spell_name('data.split')}=random, such as [6000, 100, 1000], got {self.fixed_samples}",
            )
        if self.blocks or self.synthetic_events:
            raise ValueError(
                f"{spell_name('data.split')}=random draws from whole files: leave out "
                f"{spell_name('data.blocks')} and {spell_name('data.synthetic_events')}"
            )


@dataclasses.dataclass
class TrainingConfig(config.SupervisedConfig):
    """Training of an FC-ZSM or a U-Net.

    Args:
        data: training samples.
        model: network.
        loss: "mse", "charbonnier", or "relative_mse" (squared error of a sample relative to trilinear interpolation).
    """

    data: DataConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: str = "relative_mse"

    def __post_init__(self):
        super().__post_init__()
        if self.loss not in LOSSES:
            raise OptionError("loss", f"must be one of {', '.join(LOSSES)}, got {self.loss!r}")


def parse_arguments(arguments: list[str]) -> TrainingConfig:
    """Parse a command line into a TrainingConfig. `--config NAME` selects a shipped configuration."""
    description = "Train a network on radar files; the best weights are exported as safetensors."
    return read_command_line(TrainingConfig, arguments, "fastds train radar", description)
