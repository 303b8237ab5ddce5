# SPDX-License-Identifier: Apache-2.0
"""Radar files: blocks of time for training and validation, synthetic events, and fields as reflectivity."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
import xarray as xr

from fastds import data as fd
from fastds.tasks.common.folders import usable_files

_GAP = 2  # frames left out between training and validation, so that no triple shares a frame


def open_reflectivity(
    dataset: xr.Dataset,
    var: str | None,
    z_r: tuple[float, float] | None,
    what: str,
    places: Sequence[np.ndarray | None] = (None, None),
    least: int = 2,
) -> fd.ReflectivityInput:
    """The dataset's reflectivity, whose values are plausible; errors say which file they come from, `what`. places: see
    at_places; least: times."""
    try:
        source = fd.to_reflectivity(at_places(dataset, places, var, z_r), var, z_r=z_r, least=least)
        source.check(all_missing=f"every pixel of {what} is missing", stacklevel=5)
        return source
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def at_places(
    dataset: xr.Dataset, places: Sequence[np.ndarray | None], var: str | None, z_r: tuple[float, float] | None
) -> xr.Dataset:
    """The rows and columns of a dataset of radar fields at these coordinates, where it has more of them; the dataset
    itself where its coordinates are others, or either has none."""
    if all(wanted is None for wanted in places):
        return dataset
    dims, cut = fd.to_reflectivity(dataset, var, z_r=z_r, least=1).dims[1:], {}
    for dim, wanted in zip(dims, places, strict=True):
        if wanted is None or dim not in dataset.coords or dataset.sizes[dim] <= len(wanted):
            continue
        own = np.asarray(dataset[dim].values, float)
        first = int(np.abs(own - float(wanted[0])).argmin())
        part = slice(first, first + len(wanted))
        if len(own[part]) == len(wanted) and not differ(wanted, own[part]):
            cut[dim] = part
    return dataset.isel(cut)


def check_quietly(source: fd.ReflectivityInput) -> None:
    """ValueError where the values are not plausible; warnings are for those who use them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source.check()


def synthetic_events(count: int, seed: int, frames: int = 24) -> list[xr.Dataset]:
    """Rain events of seeds seed, seed + 1, ... that move at 5 to 25 m/s in turn."""
    events = (fd.synthetic_event(seed=seed + k, frames=frames, speed=5.0 + 5.0 * (k % 5)) for k in range(count))
    return [event[["reflectivity"]] for event in events]


def source_weights(weights: list | None, files: int, events: int) -> list | None:
    """One weight per source: those of the files, then the last shared by the events; None: all alike.

    Raises: ValueError for another number of weights.
    """
    if not weights:
        return None
    wanted = files + bool(events)
    if len(weights) != wanted:
        raise ValueError(
            f"data.weights needs one number per training file and one for the synthetic events: {wanted}, "
            f"got {len(weights)}"
        )
    return weights[:files] + [weights[-1] / events for _ in range(events)]


def time_blocks(config, least: int = 3, side: int = 1) -> tuple[list, list]:
    """The training and the validation blocks of config.path, two lists of TimeBlock in the order of config.blocks.

    config: with path, blocks and var, see fastds.tasks.radar.config.DataConfig. least: frames of a sample; those blocks
    that config.blocks does not give have so many. side: pixels of the file that a sample needs along each axis; files
    of a folder that have fewer are left out with a warning, where config.blocks does not name them.

    Raises: FileNotFoundError where path or a named file is missing; ValueError for blocks that overlap or a file too
        short to split.
    """
    root = pathlib.Path(config.path)
    if not root.exists():
        raise FileNotFoundError(f"data.path: no such file or folder: {root}")
    blocks = config.blocks
    if blocks:
        names = [name for name in blocks if root.is_dir() or name == root.name]
        parts = {root / name if root.is_dir() else root: blocks[name] for name in names}
    elif root.is_dir():
        parts = usable_files(root, lambda file: _last_fifth(file, least, config.var, side))
    else:
        parts = {root: _last_fifth(root, least, config.var)}
    if not parts:
        raise FileNotFoundError(f"data.path: no file to train on in {root}")
    train, validation = [], []
    for file, part in parts.items():
        if not file.exists():
            raise FileNotFoundError(
                f"data.path: no such file: {file}, which data.blocks names; without --config, "
                "`fastds train radar --data.path=FOLDER` and `fastds train nowcast` take every *.nc of a folder"
            )
        overlap(file.name, part)
        train.append(fd.TimeBlock(str(file), *part["train"], var=config.var))
        validation.append(fd.TimeBlock(str(file), *part["validation"], var=config.var))
    return train, validation


def whole_files(path: str, var: str | None, side: int = 1) -> list:
    """A file, or every file of a folder, as TimeBlocks of all of its times; side: see time_blocks.

    Raises: FileNotFoundError where there is none.
    """
    root = pathlib.Path(path)
    if not root.exists():
        raise FileNotFoundError(f"data.path: no such file or folder: {root}")

    def readable(file: pathlib.Path) -> None:
        with fd.open_dataset(file) as dataset:
            _check_side(file, fd.to_reflectivity(dataset, var).shape[1:], side)

    files = usable_files(root, readable) if root.is_dir() else [root]
    return [fd.TimeBlock(str(file), var=var) for file in files]


def usual(values: Sequence[int]) -> tuple[int, ...]:
    """The scales or intervals of validation samples: 1, the file's own, where training samples have it, else theirs."""
    return (1,) if 1 in values else tuple(sorted(set(values)))


def overlap(name: str, part: dict) -> None:
    """Raise ValueError unless part names a training and a validation block without a common frame."""
    if set(part) != {"train", "validation"} or any(len(part[key]) != 2 for key in part):
        raise ValueError(
            f"data.blocks[{name!r}] must be {{train: [start, stop], validation: [start, stop]}}, got {part}"
        )
    (a, b), (c, d) = part["train"], part["validation"]
    if max(a, c) < min(b, d):
        raise ValueError(
            f"data.blocks[{name!r}]: training frames {a}..{b - 1} and validation frames {c}..{d - 1} overlap"
        )


def _check_side(file: pathlib.Path, grid: tuple[int, int], side: int) -> None:
    if min(grid) < side:
        raise ValueError(f"the grid of {file.name} is {tuple(grid)}, a sample needs {side} pixels a side")


def _last_fifth(file: pathlib.Path, least: int, var: str | None, side: int = 1) -> dict[str, list[int]]:
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


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two coordinates of one length differ by more than a tenth of a cell."""
    a, b = (np.asarray(values, float) for values in (a, b))
    return len(a) > 1 and bool(np.abs(a - b).max() > 0.1 * abs(a[1] - a[0]))
