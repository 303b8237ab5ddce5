# SPDX-License-Identifier: Apache-2.0
"""The training run: data, model, callbacks, resume and export."""

import pathlib

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateMonitor,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from fastds import models
from fastds.tasks.common.command import ExportBest, begin, fill_card, fit, keep_last, make_folder
from fastds.tasks.radar.config import TrainingConfig
from fastds.tasks.radar.module import DownscalingModule
from fastds.tasks.radar.samples import RadarDataModule


class ExportWeights(ExportBest):
    """Lowest val_mse_total."""

    def validated(self, trainer, module):
        error = float(trainer.callback_metrics["val_mse_total"])
        reference = float(trainer.callback_metrics["val_mse_trilinear"])
        scores = {"validation": {"mse_total": error, "mse_total_trilinear": reference}}
        return module.model, {**module.config.model.card.get("metrics", {}), **scores}, error


def strengthen(model: torch.nn.Module, gain: float) -> None:
    """Scale the fresh weights of an FCZSM so that the signal is not drowned by the biases.

    Normalised reflectivity varies by a few hundredths, and every default-initialised layer halves that: after the gates
    a hundredth of the feature maps' variance depends on the input, and the first thousand steps learn next to nothing.
    The first convolution is multiplied by gain, the mixing and upsampling layers by 2, and biases are set to zero.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "extractor.conv.weight":
                parameter.mul_(gain)
            elif name.startswith(("reconstruction.up", "reconstruction.hidden", "interpolation.mix", "lstm.merge")):
                parameter.mul_(2.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.zero_()


def build_model(config: TrainingConfig) -> torch.nn.Module:
    """Create the network with its card, or load config.model.start."""
    c = config.model
    model = models.load(c.start) if c.start else models.create(c.name, **c.options)
    if not isinstance(model, models.FCZSM) or model.config["in_channels"] != 1:
        raise ValueError(
            f"model.name: {c.start or c.name!r} cannot be trained on files of one radar field, which takes an FCZSM of "
            "one channel, such as fczsm, fczsm-s or fczsm-small"
        )
    if not c.start and c.input_gain != 1.0:
        strengthen(model, c.input_gain)
    fill_card(model.card, c.card, "model.card")
    model.card.floor_dbz, model.card.ceiling_dbz = config.data.floor, config.data.ceiling
    return model


def needs_flow(model: torch.nn.Module) -> bool:
    """Whether the model reads optical flow: the samples then carry that of the whole frames."""
    return bool(model.config.get("flow_guided")) or model.config.get("residual") == "advection"


def train(config: TrainingConfig) -> pathlib.Path:
    """Train, resume where config.output holds a checkpoint, and export the weights.

    Returns: the path of best.safetensors (lowest validation error); last.safetensors lies beside it, with
        checkpoints/, csv/ and tensorboard/ logs, and the configuration as config.yaml.
    Deterministic for a given configuration and number of threads, interrupted or not, unless max_minutes ends the run.
    Raises: FileNotFoundError, ValueError for data or options that do not fit; FloatingPointError when the loss stays
        not finite.
    """
    begin(config)
    model = build_model(config)
    module = DownscalingModule(model, config)
    static = model.config.get("static_channels", 0), model.card.static_variables
    data = RadarDataModule(config.data, needs_flow(model), config.seed, *static)
    data.setup()
    model.card.static_variables = data.static_variables
    output = make_folder(config)
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=config.max_steps,
        max_epochs=-1,
        logger=_loggers(output),
        callbacks=_callbacks(config, output),
        num_sanity_val_steps=0,
        log_every_n_steps=min(10, max(1, config.data.epoch_samples // config.data.batch_size)),
        enable_progress_bar=config.progress,
        enable_model_summary=config.progress,
        default_root_dir=str(output),
        deterministic="warn",
    )
    return fit(trainer, module, data, config)


def _loggers(output: pathlib.Path) -> list:
    return [
        CSVLogger(str(output), name="csv", version=""),
        TensorBoardLogger(str(output), name="tensorboard", version=""),
    ]


def _callbacks(config: TrainingConfig, output: pathlib.Path) -> list:
    callbacks = [
        ExportWeights(output),
        keep_last(output),
        LearningRateMonitor("step"),
    ]
    if config.ema_decay > 0:
        callbacks.append(EMAWeightAveraging(decay=config.ema_decay))
    if config.progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    return callbacks
