# SPDX-License-Identifier: Apache-2.0
"""The training of arbitrary-scale networks: `fastds train --config inr-small --data.path=FILE`."""

from __future__ import annotations

import dataclasses
import pathlib

import torch
from torch import Tensor
from torch.utils.data import default_collate

from fastds import models
from fastds.models.baselines.interpolation import bilinear_at
from fastds.models.card import ANY
from fastds.models.registry import PRESETS, check_preset
from fastds.ops.impl.inr_query.points import PointSpec
from fastds.tasks.common.card_of_run import fill_card_of_run
from fastds.tasks.common.lightning_extra import L
from fastds.tasks.common.run_folder import ExportBest, averaging, begin, run
from fastds.tasks.common.training import SupervisedModule
from fastds.tasks.common.verdict import against
from fastds.tasks.fields.config import DataConfig, TrainingConfig
from fastds.tasks.fields.evaluation import scores
from fastds.tasks.fields.samples import FieldData, describe


class FieldModule(SupervisedModule):
    """L1 on random fine pixels; every variable, with data.each every sample, counts by its error relative to that of
    bilinear interpolation."""

    def __init__(self, model: torch.nn.Module, config: TrainingConfig, data: FieldData):
        super().__init__(model, config)
        self.value_range = data.value_range
        self.register_buffer("error_scale", None if config.data.each else typical_error(data))
        self.register_buffer("static", data.validation_static, persistent=False)

    def forward(self, batch: dict) -> Tensor:
        static = {"static": batch["static"]} if "static" in batch else {}
        return self.model.query(batch["x"], PointSpec(batch["base"], batch["frac"]), batch["factor"], **static)

    def loss(self, prediction: Tensor, batch: dict) -> Tensor:
        scale = self.error_scale
        if scale is None:  # a flat sample has only errors of rounding
            rounding = 1e-6 * batch["x"].abs().amax((2, 3)) + torch.finfo(prediction.dtype).tiny
            scale = (bilinear_error(batch) + rounding)[:, None]
        return ((prediction - batch["target"]).abs() / scale).mean()

    def validation_step(self, truth: Tensor, batch_index: int) -> None:
        values = scores(self.model, truth, self.config.data.test_scales, self.value_range, self.static)
        gain = [v - values[k.replace("model", "bicubic")] for k, v in values.items() if k.startswith("model/psnr")]
        values["val_gain_db"] = sum(gain) / len(gain)
        self.log_dict(values, batch_size=1, sync_dist=self.trainer.world_size > 1)


def bilinear_error(batch: dict) -> Tensor:
    """(B, C) mean absolute error of bilinear interpolation of every sample."""
    plain = bilinear_at(batch["x"], PointSpec(batch["base"], batch["frac"]))
    return (plain - batch["target"]).abs().mean(1)


def typical_error(data: FieldData, samples: int = 64) -> Tensor:
    """(C,) mean absolute error of bilinear interpolation on training samples."""
    return bilinear_error(default_collate([data.training[i] for i in range(samples)])).mean(0)


class ExportWeights(ExportBest):
    """Highest val_gain_db."""

    def validated(self, trainer: L.Trainer, module: L.LightningModule) -> tuple[torch.nn.Module, dict, float]:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if "/psnr/" in k or k == "val_gain_db"}
        told = against("bicubic interpolation", "gain of PSNR in dB", values["val_gain_db"], 0.0, higher=True)
        scores = {**module.config.model.card.get("metrics", {}), "validation": values, **told}
        return module.model, scores, -values["val_gain_db"]


def build_model(config: TrainingConfig, data: FieldData) -> torch.nn.Module:
    """Create the network with the normalisation of the data and its card, or load config.model.start, which keeps its
    own normalisation. Raises: ValueError for weights of another number of variables or static maps."""
    c, variables = config.model, config.data.names
    wanted = {"in_channels": len(variables)}
    wanted |= {"static_channels": len(config.data.statics)} if config.data.statics else {}
    if c.start:
        model = models.load(c.start).train()
        found = {key: getattr(model, key, 0) for key in ("in_channels", "static_channels")}
        if found != {"static_channels": 0} | wanted:
            raise ValueError(
                f"model.start: {c.start!r} reads {found['in_channels']} variables and {found['static_channels']} "
                f"static maps, data.variables and data.statics name {len(variables)} and {len(config.data.statics)}"
            )
    else:
        model = models.create(c.name, **wanted, **c.options)
        model.mean.copy_(data.mean), model.std.copy_(data.std)
        if config.data.statics:
            model.static_mean.copy_(data.static_mean), model.static_std.copy_(data.static_std)
    fill_card_of_run(model.card, config)
    if config.data.each:
        model.card.input_variables = model.card.output_variables = [{"name": ANY}]
    elif [v.get("name") for v in model.card.input_variables] != variables:
        model.card.input_variables = describe(config.data)
        predicted = getattr(model, "predicted", range(len(variables)))
        model.card.output_variables = [model.card.input_variables[c] for c in predicted]
    model.card.static_variables = data.static_variables
    return model


def _suit_network(config: TrainingConfig) -> None:
    """Let the samples be those that the network takes, where the options do not tell: of its one factor, and for a
    network of any variable every field there is. Raises: ValueError for scales that are not its one factor."""
    c, data, usual = config.model, config.data, DataConfig(config.data.path)
    options = models.load(c.start).config if c.start else {**PRESETS[check_preset(c.name)][1], **c.options}
    if (factor := options.get("scale")) is not None:
        for name, wanted in (("scales", [factor, factor]), ("test_scales", [factor])):
            given = getattr(data, name)
            if given not in (getattr(usual, name), wanted):
                raise ValueError(f"data.{name} must be {wanted}, the one factor of {c.start or c.name}, got {given}")
            setattr(data, name, wanted)
    if options.get("contrast_window") and data.variables == usual.variables and not data.each:
        config.data = dataclasses.replace(data, each=["*"])


def train(config: TrainingConfig) -> pathlib.Path:
    """Train, resume where config.output holds a checkpoint, and export best.safetensors, whose path is returned.

    Raises: FileNotFoundError, ValueError for data or options that do not fit; FloatingPointError when the loss stays
        not finite.
    """
    _suit_network(config)
    begin(config)
    data = FieldData(config.data, config.seed, config.devices)
    module = FieldModule(build_model(config, data), config, data)
    return run(config, module, data, ExportWeights, further=averaging(config), deterministic=None)
