# SPDX-License-Identifier: Apache-2.0
"""Training of nowcasting networks: losses, validation scores, exported weights."""

from __future__ import annotations

import pathlib
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastds import data as fd
from fastds import models
from fastds._options import OptionError
from fastds.metrics import NowcastScores, mean_of_defined
from fastds.models.card import Network
from fastds.models.db_rnn import DBRNN, LagrangianRNN, StagedRNN
from fastds.models.db_rnn.cells import decoupling_loss, memory_similarities
from fastds.models.db_rnn.discriminator import Discriminator, select_variant
from fastds.models.db_rnn.losses import compute_loss_weights, discriminator_loss, generator_loss, pixel_loss
from fastds.models.db_rnn.module import MSModule
from fastds.models.db_rnn.network import NowcastModel
from fastds.models.graph_cache import use_graphs
from fastds.tasks.nowcast.config import STAGES, TrainingConfig
from fastds.tasks.nowcast.rain_loss import RainLoss
from fastds.tasks.nowcast.samples import NowcastData
from fastds.training.baseline_comparison import compare_to_baseline
from fastds.training.lightning_extra import L
from fastds.training.maps import SampleRow, select_rows
from fastds.training.model_card import update_model_card
from fastds.training.modules import SupervisedModule
from fastds.training.trainer import ExportBest, make_averaging_callbacks, prepare_run, run_training

_FLOORS_DBZ = (0.0, 15.0)
_DISCRIMINATOR_RATE = 3e-4


class NowcastModule(SupervisedModule):
    """Training of a network that is rolled over m input frames and n - 1 of its forecasts.

    Batches: frames and valid (B, m + n, 1, H, W), see NowcastCrops. The reference is the last input frame, which is
    persistence, or extrapolation for moving crops.

    Logged values: loss. val_error, by which the best weights are selected: mean over lead times of the squared error
    relative to the reference, plus loss.csi_weight times the shortfall of CSI relative to the reference. val_mse and
    val_mse_reference (dBZ^2), val_csi_R and val_csi_R_reference at R mm/h: means over lead times. For LagrangianRNN,
    these are scores of its network, before intensities are matched.

    Args:
        model: MSRNN, DBRNN, StagedRNN or LagrangianRNN.
        config: configuration of the training.

    Raises:
        ValueError: a stage without a StagedRNN, or weights of two outputs without a DBRNN.
    """

    def __init__(self, model: Network, config: TrainingConfig):
        super().__init__(model, config)
        c = config.data
        self.range_dbz = c.ceiling - c.floor
        self.thresholds = fd.normalised_rates(
            config.loss.rates, cast(tuple[float, float], tuple(config.loss.z_r)), c.floor, c.ceiling
        )
        floors = [(f - c.floor) / self.range_dbz for f in _FLOORS_DBZ if f >= c.floor]
        width = config.loss.csi_width / self.range_dbz
        options = (self.thresholds, floors, width, config.loss.csi_weight, 1.0 / self.range_dbz, c.future)
        self.rain_losses = torch.nn.ModuleList(RainLoss(*options) for _ in range(2))  # one per output of the network
        if (config.stage is not None) != isinstance(model, StagedRNN):
            stages = " or ".join(STAGES)
            expected = f"must be given for networks in stages, whose names end in -s, {stages}, and for no other"
            raise OptionError("stage", f"{expected}, got {config.stage!r}")
        self.deblurs = isinstance(self.network, DBRNN)
        if (config.loss.terms != "none" or config.loss.has_scheduled_weights) and not self.deblurs:
            given = f"{config.loss.terms!r} with weights {config.loss.weights!r}"
            raise OptionError("loss.terms", f"{given} are for networks that deblur (DBRNN)")
        if config.stage == "deblurrer":
            self.network.forecaster.requires_grad_(False)
        shared = [
            part.shared for part in self.network.modules() if isinstance(part, MSModule) and part.shared is not None
        ]
        self.has_decoupling_loss = bool(config.loss.decoupling and shared)
        if not self.has_decoupling_loss:
            # without decoupling loss, the shared parameters of the cells have no gradient, for which DDP would wait
            for part in shared:
                part.requires_grad_(False)
        self.discriminator: Any = None
        self.discriminator_optimiser: Any = None
        self._judged: tuple[Tensor, Tensor] | None = None
        self._similarities: list[Any] = []
        if config.loss.terms == "adversarial":
            variant = config.loss.discriminator or select_variant(self.network.config["cell"])
            self.discriminator = Discriminator(variant, (c.crop, c.crop))
            self.discriminator_optimiser = torch.optim.Adam(self.discriminator.parameters(), _DISCRIMINATOR_RATE)

    @property
    def network(self) -> Network:
        """Network that is rolled over the frames of a batch."""
        return self.model.network if isinstance(self.model, LagrangianRNN) else self.model

    def feed_truth(self) -> float:
        """Return the probability of scheduled sampling, which decreases from 1 to 0 over the training."""
        if not (self.config.loss.scheduled_sampling and self.training):
            return 0.0
        return 1.0 - self.compute_progress(self.global_step)

    def forward(self, batch: dict) -> tuple[Tensor, ...]:
        """Return the predictions of frames 1 to m + n - 1, (B, m + n - 1, 1, H, W) for each output of the network."""
        if not (self.training and self.has_decoupling_loss):
            return self.roll(batch)
        with memory_similarities() as self._similarities, use_graphs(None):  # a graph would return no similarities
            return self.roll(batch)

    def roll(self, batch: dict) -> tuple[Tensor, ...]:
        """Return the predictions of the stage that is trained, see forward."""
        known, future = self.config.data.known, self.config.data.future
        inputs, truth = batch["frames"][:, :known], batch["frames"][:, known:]
        if self.config.stage == "forecaster":
            return self.network.forecaster.roll(inputs, future, truth, self.feed_truth())
        if self.config.stage == "deblurrer":
            with torch.no_grad():
                (forecasts,) = self.network.forecaster.roll(inputs, future)
            return (self.network.deblur(forecasts),)
        return self.network.roll(inputs, future, truth, self.feed_truth())

    def epoch(self) -> int:
        """Return the number of epochs so far.

        The number is computed from steps, because Lightning's number is wrong by one after a run was resumed.
        """
        if self.config.loss.epochs is not None:
            return int(self.config.loss.epochs * self.compute_progress(self.global_step))
        return self.global_step // max(1, self.config.data.epoch_samples // self.config.data.batch_size)

    def loss(self, prediction: tuple[Tensor, ...], batch: dict) -> Tensor:
        steps = self.config.data.known + self.config.data.future - 1
        decoupling = self.config.loss.decoupling * decoupling_loss(self._similarities, steps)
        self._similarities = []
        return self.forecast_loss(prediction, batch) + decoupling

    def forecast_loss(self, prediction: tuple[Tensor, ...], batch: dict) -> Tensor:
        """Return the loss of the predictions without the decoupling loss."""
        c = self.config.loss
        weights = compute_loss_weights(self.epoch(), c.terms, c.has_scheduled_weights) if self.deblurs else None
        if c.kind == "rain":
            pairs = zip(self.rain_losses, prediction, strict=False)
            parts = [rain_loss(*self.select_future(y, batch)) for rain_loss, y in pairs]
            return parts[0] if weights is None else weights.forecast * parts[0] + weights.deblurred * parts[1]
        frames = prediction[0].shape[1]  # all frames but the first; SimVP predicts the forecast frames only
        truth, valid = batch["frames"][:, -frames:], batch["valid"][:, -frames:]
        filled: list[Any] = [torch.where(valid, y, truth) for y in prediction]
        if weights is None:
            return pixel_loss(filled[0], truth)
        if self.discriminator is None:
            return generator_loss(filled[0], filled[1], truth, weights)
        self._judged = filled[-1].detach(), truth
        self.discriminator.requires_grad_(False)
        return generator_loss(filled[0], filled[1], truth, weights, self.discriminator)

    def on_train_batch_end(self, outputs, batch: dict, batch_index: int) -> None:
        """Make a step of the discriminator, if there is one, after the step of the network.

        Args:
            outputs: result of the training step, not used.
            batch: the batch.
            batch_index: index of the batch in the epoch.
        """
        if self._judged is not None:
            self.discriminator.requires_grad_(True)
            loss = discriminator_loss(self.discriminator, *self._judged)
            self.discriminator_optimiser.zero_grad()
            loss.backward()
            self.discriminator_optimiser.step()
            self._judged = None
            self.log("discriminator", loss.detach())
        super().on_train_batch_end(outputs, batch, batch_index)

    def select_future(self, y: Tensor, batch: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return prediction, truth, reference and valid mask (B, n, 1, H, W) of the forecast frames."""
        known, future = self.config.data.known, self.config.data.future
        last = batch["frames"][:, known - 1 : known]
        valid = batch["valid"][:, known:] & batch["valid"][:, known - 1 : known]
        return y[:, -future:], batch["frames"][:, known:], last.expand_as(valid), valid

    def on_validation_epoch_start(self) -> None:
        self._scores, self._reference = (
            NowcastScores(self.thresholds, self.config.data.future, weights=[1.0] * (len(self.thresholds) + 1))
            for _ in range(2)
        )

    def validation_step(self, batch: dict, batch_index: int) -> None:
        y, truth, reference, valid = self.select_future(self(batch)[-1], batch)
        self._scores.add(y, truth, valid)
        self._reference.add(reference, truth, valid)
        if self.maps is not None and batch_index == 0:
            self.maps.rows = self._make_map_rows(y, truth, reference, valid)

    def _make_map_rows(self, *fields: Tensor) -> list[SampleRow]:
        """Return the sample with most valid pixels in dBZ: forecast, truth and last input frame, see select_future."""
        number = int(fields[-1].flatten(1).sum(1).argmax())
        y, truth, reference, valid = (field[number, :, 0] for field in fields)
        y, truth, last = (self.config.data.floor + self.range_dbz * field for field in (y, truth, reference[0]))
        y, truth = (torch.where(valid, field, torch.nan) for field in (y, truth))
        return [
            SampleRow(f"forecast step {k + 1}", y[k], truth[k], last if k == 0 else None, {"units": "dBZ"})
            for k in select_rows(len(y))
        ]

    def validation_scores(self) -> dict[str, float]:
        """Return val_error and its components for the last validation."""
        scores = {"": self._scores.by_frame(), "_reference": self._reference.by_frame()}
        values = {}
        for suffix, score in scores.items():
            values[f"val_mse{suffix}"] = float(mean_of_defined(score["mse"])) * self.range_dbz**2
            for rate, csi in zip(self.config.loss.rates, score["csi"].T, strict=True):
                values[f"val_csi_{rate:g}{suffix}"] = float(mean_of_defined(csi))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = mean_of_defined(scores[""]["mse"] / scores["_reference"]["mse"])
        shortfall = mean_of_defined((scores["_reference"]["csi"] - scores[""]["csi"]).clip(min=0).ravel())
        return {**values, "val_error": float(ratio + self.config.loss.csi_weight * shortfall)}

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.validation_scores(), sync_dist=self.trainer.world_size > 1)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.discriminator_optimiser is not None:
            checkpoint["discriminator_optimiser"] = self.discriminator_optimiser.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.discriminator_optimiser is not None:
            self.discriminator_optimiser.load_state_dict(checkpoint["discriminator_optimiser"])


class ExportWeights(ExportBest):
    """Export of the weights with the lowest val_error."""

    def validate(self, trainer: L.Trainer, module: Any) -> tuple[Network, dict, float]:
        values = module.validation_scores()
        method = "extrapolation" if isinstance(module.model, LagrangianRNN) else "persistence"
        comparison = compare_to_baseline(
            method, "squared error in dBZ^2", values["val_mse"], values["val_mse_reference"]
        )
        scores = {**module.config.model.card.get("metrics", {}), "validation": values, **comparison}
        return module.model, scores, values["val_error"]


def build_model(config: TrainingConfig) -> Network:
    """Create the network with its card, or load config.model.start.

    Raises:
        ValueError: the network is not a nowcasting network.
    """
    c = config.model
    model: Network = models.load(c.start).train() if c.start else models.create(c.name, **c.options)
    if not isinstance(model, NowcastModel):
        raise OptionError(
            "model.name",
            f": {c.start or c.name!r} cannot be trained to nowcast, which takes a network of the DB-RNN "
            "family or simvp, such as nowcast-small or ms-convlstm",
        )
    update_model_card(model.card, config)
    model.card.input_steps = config.data.known
    model.card.floor_dbz, model.card.ceiling_dbz = config.data.floor, config.data.ceiling
    return model


def train(config: TrainingConfig) -> pathlib.Path:
    """Train, or resume if config.output has a checkpoint, and return the path of best.safetensors.

    The result is deterministic for a given configuration and number of threads, also after an interruption, unless
    max_minutes ends the run.

    Raises:
        FileNotFoundError: no such data.
        ValueError: data or options that do not fit.
        FloatingPointError: the loss was not finite in several consecutive steps.
    """
    prepare_run(config)
    model = build_model(config)
    module = NowcastModule(model, config)
    moving = isinstance(model, LagrangianRNN)
    data = NowcastData(config.data, moving=moving, seed=config.seed, devices=config.devices)
    data.setup()
    return run_training(config, module, data, ExportWeights, further=make_averaging_callbacks(config))
