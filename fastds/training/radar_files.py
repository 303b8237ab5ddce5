# SPDX-License-Identifier: Apache-2.0
"""Radar files of a training: blocks of time, synthetic events, conversion to reflectivity."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from fastds import data as fd
from fastds._options import OptionError, spell_name
from fastds.training.folders import scan_folder

_GAP = 2  # frames between the training and the validation block, so that no sample triple spans both


def open_reflectivity(
    dataset: xr.Dataset,
    var: str | None,
    z_r: tuple[float, float] | None,
    what: str,
    coordinates: Sequence[np.ndarray | None] = (None, None),
    least: int = 2,
    rain_z_r: tuple[float, float] | None = None,
) -> fd.ReflectivityInput:
    """Return the reflectivity of a dataset after checking that the values are plausible.

    Args:
        dataset: radar fields.
        var: name of the variable; None: the only one that fits.
        z_r: a and b of Z = a R^b; None: the default.
        what: name of the file for error messages.
        coordinates: coordinates along y and x to select, see select_coordinates.
        least: minimum number of times.
        rain_z_r: a and b of the forecast or prediction with which the dataset is compared, if that is rain. Rain of the
            dataset is then converted by this relation, whatever the dataset declares, so that equal rain rates have
            equal reflectivity. None: z_r, else what the dataset declares.

    Raises:
        ValueError: the dataset has no usable reflectivity; the message begins with `what`.
    """
    try:
        source = fd.to_reflectivity(select_coordinates(dataset, coordinates, var, z_r), var, z_r=z_r, least=least)
        source.check(all_missing=f"every pixel of {what} is missing", stacklevel=5)
        return source if rain_z_r is None else source.replace_z_r(rain_z_r, "that of the rain it is compared with")
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def select_coordinates(
    dataset: xr.Dataset, coordinates: Sequence[np.ndarray | None], var: str | None, z_r: tuple[float, float] | None
) -> xr.Dataset:
    """Select the rows and columns of a dataset of radar fields at given coordinates.

    Args:
        dataset: radar fields.
        coordinates: coordinates along y and x, equally spaced as those of the dataset; None: all.
        var: name of the variable; None: the only one that fits.
        z_r: a and b of Z = a R^b; None: the default.

    Returns:
        The selection. A dimension whose coordinates are missing or different is not changed.
    """
    if all(expected is None for expected in coordinates):
        return dataset
    dims, selection = fd.to_reflectivity(dataset, var, z_r=z_r, least=1).dims[1:], {}
    for dim, expected in zip(dims, coordinates, strict=True):
        if expected is None or dim not in dataset.coords or dataset.sizes[dim] <= len(expected):
            continue
        axis = np.asarray(dataset[dim].values, float)
        first = int(np.abs(axis - float(expected[0])).argmin())
        part = slice(first, first + len(expected))
        if len(axis[part]) == len(expected) and not are_different(expected, axis[part]):
            selection[dim] = part
    return dataset.isel(selection)


def check_without_warnings(source: fd.ReflectivityInput) -> None:
    """Raise ValueError if values are not plausible, without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source.check()


def make_synthetic_events(count: int, seed: int, frames: int = 24) -> list[xr.Dataset]:
    """Make synthetic rain events that move at 5, 10, 15, 20 or 25 m/s in turn.

    Args:
        count: number of events.
        seed: seed of the first event. The next events have the seeds seed + 1, seed + 2, ...
        frames: number of frames of an event.

    Returns:
        Datasets with the variable "reflectivity".
    """
    events = (fd.synthetic_event(seed=seed + k, frames=frames, speed=5.0 + 5.0 * (k % 5)) for k in range(count))
    return [event[["reflectivity"]] for event in events]


def share_weights(weights: list | None, files: int, events: int) -> list | None:
    """Return the sampling weight of each source: files first, then events, which share the last weight equally.

    Args:
        weights: one number per file and one for all events; None or empty: equal weights.
        files: number of files.
        events: number of synthetic events.

    Returns:
        One weight per source, or None for equal weights.

    Raises:
        ValueError: wrong number of weights.
    """
    if not weights:
        return None
    expected = files + bool(events)
    if len(weights) != expected:
        raise OptionError(
            "data.weights",
            f"needs one number per training file and one for the synthetic events: {expected}, got {len(weights)}",
        )
    return weights[:files] + [weights[-1] / events for _ in range(events)]


def make_time_blocks(config, least: int = 3, side: int = 1) -> tuple[list, list]:
    """Return the training and the validation blocks of the files in config.path.

    Args:
        config: configuration with path, blocks and var, see fastds.tasks.radar.config.DataConfig.
        least: number of frames of a sample; the shortest block that is chosen automatically.
        side: minimum grid size in pixels. Smaller files of a folder are left out with a warning, unless config.blocks
            names them.

    Returns:
        Two lists of TimeBlock, in the order of config.blocks.

    Raises:
        FileNotFoundError: path or a named file does not exist.
        ValueError: blocks overlap, or a file is too short to split.
    """
    root = pathlib.Path(config.path)
    if not root.exists():
        raise FileNotFoundError(f"{spell_name('data.path')}: no such file or folder: {root}")
    blocks = config.blocks
    if blocks:
        names = [name for name in blocks if root.is_dir() or name == root.name]
        parts = {root / name if root.is_dir() else root: blocks[name] for name in names}
    elif root.is_dir():
        parts = scan_folder(root, lambda file: _hold_out_last_fifth(file, least, config.var, side))
    else:
        parts = {root: _hold_out_last_fifth(root, least, config.var)}
    if not parts:
        raise FileNotFoundError(f"{spell_name('data.path')}: no file to train on in {root}")
    train: list = []
    validation: list = []
    for file, part in parts.items():
        if not file.exists():
            path, blocks = spell_name("data.path"), spell_name("data.blocks")
            raise FileNotFoundError(
                f"{path}: no such file: {file}, which {blocks} names; without --config, `fastds train radar "
                "--data.path=FOLDER` and `fastds train nowcast` take every *.nc of a folder"
            )
        check_overlap(file.name, part)
        for found, key in ((train, "train"), (validation, "validation")):
            if key in part:
                start, stop = part[key]
                found.append(fd.TimeBlock(str(file), start, stop, var=config.var))
    if not validation:
        raise OptionError("data.blocks", "at least one file must have a validation block")
    return train, validation


def list_whole_files(path: str, var: str | None, side: int = 1) -> list:
    """Return a TimeBlock of all times for a file or for each file of a folder.

    Args:
        path: file or folder.
        var: name of the variable; None: the only one that fits.
        side: minimum grid size in pixels; smaller files of a folder are left out with a warning.

    Raises:
        FileNotFoundError: there is no such file.
    """
    root = pathlib.Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{spell_name('data.path')}: no such file or folder: {root}")

    def readable(file: pathlib.Path) -> None:
        with fd.open_dataset(file) as dataset:
            _check_side(file, fd.to_reflectivity(dataset, var).shape[1:], side)

    files = scan_folder(root, readable) if root.is_dir() else [root]
    return [fd.TimeBlock(str(file), var=var) for file in files]


def select_validation_values(values: Sequence[int]) -> tuple[int, ...]:
    """Return the scales or intervals of validation samples: 1 if it is among those of training, else all of these."""
    return (1,) if 1 in values else tuple(sorted(set(values)))


def check_overlap(name: str, part: dict) -> None:
    """Raise ValueError unless the blocks are a training range and at most one validation range without common frames.

    Args:
        name: file name for the message.
        part: {"train": [start, stop], "validation": [start, stop]}, the second key is optional.
    """
    if set(part) not in ({"train", "validation"}, {"train"}) or any(len(part[key]) != 2 for key in part):
        raise OptionError(
            "data.blocks",
            f"[{name!r}] must be {{train: [start, stop], validation: [start, stop]}} or {{train: [start, stop]}}, got "
            f"{part}",
        )
    if "validation" not in part:
        return
    (a, b), (c, d) = part["train"], part["validation"]
    if max(a, c) < min(b, d):
        raise OptionError(
            "data.blocks", f"[{name!r}]: training frames {a}..{b - 1} and validation frames {c}..{d - 1} overlap"
        )


def _check_side(file: pathlib.Path, grid: Sequence[int], side: int) -> None:
    if min(grid) < side:
        raise ValueError(f"the grid of {file.name} is {tuple(grid)}, a sample needs {side} pixels a side")


def _hold_out_last_fifth(file: pathlib.Path, least: int, var: str | None, side: int = 1) -> dict[str, list[int]]:
    with fd.open_dataset(file) as dataset:
        frames, *grid = fd.to_reflectivity(dataset, var).shape
    _check_side(file, grid, side)
    split = frames - max(least, round(frames / 5))
    if split - _GAP < least:
        raise ValueError(
            f"{file.name} has {frames} time steps, too few for training and validation blocks of at least {least} and "
            f"{_GAP} between them"
        )
    return {"train": [0, split - _GAP], "validation": [split, frames]}


def are_different(a: ArrayLike, b: ArrayLike) -> bool:
    """Return whether two coordinates of equal length differ by more than a tenth of a cell."""
    a, b = (np.asarray(values, float) for values in (a, b))
    return len(a) > 1 and bool(np.abs(a - b).max() > 0.1 * abs(a[1] - a[0]))
