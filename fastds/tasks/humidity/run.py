# SPDX-License-Identifier: Apache-2.0
"""Gridded fields to an ensemble of finer fields with a generator such as HumidityGenerator."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
import xarray as xr
from torch import nn

import fastds
from fastds.data import add_history, refine_grid
from fastds.data.grid.grids import scalar_coordinates
from fastds.data.grid.plausible import plausible_values
from fastds.data.reading import Reading
from fastds.data.samples.fields import HUMIDITY_RANGE, check_values, choose_field, pressure_hpa
from fastds.models import ModelCard, load_card
from fastds.models.wgan_gp import HumidityGenerator
from fastds.tasks.common.inference import Report, computing, file_to_file, loaded
from fastds.tasks.common.progress import progress_bar
from fastds.tasks.fields.geometry import geometry

# Columns beyond the seam. 8, 32 and half a turn leave the same difference to a rolled field, 0.02 to 0.07 % of humidity
# (0.2 to 0.7 without): that of the channel gates, whose means count these columns twice.
WRAPPED = 16
SEQUENCE = 8  # steps that the recurrence sees together; a rest at the end is a shorter sequence
_PERCENT = ("%", "percent", "per cent")


def downscale(
    model: nn.Module | str | os.PathLike,
    dataset: xr.Dataset,
    *,
    members: int | None = None,
    seed: int = 0,
    var: str | None = None,
    level: float | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Return the field at the model's finer grid, as one field or an ensemble.

    Args:
        model: a generator with offset, range and coarsening in its card, or the name or path of its weights.
        dataset: coarse fields over (time, y, x), in the unit the model was trained for.
        members: number of members, along a new first dimension `realization`; None: one field without noise.
        seed: of the first member; member k has seed + k, and every sequence of steps its own numbers.
        var, level: variable and value of its vertical coordinate where the file does not tell, see choose_field.
        threads: CPU threads; None: torch's. progress: show a progress bar.

    Returns:
        a new Dataset with the coordinates of the finer cells, settings in its attributes. Cells are cut into factor x
        factor for models of area means; for models of decimated fields the coarse points stay where they are and the
        new ones lie behind them. Values are cut to the card's valid_range: for humidity what is taken as input, so that
        a result can be refined again. Deterministic for given settings.

    Raises:
        ValueError: another model, members below 1, missing values, humidity far outside [0, 105] % or a fraction, or
        a variable or level that is missing or ambiguous. Warns (UserWarning) where humidity is cut to [0, 105] %, and
        of a field at another pressure than the model was trained at.
    """
    return _run(loaded(model), dataset, members, seed, var, level, threads, progress)


def downscale_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike,
    members: int | None = None,
    seed: int = 0,
    var: str | None = None,
    level: float | None = None,
    threads: int | None = None,
    progress: bool = False,
    dtype: str = "input",
    **reading: Unpack[Reading],
) -> Report:
    """Downscale the file source into a NetCDF or Zarr file, arguments as in `downscale`; `target` appears only when it
    is complete. reading: see fastds.data.reading. dtype: of the fields in target, "input" (integers where the input has
    packed ones) or "float32"."""

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, Report]:
        generator = loaded(model)
        out = _run(generator, dataset, members, seed, var, level, threads, progress)
        return out, Report(generator.card.name, dict(out.attrs), [f"model {generator.card.name}"])

    return file_to_file(source, target, make, var=var, dtype=dtype, **reading)


def plan(name: str, dataset: xr.Dataset, var: str | None = None) -> str:
    """What `downscale` would make of a dataset by the weights of this name, for the user. Raises: ValueError where they
    do not fit; warns of another pressure than that of the training."""
    card = load_card(name)
    field = choose_field(dataset, var)
    wanted = {str(v.get("standard_name")) for v in card.input_variables}
    found = str(field.attrs.get("standard_name", "no standard_name"))
    if found not in wanted:
        raise ValueError(f"variable {field.name} is {found}, the model was trained for {', '.join(sorted(wanted))}")
    _warn_of_level(card, field)
    return f"{field.name} at {card.space_factor} times the resolution"


def _run(model, dataset, members, seed, var, level, threads, progress) -> xr.Dataset:
    _check(model, members)
    field = choose_field(dataset, var, level)
    humid, values = _is_humidity(model, field), plausible_values(field, stacklevel=4)
    check_values(values, f"variable {field.name}")
    if humid:
        values = _cut_humidity(values, field.name)
    _warn_of_level(model.card, field)
    with computing(model, threads):
        fine = _draw(model, values, members, seed, progress, WRAPPED if _goes_round(dataset, field) else 0)
    if humid:
        fine = fine.clip(*HUMIDITY_RANGE)
    dims = (("realization",) if members else ()) + field.dims
    scale = model.config["scale"]
    out = refine_grid(dataset, field, scale)
    attrs = {key: value for key, value in field.attrs.items() if key != "missing_value"}
    out = out.assign({field.name: (dims, fine, attrs)})
    out = out.assign_coords({name: value for name, value in scalar_coordinates(field).items() if name not in dims})
    if field.dims[0] in field.coords:
        out = out.assign_coords({field.dims[0]: field[field.dims[0]].variable})
    if members:
        out = out.assign_coords(
            realization=("realization", np.arange(members, dtype="int32"), {"standard_name": "realization"})
        )
    if model.card.coarsening == "decimate":
        out = out.assign_coords({d: _behind(field, d, scale) for d in field.dims[1:] if d in field.coords})
    settings = {"fastds_model": model.card.name, "fastds_scale": scale, "fastds_coarsening": model.card.coarsening}
    if model.card.valid_range is not None:
        settings["fastds_valid_range"] = list(model.card.valid_range)
    if level is not None:
        settings["fastds_level"] = level
    if members:
        settings |= {"fastds_members": members, "fastds_seed": seed}
    out = out.assign_attrs(dict(dataset.attrs) | settings)
    return add_history(out, f"fastds {fastds.__version__} downscale with {model.card.name}")


def _check(model, members):
    if not isinstance(model, HumidityGenerator):
        raise ValueError(f"model is a {type(model).__name__}, expected a HumidityGenerator for an ensemble")
    card = model.card
    if card.offset is None or card.range is None or card.coarsening is None:
        raise ValueError(f"model {card.name} has no offset, range and coarsening in its card")
    if members is not None and members < 1:
        raise ValueError(f"members must be at least 1, got {members}")
    if model.config["in_channels"] != 1:
        raise ValueError(f"model {card.name} reads {model.config['in_channels']} variables, a file gives one")


def _is_humidity(model, field):
    names = {str(v.get("standard_name")) for v in model.card.input_variables}
    if "relative_humidity" not in names:
        return False
    units = str(field.attrs.get("units", "%")).strip().lower()
    if units not in _PERCENT:
        raise ValueError(f"variable {field.name} has units {units!r}, expected relative humidity in %")
    return True


def _cut_humidity(values, name):
    """Cut to what a model of humidity takes; analyses reach a little beyond, over ice and by interpolation."""
    low, high = HUMIDITY_RANGE
    least, most = float(values.min()), float(values.max())
    if most <= 2.0:
        raise ValueError(f"variable {name} reaches {most:g} % at most: is it a fraction? multiply it by 100")
    outside = (values < low) | (values > high)
    if not outside.any():
        return values
    if least < low - 10 or most > high + 75:
        check_values(values, f"variable {name}", humidity=True)
    warnings.warn(
        f"{int(outside.sum())} of {values.size} values of {name}, {least:.4g} to {most:.4g} %, are cut to "
        f"{low:g}..{high:g} %",
        UserWarning,
        stacklevel=4,
    )
    return values.clip(low, high)


def _goes_round(dataset: xr.Dataset, field: xr.DataArray) -> bool:
    """Whether the columns of a field are longitudes that go round the globe."""
    try:
        grid = geometry(dataset)
    except ValueError:  # no regular grid of latitudes and longitudes
        return False
    return grid.names[1] == field.dims[-1] and grid.periodic


def _warn_of_level(card: ModelCard, field: xr.DataArray) -> None:
    """Warn (UserWarning) of a field at another pressure than the card names."""
    trained = [level for variable in card.input_variables for level in variable.get("levels_hPa", [])]
    level = pressure_hpa(field)
    if trained and level is not None and min(abs(level - known) for known in trained) > 0.5:
        named = " and ".join(f"{known:g}" for known in trained)
        warnings.warn(
            f"variable {field.name} is at {level:g} hPa, {card.name} was trained at {named} hPa: expect larger errors",
            UserWarning,
            stacklevel=4,
        )


def _draw(model, values: np.ndarray, members: int | None, seed: int, progress: bool, wrapped: int = 0) -> np.ndarray:
    """The fine fields ([members,] time, H, W) of coarse ones (time, h, w); wrapped: columns of the other side that the
    network sees beyond either side, 0 for fields that do not go round the globe."""
    card, scale = model.card, model.config["scale"]
    x = torch.from_numpy((values - card.offset) / card.range)[None, :, None]
    fine = np.empty((members or 1, len(values), *(n * scale for n in values.shape[1:])), np.float32)
    starts = range(0, len(values), SEQUENCE)
    with progress_bar(progress, len(starts) * (members or 1), "downscaling", "sequences") as advance:
        for start in starts:
            part = x[:, start : start + SEQUENCE]
            for m in range(members or 1):
                # Different numbers for every sequence and member, the same for any number of members.
                noise = model.draw(part, "random", seed + m + 1_000_003 * start) if members else "zero"
                y = model(round_the_globe(part, wrapped), noise=round_the_globe(noise, wrapped))[0, :, 0]
                y = y[..., wrapped * scale : y.shape[-1] - wrapped * scale]
                fine[m, start : start + part.shape[1]] = card.physical(y).numpy()
                if advance is not None:
                    advance()
    return fine if members else fine[0]


def round_the_globe(x: torch.Tensor | str, columns: int) -> torch.Tensor | str:
    """A tensor (..., W) with so many columns of the other side beside either side; a word for a kind of noise stays."""
    if isinstance(x, str) or not columns:
        return x
    return x[..., torch.arange(-columns, x.shape[-1] + columns) % x.shape[-1]]


def _behind(field, dim, scale):
    coordinate = field[dim]
    steps = np.diff(coordinate.values.astype("float64"))
    if len(steps) == 0 or np.ptp(steps) > 1e-6 * np.abs(steps).max():
        raise ValueError(f"coordinate {dim} must be equally spaced for a model of decimated fields")
    fine = coordinate.values[0] + steps.mean() / scale * np.arange(len(coordinate) * scale)
    return (dim, fine, dict(coordinate.attrs))
