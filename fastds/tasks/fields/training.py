# SPDX-License-Identifier: Apache-2.0
"""Training of arbitrary-scale downscaling on gridded fields: `fastds train --config inr-small --data.path=FILE`."""

import dataclasses
import itertools
import math
import pathlib

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from fastds import models
from fastds.data.io.files import open_dataset
from fastds.data.io.statics import StaticMaps, static_maps
from fastds.data.samples.degradation import Degradation, DegradationConfig, area_mean
from fastds.data.samples.fields import FieldBlock, FieldCrops, choose_level, statistics
from fastds.metrics import detail_ratio, psnr
from fastds.models.baselines.interpolation import bilinear_at
from fastds.ops.impl.inr_query.points import PointSpec
from fastds.tasks.common.command import ExportBest, begin, fill_card, fit, keep_last, make_folder, read_command_line
from fastds.tasks.radar.config import RunConfig
from fastds.tasks.radar.module import SupervisedModule
from fastds.tasks.radar.samples import NewSamples


@dataclasses.dataclass
class FieldDataConfig:
    """The samples.

    Args:
        path: NetCDF or GRIB file with variables over (time, [level,] latitude, longitude).
        variables: stacked as channels in this order.
        units: expected ones, checked where given.
        level: value of the vertical coordinate, where there are several.
        statics: maps that the encoder reads beside (orography): variables over (latitude, longitude) of the same file,
            or FILE.nc:VARIABLE of another, on any grid.
        split: what the next three divide, columns ("longitude") or steps of time ("time").
        train: [first, stop) of what weights are fitted to; without train and validation the first three quarters train
            and the last fifth validates.
        validation: [first, stop) of what chooses the weights. Leave gaps, no two may overlap.
        test: [first, stop) of what the study scores; nothing here reads it (none: empty).
        crop: coarse pixels of a sample's side.
        halo: coarse pixels around it that the degradation sees.
        queries: fine pixels of a sample that are its targets.
        scales: smallest and largest factor.
        anisotropic: probability of a factor per axis.
        flips: mirror samples at random.
        vectors: channels of (u, v), wind components along x and y that flips turn round; -1 = absent, none: empty.
        degraded: probability of the degradation pipeline.
        batch_size: samples per step.
        epoch_samples: samples between validations.
        test_scales: factors of the validation.
    """

    path: str
    variables: list[str] = dataclasses.field(default_factory=lambda: ["r", "t", "u", "z"])
    units: list[str] = dataclasses.field(default_factory=list)
    level: float | None = None
    statics: list[str] = dataclasses.field(default_factory=list)
    split: str = "longitude"
    train: list[int] = dataclasses.field(default_factory=list)
    validation: list[int] = dataclasses.field(default_factory=list)
    test: list[int] = dataclasses.field(default_factory=list)
    crop: int = 32
    halo: int = 4
    queries: int = 1024
    scales: list[float] = dataclasses.field(default_factory=lambda: [1.0, 4.0])
    anisotropic: float = 0.2
    flips: bool = True
    vectors: list[int] = dataclasses.field(default_factory=list)
    degraded: float = 0.0
    batch_size: int = 8
    epoch_samples: int = 4000
    test_scales: list[float] = dataclasses.field(default_factory=lambda: [2.0, 2.67, 4.0])

    def __post_init__(self):
        if self.split not in ("longitude", "time"):
            raise ValueError(f"data.split must be 'longitude' or 'time', got {self.split!r}")
        if bool(self.train) != bool(self.validation):
            raise ValueError(f"data: give both train and validation or none, got {self.train} and {self.validation}")
        if self.vectors and (len(self.vectors) != 2 or any(not -1 <= c < len(self.variables) for c in self.vectors)):
            raise ValueError(
                f"data.vectors must name two channels below {len(self.variables)}, -1 for none, got {self.vectors}"
            )
        splits = {"training": self.train, "validation": self.validation, "test": self.test}
        for (one, a), (other, b) in itertools.combinations(((k, v) for k, v in splits.items() if v), 2):
            if max(a[0], b[0]) < min(a[1], b[1]):
                raise ValueError(f"data: {one} {a} and {other} {b} of {self.split} overlap")

    def limits(self, size: int) -> tuple[list[int], list[int]]:
        """Train and validation as given, or the first three quarters and the last fifth of `size` columns or times."""
        return (self.train, self.validation) if self.train else ([0, size * 3 // 4], [size - size // 5, size])

    def part(self, fields: Tensor, limits: list[int]) -> Tensor:
        """The fields (T, C, H, W) of one split."""
        return fields[slice(*limits)] if self.split == "time" else fields[..., slice(*limits)]

    def static_part(self, static: Tensor | None, limits: list[int]) -> Tensor | None:
        """The static maps (S, H, W) of one split."""
        return static if static is None or self.split == "time" else static[..., slice(*limits)]


@dataclasses.dataclass
class FieldTrainingConfig(RunConfig):
    """A training run of an arbitrary-scale network.

    Args:
        data: the samples.
        model: name of a preset.
        options: arguments of fastds.models.create that replace the preset's.
        card: fields of the model card written into the exported weights.
        output: folder for checkpoints, logs and the exported weights.
    """

    data: FieldDataConfig
    model: str = "inr-small"
    options: dict = dataclasses.field(default_factory=dict)
    card: dict = dataclasses.field(default_factory=dict)
    output: str = "training"
    learning_rate: float = dataclasses.field(default=3e-4, kw_only=True)


def load_fields(config: FieldDataConfig) -> Tensor:
    """(T, C, H, W) float32 in the units of the file.

    Raises: FileNotFoundError; ValueError for a missing variable, another unit, other dimensions or missing values.
    """
    if not pathlib.Path(config.path).is_file():
        raise FileNotFoundError(f"data.path: no such file: {config.path}")
    stack = []
    with open_dataset(config.path) as dataset:
        for i, name in enumerate(config.variables):
            if name not in dataset:
                raise ValueError(
                    f"data.variables: {name!r} is not in {config.path}, which has {sorted(dataset.data_vars)}"
                )
            field = dataset[name]
            if config.units and field.attrs.get("units") != config.units[i]:
                raise ValueError(f"{name} is in {field.attrs.get('units')!r}, expected {config.units[i]!r}")
            stack.append(torch.from_numpy(choose_level(field, config.level).values.astype("float32")))
    fields = torch.stack(stack, 1)
    if fields.dim() != 4 or not torch.isfinite(fields).all():
        raise ValueError(f"{config.path}: expected (time, latitude, longitude) without missing values")
    return fields


def describe(config: FieldDataConfig) -> list[dict]:
    """Name, standard name and units of config.variables for a model's card, as the file gives them."""
    with open_dataset(config.path) as dataset:
        return [
            {
                "name": name,
                **{k: dataset[name].attrs[k] for k in ("standard_name", "units") if k in dataset[name].attrs},
            }
            for name in config.variables
        ]


def load_statics(config: FieldDataConfig) -> StaticMaps | None:
    """Maps (S, H, W) on the grid of the fields, in the units of their files; None without.

    Raises: ValueError for one that is missing, has other dimensions, does not cover the fields or has missing values.
    """
    if not config.statics:
        return None
    sources = [name if ":" in name else f"{config.path}:{name}" for name in config.statics]
    with open_dataset(config.path) as dataset:
        field = choose_level(dataset[config.variables[0]], config.level)
        try:
            return static_maps(sources, field, dataset)
        except ValueError as error:
            raise ValueError(f"data.statics: {error}") from None


class FieldDataModule(L.LightningDataModule):
    """Random training crops; the validation region whole, one field at a time."""

    def __init__(self, config: FieldDataConfig, seed: int = 0):
        super().__init__()
        self.config, self.seed = config, seed
        fields = load_fields(config)
        trained, validated = config.limits(fields.shape[0 if config.split == "time" else 3])
        train = config.part(fields, trained)
        maps = load_statics(config)
        self.static_variables = [] if maps is None else maps.variables
        static = None if maps is None else torch.from_numpy(maps.values)
        block = FieldBlock(train, (0, train.shape[3]), config.static_part(static, trained))
        if static is not None:
            self.static_std, self.static_mean = torch.std_mean(block.usable_static, (1, 2))
        self.mean, self.std = statistics([block])
        flat = block.usable.transpose(0, 1).flatten(1)
        self.value_range = flat.amax(1) - flat.amin(1)
        limits = (torch.stack([flat.amin(1), flat.amax(1)], 1) - self.mean[:, None]) / self.std[:, None]
        degradation = Degradation(DegradationConfig(probability=config.degraded), limits)
        vectors = tuple(None if v < 0 else v for v in config.vectors or (-1, -1))
        self.training = FieldCrops(
            [block], self.mean, self.std, degradation, crop=config.crop, halo=config.halo, queries=config.queries,
            scales=tuple(config.scales), anisotropic=config.anisotropic, flips=config.flips, vectors=vectors,
            samples=config.epoch_samples, seed=seed,
        )  # fmt: skip
        self.validation = config.part(fields, validated)
        self.validation_static = config.static_part(static, validated)
        least = 2 * _shave(max(config.test_scales)) + 8
        if min(train.shape) < 1 or len(self.validation) < 1 or min(self.validation.shape[2:]) < least:
            raise ValueError(
                f"data: {config.path} leaves {tuple(self.validation.shape)} (times, channels, rows, columns) for the "
                f"validation, at least {least} rows and columns are needed for data.test_scales {config.test_scales}"
            )

    def train_dataloader(self) -> DataLoader:
        size = self.config.batch_size
        sampler = NewSamples(len(self.training) // size * size, lambda: self.trainer.global_step * size)
        return DataLoader(self.training, batch_size=size, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.validation, batch_size=1)


class FieldModule(SupervisedModule):
    """L1 on random fine pixels; every variable counts by its error relative to that of bilinear interpolation."""

    def __init__(self, model: torch.nn.Module, config: FieldTrainingConfig, data: FieldDataModule):
        super().__init__(model, config)
        self.value_range = data.value_range
        self.register_buffer("error_scale", bilinear_errors(data))
        self.register_buffer("static", data.validation_static, persistent=False)

    def forward(self, batch: dict) -> Tensor:
        static = {"static": batch["static"]} if "static" in batch else {}
        return self.model.query(batch["x"], PointSpec(batch["base"], batch["frac"]), batch["factor"], **static)

    def loss(self, prediction: Tensor, batch: dict) -> Tensor:
        return ((prediction - batch["target"]).abs() / self.error_scale).mean()

    def validation_step(self, truth: Tensor, batch_index: int) -> None:
        values = scores(self.model, truth, self.config.data.test_scales, self.value_range, self.static)
        gain = [v - values[k.replace("model", "bicubic")] for k, v in values.items() if k.startswith("model/psnr")]
        self.log_dict({**values, "val_gain_db": sum(gain) / len(gain)}, batch_size=1)


def coarse_and_fine(truth: Tensor, scale: float | tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Area mean of (B, C, H, W) by `scale`, and truth cut to the whole fine size that belongs to it."""
    pair = scale if isinstance(scale, tuple) else (scale, scale)
    coarse = [int(n / s + 1e-6) for n, s in zip(truth.shape[2:], pair, strict=True)]
    fine = [round(n * s) for n, s in zip(coarse, pair, strict=True)]
    truth = truth[..., : fine[0], : fine[1]]
    return area_mean(truth, coarse), truth


def bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) interpolated to cells of `size`, a = -0.5: the kernel that torch uses where it would smooth."""
    return torch.nn.functional.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)


def _shave(scale: float) -> int:
    """Fine pixels along each edge that are not scored."""
    return math.ceil(scale) + 6


def scores(model, truth: Tensor, scales, value_range: Tensor, static: Tensor | None = None) -> dict[str, float]:
    """PSNR and the ratio of unresolved power, of the model and of bicubic interpolation, per variable and scale.

    static: (S, H, W) on the grid of truth, for a model that reads its area means.
    """
    result = {}
    for scale in scales:
        x, y = coarse_and_fine(truth, scale)
        shave = _shave(scale)
        beside = {} if static is None else {"static": coarse_and_fine(static[None], scale)[0]}
        ours = model(x, size=tuple(y.shape[2:]), **beside)
        for name, prediction in (("model", ours), ("bicubic", bicubic(x, tuple(y.shape[2:])))):
            for c in range(y.shape[1]):
                inner = [t[:, c, shave:-shave, shave:-shave] for t in (prediction, y)]
                result[f"{name}/psnr/x{scale:g}/{c}"] = psnr(*inner, float(value_range[c]))["psnr"]
                result[f"{name}/detail/x{scale:g}/{c}"] = detail_ratio(*inner, scale)
    return result


def bilinear_errors(data: FieldDataModule, samples: int = 64) -> Tensor:
    """(C,) mean absolute error of bilinear interpolation on training samples."""
    total = 0
    for i in range(samples):
        s = data.training[i]
        plain = bilinear_at(s["x"][None], PointSpec(s["base"][None], s["frac"][None]))[0]
        total = total + (plain - s["target"]).abs().mean(0)
    return total / samples


class ExportWeights(ExportBest):
    """Highest val_gain_db."""

    def validated(self, trainer, module):
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if "/psnr/" in k or k == "val_gain_db"}
        return module.model, {"validation": values}, -values["val_gain_db"]


def train(config: FieldTrainingConfig) -> pathlib.Path:
    """Train, resume where config.output holds a checkpoint, and export best.safetensors, whose path is returned.

    Raises: FileNotFoundError, ValueError for data or options that do not fit; FloatingPointError when the loss stays
        not finite.
    """
    begin(config)
    data = FieldDataModule(config.data, config.seed)
    statics = {"static_channels": len(config.data.statics)} if config.data.statics else {}
    model = models.create(config.model, in_channels=len(config.data.variables), **statics, **config.options)
    model.mean.copy_(data.mean), model.std.copy_(data.std)
    if statics:
        model.static_mean.copy_(data.static_mean), model.static_std.copy_(data.static_std)
    fill_card(model.card, config.card)
    if [v.get("name") for v in model.card.input_variables] != config.data.variables:
        model.card.input_variables = describe(config.data)
        predicted = getattr(model, "predicted", range(len(config.data.variables)))
        model.card.output_variables = [model.card.input_variables[c] for c in predicted]
    model.card.static_variables = data.static_variables
    module = FieldModule(model, config, data)
    output = make_folder(config)
    callbacks = [ExportWeights(output), keep_last(output)]
    if config.ema_decay > 0:
        callbacks.append(EMAWeightAveraging(decay=config.ema_decay))
    trainer = L.Trainer(
        accelerator="auto", devices=1, max_steps=config.max_steps, max_epochs=-1, num_sanity_val_steps=0,
        logger=CSVLogger(str(output), name="csv", version=""), callbacks=callbacks, log_every_n_steps=10,
        enable_progress_bar=config.progress, enable_model_summary=False, default_root_dir=str(output),
    )  # fmt: skip
    return fit(trainer, module, data, config)


def parse_arguments(arguments: list[str]) -> FieldTrainingConfig:
    """Read a command line into a FieldTrainingConfig; `--config NAME` takes a shipped configuration by its name."""
    return read_command_line(FieldTrainingConfig, arguments, "fields", "Train arbitrary-scale downscaling of fields.")
