# SPDX-License-Identifier: Apache-2.0
"""The adversarial training run: networks, data, resume and export."""

import dataclasses
import pathlib
import sys

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from fastds import models
from fastds.models.wgan_gp import HumidityCritic
from fastds.training.gan.config import GANConfig, parse_arguments
from fastds.training.gan.data import FieldDataModule
from fastds.training.gan.module import GANModule


class ExportGenerator(Callback):
    """Writes last.safetensors at every validation, best.safetensors at the lowest val_crps."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.best = folder, float("inf")

    def on_validation_epoch_end(self, trainer: L.Trainer, module: GANModule) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
        generator = module.exported
        generator.card.metrics = {**module.config.card.get("metrics", {}), "validation": values}
        models.save(generator, self.folder / "last.safetensors")
        if values["val_crps"] < self.best:
            self.best = values["val_crps"]
            models.save(generator, self.folder / "best.safetensors")

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]


def build(config: GANConfig) -> GANModule:
    """The networks with fresh weights, card filled, in their training module.

    Raises: ValueError for options that do not fit.
    """
    generator = models.create(config.generator, **config.generator_options)
    critic = HumidityCritic(**config.critic_options)
    for key, value in config.card.items():
        if key not in {field.name for field in dataclasses.fields(generator.card)}:
            raise ValueError(f"card has no field {key!r}")
        setattr(generator.card, key, value)
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
    L.seed_everything(config.seed, verbose=False)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    output = pathlib.Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(yaml.safe_dump(_plain(config), sort_keys=False))
    module = build(config)
    data = FieldDataModule(config.data, module.generator.config["scale"], config.seed, module.samples_seen)
    last = output / "checkpoints" / "last.ckpt"
    checkpoint = ModelCheckpoint(
        str(output / "checkpoints"), filename="last", save_top_k=1, monitor=None, enable_version_counter=False
    )
    callbacks = [ExportGenerator(output), checkpoint]
    if config.progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
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
    resume = str(last) if config.resume and last.exists() else None
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return output / "best.safetensors"


def _plain(config: GANConfig) -> dict:
    values = dataclasses.asdict(config)
    values["optimiser"]["betas"] = list(values["optimiser"]["betas"])
    return values


def main(arguments: list[str] | None = None) -> int:
    """The command `python -m fastds.training.gan`: returns the exit status."""
    try:
        config = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        best = train(config)
    except (FileNotFoundError, ImportError, ValueError, FloatingPointError) as error:
        print(f"fastds.training.gan: {error}", file=sys.stderr)
        return 2
    print(f"best weights: {best}")
    return 0
