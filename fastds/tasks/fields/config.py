# SPDX-License-Identifier: Apache-2.0
"""Options of `fastds train fields`."""

import dataclasses
import itertools

from torch import Tensor

from fastds._options import OptionError, spell_name
from fastds.models.card import ANY
from fastds.training import config
from fastds.training.command import read_command_line


@dataclasses.dataclass
class ModelConfig(config.ModelConfig):
    """Network to train.

    Args:
        name: name of an arbitrary-scale network or of a baseline network in fastds.models.available().
    """

    name: str = "inr-small"


@dataclasses.dataclass
class DataConfig:
    """Training samples.

    Args:
        path: NetCDF or GRIB file with variables over (time, [level,] latitude, longitude), or with `each` a folder of
            files.
        variables: names of the variables, in the order of the network's channels.
        each: list of FILE.nc:VARIABLE in the folder, in place of `variables`. All times and levels of each variable are
            samples with one channel, for networks that take any variable. "*" selects all fields of the file or folder.
            The first three quarters of the columns are for training, the last fifth is for validation.
        units: expected units of the variables; empty: not checked.
        level: value of the vertical coordinate, if the file has several levels.
        statics: static maps (such as orography) that the encoder reads: variables over (latitude, longitude) of the
            same file, or FILE.nc:VARIABLE of another file on any grid.
        split: axis that train, validation and test divide: "longitude" (columns) or "time" (time steps).
        train: [first, stop) of the training part. Default with an empty validation: the first three quarters for
            training and the last fifth for validation.
        validation: [first, stop) of the part by which the weights are selected. Parts must not overlap; leave a gap
            between them.
        test: [first, stop) of the part on which `fastds study` computes scores; a training does not read it. Empty: no
            test part.
        crop: side of a sample in coarse pixels. Default: 32, or the largest that fits into a smaller grid.
        halo: margin in coarse pixels around a sample that the degradation pipeline reads.
        queries: number of target points of a sample.
        scales: smallest and largest scale factor.
        anisotropic: probability of different factors along rows and columns.
        whole_factors: probability of an integer factor, at least 2.
        flips: whether samples are flipped at random.
        vectors: channels of the wind components (u, v) along x and y, whose sign changes with a flip; -1: component
            absent; empty: no wind.
        degraded: probability of the degradation pipeline.
        batch_size: number of samples in a step.
        epoch_samples: number of samples between validations.
        test_scales: scale factors of the validation.
    """

    path: str
    variables: list[str] = dataclasses.field(default_factory=lambda: ["r", "t", "u", "z"])
    each: list[str] = dataclasses.field(default_factory=list)
    units: list[str] = dataclasses.field(default_factory=list)
    level: float | None = None
    statics: list[str] = dataclasses.field(default_factory=list)
    split: str = "longitude"
    train: list[int] = dataclasses.field(default_factory=list)
    validation: list[int] = dataclasses.field(default_factory=list)
    test: list[int] = dataclasses.field(default_factory=list)
    crop: int | None = None
    halo: int = 4
    queries: int = 1024
    scales: list[float] = dataclasses.field(default_factory=lambda: [1.0, 4.0])
    anisotropic: float = 0.2
    whole_factors: float = 0.0
    flips: bool = True
    vectors: list[int] = dataclasses.field(default_factory=list)
    degraded: float = 0.0
    batch_size: int = 8
    epoch_samples: int = 4000
    test_scales: list[float] = dataclasses.field(default_factory=lambda: [2.0, 2.67, 4.0])

    def __post_init__(self):
        if self.split not in ("longitude", "time"):
            raise OptionError("data.split", f"must be 'longitude' or 'time', got {self.split!r}")
        if bool(self.train) != bool(self.validation):
            raise OptionError(
                "data", f": give both train and validation or none, got {self.train} and {self.validation}"
            )
        if self.vectors and (len(self.vectors) != 2 or any(not -1 <= c < len(self.variables) for c in self.vectors)):
            raise OptionError(
                "data.vectors", f"must name two channels below {len(self.variables)}, -1 for none, got {self.vectors}"
            )
        if self.each:
            self._check_each()
        splits = {"training": self.train, "validation": self.validation, "test": self.test}
        for (one, a), (other, b) in itertools.combinations(((k, v) for k, v in splits.items() if v), 2):
            if max(a[0], b[0]) < min(a[1], b[1]):
                raise OptionError("data", f": {one} {a} and {other} {b} of {self.split} overlap")

    def _check_each(self):
        """Raise ValueError if an option for variables of a single file is given together with data.each."""
        usual = DataConfig(self.path)
        for name in ("variables", "units", "level", "statics", "split", "train", "validation", "test", "vectors"):
            if getattr(self, name) != getattr(usual, name):
                raise OptionError(
                    f"data.{name}", f"cannot be given with {spell_name('data.each')}, got {getattr(self, name)!r}"
                )
        if self.degraded:
            raise OptionError(
                "data.degraded",
                f"needs one range of values, give 0 with {spell_name('data.each')}, got {self.degraded}",
            )

    @property
    def names(self) -> list[str]:
        """Names of the network's channels."""
        return [ANY] if self.each else self.variables

    def limits(self, size: int) -> tuple[list[int], list[int]]:
        """Return the ranges of training and validation on an axis of length `size`.

        The default ranges are the first three quarters and the last fifth of the axis.
        """
        return (self.train, self.validation) if self.train else ([0, size * 3 // 4], [size - size // 5, size])

    def part(self, fields: Tensor, limits: list[int]) -> Tensor:
        """Return a part of the fields (T, C, H, W) along the split axis."""
        return fields[slice(*limits)] if self.split == "time" else fields[..., slice(*limits)]

    def static_part(self, static: Tensor | None, limits: list[int]) -> Tensor | None:
        """Return a part of the static maps (S, H, W) along the split axis."""
        return static if static is None or self.split == "time" else static[..., slice(*limits)]


@dataclasses.dataclass
class TrainingConfig(config.SupervisedConfig):
    """Training of an arbitrary-scale network.

    Args:
        data: training samples.
        model: network; weights to start from keep their normalisation.
    """

    data: DataConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    learning_rate: float = dataclasses.field(default=3e-4, kw_only=True)


def parse_arguments(arguments: list[str]) -> TrainingConfig:
    """Parse a command line into a TrainingConfig. `--config NAME` selects a shipped configuration."""
    description = "Train arbitrary-scale downscaling of latitude-longitude fields."
    return read_command_line(TrainingConfig, arguments, "fastds train fields", description)
