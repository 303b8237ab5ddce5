# SPDX-License-Identifier: Apache-2.0
"""The options of `fastds train humidity`, an adversarial training."""

import dataclasses
from typing import Any

from fastds.data.samples.fields import COARSENINGS
from fastds.models.wgan_gp.penalty import ADVERSARIES
from fastds.tasks.common import config
from fastds.tasks.common.command import read_command_line

CRITICS = ("humidity", "srgan")
CONTENTS = ("l1", "mse", "crps")


@dataclasses.dataclass
class DataConfig:
    """The samples: sequences of `steps` fields, cut at random from the training regions.

    Args:
        path: a file, or a folder.
        sources: per file name {"variable", "level", "train", "validation", "test"}; the last three are lists of regions
            [first row, end row, first column, end column] in grid points. With "validation_days" N in place of regions
            the file is cut into days of `steps` fields, N of them drawn for validation ("validation_stays" true: they
            train too); of fields less than 24 h / steps apart those at that distance, with "daily" true in regions,
            too. Empty: the file at path or every *.nc of the folder, the left three quarters for training, the rest
            for validation.
        steps: fields of a sequence.
        crop: side of a fine training crop, grid points, a multiple of the generator's scale.
        coarsening: "mean" over blocks or "decimate".
        offset: normalised x = (value - offset) / range; 0 for percent.
        range: see offset; 100 for percent.
        batch_size: sequences per step.
        epoch_samples: sequences between validations.
        validation_samples: fixed crops.
        flips: mirror crops at random.
        each_once: every region, of validation_days every day, comes once before any comes again, in an order drawn
            anew for each pass; false: regions are drawn at random, the larger the oftener.
    """

    path: str
    sources: dict[str, dict] = dataclasses.field(default_factory=dict)
    steps: int = 8
    crop: int = 64
    coarsening: str = "decimate"
    offset: float = 0.0
    range: float = 100.0
    batch_size: int = 16
    epoch_samples: int = 736
    validation_samples: int = 32
    flips: bool = False
    each_once: bool = False

    def __post_init__(self):
        if self.coarsening not in COARSENINGS:
            raise ValueError(f"data.coarsening must be one of {COARSENINGS}, got {self.coarsening!r}")


@dataclasses.dataclass
class LossConfig:
    """What is minimised.

    Args:
        adversary: "wgan_gp" or "gan" (the ablation).
        penalty: lambda of the gradient penalty. The gradient norm settles near 1 + W / (2 lambda), W the distance of
            generated from real samples that the critic finds: larger where they stay far apart.
        content: "l1" or "mse" of one member, or "crps" of two: mean (|x1 - y| + |x2 - y| - |x1 - x2|) / 2, the fair
            estimate of the continuous ranked probability score, which keeps the ensemble's spread.
        content_weight: of the generator's content loss; 0 in the paper's Algorithm 1.
        adversarial_weight: of the generator's adversarial loss; 1 in the paper's Algorithm 1.
        adversarial_ramp: epochs in which the adversarial weight grows from 0.
        noise_free_weight: of the mean squared error of the field without noise, which is then the mean of the ensemble.
        critic_steps: of the critic per step of the generator.
    """

    adversary: str = "wgan_gp"
    penalty: float = 10.0
    content: str = "l1"
    content_weight: float = 1.0
    adversarial_weight: float = 1e-3
    adversarial_ramp: float = 0.0
    noise_free_weight: float = 0.0
    critic_steps: int = 1

    def __post_init__(self):
        if self.adversary not in ADVERSARIES:
            raise ValueError(f"loss.adversary must be one of {ADVERSARIES}, got {self.adversary!r}")
        if self.content not in CONTENTS:
            raise ValueError(f"loss.content must be one of {CONTENTS}, got {self.content!r}")
        if self.critic_steps < 0 or (self.critic_steps == 0 and self.adversarial_weight > 0):
            raise ValueError("loss.critic_steps must be positive unless loss.adversarial_weight is 0")


@dataclasses.dataclass
class OptimiserConfig:
    """Adam for both networks, at two time scales.

    Args:
        betas: of Adam.
        warmup_epochs: linear growth of both rates.
        epochs: of the cosine to zero, and of the run; max_steps replaces it where it is given. None: as many as
            max_steps or max_minutes leave time for.
        literal_schedule: the paper's printed formulas: batch_size / n_warm as the factor of the whole warm-up, and no
            pi in the cosine.
        bfloat16: autocast of everything but the penalty.
    """

    betas: tuple[float, float] = (0.5, 0.9)
    warmup_epochs: float = 5.0
    epochs: int | None = None
    literal_schedule: bool = False
    bfloat16: bool = False


@dataclasses.dataclass
class ModelConfig(config.ModelConfig):
    """The generator.

    Args:
        name: a name of fastds.models.available(), a HumidityGenerator or a network without noise (srcnn, srgan).
    """

    name: str = "wgan-gp"


@dataclasses.dataclass
class CriticConfig:
    """The critic.

    Args:
        name: "humidity" (HumidityCritic) or "srgan" (SRGANDiscriminator).
        options: arguments that replace the critic's.
        learning_rate: the highest of the critic.
    """

    name: str = "humidity"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    learning_rate: float = 1e-3

    def __post_init__(self):
        if self.name not in CRITICS:
            raise ValueError(f"critic.name must be one of {CRITICS}, got {self.name!r}")
        config.check_positive("critic.learning_rate", self.learning_rate)


@dataclasses.dataclass
class TrainingConfig(config.RunConfig):
    """An adversarial training run.

    Args:
        data: the samples.
        loss: what is minimised.
        optimiser: of both networks.
        model: the generator.
        critic: its opponent.
        max_steps: of the generator; the learning rates reach zero here. None: after optimiser.epochs.
        max_minutes: wall-clock bound; the learning rates reach zero there, if earlier. None: an hour where neither
            max_steps nor optimiser.epochs is given, else no bound.
        learning_rate: the highest of the generator.
        devices: processes that share each batch, one for each GPU, else on the CPU; gradients are averaged, batch
            normalisation sees the share of its process. Only one process resumes bit by bit and takes max_minutes.
    """

    data: DataConfig
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    critic: CriticConfig = dataclasses.field(default_factory=CriticConfig)
    output: str = dataclasses.field(default="training-humidity", kw_only=True)
    learning_rate: float = dataclasses.field(default=1e-4, kw_only=True)
    ema_decay: float = dataclasses.field(default=0.0, kw_only=True)

    def ends(self) -> bool:
        return super().ends() or self.optimiser.epochs is not None


def parse_arguments(arguments: list[str]) -> TrainingConfig:
    """Read `arguments`, a command line, into a TrainingConfig; `--config NAME` takes a shipped configuration by its
    name."""
    description = "Train a generator of ensembles (WGAN-GP) on gridded fields."
    return read_command_line(TrainingConfig, arguments, "fastds train humidity", description)
