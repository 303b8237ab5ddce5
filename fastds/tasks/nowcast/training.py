# SPDX-License-Identifier: Apache-2.0
"""The training run of a nowcasting network: model, data, resume and export."""

import pathlib

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from fastds import models
from fastds.models.db_rnn import LagrangianRNN
from fastds.tasks.common.command import ExportBest, begin, fill_card, fit, keep_last, make_folder
from fastds.tasks.nowcast.config import NowcastConfig
from fastds.tasks.nowcast.module import NowcastModule
from fastds.tasks.nowcast.samples import NowcastDataModule


class ExportWeights(ExportBest):
    """Lowest val_error."""

    def validated(self, trainer, module):
        values = module.validation_scores()
        return module.model, {**module.config.card.get("metrics", {}), "validation": values}, values["val_error"]


def build_model(config: NowcastConfig) -> torch.nn.Module:
    """Create the network with its card, or load config.start."""
    model = models.load(config.start).train() if config.start else models.create(config.model, **config.options)
    fill_card(model.card, config.card)
    model.card.input_steps = config.data.known
    model.card.floor_dbz, model.card.ceiling_dbz = config.data.floor, config.data.ceiling
    return model


def train(config: NowcastConfig) -> pathlib.Path:
    """Train, resume where config.output holds a checkpoint, and export best.safetensors, whose path is returned.

    Deterministic for a given configuration and number of threads, interrupted or not, unless max_minutes ends the run.
    Raises: FileNotFoundError, ValueError for data or options that do not fit; FloatingPointError when the loss stays
        not finite.
    """
    begin(config)
    model = build_model(config)
    module = NowcastModule(model, config)
    data = NowcastDataModule(config.data, moving=isinstance(model, LagrangianRNN), seed=config.seed)
    data.setup()
    output = make_folder(config)
    callbacks = [ExportWeights(output), keep_last(output)]
    if config.ema_decay > 0:
        callbacks.append(EMAWeightAveraging(decay=config.ema_decay))
    if config.progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    trainer = L.Trainer(
        accelerator="auto", devices=1, max_steps=config.max_steps, max_epochs=-1, num_sanity_val_steps=0,
        logger=CSVLogger(str(output), name="csv", version=""), callbacks=callbacks,
        log_every_n_steps=min(10, max(1, config.data.epoch_samples // config.data.batch_size)),
        enable_progress_bar=config.progress, enable_model_summary=False, default_root_dir=str(output),
        deterministic="warn",
    )  # fmt: skip
    return fit(trainer, module, data, config)
