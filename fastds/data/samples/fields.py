# SPDX-License-Identifier: Apache-2.0
"""Selection of gridded fields, and sequences and crops of fields as training samples."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import Dataset

from fastds._options import spell_argument, spell_name
from fastds.data.grid.axes import check_rows_and_columns, check_spacing, find_rows_and_columns, find_time_dimension
from fastds.data.grid.times import check_dates, compute_seconds_since_first, estimate_time_step, format_time
from fastds.data.grid.variables import list_fields
from fastds.data.radar.preparation import Array
from fastds.data.samples.degradation import Degradation, compute_area_mean

HUMIDITY_RANGE = (0.0, 105.0)  # percent; ice supersaturation and packing errors slightly exceed 100 %
COARSENINGS = ("mean", "decimate")
_LEVELS = ("level", "pressure_level", "isobaricInhPa", "plev", "lev")
_PRESSURES = {"pa": 0.01, "hpa": 1.0, "millibars": 1.0, "millibar": 1.0, "mbar": 1.0, "mb": 1.0}


def choose_field(dataset: xr.Dataset, variable: str | None = None, level: float | None = None) -> xr.DataArray:
    """Choose one variable over (time, y, x).

    Args:
        dataset: xarray.Dataset.
        variable: Name of the variable; None: the only relative humidity, else the only field.
        level: Value of the vertical coordinate in its unit, if the variable has one.

    Returns:
        xarray.DataArray (time, y, x), sorted by time. The dimension of time is named "time"; a field without it gets
            one.

    Raises:
        ValueError: The variable or the level is missing or ambiguous, a level is given for a variable without vertical
            dimension, a coordinate is unsorted or unevenly spaced, or times are repeated.
    """
    if variable is None:
        variable = cast(str, _find_only_field(dataset))
    elif variable not in dataset.data_vars:
        raise ValueError(f"there is no variable {variable!r} in the file; there are: {_format_names(dataset)}")
    field = dataset[variable]
    field = choose_level(field, level)
    time, dims = find_time_dimension(field), field.dims
    if time is None:
        field = field.expand_dims("time")
    elif time != "time":
        field = field.drop_vars("time", errors="ignore").rename({time: "time"})
    if field.ndim != 3:
        raise ValueError(f"variable {variable!r} has dimensions {dims}, expected (time, y, x)")
    y, x = find_rows_and_columns(field, field.dims)
    swapped = x is not None and y is not None and field.dims.index(x) < field.dims.index(y)
    field = field.transpose("time", y, x) if swapped else field.transpose("time", ...)
    if not field.sizes["time"]:
        raise ValueError(f"there is no field: dimension time of variable {variable} has length 0")
    check_rows_and_columns(field, *field.dims[1:])
    check_spacing(field)
    if "time" not in field.coords:
        return field
    check_dates(field["time"])
    field = field.sortby("time")
    repeated = field["time"].to_index().duplicated()
    if repeated.any():
        raise ValueError(
            f"time {format_time(field['time'].values[repeated.argmax()])} occurs twice in variable {variable!r}"
        )
    return field


def choose_level(field: xr.DataArray, level: float | None = None) -> xr.DataArray:
    """Select one level of the vertical dimension.

    Args:
        field: DataArray.
        level: Value of the vertical coordinate; None: the only one.

    Returns:
        DataArray without vertical dimension.

    Raises:
        ValueError: The level is missing, does not exist, or the field has no vertical dimension.
    """
    vertical = next((name for name in _LEVELS if name in field.dims), None)
    if vertical is None:
        if level is None or any(float(field.coords[n]) == level for n in _LEVELS if n in field.coords):
            return field
        raise ValueError(f"level {level:g} was requested, but variable {field.name!r} has no vertical dimension")
    values = [float(v) for v in field[vertical].values]
    if level is None and len(values) > 1:
        raise ValueError(
            f"variable {field.name!r} has {len(values)} levels, name one of {values} with {spell_argument('level')}"
        )
    if level is not None and level not in values:
        raise ValueError(f"variable {field.name!r} has no level {level:g}; there are: {values}")
    return field.isel({vertical: values.index(level if level is not None else values[0])})


def get_pressure_hpa(field: xr.DataArray) -> float | None:
    """Return the pressure of a field at one level in hPa, or None if its coordinates declare none."""
    for name in _LEVELS:
        if name in field.coords and field.coords[name].size == 1:
            units = str(field.coords[name].attrs.get("units", "hPa" if name == "isobaricInhPa" else "")).lower()
            if units in _PRESSURES:
                return float(field.coords[name].values) * _PRESSURES[units]
    return None


def _find_only_field(dataset: xr.Dataset) -> Hashable:
    fields = list_fields(dataset)
    humid = [name for name in fields if dataset[name].attrs.get("standard_name") == "relative_humidity"]
    for found in (humid, fields):
        if len(found) == 1:
            return found[0]
    if not fields:
        raise ValueError("the file holds no field over (time, y, x)")
    raise ValueError(
        f"the variable is ambiguous, name one of {_format_names(dataset, humid or fields)} with {spell_argument('var')}"
    )


def _format_names(dataset: xr.Dataset, names: Iterable[Hashable] | None = None) -> str:
    return ", ".join(sorted(str(name) for name in (names or dataset.data_vars)))


def check_values(values: np.ndarray, name: str = "the field", humidity: bool = False) -> None:
    """Raise ValueError for missing or infinite values and, with `humidity`, for values outside [0, 105] %.

    Args:
        values: Any shape.
        name: Description of the values for the message.
        humidity: Whether the values are relative humidity in percent.

    Raises:
        ValueError: If there are such values. The message contains their number.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(f"{name} has {int(bad.sum())} missing or infinite values; fill them first")
    low, high = HUMIDITY_RANGE
    outside = (values < low) | (values > high)
    if humidity and outside.any():
        raise ValueError(
            f"{name} has {int(outside.sum())} values outside [{low:g}, {high:g}] % "
            f"({float(values.min()):g} to {float(values.max()):g}): is it relative humidity in percent? clip it first"
        )


def coarsen_fields(x: Array, r: int, method: str = "mean") -> Array:
    """Coarsen fields by an integer factor.

    Args:
        x: (..., H, W) array or tensor, any unit; H and W multiples of `r`.
        r: Factor.
        method: "mean" over r x r blocks, or "decimate", the first point of every block, as in the humidity paper.

    Returns:
        (..., H/r, W/r) of the same type.

    Raises:
        ValueError: H or W is not a multiple of `r`, or the method is unknown.
    """
    h, w = x.shape[-2:]
    if h % r or w % r:
        raise ValueError(f"the field has {h} x {w} points, expected multiples of {r}")
    if method == "decimate":
        return x[..., ::r, ::r]
    if method != "mean":
        raise ValueError(f"method must be one of {COARSENINGS}, got {method!r}")
    return x.reshape(*x.shape[:-2], h // r, r, w // r, r).mean((-3, -1))


def split_into_days(field: xr.DataArray, steps: int = 8) -> list[xr.DataArray]:
    """Split a field into consecutive days of `steps` times each; a remainder at the end is left out.

    Times are thinned to 24 h / steps first: for hourly fields and 8 steps to hours 0, 3, ..., 21 after the first time.
    A field without time coordinate is split as it is.

    Args:
        field: DataArray (time, y, x).
        steps: Number of times of a day; 8 in the paper.

    Returns:
        list of DataArray (steps, y, x).

    Raises:
        ValueError: There are fewer times than steps, the times of a day are not equally spaced, or 24 h / steps is not
            a multiple of the time step.
    """
    field = thin_to_days(field, steps)
    if field.sizes["time"] < steps:
        raise ValueError(f"the file has {field.sizes['time']} times, fewer than a sequence of {steps}")
    parts = [field.isel(time=slice(k, k + steps)) for k in range(0, field.sizes["time"] - steps + 1, steps)]
    for part in parts:
        if "time" in part.coords and len(np.unique(np.diff(part["time"].values))) > 1:
            raise ValueError(f"the times from {part['time'].values[0]} on are not equally spaced")
    return parts


def thin_to_days(field: xr.DataArray, steps: int) -> xr.DataArray:
    """Select times every 24 h / steps, beginning with the first. A field without time coordinate is unchanged.

    Raises:
        ValueError: 24 h / steps is not a multiple of the time step.
    """
    if "time" not in field.coords:
        return field
    return field.isel(time=slice(None, None, _count_stride(field["time"].values, steps)))


def _count_stride(values: np.ndarray, steps: int) -> int:
    """Return the number of time steps in 24 h / steps."""
    if len(values) < 2:
        return 1
    hours = estimate_time_step(compute_seconds_since_first(values)) / 3600
    every = round(24 / steps / hours)
    if every < 1 or abs(every * steps * hours - 24) > 1e-6:
        raise ValueError(
            f"the time step is {hours:g} h, and no multiple of that is the {24 / steps:g} h between {steps} "
            f"fields of a day: with {spell_name('data.steps')}={24 / hours:g} a day has all of its fields"
        )
    return every


def split_validation_days(
    count: int, validation: int = 366, seed: int = 0, overlap: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices of days into training and validation days.

    The paper draws validation days from the training days and does not say whether they are removed there. Here they
    are removed unless `overlap` is True.

    Args:
        count: Number of days.
        validation: Number of validation days.
        seed: Seed of the draw.
        overlap: Whether the training days include the validation days.

    Returns:
        (training, validation), sorted integer arrays.

    Raises:
        ValueError: `validation` is not between 1 and count - 1.
    """
    if not 0 < validation < count:
        raise ValueError(f"validation must lie between 1 and {count - 1} days, got {validation}")
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:validation])
    return (np.arange(count) if overlap else np.setdiff1d(np.arange(count), chosen)), chosen


@dataclass
class FieldBlock:
    """A stack of fields of one source.

    Args:
        values: (T, C, H, W) in physical units, without missing values.
        columns: (first, stop) columns that samples may use.
        static: (S, H, W) time-independent maps, or None.
    """

    values: Tensor
    columns: tuple[int, int]
    static: Tensor | None = None

    @property
    def usable(self) -> Tensor:
        """The usable columns of the fields, (T, C, H, W')."""
        return self.values[..., self.columns[0] : self.columns[1]]

    @property
    def usable_static(self) -> Tensor:
        """The usable columns of the maps, (S, H, W'); S = 0 without maps."""
        static = self.values[0, :0] if self.static is None else self.static
        return static[..., self.columns[0] : self.columns[1]]


def compute_statistics(blocks: list[FieldBlock]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel over all blocks, in physical units."""
    flat = torch.cat([b.usable.double().transpose(0, 1).flatten(1) for b in blocks], 1)
    return flat.mean(1).float(), flat.std(1).float()


class FieldCrops(Dataset):
    """Random coarse crops with fine pixels as targets. Sample i is a function of (seed, i) only.

    A fine window of (crop + 2 halo) s pixels is degraded to crop + 2 halo coarse pixels, from which the halo is cut.
    The targets are `queries` random fine pixels in the remaining part. The factor s is uniform in `scales`. With
    probability `anisotropic` it is drawn for each axis. With probability `whole` it is rounded to an integer >= 2 in
    `scales`, if the block permits a factor of 2.

    Args:
        blocks: Sources of the windows, with equal probability, of any sizes.
        mean: (C,) for normalisation.
        std: (C,) for normalisation.
        degradation: Maps fine to coarse.
        crop: Side of the coarse crop in pixels.
        halo: Coarse pixels that are cut from each side.
        queries: Number of targets of a sample.
        scales: Smallest and largest factor.
        anisotropic: Probability of different factors along both axes.
        whole: Probability of integer factors.
        flips: Whether windows are flipped at random.
        vectors: Channels (u, v) of a vector; each changes sign when its axis is flipped. None: no such channel.
        samples: Length of the dataset.
        seed: Seed.

    Each sample is a dict of x (C, crop, crop) in physical units, base (Q, 2) int32 and frac (Q, 2) float32 positions,
    target (Q, C), factor (2,), and, with maps, their area means static (S, crop, crop).

    Raises:
        ValueError: A block is too small for crop and halo at the smallest factor.
    """

    def __init__(
        self, blocks: list[FieldBlock], mean: Tensor, std: Tensor, degradation: Degradation, *, crop: int = 32,
        halo: int = 4, queries: int = 1024, scales: tuple[float, float] = (1.0, 4.0), anisotropic: float = 0.2,
        whole: float = 0.0, flips: bool = True, vectors: tuple[int | None, int | None] = (None, None),
        samples: int = 1000, seed: int = 0,
    ):  # fmt: skip
        self.blocks, self.degradation, self.crop, self.halo = blocks, degradation, crop, halo
        self.mean, self.std = (t[:, None, None] for t in (mean, std))
        self.queries, self.scales, self.anisotropic, self.whole = queries, scales, anisotropic, whole
        self.flips, self.vectors, self.samples, self.seed = flips, vectors, samples, seed
        for block in blocks:
            if self._compute_max_factor(block) < scales[0]:
                size = tuple(block.usable.shape[2:])
                raise ValueError(
                    f"fields of {size} are too small for crop {crop} and halo {halo} at factor {scales[0]}"
                )

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed((self.seed << 32) + index)
        whole = self.crop + 2 * self.halo
        drawn, isotropic = torch.rand(2, generator=g), torch.rand((), generator=g) >= self.anisotropic
        chosen = self.blocks[int(torch.randint(len(self.blocks), (), generator=g))]
        in_whole = self.whole > 0 and bool(torch.rand((), generator=g) < self.whole)
        sizes = self._choose_window(drawn[:1].expand(2) if isotropic else drawn, chosen, in_whole)
        block, static = chosen.usable, chosen.usable_static
        at = [int(torch.randint(n - m + 1, (), generator=g)) for n, m in zip(block.shape[2:], sizes, strict=True)]
        time = int(torch.randint(block.shape[0], (), generator=g))
        window = (..., slice(at[0], at[0] + sizes[0]), slice(at[1], at[1] + sizes[1]))
        fine = torch.cat([(block[time][window] - self.mean) / self.std, static[window]])
        fine, static = self._flip(fine, g).split([block.shape[1], len(static)])
        coarse = self.degradation(fine[None], (whole, whole), g)[0]
        keep = slice(self.halo, self.halo + self.crop)
        pixels, u = zip(*(self._draw_positions(g, m, whole) for m in sizes), strict=True)
        base = [torch.floor(v) for v in u]
        sample = {
            "x": coarse[:, keep, keep] * self.std + self.mean,
            "base": torch.stack(base, -1).int(),
            "frac": torch.stack([(v - b).float() for v, b in zip(u, base, strict=True)], -1),
            "target": (fine[:, pixels[0], pixels[1]] * self.std[:, 0] + self.mean[:, 0]).T,
            "factor": torch.tensor([m / whole for m in sizes]),
        }
        if len(static):
            sample["static"] = compute_area_mean(static, (whole, whole))[:, keep, keep]
        return sample

    def _compute_max_factor(self, block: FieldBlock) -> float:
        """Return the factor at which a window covers the smaller side of a block."""
        return min(block.usable.shape[2:]) / (self.crop + 2 * self.halo)

    def _choose_window(self, drawn: Tensor, block: FieldBlock, in_whole: bool) -> tuple[int, int]:
        """Return the numbers of fine rows and fine columns of a training window.

        The factor of a sample is the ratio of its fine size to its coarse size. Sizes are rounded to whole pixels.

        Args:
            drawn: Random numbers in [0, 1), one for each axis.
            block: FieldBlock that contains the window. Its size limits the factor.
            in_whole: Whether to round the factors to integers, if the largest factor is at least 2.
        """
        low, high = self.scales[0], min(self.scales[1], self._compute_max_factor(block))
        factors = low + (high - low) * drawn
        if in_whole and high >= 2:
            factors = factors.round().clamp(max(2, math.ceil(low)), math.floor(high))
        small, large = (int(round((self.crop + 2 * self.halo) * s)) for s in factors.tolist())
        return small, large

    def _draw_positions(self, g: torch.Generator, m: int, whole: int) -> tuple[Tensor, Tensor]:
        """Draw fine pixels inside the crop.

        Args:
            g: Random generator.
            m: Fine size of the window along an axis.
            whole: Coarse size of the window.

        Returns:
            Indices of fine pixels, and their coarse index coordinates in the crop.
        """
        u = ((2 * torch.arange(m, dtype=torch.float64) + 1) * whole - m) / (2 * m) - self.halo
        inside = torch.nonzero((u >= -0.5) & (u <= self.crop - 0.5))[:, 0]
        chosen = inside[torch.randint(inside.numel(), (self.queries,), generator=g)]
        return chosen, u[chosen]

    def _flip(self, fine: Tensor, g: torch.Generator) -> Tensor:
        if not self.flips:
            return fine
        for axis, component in ((2, self.vectors[0]), (1, self.vectors[1])):
            if torch.rand((), generator=g) < 0.5:
                fine = fine.flip(axis)
                if component is not None:
                    # Negate the physical value v: (-v - mean) / std = -(v - mean) / std - 2 mean / std.
                    shift = 2 * self.mean[component, 0, 0] / self.std[component, 0, 0]
                    fine = torch.cat(
                        [fine[:component], -fine[component : component + 1] - shift, fine[component + 1 :]]
                    )
        return fine
