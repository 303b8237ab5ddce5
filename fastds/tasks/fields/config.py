# SPDX-License-Identifier: Apache-2.0
"""The options of `fastds train fields`."""

import dataclasses
import itertools

from torch import Tensor

from fastds.models.card import ANY
from fastds.tasks.common import config
from fastds.tasks.common.command import read_command_line


@dataclasses.dataclass
class ModelConfig(config.ModelConfig):
    """The network.

    Args:
        name: a name of fastds.models.available(), of an arbitrary-scale network or a baseline of it.
    """

    name: str = "inr-small"


@dataclasses.dataclass
class DataConfig:
    """The samples.

    Args:
        path: NetCDF or GRIB file with variables over (time, [level,] latitude, longitude); with `each` their folder.
        variables: stacked as channels in this order.
        each: FILE.nc:VARIABLE of the folder in place of `variables`: all times and levels of each are samples of one
            channel, for a network that takes any variable; "*": every field of the file or folder. The first three
            quarters of the columns train, the last fifth validates.
        units: expected ones, checked where given.
        level: value of the vertical coordinate, where there are several.
        statics: maps that the encoder reads beside (orography): variables over (latitude, longitude) of the same file,
            or FILE.nc:VARIABLE of another, on any grid.
        split: what the next three divide, columns ("longitude") or steps of time ("time").
        train: [first, stop) of what weights are fitted to; without train and validation the first three quarters train
            and the last fifth validates.
        validation: [first, stop) of what chooses the weights. Leave gaps, no two may overlap.
        test: [first, stop) of what the study scores; nothing here reads it (none: empty).
        crop: coarse pixels of a sample's side.
        halo: coarse pixels around it that the degradation sees.
        queries: fine pixels of a sample that are its targets.
        scales: smallest and largest factor.
        anisotropic: probability of a factor per axis.
        whole_factors: probability of a whole factor, 2 at least.
        flips: mirror samples at random.
        vectors: channels of (u, v), wind components along x and y that flips turn round; -1 = absent, none: empty.
        degraded: probability of the degradation pipeline.
        batch_size: samples per step.
        epoch_samples: samples between validations.
        test_scales: factors of the validation.
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
    crop: int = 32
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
            raise ValueError(f"data.split must be 'longitude' or 'time', got {self.split!r}")
        if bool(self.train) != bool(self.validation):
            raise ValueError(f"data: give both train and validation or none, got {self.train} and {self.validation}")
        if self.vectors and (len(self.vectors) != 2 or any(not -1 <= c < len(self.variables) for c in self.vectors)):
            raise ValueError(
                f"data.vectors must name two channels below {len(self.variables)}, -1 for none, got {self.vectors}"
            )
        if self.each:
            self._check_each()
        splits = {"training": self.train, "validation": self.validation, "test": self.test}
        for (one, a), (other, b) in itertools.combinations(((k, v) for k, v in splits.items() if v), 2):
            if max(a[0], b[0]) < min(a[1], b[1]):
                raise ValueError(f"data: {one} {a} and {other} {b} of {self.split} overlap")

    def _check_each(self):
        """Raises ValueError for options that are of variables in one file."""
        usual = DataConfig(self.path)
        for name in ("variables", "units", "level", "statics", "split", "train", "validation", "test", "vectors"):
            if getattr(self, name) != getattr(usual, name):
                raise ValueError(f"data.{name} cannot be given with data.each, got {getattr(self, name)!r}")
        if self.degraded:
            raise ValueError(f"data.degraded needs one range of values, give 0 with data.each, got {self.degraded}")

    @property
    def names(self) -> list[str]:
        """Of the network's channels."""
        return [ANY] if self.each else self.variables

    def limits(self, size: int) -> tuple[list[int], list[int]]:
        """Train and validation as given, or the first three quarters and the last fifth of `size` columns or times."""
        return (self.train, self.validation) if self.train else ([0, size * 3 // 4], [size - size // 5, size])

    def part(self, fields: Tensor, limits: list[int]) -> Tensor:
        """The fields (T, C, H, W) of one split."""
        return fields[slice(*limits)] if self.split == "time" else fields[..., slice(*limits)]

    def static_part(self, static: Tensor | None, limits: list[int]) -> Tensor | None:
        """The static maps (S, H, W) of one split."""
        return static if static is None or self.split == "time" else static[..., slice(*limits)]


@dataclasses.dataclass
class TrainingConfig(config.SupervisedConfig):
    """A training run of an arbitrary-scale network.

    Args:
        data: the samples.
        model: the network; weights to start from keep their normalisation.
    """

    data: DataConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    learning_rate: float = dataclasses.field(default=3e-4, kw_only=True)


def parse_arguments(arguments: list[str]) -> TrainingConfig:
    """Read `arguments`, a command line, into a TrainingConfig; `--config NAME` takes a shipped configuration by its
    name."""
    description = "Train arbitrary-scale downscaling of latitude-longitude fields."
    return read_command_line(TrainingConfig, arguments, "fastds train fields", description)
