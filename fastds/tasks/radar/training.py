# SPDX-License-Identifier: Apache-2.0
"""Training of FC-ZSM and U-Nets: loss on valid pixels, exported weights."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from torch import Tensor

from fastds import models
from fastds._options import OptionError
from fastds.models.baselines import advection, trilinear
from fastds.models.baselines.unet import UNet, UNet3D
from fastds.models.card import Network
from fastds.tasks.radar.config import TrainingConfig
from fastds.tasks.radar.methods import VARIABLE, needs_flow
from fastds.tasks.radar.samples import RadarData
from fastds.training.baseline_comparison import compare_to_baseline
from fastds.training.lightning_extra import L, callbacks
from fastds.training.maps import SampleRow
from fastds.training.model_card import update_model_card
from fastds.training.modules import SupervisedModule
from fastds.training.trainer import ExportBest, make_averaging_callbacks, prepare_run, run_training

NETWORKS = (models.FCZSM, UNet, UNet3D)
_BASELINE_NAMES = {"trilinear": "trilinear interpolation", "advection": "advection"}


class RadarModule(SupervisedModule):
    """Training of a network that maps two coarse frames to three fine frames.

    Batches: x (B, 2, 1 + D, h, w), y and valid (B, 3, 1, r*h, r*w), and if the network reads them flow (B, 1, 2, 2, h,
    w), context (B, 2, 1, h, w) and static (B, S, h, w); x and y are normalised to [0, 1]. Logged values: loss, learning
    rate, val_mse_total (dBZ^2 above the floor), val_mse_trilinear, val_mse_advection (with flow), and val_relative
    (val_mse_total divided by val_mse_trilinear).
    """

    def __init__(self, model: Network, config: TrainingConfig):
        super().__init__(model, config)
        self.range_dbz = config.data.ceiling - config.data.floor

    def forward(self, batch: dict) -> Tensor:
        return self.model(batch["x"], **{key: batch[key] for key in ("static", "flow", "context") if key in batch})

    def loss(self, prediction: Tensor, batch: dict) -> Tensor:
        """Return the mean over samples of the mean error on valid pixels, with errors in dBZ."""
        valid = batch["valid"]
        error = torch.where(valid, prediction - batch["y"], 0.0) * self.range_dbz
        count = valid.sum(dim=(1, 2, 3, 4)).clamp(min=1)
        if self.config.loss == "charbonnier":
            return (((error.square() + 0.01).sqrt() - 0.1).sum(dim=(1, 2, 3, 4)) / count).mean()
        mse = error.square().sum(dim=(1, 2, 3, 4)) / count
        if self.config.loss == "mse":
            return mse.mean()
        # 0.25 dBZ^2 reduces the weight of nearly dry crops
        return (mse / (self._trilinear_mse(batch, count) + 0.25)).mean()

    def _trilinear_mse(self, batch: dict, count: Tensor) -> Tensor:
        with torch.no_grad():
            r = batch["y"].shape[-1] // batch["x"].shape[-1]
            return self._mse(trilinear(batch["x"][:, :, :1], r), batch, count)

    def _mse(self, prediction: Tensor, batch: dict, count: Tensor) -> Tensor:
        """Return the mean squared error (B,) in dBZ^2 on valid pixels."""
        error = torch.where(batch["valid"], prediction - batch["y"], 0.0) * self.range_dbz
        return error.square().sum(dim=(1, 2, 3, 4)) / count

    def validation_step(self, batch: dict, batch_index: int) -> None:
        valid, b = batch["valid"], batch["x"].shape[0]
        count = valid.sum(dim=(1, 2, 3, 4)).clamp(min=1)
        shared = {"batch_size": b, "sync_dist": self.trainer.world_size > 1}
        prediction = self(batch)
        if self.maps is not None and batch_index == 0:
            self.maps.rows = self._make_map_rows(prediction, batch)
        self.log("val_mse_total", self._mse(prediction, batch, count).mean(), prog_bar=True, **shared)
        self.log("val_mse_trilinear", self._trilinear_mse(batch, count).mean(), **shared)
        if "flow" in batch:
            r = batch["y"].shape[-1] // batch["x"].shape[-1]
            moved = advection(batch["x"][:, :, :1], r, batch["flow"])
            self.log("val_mse_advection", self._mse(moved, batch, count).mean(), **shared)

    def _make_map_rows(self, prediction: Tensor, batch: dict) -> list[SampleRow]:
        """Return the frames of the sample with most valid pixels in dBZ."""
        number = int(batch["valid"].flatten(1).sum(1).argmax())
        fields = batch["x"], batch["y"], prediction
        x, y, output = (self.config.data.floor + self.range_dbz * frames[number, :, 0] for frames in fields)
        valid, inputs = batch["valid"][number, :, 0], (x[0], None, x[1])
        y, output = (torch.where(valid, frames, torch.nan) for frames in (y, output))
        labels = "first time", "between", "last time"
        return [SampleRow(label, output[k], y[k], inputs[k], {"units": "dBZ"}) for k, label in enumerate(labels)]

    def on_validation_epoch_end(self) -> None:
        values = self.trainer.callback_metrics
        if float(values["val_mse_trilinear"]) > 0:
            self.log("val_relative", values["val_mse_total"] / values["val_mse_trilinear"], prog_bar=True)


class ExportWeights(ExportBest):
    """Export of the weights with the lowest val_mse_total."""

    def validate(self, trainer: L.Trainer, module: Any) -> tuple[Network, dict, float]:
        found = {name: trainer.callback_metrics.get(f"val_mse_{name}") for name in ("trilinear", "advection")}
        simple = {name: float(value) for name, value in found.items() if value is not None}
        error = float(trainer.callback_metrics["val_mse_total"])
        scores = {"mse_total": error} | {f"mse_total_{name}": value for name, value in simple.items()}
        best = min(simple, key=simple.__getitem__)
        comparison = compare_to_baseline(_BASELINE_NAMES[best], "squared error in dBZ^2", error, simple[best])
        return module.model, {**module.config.model.card.get("metrics", {}), "validation": scores, **comparison}, error


def scale_initial_weights(model: Network, gain: float) -> None:
    """Scale the initial weights of an FCZSM so that the biases do not dominate the signal.

    Normalised reflectivity varies by a few hundredths, and each layer with default initialisation halves this
    variation, so that feature maps hardly depend on the input and the training starts slowly. The first convolution is
    multiplied by gain, mixing and upsampling layers by 2, and biases are set to zero.

    Args:
        model: network, changed in place.
        gain: factor of the first convolution.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "extractor.conv.weight":
                parameter.mul_(gain)
            elif name.startswith(("reconstruction.up", "reconstruction.hidden", "interpolation.mix", "lstm.merge")):
                parameter.mul_(2.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.zero_()


def select_middle_frame(model: Network) -> Network:
    """Return an FC-ZSM in which only the correction of the frames between input times is trained.

    Args:
        model: network; the correction is added to an FC-ZSM that has none.

    Raises:
        ValueError: the network cannot have such a correction.
    """
    if not isinstance(model, models.FCZSM):
        raise OptionError("model.middle_frame_only", f"is for an FC-ZSM, got {model.card.name}")
    if not model.config["middle_frame"]:
        try:
            extended = models.FCZSM(**{**model.config, "middle_frame": True})
        except ValueError as error:
            raise OptionError("model.middle_frame_only", f"does not fit {model.card.name}: {error}") from None
        extended.load_state_dict(model.state_dict(), strict=False)
        extended.card = model.card
        model = extended
    model.requires_grad_(False)
    model.middle.requires_grad_(True)
    return model


def build_model(config: TrainingConfig) -> Network:
    """Create the network with its card, or load config.model.start.

    Raises:
        ValueError: the network is not an FC-ZSM or a U-Net, or model.middle_frame_only does not fit the network.
    """
    c = config.model
    model = models.load(c.start) if c.start else models.create(c.name, **c.options)
    if not isinstance(model, NETWORKS):
        raise OptionError(
            "model.name",
            f": {c.start or c.name!r} cannot be trained on radar files, which takes an FC-ZSM or a U-Net, "
            "such as fczsm, fczsm-d, fczsm-s, fczsm-small, unet or unet3d",
        )
    if not c.start and c.input_gain != 1.0:
        scale_initial_weights(model, c.input_gain)
    if c.middle_frame_only:
        model = select_middle_frame(model)
    update_model_card(model.card, config)
    model.card.floor_dbz, model.card.ceiling_dbz = config.data.floor, config.data.ceiling
    return model


def train(config: TrainingConfig) -> pathlib.Path:
    """Train, or resume if config.output has a checkpoint, and export the weights.

    The result is deterministic for a given configuration and number of threads, also after an interruption, unless
    max_minutes ends the run.

    Returns:
        Path of best.safetensors (lowest validation error), next to last.safetensors, checkpoints/, the logs csv/ and
        tensorboard/, and config.yaml.

    Raises:
        FileNotFoundError: no such data.
        ValueError: data or options that do not fit.
        FloatingPointError: the loss was not finite in several consecutive steps.
    """
    prepare_run(config)
    model = build_model(config)
    module = RadarModule(model, config)
    static = model.config.get("static_channels", 0), model.card.static_variables
    others = {
        "in_channels": model.config.get("in_channels", 1),
        "devices": config.devices,
        "context": bool(model.config.get("middle_frame")),
    }
    data = RadarData(config.data, needs_flow(model), config.seed, *static, **others, progress=config.progress)
    data.setup()
    model.card.static_variables = data.static_variables
    if data.dynamic_variables:
        model.card.input_variables = [VARIABLE, *data.dynamic_variables]
    further = [callbacks.LearningRateMonitor("step"), *make_averaging_callbacks(config)]
    return run_training(config, module, data, ExportWeights, further=further)
