# SPDX-License-Identifier: Apache-2.0
"""Random crops of sequences of fields from disjoint training and validation regions."""

import dataclasses
import math
import pathlib
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fastds._options import OptionError, spell_name
from fastds.data.formats.opening import open_dataset
from fastds.data.grid.value_checks import load_plausible_values
from fastds.data.grid.variables import REPAIR_FIRST
from fastds.data.samples.fields import (
    check_values,
    choose_field,
    coarsen_fields,
    split_into_days,
    split_validation_days,
    thin_to_days,
)
from fastds.inference.ood.statistics import compute_texture
from fastds.tasks.humidity.config import DataConfig
from fastds.training.folders import scan_folder
from fastds.training.modules import BaseDataModule

_CROP_STEP = 8  # networks halve the resolution three times
_DEFAULT_CROP = 64  # largest crop that is chosen without a request
ROLES = ("train", "validation", "test")


def read_regions(config: DataConfig, role: str) -> list[torch.Tensor]:
    """Read the regions of a role as normalised fields.

    Args:
        config: see DataConfig.
        role: "train", "validation" or "test".

    Returns:
        (times, H, W) float32 for each region.

    Raises:
        FileNotFoundError: no such file.
        ValueError: files, variables, regions or values that do not fit.
    """
    root = pathlib.Path(config.path)
    sources = config.sources or {root.name: {}}
    regions = []
    for name, source in sources.items():
        path = root / name if root.is_dir() else root
        unknown = set(source) - {"variable", "level", "daily", "validation_days", "validation_stays", *ROLES}
        if unknown:
            raise OptionError("data.sources", f"[{name!r}] has unknown keys {sorted(unknown)}")
        with open_dataset(path) as dataset:
            field = choose_field(dataset, source.get("variable"), source.get("level"))
            field = field.copy(data=load_plausible_values(field, f" of {path}", REPAIR_FIRST))
        check_values(field.values, path.name)
        if "validation_days" in source:
            regions += [normalise(day.values, config) for day in _select_days(field, source, config, role)]
            continue
        if source.get("daily"):
            try:
                field = thin_to_days(field, config.steps)
            except ValueError as error:
                raise OptionError("data.sources", f"[{name!r}] with daily: {error}") from None
        grid = field.values
        for box in source.get(role, [] if set(source) & set(ROLES) else _split_columns(grid.shape, role)):
            top, bottom, left, right = box
            if not (0 <= top < bottom <= grid.shape[1] and 0 <= left < right <= grid.shape[2]):
                raise OptionError("data.sources", f"[{name!r}][{role!r}]: {box} is no part of a {grid.shape[1:]} grid")
            regions.append(normalise(grid[:, top:bottom, left:right], config))
    return regions


def find_sources(config: DataConfig) -> DataConfig:
    """Return the configuration with the files of its folder as sources, if it names no sources."""

    def whole(path: pathlib.Path) -> dict:
        with open_dataset(path) as dataset:
            choose_field(dataset, None, None)
        return {}

    if config.sources or not pathlib.Path(config.path).is_dir():
        return config
    return dataclasses.replace(config, sources={p.name: part for p, part in scan_folder(config.path, whole).items()})


def normalise(values: np.ndarray, config: DataConfig) -> torch.Tensor:
    """Return (values - offset) / range as a tensor."""
    return torch.from_numpy(np.ascontiguousarray((values - config.offset) / config.range))


def _select_days(field, source, config, role):
    """Return the days of a role.

    Validation days are drawn from all days. They are also training days if the source has "validation_stays".
    """
    every = split_into_days(field, config.steps)
    overlap = source.get("validation_stays", False)
    training, validation = split_validation_days(len(every), source["validation_days"], overlap=overlap)
    return [every[k] for k in {"train": training, "validation": validation}.get(role, [])]


def _split_columns(shape, role):
    """Return the regions of a role for a file whose source names no regions.

    These are the left three quarters of the columns for training, the rest for validation, and none for other roles.
    """
    split = 3 * shape[2] // 4
    return {"train": [[0, shape[1], 0, split]], "validation": [[0, shape[1], split, shape[2]]]}.get(role, [])


class FieldSequences(Dataset):
    """Samples {"coarse": (T, 1, h, w), "fine": (T, 1, H, W)}, normalised; sample i depends on (seed, i) only.

    Args:
        regions: tensors (times, H, W). A region is drawn with a probability proportional to its size, or, with
            config.each_once, all regions are used in turn. Times and crop are then drawn.
        samples: number of samples.
        scale: scale factor.
        config: steps, crop (64 if it is None), coarsening, flips.
        seed: random seed.

    Raises:
        ValueError: a region is smaller than a sample.
    """

    def __init__(self, regions: list[torch.Tensor], samples: int, scale: int, config: DataConfig, seed: int):
        if not regions:
            raise ValueError(f"there is no region to draw samples from: see {spell_name('data.sources')}")
        crop = check_crop(regions, config, scale)
        self.regions, self.samples, self.scale, self.config, self.seed = regions, samples, scale, config, seed
        self.crop = crop
        points = np.array([float(region.numel()) for region in regions])
        self.shares = points / points.sum()

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        c, crop, rng = self.config, self.crop, np.random.default_rng([self.seed, index])
        region = self.regions[
            self._select_region(index) if c.each_once else rng.choice(len(self.regions), p=self.shares)
        ]
        t, i, j = (int(rng.integers(n - size + 1)) for n, size in zip(region.shape, (c.steps, crop, crop), strict=True))
        fine = region[t : t + c.steps, i : i + crop, j : j + crop]
        flips = [axis for axis in (1, 2) if c.flips and rng.random() < 0.5]
        fine = fine.flip(flips) if flips else fine
        return {"coarse": coarsen_fields(fine, self.scale, c.coarsening)[:, None], "fine": fine[:, None]}

    def _select_region(self, index: int) -> int:
        """Return the region of an index if each region is used once in every len(regions) samples."""
        round_, place = divmod(int(index), len(self.regions))
        return int(np.random.default_rng([self.seed, 1, round_]).permutation(len(self.regions))[place])


def _find_largest_crop(region: torch.Tensor, scale: int) -> int:
    """Return the largest crop that fits into a region, or 0."""
    side = math.lcm(scale, _CROP_STEP)
    return min(region.shape[1:]) // side * side


def _fit_crop(config: DataConfig, regions: list[torch.Tensor], scale: int) -> DataConfig:
    """Return a configuration whose crop fits into all regions, if no crop was given and one fits."""
    crop = min((_find_largest_crop(region, scale) for region in regions), default=0)
    if config.crop is not None or not 0 < crop < _DEFAULT_CROP:
        return config
    print(f"{spell_name('data.crop')}={crop}, the largest that fits into the smallest region", flush=True)
    return dataclasses.replace(config, crop=crop)


def check_crop(regions: list[torch.Tensor], config: DataConfig, scale: int) -> int:
    """Return the side of a crop, see DataConfig, after checking that samples fit into all regions.

    Args:
        regions: tensors (times, H, W).
        config: steps, crop.
        scale: scale factor.

    Raises:
        ValueError: the crop is no multiple of the scale factor, or a region is smaller than a sample. The message
            states the largest crop that fits into all regions, if any.
    """
    crop = _DEFAULT_CROP if config.crop is None else config.crop
    if crop % scale:
        raise OptionError("data.crop", f"must be a multiple of the scale {scale}, got {crop}")
    for region in regions:
        if region.shape[0] < config.steps or min(region.shape[1:]) < crop:
            times, rows, columns = region.shape
            sample = f"{spell_name('data.steps')}={config.steps} times and {spell_name('data.crop')}={crop}"
            fit = min(_find_largest_crop(one, scale) for one in regions)
            raise ValueError(
                f"a region has {times} times, {rows} rows and {columns} columns, a sample {sample} rows and columns; "
                f"of a file without regions in {spell_name('data.sources')} the last quarter of the columns validates"
                + (f"; {spell_name('data.crop')}={fit} fits" if 0 < fit < crop else "")
            )
    return crop


class HumidityData(BaseDataModule):
    """Training crops, new in each epoch, and fixed validation crops.

    Args:
        config: see DataConfig.
        scale: scale factor of the generator.
        seed: random seed of the samples.
        start: function that returns the number of training samples used so far.
        devices: see BaseDataModule.
    """

    def __init__(self, config: DataConfig, scale: int, seed: int, start: Callable[[], int], devices: int = 1):
        super().__init__(config, seed, devices, start)
        self.scale = scale

    def setup(self, stage: str | None = None) -> None:
        if self.training is not None:
            return
        c = find_sources(self.config)
        self.files = list(c.sources) or [pathlib.Path(c.path).name]
        trained, validated = (read_regions(c, role) for role in ("train", "validation"))
        c = _fit_crop(c, [*trained, *validated], self.scale)
        check_crop([*trained, *validated], c, self.scale)
        self.training = FieldSequences(trained, c.epoch_samples, self.scale, c, self.seed)
        fixed = FieldSequences(validated, c.validation_samples, self.scale, c, self.seed + 1)
        self.validation = fixed

    def compute_statistics(self, sample: dict) -> dict[str, float]:
        """Return the statistics of the coarse field of a sample, for the ranges in the model card."""
        return compute_texture(sample["coarse"] * self.config.range + self.config.offset)

    def make_loader(self, samples: Dataset, **options) -> DataLoader:
        # A loader draws a random number when it starts. Its separate generator keeps the noise of a resumed run
        # unchanged.
        return super().make_loader(samples, generator=torch.Generator().manual_seed(self.seed), **options)
