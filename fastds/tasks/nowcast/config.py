# SPDX-License-Identifier: Apache-2.0
"""The options of `fastds train nowcast`."""

import dataclasses

from fastds.models.db_rnn.discriminator import VARIANTS
from fastds.models.db_rnn.losses import TERMS, WEIGHTS
from fastds.tasks.common import config
from fastds.tasks.common.command import read_command_line

LOSSES = ("rain", "db-rnn")
STAGES = ("forecaster", "deblurrer")
# The rows of the paper's Table VIII by the names of earlier versions: terms and weights.
ABLATIONS = {
    "fixed": ("none", "fixed"),
    "scheduled": ("none", "scheduled"),
    "gdl": ("gdl", "scheduled"),
    "adversarial": ("adversarial", "scheduled"),
}


@dataclasses.dataclass
class DataConfig:
    """The samples.

    Args:
        path: a NetCDF file or a folder of them.
        blocks: per file name its time blocks, see fastds.tasks.radar.config.DataConfig; empty: every *.nc under path.
        var: name of the reflectivity variable; None finds it.
        synthetic_events: number of seeded synthetic events that join the training samples.
        weights: relative share of each training source, files in the order of blocks, then the synthetic events;
            empty: equal.
        known: m, frames.
        future: n, frames.
        fewest: of the future frames that a window needs; the rest counts as missing.
        crop: side of a crop, pixels.
        halo: pixels around a crop from which the motion is estimated and echo may come; of Lagrangian networks.
        scales: coarsenings of the grid to draw from.
        intervals: multiples of the cadence to draw from: [2] takes every second field of a file. The validation is at
            the cadence itself where that is among them, else at all of them.
        floor: dBZ that become 0.
        ceiling: dBZ that become 1.
        minimum_echo: share of echo above 15 dBZ that the last known field of a crop should have, also in the
            validation.
        augment: flips and transposes at random.
        reverse: half of the training samples run backwards in time, so that no event teaches that rain only grows.
        shift: lowest and highest number of dBZ that a training sample's echo is raised by, drawn evenly: a rain rate
            that is rare in one event is common in another.
        pool: number of different crops, kept in memory; 0: every sample is a new one.
        batch_size: samples per step.
        epoch_samples: samples between validations.
        validation_samples: fixed crops.
        workers: processes that prepare samples.
    """

    path: str
    blocks: dict[str, dict[str, list[int]]] = dataclasses.field(default_factory=dict)
    var: str | None = None
    synthetic_events: int = 0
    weights: list[float] = dataclasses.field(default_factory=list)
    known: int = 5
    future: int = 5
    fewest: int = 1
    crop: int = 96
    halo: int = 64
    scales: list[int] = dataclasses.field(default_factory=lambda: [1, 2, 4])
    intervals: list[int] = dataclasses.field(default_factory=lambda: [1])
    floor: float = 0.0
    ceiling: float = 60.0
    minimum_echo: float = 0.2
    augment: bool = True
    reverse: bool = True
    shift: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0])
    pool: int = 0
    batch_size: int = 4
    epoch_samples: int = 1000
    validation_samples: int = 48
    workers: int = 0

    def __post_init__(self):
        config.check_radar_samples(self)
        if self.known < 1 or not 1 <= self.fewest <= self.future:
            raise ValueError(
                f"data.known must be positive and 1 <= data.fewest <= data.future, got {self.known}, {self.fewest} and "
                f"{self.future}"
            )


@dataclasses.dataclass
class LossConfig:
    """What is minimised.

    Args:
        kind: "db-rnn": the paper's sums over pixels, over all forecast frames, known ones included. "rain": squared
            error of each lead over that of the reference, plus csi_weight times what soft CSI lacks of 1; see
            RainLoss. It is a ratio of sums, which each of several processes (devices) takes of its own samples.
        terms: beside the errors of forecasts and deblurred forecasts, of networks with two outputs: "none"; "gdl", the
            gradient difference loss; "adversarial", that and the adversarial loss, which is the paper's full method.
        weights: of the errors of forecasts and deblurred forecasts: "fixed", 1 and 1; "scheduled", 1 and 0.01 at first,
            0.01 and 1 from epoch 20 on; None: fixed without terms and scheduled with any.
        discriminator: of "adversarial": "S", "M" or "L"; None: the paper's for the network's cells.
        epochs: of scheduled weights, over the whole run; None: epochs of data.epoch_samples.
        csi_weight: of "rain".
        csi_width: of "rain": width of the soft threshold in dBZ.
        rates: mm/h, of CSI.
        z_r: a and b of Z = a R^b.
        scheduled_sampling: the probability that the truth is fed back falls from 1 to 0 over the training.
        decoupling: weight of PredRNN-V2's decoupling loss; other networks have none.
        ablation: deprecated: "fixed" and "scheduled" are weights, "gdl" and "adversarial" are terms.
    """

    kind: str = "rain"
    terms: str = "none"
    weights: str | None = None
    discriminator: str | None = None
    epochs: int | None = None
    csi_weight: float = 1.0
    csi_width: float = 1.5
    rates: list[float] = dataclasses.field(default_factory=lambda: [0.5, 2.0, 5.0])
    z_r: list[float] = dataclasses.field(default_factory=lambda: [200.0, 1.6])
    scheduled_sampling: bool = False
    decoupling: float = 0.01
    ablation: str | None = None

    def __post_init__(self):
        if self.kind not in LOSSES:
            raise ValueError(f"loss.kind must be one of {', '.join(LOSSES)}, got {self.kind!r}")
        if self.ablation is not None:
            self._take_ablation()
        if self.terms not in TERMS:
            raise ValueError(f"loss.terms must be one of {', '.join(TERMS)}, got {self.terms!r}")
        if self.weights not in (None, *WEIGHTS):
            raise ValueError(f"loss.weights must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")
        if self.discriminator not in (None, *VARIANTS):
            raise ValueError(f"loss.discriminator must be one of {', '.join(VARIANTS)}, got {self.discriminator!r}")
        if self.kind == "rain" and self.terms != "none":
            raise ValueError(f"loss.terms {self.terms!r} belong to the sums over pixels of loss.kind 'db-rnn'")

    def _take_ablation(self) -> None:
        """Set terms and weights as the earlier option `ablation` says. Raises: ValueError for a name that is none, and
        for one beside terms or weights."""
        if self.ablation not in ABLATIONS:
            raise ValueError(f"loss.ablation must be one of {', '.join(ABLATIONS)}, got {self.ablation!r}")
        if self.terms != "none" or self.weights is not None:
            raise ValueError("loss.ablation is the earlier name of loss.terms and loss.weights: leave it out")
        self.terms, self.weights = ABLATIONS[self.ablation]
        self.ablation = None  # what is written of the run has the names of now

    @property
    def scheduled(self) -> bool:
        """Whether the weights change with the epoch."""
        return self.weights == "scheduled" or (self.weights is None and self.terms != "none")


@dataclasses.dataclass
class ModelConfig(config.ModelConfig):
    """The network.

    Args:
        name: a name of fastds.models.available(), of the DB-RNN family.
    """

    name: str = "nowcast-small"


@dataclasses.dataclass
class TrainingConfig(config.SupervisedConfig):
    """A training run of a nowcasting network.

    Args:
        data: the samples.
        loss: what is minimised.
        model: the network.
        stage: of a StagedRNN: "forecaster" trains that one, "deblurrer" the other, on forecasts of the frozen first
            (model.start then names the weights of the first stage).
    """

    data: DataConfig
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    stage: str | None = None
    output: str = dataclasses.field(default="training-nowcast", kw_only=True)
    ema_decay: float = dataclasses.field(default=0.99, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.stage is not None and self.stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        if self.stage == "deblurrer" and self.model.start is None:
            raise ValueError("stage deblurrer needs model.start, the weights of the trained forecaster")
        if self.devices > 1 and self.loss.terms == "adversarial":
            raise ValueError("loss.terms 'adversarial' train a discriminator in one process: leave out devices")


def parse_arguments(arguments: list[str]) -> TrainingConfig:
    """Read `arguments`, a command line, into a TrainingConfig; `--config NAME` takes a shipped configuration by its
    name."""
    description = "Train a nowcasting network on radar files."
    return read_command_line(TrainingConfig, arguments, "fastds train nowcast", description)
