# SPDX-License-Identifier: Apache-2.0
"""What an adversarial training run is made of."""

import dataclasses

from fastds.data.samples.fields import COARSENINGS
from fastds.models.wgan_gp.penalty import ADVERSARIES
from fastds.tasks.common.command import read_command_line

CRITICS = ("humidity", "srgan")
CONTENTS = ("l1", "mse", "crps")


@dataclasses.dataclass
class GANDataConfig:
    """The samples: sequences of `steps` fields, cut at random from the training regions.

    Args:
        path: a file, or a folder of the files named in sources.
        sources: per file name {"variable", "level", "train", "validation", "test"}; the last three are lists of regions
            [first row, end row, first column, end column] in grid points. With "validation_days" N in place of regions
            the file is cut into days of `steps` fields, N of them drawn for validation ("validation_stays" true: they
            train too). Empty: the file at path, its left three quarters for training, the rest for validation.
        steps: fields of a sequence.
        crop: side of a fine training crop, grid points, a multiple of the generator's scale.
        coarsening: "mean" over blocks or "decimate".
        offset: normalised x = (value - offset) / range; 0 for percent.
        range: see offset; 100 for percent.
        batch_size: sequences per step.
        epoch_samples: sequences between validations.
        validation_samples: fixed crops.
        flips: mirror crops at random.
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
        quiet_weight: of the mean squared error of the field without noise, which is then the mean of the ensemble.
        critic_steps: of the critic per step of the generator.
    """

    adversary: str = "wgan_gp"
    penalty: float = 10.0
    content: str = "l1"
    content_weight: float = 1.0
    adversarial_weight: float = 1e-3
    adversarial_ramp: float = 0.0
    quiet_weight: float = 0.0
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
        generator_rate: learning rate of the generator.
        critic_rate: learning rate of the critic.
        betas: of Adam.
        warmup_epochs: linear growth of both rates.
        epochs: of the cosine to zero.
        literal_schedule: the paper's printed formulas: batch_size / n_warm as the factor of the whole warm-up, and no
            pi in the cosine.
        ema_decay: of the averaged generator that is validated and exported; 0 switches averaging off.
        bfloat16: autocast of everything but the penalty.
    """

    generator_rate: float = 1e-4
    critic_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.9)
    warmup_epochs: float = 5.0
    epochs: int = 200
    literal_schedule: bool = False
    ema_decay: float = 0.0
    bfloat16: bool = False


@dataclasses.dataclass
class GANConfig:
    """An adversarial training run.

    Args:
        data: the samples.
        loss: what is minimised.
        optimiser: of both networks.
        generator: a name of fastds.models.available(), a HumidityGenerator or a network without noise (srcnn, srgan).
        critic: "humidity" (HumidityCritic) or "srgan" (SRGANDiscriminator).
        generator_options: arguments that replace the preset's.
        critic_options: arguments that replace the critic's.
        card: fields of the model card written into the exported weights.
        output: folder for checkpoints, logs and weights.
        seed: of weights and samples.
        max_minutes: wall-clock bound; the learning rate then reaches zero there, if earlier. None: no bound.
        resume: continue from the last checkpoint in output, where there is one.
        progress: show a progress bar.
        threads: of torch; None leaves them.
        devices: processes that share each batch, one for each GPU, else on the CPU; gradients are averaged, batch
            normalisation sees the share of its process. Only one process resumes bit by bit and takes max_minutes.
    """

    data: GANDataConfig
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    generator: str = "wgan-gp"
    critic: str = "humidity"
    generator_options: dict = dataclasses.field(default_factory=dict)
    critic_options: dict = dataclasses.field(default_factory=dict)
    card: dict = dataclasses.field(default_factory=dict)
    output: str = "training-gan"
    seed: int = 0
    max_minutes: float | None = None
    resume: bool = True
    progress: bool = True
    threads: int | None = None
    devices: int = 1

    def __post_init__(self):
        if self.critic not in CRITICS:
            raise ValueError(f"critic must be one of {CRITICS}, got {self.critic!r}")
        if self.devices < 1 or self.data.batch_size % self.devices:
            raise ValueError(
                f"devices must be positive and divide data.batch_size={self.data.batch_size}, got {self.devices}"
            )
        if self.devices > 1 and self.max_minutes is not None:
            raise ValueError("max_minutes is for one process, others have clocks of their own: give optimiser.epochs")


def parse_arguments(arguments: list[str]) -> GANConfig:
    """Read `arguments`, a command line, into a GANConfig; `--config NAME` takes a shipped configuration by its name."""
    return read_command_line(GANConfig, arguments, "gan", "Train a WGAN-GP on gridded fields.")
