# SPDX-License-Identifier: Apache-2.0
"""Options of `fastds train humidity`, an adversarial training."""

import dataclasses
from typing import Any

from fastds._options import OptionError, spell_name
from fastds.data.samples.fields import COARSENINGS
from fastds.models.wgan_gp.penalty import ADVERSARIES
from fastds.training import config
from fastds.training.command import read_command_line

CRITICS = ("humidity", "srgan")
CONTENTS = ("l1", "mse", "crps")


@dataclasses.dataclass
class DataConfig:
    """Training samples: sequences of `steps` fields, cropped at random positions from the training regions.

    Args:
        path: file or folder of files.
        sources: for each file name a dict with "variable", "level", and lists of regions "train", "validation" and
            "test", each region [first row, end row, first column, end column] in grid points. With "validation_days" N
            in place of regions, the file is divided into days of `steps` fields, and N random days are for validation;
            "validation_stays" true uses these days for training, too. If the time step is less than 24 h / steps,
            fields at that interval are selected; with regions, "daily" true does the same. Empty: the file at path or
            each *.nc of the folder, with the left three quarters for training and the rest for validation.
        steps: number of fields in a sequence.
        crop: side of a fine training crop in grid points, a multiple of the generator's scale factor. Default: 64, or
            the largest that fits into smaller regions.
        coarsening: "mean" over blocks, or "decimate" (the first point of each block).
        offset: normalised value x = (value - offset) / range; 0 for percent.
        range: normalised value x = (value - offset) / range; 100 for percent.
        batch_size: number of sequences in a step.
        epoch_samples: number of sequences between validations.
        validation_samples: number of fixed validation crops.
        flips: whether crops are flipped at random.
        each_once: whether each region (or day of validation_days) is used once, in random order, before any is used
            again. False: regions are drawn at random with probabilities proportional to their size.
    """

    path: str
    sources: dict[str, dict] = dataclasses.field(default_factory=dict)
    steps: int = 8
    crop: int | None = None
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
            raise OptionError("data.coarsening", f"must be one of {COARSENINGS}, got {self.coarsening!r}")


@dataclasses.dataclass
class LossConfig:
    """Loss function.

    Args:
        adversary: "wgan_gp", or "gan" for the ablation.
        penalty: weight lambda of the gradient penalty. The gradient norm converges to about 1 + W / (2 lambda) with the
            critic's distance W between generated and real samples.
        content: content loss: "l1" or "mse" of one member, or "crps" of two members, mean (|x1 - y| + |x2 - y| - |x1 -
            x2|) / 2, the fair continuous ranked probability score, which preserves the spread of the ensemble.
        content_weight: weight of the generator's content loss; 0 in the paper's Algorithm 1.
        adversarial_weight: weight of the generator's adversarial loss; 1 in the paper's Algorithm 1.
        adversarial_ramp: number of epochs in which the adversarial weight increases from 0.
        noise_free_weight: weight of the mean squared error of the field without noise, which then approximates the
            ensemble mean.
        critic_steps: number of steps of the critic per step of the generator.
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
            raise OptionError("loss.adversary", f"must be one of {ADVERSARIES}, got {self.adversary!r}")
        if self.content not in CONTENTS:
            raise OptionError("loss.content", f"must be one of {CONTENTS}, got {self.content!r}")
        if self.critic_steps < 0 or (self.critic_steps == 0 and self.adversarial_weight > 0):
            raise OptionError(
                "loss.critic_steps", f"must be positive unless {spell_name('loss.adversarial_weight')} is 0"
            )


@dataclasses.dataclass
class OptimiserConfig:
    """Adam optimizers of both networks, with two learning rates.

    Args:
        betas: coefficients of Adam.
        warmup_epochs: number of epochs in which both learning rates increase linearly.
        epochs: number of epochs after which the cosine schedule reaches zero and the run ends; ignored if max_steps is
            given. Default: limited by max_steps or max_minutes.
        literal_schedule: whether to use the formulas as printed in the paper: the constant factor batch_size / n_warm
            during the warm-up, and no pi in the cosine.
        bfloat16: whether everything but the penalty is computed with bfloat16 autocast.
    """

    betas: tuple[float, float] = (0.5, 0.9)
    warmup_epochs: float = 5.0
    epochs: int | None = None
    literal_schedule: bool = False
    bfloat16: bool = False


@dataclasses.dataclass
class ModelConfig(config.ModelConfig):
    """Generator.

    Args:
        name: name in fastds.models.available() of a HumidityGenerator or a network without noise (srcnn, srgan).
    """

    name: str = "wgan-gp"


@dataclasses.dataclass
class CriticConfig:
    """Critic.

    Args:
        name: "humidity" (HumidityCritic) or "srgan" (SRGANDiscriminator).
        options: arguments that override those of the critic.
        learning_rate: highest learning rate of the critic.
    """

    name: str = "humidity"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    learning_rate: float = 1e-3

    def __post_init__(self):
        if self.name not in CRITICS:
            raise OptionError("critic.name", f"must be one of {CRITICS}, got {self.name!r}")
        config.check_positive("critic.learning_rate", self.learning_rate)


@dataclasses.dataclass
class TrainingConfig(config.RunConfig):
    """Adversarial training.

    Args:
        data: training samples.
        loss: loss function.
        optimiser: optimizers of both networks.
        model: generator.
        critic: critic.
        max_steps: number of steps of the generator. The learning rates reach zero at the last step, unless
            optimiser.literal_schedule is set. Default: optimiser.epochs.
        max_minutes: time limit in minutes of wall-clock time. If it is reached before the last step, the learning rates
            reach zero there instead. Default: 60 if neither max_steps nor optimiser.epochs is given, else no limit.
        learning_rate: highest learning rate of the generator.
        devices: number of processes that share each batch, one per GPU or on the CPU. Gradients are averaged; batch
            normalisation uses the share of its process. Only a training with one process accepts max_minutes and is
            reproduced bit by bit when resumed.
    """

    data: DataConfig
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    critic: CriticConfig = dataclasses.field(default_factory=CriticConfig)
    output: str = dataclasses.field(default="training-humidity", kw_only=True)
    learning_rate: float = dataclasses.field(default=1e-4, kw_only=True)
    ema_decay: float = dataclasses.field(default=0.0, kw_only=True)

    def has_last_step(self) -> bool:
        return super().has_last_step() or self.optimiser.epochs is not None


def parse_arguments(arguments: list[str]) -> TrainingConfig:
    """Parse a command line into a TrainingConfig. `--config NAME` selects a shipped configuration."""
    description = "Train a generator of ensembles (WGAN-GP) on gridded fields."
    return read_command_line(TrainingConfig, arguments, "fastds train humidity", description)
