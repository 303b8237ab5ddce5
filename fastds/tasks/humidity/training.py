# SPDX-License-Identifier: Apache-2.0
"""The adversarial training run: networks, data, resume and export."""

import pathlib

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from fastds import models
from fastds.models.baselines.super_resolution import SRGANDiscriminator
from fastds.models.wgan_gp import HumidityCritic
from fastds.tasks.common.command import ExportBest, begin, fill_card, fit, keep_last, make_folder
from fastds.tasks.humidity.config import GANConfig
from fastds.tasks.humidity.module import GANModule
from fastds.tasks.humidity.samples import SequenceDataModule


class ExportGenerator(ExportBest):
    """Lowest val_crps."""

    def validated(self, trainer, module):
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
        return module.exported, {**module.config.card.get("metrics", {}), "validation": values}, values["val_crps"]


def build(config: GANConfig) -> GANModule:
    """The networks with fresh weights, card filled, in their training module.

    Raises: ValueError for options that do not fit.
    """
    generator = models.create(config.generator, **config.generator_options)
    critic = {"humidity": HumidityCritic, "srgan": SRGANDiscriminator}[config.critic](**config.critic_options)
    noisy = hasattr(generator, "noise_shape")
    if not noisy and (config.loss.content == "crps" or config.loss.quiet_weight > 0):
        raise ValueError(
            f"loss: content 'crps' and quiet_weight are for a generator with noise; {config.generator!r} has none"
        )
    fill_card(generator.card, config.card)
    generator.card.offset, generator.card.range = config.data.offset, config.data.range
    generator.card.coarsening = config.data.coarsening
    return GANModule(generator, critic, config, max(1, config.data.epoch_samples // config.data.batch_size))


def train(config: GANConfig) -> pathlib.Path:
    """Train, resume where config.output holds a checkpoint, and export the generator.

    Returns: the path of best.safetensors; last.safetensors, checkpoints/ and csv/ lie beside it. Deterministic for a
        given configuration and number of threads, interrupted or not, unless max_minutes ends the run.
    Raises: FileNotFoundError, ValueError for data or options that do not fit; FloatingPointError for a loss that is not
        finite.
    """
    begin(config)
    module = build(config)
    scale = module.generator.config["scale"]
    data = SequenceDataModule(config.data, scale, config.seed, module.samples_seen, config.devices)
    data.setup()
    output = make_folder(config)
    callbacks = [ExportGenerator(output), keep_last(output)]
    if config.progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    trainer = L.Trainer(
        accelerator="auto",
        devices=config.devices,
        # Each of the two losses reaches one of the networks.
        strategy="auto" if config.devices == 1 else DDPStrategy(find_unused_parameters=True),
        use_distributed_sampler=False,
        max_epochs=config.optimiser.epochs,
        logger=CSVLogger(str(output), name="csv", version=""),
        callbacks=callbacks,
        num_sanity_val_steps=0,
        log_every_n_steps=min(10, module.steps_per_epoch),
        enable_progress_bar=config.progress,
        enable_model_summary=config.progress,
        default_root_dir=str(output),
        deterministic="warn",
    )
    return fit(trainer, module, data, config)
