# SPDX-License-Identifier: Apache-2.0
"""Files of latitude-longitude fields to training crops and whole fields for validation."""

from __future__ import annotations

import pathlib

import torch
from torch import Tensor

from fastds.data.formats.opening import open_dataset
from fastds.data.grid.axes import check_rows_and_columns, check_spacing
from fastds.data.grid.plausible import MEND_FIRST, plausible_values
from fastds.data.io.statics import StaticMaps, static_maps
from fastds.data.samples.degradation import Degradation, DegradationConfig
from fastds.data.samples.fields import FieldBlock, FieldCrops, choose_level, statistics
from fastds.tasks.common.training import SampleData
from fastds.tasks.domain.statistics import of_fields
from fastds.tasks.fields.config import DataConfig
from fastds.tasks.fields.evaluation import scored_margin


def load_fields(config: DataConfig) -> Tensor:
    """(T, C, H, W) float32 in the units of the file.

    Raises: FileNotFoundError; ValueError for a missing variable, another unit, other dimensions or missing values.
    """
    if pathlib.Path(config.path).is_dir():
        raise ValueError(f"data.path must be one file of fields, got the folder {config.path}")
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
            field = choose_level(field, config.level)
            if field.ndim != 3 or not field.shape[0]:
                raise ValueError(f"{name} has the shape {field.shape}, expected (time, latitude, longitude)")
            check_rows_and_columns(field, *field.dims[1:])
            check_spacing(field)
            values = plausible_values(field, f" of {config.path}", MEND_FIRST)
            stack.append(torch.from_numpy(values))
    fields = torch.stack(stack, 1)
    if not torch.isfinite(fields).all():
        raise ValueError(f"{config.path}: expected fields without missing values")
    return fields


def describe(config: DataConfig) -> list[dict]:
    """Name, standard name and units of config.variables for a model's card, as the file gives them."""
    with open_dataset(config.path) as dataset:
        return [
            {
                "name": name,
                **{k: str(dataset[name].attrs[k]) for k in ("standard_name", "units") if k in dataset[name].attrs},
            }
            for name in config.variables
        ]


def load_statics(config: DataConfig) -> StaticMaps | None:
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


class FieldData(SampleData):
    """Random training crops; the validation region whole, one field at a time.

    Args:
        config: see DataConfig.
        seed: of the samples.
        devices: see SampleData.
    """

    def __init__(self, config: DataConfig, seed: int = 0, devices: int = 1):
        super().__init__(config, seed, devices)
        self.validation_batch = 1
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
        least = 2 * scored_margin(max(config.test_scales)) + 8
        if min(train.shape) < 1 or len(self.validation) < 1 or min(self.validation.shape[2:]) < least:
            raise ValueError(
                f"data: {config.path} leaves {tuple(self.validation.shape)} (times, channels, rows, columns) for the "
                f"validation, at least {least} rows and columns are needed for data.test_scales {config.test_scales}"
            )

    def statistics(self, sample: dict) -> dict[str, float]:
        """See SampleData."""
        return of_fields(sample["x"], self.config.variables)
