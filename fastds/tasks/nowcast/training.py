# SPDX-License-Identifier: Apache-2.0
"""The training of nowcasting networks: losses, validation by scores, the run and the exported weights."""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from torch import Tensor

from fastds import data as fd
from fastds import models
from fastds.metrics import NowcastScores, mean_of_defined
from fastds.models.db_rnn import DBRNN, LagrangianRNN, StagedRNN
from fastds.models.db_rnn.discriminator import Discriminator, variant_of
from fastds.models.db_rnn.losses import discriminator_loss, generator_loss, pixel_loss, weights_of
from fastds.models.db_rnn.module import MSModule
from fastds.models.db_rnn.network import NowcastModel
from fastds.models.db_rnn.pred_rnn_v2 import decoupling_loss, memory_similarities
from fastds.tasks.common.card_of_run import fill_card_of_run
from fastds.tasks.common.lightning_extra import L
from fastds.tasks.common.run_folder import ExportBest, averaging, begin, run
from fastds.tasks.common.training import SupervisedModule
from fastds.tasks.common.verdict import against
from fastds.tasks.nowcast.config import STAGES, TrainingConfig
from fastds.tasks.nowcast.rain_loss import RainLoss
from fastds.tasks.nowcast.samples import NowcastData

_FLOORS_DBZ = (0.0, 15.0)
_DISCRIMINATOR_RATE = 3e-4


class NowcastModule(SupervisedModule):
    """Trains a network that rolls m known fields on over n - 1 forecast ones.

    Batches: frames and valid (B, m + n, 1, H, W), see NowcastCrops. The reference is the last known field: persistence,
    and of crops that move with the air, extrapolation.
    Logged: loss; val_error, which picks the best weights, 1 of the reference: mean over leads of the squared error over
    the reference's plus loss.csi_weight times what CSI falls short of the reference's; val_mse and val_mse_reference
    (dBZ^2), val_csi_R and val_csi_R_reference at R mm/h, means over leads. Of a LagrangianRNN these are the scores of
    its network, before forecasts are matched.

    Args:
        model: MSRNN, DBRNN, StagedRNN or LagrangianRNN.
        config: the run.
    Raises: ValueError for a stage without a StagedRNN, and for weights of two outputs without a DBRNN.
    """

    def __init__(self, model: torch.nn.Module, config: TrainingConfig):
        super().__init__(model, config)
        c = config.data
        self.range_dbz = c.ceiling - c.floor
        self.thresholds = fd.normalised_rates(config.loss.rates, tuple(config.loss.z_r), c.floor, c.ceiling)
        floors = [(f - c.floor) / self.range_dbz for f in _FLOORS_DBZ if f >= c.floor]
        width = config.loss.csi_width / self.range_dbz
        options = (self.thresholds, floors, width, config.loss.csi_weight, 1.0 / self.range_dbz, c.future)
        self.rain_losses = torch.nn.ModuleList(RainLoss(*options) for _ in range(2))  # one per output
        if (config.stage is not None) != isinstance(model, StagedRNN):
            stages = " or ".join(STAGES)
            wanted = f"stage must be given for networks in stages, whose names end in -s, {stages}, and for no other"
            raise ValueError(f"{wanted}, got {config.stage!r}")
        self.deblurs = isinstance(self.network, DBRNN)
        if (config.loss.terms != "none" or config.loss.scheduled) and not self.deblurs:
            raise ValueError(
                f"loss.terms {config.loss.terms!r} with weights {config.loss.weights!r} are for networks that deblur "
                "(DBRNN)"
            )
        if config.stage == "deblurrer":
            self.network.forecaster.requires_grad_(False)
        if not config.loss.decoupling:  # nothing else gives what cells share a gradient, which DDP would wait for
            for part in self.network.modules():
                if isinstance(part, MSModule) and part.shared is not None:
                    part.shared.requires_grad_(False)
        self.discriminator = self.discriminator_optimiser = self._judged = None
        self._similarities = []
        if config.loss.terms == "adversarial":
            variant = config.loss.discriminator or variant_of(self.network.config["cell"])
            self.discriminator = Discriminator(variant, (c.crop, c.crop))
            self.discriminator_optimiser = torch.optim.Adam(self.discriminator.parameters(), _DISCRIMINATOR_RATE)

    @property
    def network(self) -> torch.nn.Module:
        """What rolls over the frames of a batch."""
        return self.model.network if isinstance(self.model, LagrangianRNN) else self.model

    # ---- training

    def feed_truth(self) -> float:
        """Probability of scheduled sampling, from 1 to 0 over the training (steps or clock, whichever is further)."""
        if not (self.config.loss.scheduled_sampling and self.training):
            return 0.0
        return 1.0 - self.done(self.global_step)

    def forward(self, batch: dict) -> tuple[Tensor, ...]:
        """Forecasts of frames 1 to m + n - 1, one tensor (B, m + n - 1, 1, H, W) per output of the network."""
        if not (self.training and self.config.loss.decoupling):
            return self.roll(batch)
        with memory_similarities() as self._similarities:
            return self.roll(batch)

    def roll(self, batch: dict) -> tuple[Tensor, ...]:
        """What forward returns, of the stage that is trained."""
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
        """Epochs so far, by steps: Lightning's count is one too high after a resume."""
        if self.config.loss.epochs is not None:
            return int(self.config.loss.epochs * self.done(self.global_step))
        return self.global_step // max(1, self.config.data.epoch_samples // self.config.data.batch_size)

    def loss(self, prediction: tuple[Tensor, ...], batch: dict) -> Tensor:
        steps = self.config.data.known + self.config.data.future - 1
        decoupling = self.config.loss.decoupling * decoupling_loss(self._similarities, steps)
        self._similarities = []
        return self.forecast_loss(prediction, batch) + decoupling

    def forecast_loss(self, prediction: tuple[Tensor, ...], batch: dict) -> Tensor:
        """What the forecasts lack."""
        c = self.config.loss
        weights = weights_of(self.epoch(), c.terms, c.scheduled) if self.deblurs else None
        if c.kind == "rain":
            pairs = zip(self.rain_losses, prediction, strict=False)
            parts = [rain_loss(*self.future(y, batch)) for rain_loss, y in pairs]
            return parts[0] if weights is None else weights.forecast * parts[0] + weights.deblurred * parts[1]
        frames = prediction[0].shape[1]  # all but the first, or of SimVP those to forecast
        truth, valid = batch["frames"][:, -frames:], batch["valid"][:, -frames:]
        prediction = [torch.where(valid, y, truth) for y in prediction]
        if weights is None:
            return pixel_loss(prediction[0], truth)
        if self.discriminator is None:
            return generator_loss(*prediction, truth, weights)
        self._judged = prediction[-1].detach(), truth
        self.discriminator.requires_grad_(False)
        return generator_loss(*prediction, truth, weights, self.discriminator)

    def on_train_batch_end(self, outputs, batch: dict, batch_index: int) -> None:
        """The discriminator's own step, after the network's."""
        if self._judged is not None:
            self.discriminator.requires_grad_(True)
            loss = discriminator_loss(self.discriminator, *self._judged)
            self.discriminator_optimiser.zero_grad()
            loss.backward()
            self.discriminator_optimiser.step()
            self._judged = None
            self.log("discriminator", loss.detach())
        super().on_train_batch_end(outputs, batch, batch_index)

    def future(self, y: Tensor, batch: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the frames to forecast: prediction, truth, reference and valid (B, n, 1, H, W)."""
        known, future = self.config.data.known, self.config.data.future
        last = batch["frames"][:, known - 1 : known]
        valid = batch["valid"][:, known:] & batch["valid"][:, known - 1 : known]
        return y[:, -future:], batch["frames"][:, known:], last.expand_as(valid), valid

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        self._ours, self._reference = (
            NowcastScores(self.thresholds, self.config.data.future, weights=[1.0] * (len(self.thresholds) + 1))
            for _ in range(2)
        )

    def validation_step(self, batch: dict, batch_index: int) -> None:
        y, truth, reference, valid = self.future(self(batch)[-1], batch)
        self._ours.add(y, truth, valid)
        self._reference.add(reference, truth, valid)

    def validation_scores(self) -> dict[str, float]:
        """val_error and what it is made of, of the validation that just ran."""
        scores = {"": self._ours.by_frame(), "_reference": self._reference.by_frame()}
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

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.discriminator_optimiser is not None:
            checkpoint["discriminator_optimiser"] = self.discriminator_optimiser.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.discriminator_optimiser is not None:
            self.discriminator_optimiser.load_state_dict(checkpoint["discriminator_optimiser"])


class ExportWeights(ExportBest):
    """Lowest val_error."""

    def validated(self, trainer: L.Trainer, module: L.LightningModule) -> tuple[torch.nn.Module, dict, float]:
        values = module.validation_scores()
        method = "extrapolation" if isinstance(module.model, LagrangianRNN) else "persistence"
        told = against(method, "squared error in dBZ^2", values["val_mse"], values["val_mse_reference"])
        scores = {**module.config.model.card.get("metrics", {}), "validation": values, **told}
        return module.model, scores, values["val_error"]


def build_model(config: TrainingConfig) -> torch.nn.Module:
    """Create the network with its card, or load config.model.start."""
    c = config.model
    model = models.load(c.start).train() if c.start else models.create(c.name, **c.options)
    if not isinstance(model, NowcastModel):
        raise ValueError(
            f"model.name: {c.start or c.name!r} cannot be trained to nowcast, which takes a network of the DB-RNN "
            "family or simvp, such as nowcast-small or ms-convlstm"
        )
    fill_card_of_run(model.card, config)
    model.card.input_steps = config.data.known
    model.card.floor_dbz, model.card.ceiling_dbz = config.data.floor, config.data.ceiling
    return model


def train(config: TrainingConfig) -> pathlib.Path:
    """Train, resume where config.output holds a checkpoint, and export best.safetensors, whose path is returned.

    Deterministic for a given configuration and number of threads, interrupted or not, unless max_minutes ends the run.
    Raises: FileNotFoundError, ValueError for data or options that do not fit; FloatingPointError when the loss stays
        not finite.
    """
    begin(config)
    model = build_model(config)
    module = NowcastModule(model, config)
    moving = isinstance(model, LagrangianRNN)
    data = NowcastData(config.data, moving=moving, seed=config.seed, devices=config.devices)
    data.setup()
    return run(config, module, data, ExportWeights, further=averaging(config))
