# SPDX-License-Identifier: Apache-2.0
"""Training crops and validation fields from files of gridded fields."""

from __future__ import annotations

import itertools
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from fastds._options import OptionError, spell_name
from fastds.data.formats.opening import open_dataset
from fastds.data.grid.axes import check_rows_and_columns, check_spacing
from fastds.data.grid.value_checks import load_plausible_values
from fastds.data.grid.variables import REPAIR_FIRST, list_fields
from fastds.data.io.statics import StaticMaps, static_maps
from fastds.data.samples.degradation import Degradation, DegradationConfig
from fastds.data.samples.fields import FieldBlock, FieldCrops, choose_level, compute_statistics
from fastds.inference.ood.statistics import compute_field_statistics
from fastds.tasks.fields.config import DataConfig
from fastds.tasks.fields.evaluation import compute_margin
from fastds.training.modules import BaseDataModule

# largest and smallest crop in pixels that is chosen without a request
_DEFAULT_CROP, _MIN_CROP = 32, 8


def load_fields(config: DataConfig) -> Tensor:
    """Read the variables of one file.

    Returns:
        (T, C, H, W) float32 in the units of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a variable that is missing, has other units or dimensions, or has missing values.
    """
    if pathlib.Path(config.path).is_dir():
        raise OptionError("data.path", f"must be one file of fields, got the folder {config.path}")
    if not pathlib.Path(config.path).is_file():
        raise FileNotFoundError(f"{spell_name('data.path')}: no such file: {config.path}")
    stack = []
    with open_dataset(config.path) as dataset:
        for i, name in enumerate(config.variables):
            if name not in dataset:
                raise OptionError(
                    "data.variables",
                    f": {name!r} is not in {config.path}, which has {sorted(map(str, dataset.data_vars))}",
                )
            field = dataset[name]
            if config.units and field.attrs.get("units") != config.units[i]:
                raise ValueError(f"{name} is in {field.attrs.get('units')!r}, expected {config.units[i]!r}")
            field = choose_level(field, config.level)
            if field.ndim != 3 or not field.shape[0]:
                raise ValueError(f"{name} has the shape {field.shape}, expected (time, latitude, longitude)")
            stack.append(_read_values(field, config.path))
    return torch.stack(stack, 1)


def load_each(config: DataConfig) -> list[tuple[str, Tensor]]:
    """Read the variables in config.each with all their times and levels.

    ["*"] selects all fields of the file or folder; fields that do not fit are left out with a UserWarning.

    Returns:
        Pairs of file name and values (T, 1, H, W) float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a variable that does not exist, has other dimensions, or has missing values.
    """
    everything, found = config.each == ["*"], []
    for path, names in _list_files(config):
        with open_dataset(path) as dataset:
            for name in list_fields(dataset) if everything else names:
                if name not in dataset:
                    raise OptionError(
                        "data.each", f": {name!r} is not in {path}, which has {sorted(map(str, dataset.data_vars))}"
                    )
                try:
                    values = _read_values(dataset[name], path)
                except ValueError as error:
                    if not everything:
                        raise
                    warnings.warn(f"{name} of {path} is left out: {error}", stacklevel=2)
                    continue
                found.append((path.name, values.reshape(-1, 1, *values.shape[-2:])))
    if not found:
        raise OptionError("data.each", f": {config.path} has no field without missing values on a regular grid")
    return found


def _list_files(config: DataConfig) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """Yield each file of config.each with the names of its variables; no names for "*"."""
    folder = pathlib.Path(config.path)
    if config.each == ["*"]:
        if not folder.exists():
            raise FileNotFoundError(f"{spell_name('data.path')}: no such file or folder: {folder}")
        yield from ((path, []) for path in (sorted(folder.glob("*.nc")) if folder.is_dir() else [folder]))
        return
    for file, sources in itertools.groupby(config.each, lambda source: source.rpartition(":")[0]):
        first, *others = sources
        if not file or not (folder / file).is_file():
            raise FileNotFoundError(
                f"{spell_name('data.each')}: {first!r} is not FILE.nc:VARIABLE of the folder {config.path}"
            )
        yield folder / file, [source.rpartition(":")[2] for source in (first, *others)]


def _read_values(field: xr.DataArray, path: str | pathlib.Path) -> Tensor:
    """Read values (..., latitude, longitude) as float32.

    Raises:
        ValueError: an unevenly spaced grid, implausible or missing values.
    """
    check_rows_and_columns(field, *field.dims[-2:])
    check_spacing(field)
    values = torch.from_numpy(load_plausible_values(field, f" of {path}", REPAIR_FIRST))
    if not torch.isfinite(values).all():
        raise ValueError(f"{path}: expected fields without missing values, {field.name} has some")
    return values


def describe_variables(config: DataConfig) -> list[dict]:
    """Return name, standard name and units of config.variables in the file, for the model card."""
    with open_dataset(config.path) as dataset:
        return [
            {
                "name": name,
                **{k: str(dataset[name].attrs[k]) for k in ("standard_name", "units") if k in dataset[name].attrs},
            }
            for name in config.variables
        ]


def load_statics(config: DataConfig) -> StaticMaps | None:
    """Read the static maps (S, H, W) on the grid of the fields, in the units of their files; None if there are none.

    Raises:
        ValueError: a map that does not exist, has other dimensions, does not cover the fields, or has missing values.
    """
    if not config.statics:
        return None
    sources = [name if ":" in name else f"{config.path}:{name}" for name in config.statics]
    with open_dataset(config.path) as dataset:
        field = choose_level(dataset[config.variables[0]], config.level)
        try:
            return static_maps(sources, field, dataset)
        except ValueError as error:
            raise OptionError("data.statics", f": {error}") from None


class FieldData(BaseDataModule):
    """Random training crops, and whole fields of the validation part, one field at a time.

    Args:
        config: see DataConfig.
        seed: random seed of the samples.
        devices: see BaseDataModule.
    """

    def __init__(self, config: DataConfig, seed: int = 0, devices: int = 1):
        super().__init__(config, seed, devices)
        self.validation_batch = 1
        self.static_variables: list[dict] = []
        self.validation_static: Any = None
        blocks = self._load_each() if config.each else [self._load_variables()]
        degradation = Degradation(DegradationConfig(probability=config.degraded), self.limits)
        vectors: Any = tuple(None if v < 0 else v for v in config.vectors or (-1, -1))
        self.training = FieldCrops(
            blocks, self.mean, self.std, degradation,
            crop=self._choose_crop(blocks), halo=config.halo, queries=config.queries,
            scales=(config.scales[0], config.scales[1]), anisotropic=config.anisotropic, whole=config.whole_factors,
            flips=config.flips, vectors=vectors, samples=config.epoch_samples, seed=seed,
        )  # fmt: skip

    def _load_variables(self) -> FieldBlock:
        """Load the variables of one file; set the validation fields and return the training part."""
        config = self.config
        fields = load_fields(config)
        self.files = [pathlib.Path(config.path).name]
        trained, validated = self._choose_limits(fields)
        train = config.part(fields, trained)
        maps = load_statics(config)
        static = None if maps is None else torch.from_numpy(maps.values)
        block = FieldBlock(train, (0, train.shape[3]), config.static_part(static, trained))
        if maps is not None:
            self.static_variables = maps.variables
            self.static_std, self.static_mean = torch.std_mean(block.usable_static, (1, 2))
        self.mean, self.std = compute_statistics([block])
        flat = block.usable.transpose(0, 1).flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        self.value_range = high - low
        self.limits: Tensor | None = (torch.stack([low, high], 1) - self.mean[:, None]) / self.std[:, None]
        self.validation = config.part(fields, validated)
        self.validation_static = config.static_part(static, validated)
        if min(train.shape) < 1 or len(self.validation) < 1 or not self._is_large_enough(self.validation):
            raise OptionError(
                "data",
                f": {config.path} leaves {tuple(self.validation.shape)} (times, channels, rows, columns) for the "
                f"validation, at least {self._min_size} rows and columns are needed for "
                f"{spell_name('data.test_scales')} {config.test_scales}{self._suggest_option(fields)}",
            )
        return block

    def _load_each(self) -> list[FieldBlock]:
        """Load all sources and return their training parts.

        The first and the last field of each sufficiently large validation part become the validation fields.
        """
        self.mean, self.std, self.value_range = torch.zeros(1), torch.ones(1), torch.ones(1)
        self.limits = None  # no degradation pipeline
        blocks, self.validation, loaded = [], [], load_each(self.config)
        usual = [self.config.limits(fields.shape[3]) for _, fields in loaded]
        if not any(
            self._is_large_enough(fields[..., slice(*part)])
            for (_, fields), (_, part) in zip(loaded, usual, strict=True)
        ):
            usual = [self._choose_limits(fields) for _, fields in loaded]
        for (file, fields), (trained, validated) in zip(loaded, usual, strict=True):
            self.files.append(file)
            blocks.append(FieldBlock(fields[..., : trained[1]], (0, trained[1])))
            held_out = fields[..., slice(*validated)]
            if self._is_large_enough(held_out):
                self.validation += [held_out[k] for k in sorted({0, len(held_out) - 1})]
        if not self.validation:
            raise OptionError(
                "data.each",
                f": no last fifth of columns has the {self._min_size} rows and columns that the validation "
                f"needs for {spell_name('data.test_scales')} {self.config.test_scales}; take fields of "
                f"{5 * self._min_size} columns, or one variable by {spell_name('data.variables')} with "
                f"{spell_name('data.split')}=time",
            )
        return blocks

    def _choose_limits(self, fields: Tensor) -> tuple[list[int], list[int]]:
        """Return the ranges of training and validation, see DataConfig.limits.

        If the last fifth of the columns is too narrow for a validation and no ranges are given, the validation gets as
        many columns as it needs.

        Args:
            fields: (T, C, H, W).
        """
        config, columns, needed = self.config, fields.shape[3], self._min_size
        if config.split == "time":
            return config.limits(len(fields))
        trained, validated = config.limits(columns)
        start = columns - needed - max(1, columns // 20)  # a gap as wide as that between the default ranges
        if config.train or validated[1] - validated[0] >= needed or min(start, fields.shape[2]) < needed:
            return trained, validated
        print(
            f"{columns} columns: the first {start} are for training, and the last {needed} for validation", flush=True
        )
        return [0, start], [columns - needed, columns]

    def _choose_crop(self, blocks: list[FieldBlock]) -> int:
        """Return data.crop, or if it is not given, the largest crop that fits up to the default.

        Raises:
            ValueError: data.crop does not fit, or no crop does.
        """
        config = self.config
        size = min((tuple(block.usable.shape[2:]) for block in blocks), key=min)
        fit = int(min(size) / config.scales[0]) - 2 * config.halo
        crop = _DEFAULT_CROP if config.crop is None else config.crop
        if fit >= crop:
            return crop
        if config.crop is None and fit >= _MIN_CROP:
            print(f"{spell_name('data.crop')}={fit}, the largest that fits into fields of {size}", flush=True)
            return fit
        raise OptionError(
            "data.crop",
            f": fields of {size} are too small for crop {crop} and halo {config.halo} at factor "
            f"{config.scales[0]}; {f'at most {fit} fits' if fit > 0 else 'no crop fits'}",
        )

    def _is_large_enough(self, fields: Tensor) -> bool:
        return min(fields.shape[2:]) >= self._min_size

    def _suggest_option(self, fields: Tensor) -> str:
        """Return the end of an error message: an option with which the fields (T, C, H, W) are large enough, if any."""
        if self.config.split != "time" and len(fields) >= 5 and self._is_large_enough(fields):
            return f"; {spell_name('data.split')}=time validates on the last times and all columns"
        return ""

    @property
    def _min_size(self) -> int:
        """Smallest number of rows and columns of a validation field."""
        return 2 * compute_margin(max(self.config.test_scales)) + 8

    def compute_statistics(self, sample: dict) -> dict[str, float]:
        """Return the statistics of the coarse field of a sample, for the ranges in the model card."""
        return compute_field_statistics(sample["x"], self.config.names)
