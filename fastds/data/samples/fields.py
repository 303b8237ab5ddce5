# SPDX-License-Identifier: Apache-2.0
"""Gridded analyses and forecasts of one variable: read, check, coarsen, split by region and by day."""

import numpy as np

HUMIDITY_RANGE = (0.0, 105.0)  # percent; ice supersaturation and packing reach a little beyond 100
COARSENINGS = ("mean", "decimate")
_LEVELS = ("level", "pressure_level", "isobaricInhPa", "plev", "lev")


def choose_field(dataset, variable=None, level=None):
    """Pick one variable over (time, y, x).

    Args:
        dataset: xarray.Dataset.
        variable: its name; None: the only one over (time, y, x) or (y, x), by preference the only relative humidity.
        level: value of the vertical coordinate, in its unit, where the variable has one.

    Returns: xarray.DataArray (time, y, x), times ascending; a field without time gets one step.

    Raises: ValueError where the variable is missing or ambiguous, or the level missing, not there or not applicable.
    """
    if variable is None:
        variable = _only_field(dataset)
    elif variable not in dataset.data_vars:
        raise ValueError(f"there is no variable {variable!r} in the file; there are: {_names(dataset)}")
    field = dataset[variable]
    field = choose_level(field, level)
    if "time" not in field.dims:
        field = field.expand_dims("time")
    if field.ndim != 3:
        raise ValueError(f"variable {variable!r} has dimensions {field.dims}, expected (time, y, x)")
    return field.transpose("time", ...).sortby("time") if "time" in field.coords else field.transpose("time", ...)


def choose_level(field, level=None):
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
        raise ValueError(f"variable {field.name!r} has {len(values)} levels, name one of {values} with level")
    if level is not None and level not in values:
        raise ValueError(f"variable {field.name!r} has no level {level:g}; there are: {values}")
    return field.isel({vertical: values.index(level if level is not None else values[0])})


def _only_field(dataset):
    fields = [name for name in dataset.data_vars if dataset[name].ndim >= 2 and dataset[name].dtype.kind in "fiu"]
    humid = [name for name in fields if dataset[name].attrs.get("standard_name") == "relative_humidity"]
    for found in (humid, fields):
        if len(found) == 1:
            return found[0]
    if not fields:
        raise ValueError("the file holds no field over (time, y, x)")
    raise ValueError(f"the variable is ambiguous, name one of {_names(dataset, humid or fields)} with variable")


def _names(dataset, names=None):
    return ", ".join(sorted(str(name) for name in (names or dataset.data_vars)))


def check_values(values, name="the field", humidity=False):
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


def coarsen_fields(x, r, method="mean"):
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


def days(field, steps=8):
    """Cut times into sequences of `steps`, in order, a rest at the end left out.

    Args: field: DataArray (time, y, x); steps: 8 three-hourly fields are the paper's day.
    Returns: list of DataArray (steps, y, x).
    Raises: ValueError where there are fewer times than steps, or the times of a sequence are not equally spaced.
    """
    if field.sizes["time"] < steps:
        raise ValueError(f"the file has {field.sizes['time']} times, fewer than a sequence of {steps}")
    parts = [field.isel(time=slice(k, k + steps)) for k in range(0, field.sizes["time"] - steps + 1, steps)]
    for part in parts:
        if "time" in part.coords and len(np.unique(np.diff(part["time"].values))) > 1:
            raise ValueError(f"the times from {part['time'].values[0]} on are not equally spaced")
    return parts


def split_days(count, validation=366, seed=0, overlap=False):
    """Indices of training and validation days.

    The paper draws its validation days from the training days; whether they stay there it does not say. Here they are
    taken out, with overlap=True they stay.

    Returns: (training, validation), sorted integer arrays.
    """
    if not 0 < validation < count:
        raise ValueError(f"validation must lie between 1 and {count - 1} days, got {validation}")
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:validation])
    return (np.arange(count) if overlap else np.setdiff1d(np.arange(count), chosen)), chosen
