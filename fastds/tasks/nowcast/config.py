# SPDX-License-Identifier: Apache-2.0
"""Options of `fastds train nowcast`."""

import dataclasses

from fastds._options import OptionError, spell_name
from fastds.models.db_rnn.discriminator import VARIANTS
from fastds.models.db_rnn.losses import TERMS, WEIGHTS
from fastds.training import config
from fastds.training.command import read_command_line

LOSSES = ("rain", "db-rnn")
STAGES = ("forecaster", "deblurrer")
# Deprecated option loss.ablation: rows of the paper's Table VIII -> (terms, weights).
ABLATIONS = {
    "fixed": ("none", "fixed"),
    "scheduled": ("none", "scheduled"),
    "gdl": ("gdl", "scheduled"),
    "adversarial": ("adversarial", "scheduled"),
}


@dataclasses.dataclass
class DataConfig:
    """Training samples.

    Args:
        path: NetCDF file or folder of NetCDF files.
        blocks: time blocks of each file, see fastds.tasks.radar.config.DataConfig; empty: each *.nc under path.
        without: files of blocks to exclude together with their weights, for example a radar that is for tests only.
        var: name of the reflectivity variable; default: found by its attributes.
        synthetic_events: number of synthetic events that are added to the training files.
        weights: sampling weight of each training file in the order of blocks, then of all synthetic events; empty:
            equal.
        known: number m of input frames.
        future: number n of forecast frames.
        fewest: smallest number of forecast frames that a window needs; the others are treated as missing.
        crop: side of a crop in pixels.
        halo: margin in pixels around a crop, used to estimate the motion and as a source of incoming echo (Lagrangian
            networks).
        scales: coarsening factors of the grid, drawn at random.
        intervals: multiples of the time step, drawn at random; [2] takes every second frame of a file. The validation
            uses the time step itself if 1 is in the list, else all multiples.
        floor: reflectivity in dBZ that is scaled to 0.
        ceiling: reflectivity in dBZ that is scaled to 1.
        minimum_echo: fraction of pixels above 15 dBZ that the last input frame of a crop should have, also in the
            validation.
        augment: whether to flip and transpose samples at random.
        reverse: whether half of the training samples are reversed in time, so that growth and decay of rain are
            balanced.
        shift: smallest and largest number of dBZ that is added to the echo of a training sample, drawn uniformly, to
            vary the distribution of intensities.
        pool: number of different crops that are cached in memory; 0: each sample is new.
        batch_size: number of samples in a step.
        epoch_samples: number of samples between validations.
        validation_samples: number of fixed validation crops.
        workers: number of processes that prepare samples.
    """

    path: str
    blocks: dict[str, dict[str, list[int]]] = dataclasses.field(default_factory=dict)
    without: list[str] = dataclasses.field(default_factory=list)
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
        config.remove_files_without(self)
        if self.known < 1 or not 1 <= self.fewest <= self.future:
            raise OptionError(
                "data.known",
                f"must be positive and 1 <= {spell_name('data.fewest')} <= {spell_name('data.future')}, got "
                f"{self.known}, {self.fewest} and {self.future}",
            )


@dataclasses.dataclass
class LossConfig:
    """Loss function.

    Args:
        kind: "db-rnn": sums over pixels as in the paper, over all predicted frames, including those of the input.
            "rain": squared error of each lead time relative to that of the reference, plus csi_weight times (1 - soft
            CSI), see RainLoss. It is a ratio of sums; with several processes (devices), each process computes it from
            its samples.
        terms: additional terms for networks with two outputs: "none"; "gdl" (gradient difference loss); "adversarial"
            (gradient difference and adversarial loss, the full method of the paper).
        weights: weights of the errors of forecasts and of deblurred forecasts: "fixed" (1 and 1); "scheduled" (1 and
            0.01, from epoch 20 on 0.01 and 1). Default: fixed without terms, else scheduled.
        discriminator: discriminator of "adversarial": "S", "M" or "L". Default: that of the paper for the cells of the
            network.
        epochs: number of epochs into which the run is divided for scheduled weights. Default: epochs of
            data.epoch_samples.
        csi_weight: weight of the CSI term of "rain".
        csi_width: width of the soft threshold of "rain" in dBZ.
        rates: rain rates of the CSI in mm/h.
        z_r: a and b of Z = a R^b.
        scheduled_sampling: whether the probability with which true frames are fed back decreases from 1 to 0 during the
            training.
        decoupling: weight of the decoupling loss of PredRNN-V2; other networks have no such loss.
        ablation: deprecated; "fixed" and "scheduled" set weights, "gdl" and "adversarial" set terms.
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
            raise OptionError("loss.kind", f"must be one of {', '.join(LOSSES)}, got {self.kind!r}")
        if self.ablation is not None:
            self._apply_ablation()
        if self.terms not in TERMS:
            raise OptionError("loss.terms", f"must be one of {', '.join(TERMS)}, got {self.terms!r}")
        if self.weights not in (None, *WEIGHTS):
            raise OptionError("loss.weights", f"must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")
        if self.discriminator not in (None, *VARIANTS):
            raise OptionError("loss.discriminator", f"must be one of {', '.join(VARIANTS)}, got {self.discriminator!r}")
        if self.kind == "rain" and self.terms != "none":
            raise OptionError(
                "loss.terms", f"{self.terms!r} belong to the sums over pixels of {spell_name('loss.kind')} 'db-rnn'"
            )

    def _apply_ablation(self) -> None:
        """Set terms and weights from the deprecated option `ablation`.

        Raises:
            ValueError: an unknown name, or terms or weights are given, too.
        """
        if self.ablation not in ABLATIONS:
            raise OptionError("loss.ablation", f"must be one of {', '.join(ABLATIONS)}, got {self.ablation!r}")
        if self.terms != "none" or self.weights is not None:
            raise OptionError(
                "loss.ablation",
                f"is the earlier name of {spell_name('loss.terms')} and {spell_name('loss.weights')}: leave it out",
            )
        self.terms, self.weights = ABLATIONS[self.ablation]
        self.ablation = None  # the configuration that is written has the present names

    @property
    def has_scheduled_weights(self) -> bool:
        """True if the weights change with the epoch."""
        return self.weights == "scheduled" or (self.weights is None and self.terms != "none")


@dataclasses.dataclass
class ModelConfig(config.ModelConfig):
    """Network to train.

    Args:
        name: name in fastds.models.available() of a network of the DB-RNN family.
    """

    name: str = "nowcast-small"


@dataclasses.dataclass
class TrainingConfig(config.SupervisedConfig):
    """Training of a nowcasting network.

    Args:
        data: training samples.
        loss: loss function.
        model: network.
        stage: stage of a StagedRNN: "forecaster", or "deblurrer" with a frozen forecaster (model.start then names the
            weights of the first stage). Default: the whole network.
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
            raise OptionError("stage", f"must be one of {', '.join(STAGES)}, got {self.stage!r}")
        if self.stage == "deblurrer" and self.model.start is None:
            raise OptionError(
                "stage", f"deblurrer needs {spell_name('model.start')}, the weights of the trained forecaster"
            )
        if self.devices > 1 and self.loss.terms == "adversarial":
            raise OptionError(
                "loss.terms",
                f"'adversarial' train a discriminator in one process: leave out {spell_name('devices')}",
            )


def parse_arguments(arguments: list[str]) -> TrainingConfig:
    """Parse a command line into a TrainingConfig. `--config NAME` selects a shipped configuration."""
    description = "Train a nowcasting network on radar files."
    return read_command_line(TrainingConfig, arguments, "fastds train nowcast", description)
