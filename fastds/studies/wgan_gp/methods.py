# SPDX-License-Identifier: Apache-2.0
"""Methods of the WGAN-GP paper: networks, published results, and training configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastds import models
from fastds.models.card import Network
from fastds.studies.common.config import PAPER
from fastds.tasks.humidity.config import TrainingConfig

SCORES = ("mse", "mae", "ssim", "psnr", "acc", "tcc")


class Method(NamedTuple):
    """A row of the tables.

    Attributes:
        interpolation: kernel of an interpolation; "" for networks.
        aligned: interpolate by the grid convention of the coarse fields; otherwise by the other convention.
        published: the paper's SCORES, None where it has none.
    """

    interpolation: str = ""
    aligned: bool = True
    published: tuple[float | None, ...] = (None,) * len(SCORES)


_KERNELS = {
    "Lanczos": (99.889, 5.432, 0.593, 27.394, 0.890, 0.741),
    "bilinear": (114.449, 5.592, 0.601, 26.669, 0.879, 0.747),
    "bicubic": (122.472, 5.762, 0.593, 26.418, 0.871, 0.728),
}
METHODS = {
    **{name: Method(name.lower(), True, scores) for name, scores in _KERNELS.items()},
    **{f"{name}-misaligned": Method(name.lower(), False) for name in _KERNELS},
    "SRCNN": Method(published=(50.143, 3.499, 0.699, 29.973, 0.904, 0.819)),
    "SRGAN": Method(published=(38.611, 2.863, 0.749, 31.494, 0.948, 0.848)),
    "GAN": Method(published=(37.362, 2.755, 0.752, 31.640, 0.948, 0.860)),
    "no-residual-blocks": Method(published=(None, None, 0.537, 25.747, 0.866, 0.692)),
    "no-CBAM": Method(published=(None, None, 0.753, 31.483, 0.948, 0.861)),
    "sequential-kernels": Method(),
    "WGAN-GP": Method(published=(36.185, 2.698, 0.766, 31.832, 0.951, 0.866)),
}
NETWORKS = [name for name, method in METHODS.items() if not method.interpolation]
# Pairs (better, worse) in the ranking of the paper.
PAPER_RANKING = (
    ("SRCNN", "Lanczos"), ("SRCNN", "bicubic"), ("SRGAN", "SRCNN"), ("GAN", "SRGAN"), ("WGAN-GP", "GAN"),
    ("WGAN-GP", "SRGAN"), ("WGAN-GP", "SRCNN"), ("WGAN-GP", "Lanczos"), ("WGAN-GP", "no-residual-blocks"),
    ("WGAN-GP", "no-CBAM"), ("WGAN-GP", "sequential-kernels"), ("bicubic", "bicubic-misaligned"),
)  # fmt: skip
_VALIDATIONS = 8  # validations of the training of a small network
# Preset of SRGAN's generator and width of its discriminator, for the budget "paper" and for other budgets.
_SRGAN, _SRGAN_SMALL = ("srgan", 64), ("srgan-small", 16)


def get_published(name: str) -> Mapping[str, float | None]:
    """Return the published scores of a method, score -> number or None."""
    return dict(zip(SCORES, METHODS[name].published, strict=True))


def make_variants(config: TrainingConfig, budget: str = "") -> dict[str, TrainingConfig]:
    """Make the configurations of the networks in the tables of the paper from the configuration of WGAN-GP.

    SRCNN is trained with the squared error only. SRGAN has another generator and discriminator (small ones unless the
    budget is "paper"), the absolute error and the losses of a GAN. GAN has the networks of `config` and the losses of a
    GAN. Ablations change both networks: in sequential-kernels, for example, kernels of sizes 2 and 3 follow each other
    instead of forming two branches.

    Returns:
        A dictionary from the method to its configuration; the last is `config` itself.
    """
    preset, width = _SRGAN if budget == PAPER else _SRGAN_SMALL
    scale = get_scale(config)
    align = "grid" if config.data.coarsening == "decimate" else "center"
    alone = dataclasses.replace(
        config.loss, content="mse", noise_free_weight=0.0, adversarial_weight=0.0, critic_steps=0
    )
    gan = dataclasses.replace(config.loss, adversary="gan")
    plain_gan = dataclasses.replace(gan, content="l1", noise_free_weight=0.0)

    def changed(part: Any, name: str, options: dict) -> Any:
        return dataclasses.replace(part, name=name, options=options)

    def with_option(**option: Any) -> TrainingConfig:
        parts: dict[str, Any] = {"model": config.model, "critic": config.critic}
        return dataclasses.replace(
            config, **{name: changed(part, part.name, part.options | option) for name, part in parts.items()}
        )

    srcnn = changed(config.model, "srcnn", {"scale": scale, "align": align})
    srgan = changed(config.model, preset, {"scale": scale}), changed(config.critic, "srgan", {"width": width})
    return {
        "SRCNN": dataclasses.replace(config, model=srcnn, loss=alone),
        "SRGAN": dataclasses.replace(config, model=srgan[0], critic=srgan[1], loss=plain_gan),
        "GAN": dataclasses.replace(config, loss=gan),
        "no-residual-blocks": with_option(use_resblocks=False),
        "no-CBAM": with_option(use_cbam=False),
        "sequential-kernels": with_option(mixing="sequential"),
        "WGAN-GP": config,
    }


def get_scale(config: TrainingConfig) -> int:
    """Return the downscaling factor of a training's generator."""
    network: Network = models.create(config.model.name, **config.model.options)
    return network.config["scale"]


def count_paper_steps(base: TrainingConfig) -> int:
    """Count the steps of a training's epochs."""
    return (base.optimiser.epochs or 1) * (base.data.epoch_samples // base.data.batch_size)


def make_training_config(name: str, base: TrainingConfig, budget: str, steps: int, **run: Any) -> TrainingConfig:
    """Make the training configuration of a method.

    Args:
        name: the method.
        base: configuration of WGAN-GP.
        budget: budget of the study.
        steps: number of steps.
        run: further options of the training.
    """
    config = make_variants(base, budget)[name]
    batch = config.data.batch_size
    epoch = config.data.epoch_samples if budget == PAPER else batch * max(1, -(-steps // _VALIDATIONS))
    data = dataclasses.replace(config.data, epoch_samples=epoch)
    optimiser = dataclasses.replace(config.optimiser, epochs=None)
    return dataclasses.replace(config, data=data, optimiser=optimiser, max_steps=steps, max_minutes=None, **run)
