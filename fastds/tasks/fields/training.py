# SPDX-License-Identifier: Apache-2.0
"""Training of arbitrary-scale networks: `fastds train --config inr-small --data.path=FILE`."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import default_collate

from fastds import models
from fastds._options import OptionError, spell_name
from fastds.models.baselines.interpolation import interpolate_at
from fastds.models.card import ANY, Network
from fastds.models.registry import PRESETS, resolve_preset
from fastds.ops.impl.inr_query.points import PointSpec
from fastds.tasks.fields.config import DataConfig, TrainingConfig
from fastds.tasks.fields.evaluation import compute_scores, make_coarse_and_fine
from fastds.tasks.fields.samples import FieldData, describe_variables
from fastds.training.baseline_comparison import compare_to_baseline
from fastds.training.lightning_extra import L
from fastds.training.maps import SampleRow, select_rows
from fastds.training.model_card import update_model_card
from fastds.training.modules import SupervisedModule
from fastds.training.trainer import ExportBest, make_averaging_callbacks, prepare_run, run_training


class FieldModule(SupervisedModule):
    """L1 loss at random fine points, divided by the error of bilinear interpolation.

    The divisor is the typical error of each variable, or with data.each the error of each sample.
    """

    def __init__(self, model: Network, config: TrainingConfig, data: FieldData):
        super().__init__(model, config)
        self.value_range = data.value_range
        self.register_buffer("error_scale", None if config.data.each else compute_typical_error(data))
        self.register_buffer("static", data.validation_static, persistent=False)

    def forward(self, batch: dict) -> Tensor:
        static = {"static": batch["static"]} if "static" in batch else {}
        return self.model.query(batch["x"], PointSpec(batch["base"], batch["frac"]), batch["factor"], **static)

    def loss(self, prediction: Tensor, batch: dict) -> Tensor:
        scale = self.error_scale
        if scale is None:  # the rounding error is added because bilinear interpolation is exact for a constant sample
            rounding = 1e-6 * batch["x"].abs().amax((2, 3)) + torch.finfo(prediction.dtype).tiny
            scale = (compute_bilinear_error(batch) + rounding)[:, None]
        return ((prediction - batch["target"]).abs() / scale).mean()

    def validation_step(self, truth: Tensor, batch_index: int) -> None:
        values = compute_scores(
            self.model, truth, self.config.data.test_scales, self.value_range, cast(Any, self.static)
        )
        gain = [v - values[k.replace("model", "bicubic")] for k, v in values.items() if k.startswith("model/psnr")]
        values["val_gain_db"] = sum(gain) / len(gain)
        self.log_dict(values, batch_size=1, sync_dist=self.trainer.world_size > 1)
        if self.maps is not None and batch_index == 0:
            self.maps.rows = self._make_map_rows(truth)

    def _make_map_rows(self, truth: Tensor) -> list[SampleRow]:
        """Return the variables of the first validation field at the largest scale factor of the validation."""
        scale = max(self.config.data.test_scales)
        x, y = make_coarse_and_fine(truth[:1], scale)
        inputs = {} if self.static is None else {"static": make_coarse_and_fine(cast(Any, self.static)[None], scale)[0]}
        output = self.model(x, size=tuple(y.shape[2:]), **inputs)
        described = self.model.card.output_variables
        rows = []
        for k in select_rows(y.shape[1]):
            known = described[k] if k < len(described) and described[k].get("name") != ANY else {}
            name = str(known.get("name", "field"))
            attrs = {key: str(known[key]) for key in ("standard_name", "units") if key in known}
            rows.append(SampleRow(f"{name}, factor {scale:g}", output[0, k], y[0, k], x[0, k], attrs, name))
        return rows


def compute_bilinear_error(batch: dict) -> Tensor:
    """Return the mean absolute error (B, C) of bilinear interpolation."""
    plain = interpolate_at(batch["x"], PointSpec(batch["base"], batch["frac"]))
    return (plain - batch["target"]).abs().mean(1)


def compute_typical_error(data: FieldData, samples: int = 64) -> Tensor:
    """Return the mean absolute error (C,) of bilinear interpolation over training samples."""
    return compute_bilinear_error(default_collate([data.training[i] for i in range(samples)])).mean(0)


class ExportWeights(ExportBest):
    """Export of the weights with the highest val_gain_db."""

    def validate(self, trainer: L.Trainer, module: Any) -> tuple[Network, dict, float]:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if "/psnr/" in k or k == "val_gain_db"}
        comparison = compare_to_baseline(
            "bicubic interpolation", "gain of PSNR in dB", values["val_gain_db"], 0.0, higher=True
        )
        scores = {**module.config.model.card.get("metrics", {}), "validation": values, **comparison}
        return module.model, scores, -values["val_gain_db"]


def build_model(config: TrainingConfig, data: FieldData) -> Network:
    """Create the network with the normalisation of the data, or load config.model.start, and fill its card.

    Weights from config.model.start keep their normalisation.

    Raises:
        ValueError: the weights have another number of variables or static maps.
    """
    c, variables = config.model, config.data.names
    expected = {"in_channels": len(variables)}
    expected |= {"static_channels": len(config.data.statics)} if config.data.statics else {}
    if c.start:
        model: Network = models.load(c.start).train()
        found = {key: getattr(model, key, 0) for key in ("in_channels", "static_channels")}
        if found != {"static_channels": 0} | expected:
            raise OptionError(
                "model.start",
                f": {c.start!r} reads {found['in_channels']} variables and {found['static_channels']} "
                f"static maps, {spell_name('data.variables')} and {spell_name('data.statics')} name "
                f"{len(variables)} and {len(config.data.statics)}",
            )
    else:
        model = models.create(c.name, **expected, **c.options)
        model.mean.copy_(data.mean), model.std.copy_(data.std)
        if config.data.statics:
            model.static_mean.copy_(data.static_mean), model.static_std.copy_(data.static_std)
    update_model_card(model.card, config)
    if config.data.each:
        model.card.input_variables = model.card.output_variables = [{"name": ANY}]
    elif [v.get("name") for v in model.card.input_variables] != variables:
        model.card.input_variables = describe_variables(config.data)
        predicted = getattr(model, "predicted", range(len(variables)))
        model.card.output_variables = [model.card.input_variables[c] for c in predicted]
    model.card.static_variables = data.static_variables
    return model


def _adapt_samples(config: TrainingConfig) -> None:
    """Adapt sample options that the user did not set to the network.

    A network with a fixed scale factor gets samples of this factor. A network that takes any variable gets all fields
    of the files.

    Raises:
        ValueError: the scales differ from the fixed scale factor.
    """
    c, data, default = config.model, config.data, DataConfig(config.data.path)
    options: Any = models.load(c.start).config if c.start else {**PRESETS[resolve_preset(c.name)][1], **c.options}
    if (factor := options.get("scale")) is not None:
        for name, expected in (("scales", [factor, factor]), ("test_scales", [factor])):
            given = getattr(data, name)
            if given not in (getattr(default, name), expected):
                raise OptionError(
                    f"data.{name}", f"must be {expected}, the one factor of {c.start or c.name}, got {given}"
                )
            setattr(data, name, expected)
    if options.get("contrast_window") and data.variables == default.variables and not data.each:
        config.data = dataclasses.replace(data, each=["*"])


def train(config: TrainingConfig) -> pathlib.Path:
    """Train, or resume if config.output has a checkpoint, and return the path of best.safetensors.

    Raises:
        FileNotFoundError: no such data.
        ValueError: data or options that do not fit.
        FloatingPointError: the loss was not finite in several consecutive steps.
    """
    _adapt_samples(config)
    prepare_run(config)
    data = FieldData(config.data, config.seed, config.devices)
    module = FieldModule(build_model(config, data), config, data)
    return run_training(
        config, module, data, ExportWeights, further=make_averaging_callbacks(config), deterministic=None
    )
