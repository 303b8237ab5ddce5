# SPDX-License-Identifier: Apache-2.0
"""Sequences and crops of gridded fields as training samples."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import Dataset

from fastds.data.grid.axes import check_rows_and_columns, check_spacing, rows_and_columns, time_dimension
from fastds.data.grid.times import check_dates, most_frequent_step, seconds_since_first, text_of
from fastds.data.grid.variables import field_names
from fastds.data.radar.preparation import Array
from fastds.data.samples.degradation import Degradation, area_mean

HUMIDITY_RANGE = (0.0, 105.0)  # percent; ice supersaturation and packing reach a little beyond 100
COARSENINGS = ("mean", "decimate")
_LEVELS = ("level", "pressure_level", "isobaricInhPa", "plev", "lev")
_PRESSURES = {"pa": 0.01, "hpa": 1.0, "millibars": 1.0, "millibar": 1.0, "mbar": 1.0, "mb": 1.0}


def choose_field(dataset: xr.Dataset, variable: str | None = None, level: float | None = None) -> xr.DataArray:
    """Pick one variable over (time, y, x).

    Args:
        dataset: xarray.Dataset.
        variable: its name; None: the only one over (time, y, x) or (y, x), by preference the only relative humidity.
        level: value of the vertical coordinate, in its unit, where the variable has one.

    Returns: xarray.DataArray (time, y, x), times ascending, whatever their dimension is called in the file; a field
        without time gets one step.

    Raises: ValueError where the variable is missing or ambiguous, or the level missing, not there or not applicable,
        and for coordinates that are out of order, uneven or missing.
    """
    if variable is None:
        variable = _only_field(dataset)
    elif variable not in dataset.data_vars:
        raise ValueError(f"there is no variable {variable!r} in the file; there are: {_names(dataset)}")
    field = dataset[variable]
    field = choose_level(field, level)
    time, dims = time_dimension(field), field.dims
    if time is None:
        field = field.expand_dims("time")
    elif time != "time":
        field = field.drop_vars("time", errors="ignore").rename({time: "time"})
    if field.ndim != 3:
        raise ValueError(f"variable {variable!r} has dimensions {dims}, expected (time, y, x)")
    y, x = rows_and_columns(field, field.dims)
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
            f"time {text_of(field['time'].values[repeated.argmax()])} occurs twice in variable {variable!r}"
        )
    return field


def choose_level(field: xr.DataArray, level: float | None = None) -> xr.DataArray:
    """A DataArray at one level of its vertical dimension.

    Args: level: value of the coordinate; None: the only one, or there is no vertical dimension.

    Raises: ValueError where the level is missing, not there or not applicable.
    """
    vertical = next((name for name in _LEVELS if name in field.dims), None)
    if vertical is None:
        if level is None or any(float(field.coords[n]) == level for n in _LEVELS if n in field.coords):
            return field
        raise ValueError(f"level {level:g} was asked for, but variable {field.name!r} has no vertical dimension")
    values = [float(v) for v in field[vertical].values]
    if level is None and len(values) > 1:
        raise ValueError(
            f"variable {field.name!r} has {len(values)} levels, name one of {values} with the argument level"
        )
    if level is not None and level not in values:
        raise ValueError(f"variable {field.name!r} has no level {level:g}; there are: {values}")
    return field.isel({vertical: values.index(level if level is not None else values[0])})


def pressure_hpa(field: xr.DataArray) -> float | None:
    """The pressure of a field at one level, hPa; None where its coordinates name none."""
    for name in _LEVELS:
        if name in field.coords and field.coords[name].size == 1:
            units = str(field.coords[name].attrs.get("units", "hPa" if name == "isobaricInhPa" else "")).lower()
            if units in _PRESSURES:
                return float(field.coords[name].values) * _PRESSURES[units]
    return None


def _only_field(dataset: xr.Dataset) -> Hashable:
    fields = field_names(dataset)
    humid = [name for name in fields if dataset[name].attrs.get("standard_name") == "relative_humidity"]
    for found in (humid, fields):
        if len(found) == 1:
            return found[0]
    if not fields:
        raise ValueError("the file holds no field over (time, y, x)")
    raise ValueError(f"the variable is ambiguous, name one of {_names(dataset, humid or fields)} with the argument var")


def _names(dataset: xr.Dataset, names: Iterable[Hashable] | None = None) -> str:
    return ", ".join(sorted(str(name) for name in (names or dataset.data_vars)))


def check_values(values: np.ndarray, name: str = "the field", humidity: bool = False) -> None:
    """Refuse missing values, and with humidity values outside [0, 105] %.

    Raises: ValueError with the number of bad points.
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
    """Coarse fields from fine ones.

    Args:
        x: (..., H, W) array or tensor, any unit; H and W multiples of r.
        r: factor in space.
        method: "mean" over r x r blocks, or "decimate": the first point of every block, as the humidity paper does.

    Returns: (..., H/r, W/r) of the same kind.

    Raises: ValueError for sizes that do not fit or an unknown method.
    """
    h, w = x.shape[-2:]
    if h % r or w % r:
        raise ValueError(f"the field has {h} x {w} points, expected multiples of {r}")
    if method == "decimate":
        return x[..., ::r, ::r]
    if method != "mean":
        raise ValueError(f"method must be one of {COARSENINGS}, got {method!r}")
    return x.reshape(*x.shape[:-2], h // r, r, w // r, r).mean((-3, -1))


def days(field: xr.DataArray, steps: int = 8) -> list[xr.DataArray]:
    """Cut times into days of `steps`, in order, a rest at the end left out.

    Times less than 24 h / steps apart are thinned: of hourly fields 8 steps are those of hours 0, 3, ..., 21 after the
    first time of the file. Fields without a coordinate of times are taken as they are.

    Args: field: DataArray (time, y, x); steps: 8 three-hourly fields are the paper's day.
    Returns: list of DataArray (steps, y, x).
    Raises: ValueError where there are fewer times than steps, the times of a day are not equally spaced, or 24 h /
        steps is no multiple of the file's own step.
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
    """The times that are 24 h / steps apart, from the first on; fields without a coordinate of times as they are.

    Raises: ValueError where 24 h / steps is no multiple of the step of the times.
    """
    if "time" not in field.coords:
        return field
    return field.isel(time=slice(None, None, _every(field["time"].values, steps)))


def _every(values: np.ndarray, steps: int) -> int:
    """How many of the file's times make one of the `steps` of a day."""
    if len(values) < 2:
        return 1
    hours = most_frequent_step(seconds_since_first(values)) / 3600
    every = round(24 / steps / hours)
    if every < 1 or abs(every * steps * hours - 24) > 1e-6:
        raise ValueError(
            f"the times are {hours:g} h apart, of which no whole number makes the {24 / steps:g} h between {steps} "
            f"fields of a day: with data.steps={24 / hours:g} a day has all of its fields"
        )
    return every


def split_days(
    count: int, validation: int = 366, seed: int = 0, overlap: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation days.

    The paper draws its validation days from the training days; whether they stay there it does not say. Here they are
    taken out, with overlap=True they stay.

    Returns: (training, validation), sorted integer arrays.
    """
    if not 0 < validation < count:
        raise ValueError(f"validation must lie between 1 and {count - 1} days, got {validation}")
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:validation])
    return (np.arange(count) if overlap else np.setdiff1d(np.arange(count), chosen)), chosen


@dataclass
class FieldBlock:
    """A stack of fields of one kind.

    Args:
        values: (T, C, H, W) physical units, without missing values.
        columns: (first, stop) columns that may be used.
        static: (S, H, W) maps that do not change with time, or None.
    """

    values: Tensor
    columns: tuple[int, int]
    static: Tensor | None = None

    @property
    def usable(self) -> Tensor:
        return self.values[..., self.columns[0] : self.columns[1]]

    @property
    def usable_static(self) -> Tensor:
        """(S, H, W) of these columns; S = 0 without."""
        static = self.values[0, :0] if self.static is None else self.static
        return static[..., self.columns[0] : self.columns[1]]


def statistics(blocks: list[FieldBlock]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel over all blocks, in physical units."""
    flat = torch.cat([b.usable.double().transpose(0, 1).flatten(1) for b in blocks], 1)
    return flat.mean(1).float(), flat.std(1).float()


class FieldCrops(Dataset):
    """Sample i, a function of (seed, i) alone: a coarse crop, and fine pixels of it as points with their values.

    A fine window of (crop + 2 halo) s pixels becomes (crop + 2 halo) coarse ones, of which the halo is cut; `queries`
    fine pixels in the rest are the targets. The factor s is uniform in `scales`, per axis with probability
    `anisotropic`, with probability `whole` rounded to 2, 3, ... where these are in `scales`.

    Args:
        blocks: where windows come from, each as often, of any sizes. mean, std: (C,) normalisation. degradation: of
            fine to coarse.
        crop, halo: coarse pixels. queries: targets per sample. scales: smallest and largest factor.
        flips: mirror windows at random; channels in `vectors` = (u, v) change sign with the axis they point along.

    Each sample: x (C, crop, crop) physical units, base (Q, 2) int32 and frac (Q, 2) float32 places, target (Q, C),
    factor (2,), and where the blocks have them static (S, crop, crop), their area means.
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
            if self._largest(block) < scales[0]:
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
        sizes = self._window(drawn[:1].expand(2) if isotropic else drawn, chosen, in_whole)
        block, static = chosen.usable, chosen.usable_static
        at = [int(torch.randint(n - m + 1, (), generator=g)) for n, m in zip(block.shape[2:], sizes, strict=True)]
        time = int(torch.randint(block.shape[0], (), generator=g))
        window = (..., slice(at[0], at[0] + sizes[0]), slice(at[1], at[1] + sizes[1]))
        fine = torch.cat([(block[time][window] - self.mean) / self.std, static[window]])
        fine, static = self._flipped(fine, g).split([block.shape[1], len(static)])
        coarse = self.degradation(fine[None], (whole, whole), g)[0]
        keep = slice(self.halo, self.halo + self.crop)
        pixels, u = zip(*(self._places(g, m, whole) for m in sizes), strict=True)
        base = [torch.floor(v) for v in u]
        sample = {
            "x": coarse[:, keep, keep] * self.std + self.mean,
            "base": torch.stack(base, -1).int(),
            "frac": torch.stack([(v - b).float() for v, b in zip(u, base, strict=True)], -1),
            "target": (fine[:, pixels[0], pixels[1]] * self.std[:, 0] + self.mean[:, 0]).T,
            "factor": torch.tensor([m / whole for m in sizes]),
        }
        if len(static):
            sample["static"] = area_mean(static, (whole, whole))[:, keep, keep]
        return sample

    def _largest(self, block: FieldBlock) -> float:
        """The factor at which a window is all of a block."""
        return min(block.usable.shape[2:]) / (self.crop + 2 * self.halo)

    def _window(self, drawn: Tensor, block: FieldBlock, in_whole: bool) -> tuple[int, int]:
        """Fine rows and columns for numbers in [0, 1) per axis; their ratio to the coarse ones is the true factor."""
        low, high = self.scales[0], min(self.scales[1], self._largest(block))
        factors = low + (high - low) * drawn
        if in_whole and high >= 2:
            factors = factors.round().clamp(max(2, math.ceil(low)), math.floor(high))
        return tuple(int(round((self.crop + 2 * self.halo) * s)) for s in factors.tolist())

    def _places(self, g: torch.Generator, m: int, whole: int) -> tuple[Tensor, Tensor]:
        """Fine pixels at random inside the part that is kept, and their coarse index coordinates there."""
        u = ((2 * torch.arange(m, dtype=torch.float64) + 1) * whole - m) / (2 * m) - self.halo
        inside = torch.nonzero((u >= -0.5) & (u <= self.crop - 0.5))[:, 0]
        chosen = inside[torch.randint(inside.numel(), (self.queries,), generator=g)]
        return chosen, u[chosen]

    def _flipped(self, fine: Tensor, g: torch.Generator) -> Tensor:
        if not self.flips:
            return fine
        for axis, component in ((2, self.vectors[0]), (1, self.vectors[1])):
            if torch.rand((), generator=g) < 0.5:
                fine = fine.flip(axis)
                if component is not None:
                    # The mean of a wind component changes sign with it.
                    shift = 2 * self.mean[component, 0, 0] / self.std[component, 0, 0]
                    fine = torch.cat(
                        [fine[:component], -fine[component : component + 1] - shift, fine[component + 1 :]]
                    )
        return fine
