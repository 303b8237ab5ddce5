# SPDX-License-Identifier: Apache-2.0
"""The training run: data, model, callbacks, resume and export."""

import dataclasses
import pathlib
import sys

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from fastds import models
from fastds.training.config import TrainingConfig, parse_arguments
from fastds.training.data import RadarDataModule
from fastds.training.module import DownscalingModule


class ExportWeights(Callback):
    """Writes best.safetensors at every best validation; first in the list, so that it sees the averaged weights."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.best = folder, float("inf")

    def on_validation_epoch_end(self, trainer: L.Trainer, module: DownscalingModule) -> None:
        if trainer.sanity_checking:
            return
        error = float(trainer.callback_metrics["val_mse_total"])
        reference = float(trainer.callback_metrics["val_mse_trilinear"])
        module.model.card.metrics = {
            **module.config.model.card.get("metrics", {}),
            "validation": {"mse_total": error, "mse_total_trilinear": reference},
        }
        models.save(module.model, self.folder / "last.safetensors")
        if error < self.best:
            self.best = error
            models.save(module.model, self.folder / "best.safetensors")

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]


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
    if not c.start and c.input_gain != 1.0:
        strengthen(model, c.input_gain)
    for key, value in c.card.items():
        if key not in {field.name for field in dataclasses.fields(model.card)}:
            raise ValueError(f"model.card has no field {key!r}")
        setattr(model.card, key, value)
    model.card.floor_dbz, model.card.ceiling_dbz = config.data.floor, config.data.ceiling
    return model


def needs_flow(model: torch.nn.Module) -> bool:
    """Whether the model reads optical flow: the samples then carry that of the whole frames."""
    return bool(model.config.get("flow_guided")) or model.config.get("residual") == "advection"


def train(config: TrainingConfig) -> pathlib.Path:
    """Train, resume where config.output holds a checkpoint, and export the weights.

    Returns: the path of best.safetensors (lowest validation error); last.safetensors lies beside it, with
        checkpoints/ (the last
        and the best), csv/ and tensorboard/ logs, and the configuration as config.yaml.
    Deterministic for a given configuration and number of threads, interrupted or not, unless max_minutes ends the run.
    Raises: FileNotFoundError, ValueError for data or options that do not fit; FloatingPointError when the loss stays
        not finite.
    """
    L.seed_everything(config.seed, verbose=False)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    output = pathlib.Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))
    model = build_model(config)
    module = DownscalingModule(model, config)
    data = RadarDataModule(config.data, flow=needs_flow(model), seed=config.seed)
    last = output / "checkpoints" / "last.ckpt"
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
    trainer.fit(
        module, datamodule=data, ckpt_path=str(last) if config.resume and last.exists() else None, weights_only=True
    )
    return output / "best.safetensors"


def _loggers(output: pathlib.Path) -> list:
    return [
        CSVLogger(str(output), name="csv", version=""),
        TensorBoardLogger(str(output), name="tensorboard", version=""),
    ]


def _callbacks(config: TrainingConfig, output: pathlib.Path) -> list:
    callbacks = [
        ExportWeights(output),
        ModelCheckpoint(
            str(output / "checkpoints"),
            filename="best",
            monitor="val_mse_total",
            save_top_k=1,
            save_last=True,
            enable_version_counter=False,
        ),
        LearningRateMonitor("step"),
    ]
    if config.ema_decay > 0:
        callbacks.append(EMAWeightAveraging(decay=config.ema_decay))
    if config.progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    return callbacks


def main(arguments: list[str] | None = None) -> int:
    """The command `fastds train`: returns the exit status."""
    try:
        config = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        best = train(config)
    except (FileNotFoundError, ValueError, FloatingPointError) as error:
        print(f"fastds train: {error}", file=sys.stderr)
        return 2
    print(f"best weights: {best}")
    return 0
