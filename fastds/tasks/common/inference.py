# SPDX-License-Identifier: Apache-2.0
"""What the tasks share when they run a network over data: the model, large arrays, files."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

import numpy as np
import xarray as xr
from torch import nn

from fastds._outputs import check_replaceable, place_of
from fastds.data import ReflectivityInput, grid_spacing_m, opened, save_dataset
from fastds.data.formats.opening import Source, files_of
from fastds.data.io.files import check_format, names_zarr
from fastds.data.io.mlcast import Origin, check_mlcast, save_mlcast
from fastds.data.io.packing import check_stored, packed_like
from fastds.data.reading import Reading
from fastds.models import ModelCard, load

# Fields larger than this are kept in a file while a command runs.
MAPPED_BYTES = 256 << 20


@dataclasses.dataclass
class Report:
    """What a run did: `model` name, `settings` written to the attributes, `notes` for the user, one a sentence."""

    model: str
    settings: dict
    notes: list[str]

    def summary(self) -> str:
        """The notes, one a line."""
        return "\n".join(self.notes)


def check_target(source: Source, target: str | os.PathLike) -> None:
    """What would make writing fail, before anything is computed.

    Raises: ValueError where the output would replace the input, under another name, too, or something that is no
        regular file, FileNotFoundError where its folder is missing, PermissionError where that is read-only,
        IsADirectoryError for a folder (a Zarr store is replaced).
    """
    target = Path(target)
    check_replaceable(target)
    if target.exists() and any(os.path.samefile(file, target) for file in _existing(source)):
        raise ValueError(f"the output must be another file than the input, got {target} twice")
    folder = place_of(target).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if target.is_dir() and not names_zarr(target):
        raise IsADirectoryError(f"the output must be a file, {target} is a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder of the output is read-only: {folder}")


def _existing(source: Source) -> list[Path]:
    """The files that source stands for, and itself where it is one or a folder; none where there are none."""
    own = [Path(source)] if isinstance(source, str | os.PathLike) and os.path.exists(source) else []
    with contextlib.suppress(FileNotFoundError):
        return own + files_of(source)
    return own


def check_field_target(source: Source, target: str | os.PathLike) -> None:
    """As check_target, for fields; ValueError also for a name that promises another format than NetCDF or Zarr."""
    check_target(source, target)
    check_format(target)


def check_reads_static(card: ModelCard, needed: int) -> None:
    """ValueError for a model that reads no static maps."""
    if not needed:
        raise ValueError(f"model {card.name or 'without a name'} reads no static maps; leave out the argument static")


def check_static(card: ModelCard, needed: int, static: xr.Dataset | list[str] | None) -> None:
    """ValueError where static maps are missing, or given to a model that reads none, or its card does not name them."""
    if static is not None:
        check_reads_static(card, needed)
    if len(card.static_variables) != needed:
        raise ValueError(
            f"model {card.name or 'without a name'} reads {needed} static maps, and its card names "
            f"{len(card.static_variables)} in static_variables"
        )
    if static is None:
        names = ", ".join(f"{w['name']} ({w.get('units', 'no units')})" for w in card.static_variables)
        raise ValueError(
            f"model {card.name or 'without a name'} reads static maps, {names}: give them with the argument static "
            "(FILE.nc, or FILE.nc:VARIABLE, one for each map)"
        )


def loaded(model: nn.Module | str | os.PathLike) -> nn.Module:
    """The model, or the one of a shipped name or a weights file; raises what fastds.load raises."""
    return model if isinstance(model, nn.Module) else load(model)


def named(model: nn.Module, given: nn.Module | str | os.PathLike) -> str:
    """A sentence about a model that was given as itself, or by its name or file."""
    name = f"model {model.card.name or 'without a name'}"
    return name if isinstance(given, nn.Module) or str(given) == model.card.name else f"{name} ({given})"


def file_to_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    make: Callable[[xr.Dataset, Path], tuple[xr.Dataset, Report]],
    then: Callable[[xr.Dataset, xr.Dataset], str] | None = None,
    *,
    var: str | None = None,
    dtype: str = "input",
    origin: Origin | None = None,
    **reading: Unpack[Reading],
) -> Report:
    """Make a dataset of the file source and write it to target, which appears only when it is complete.

    make: (dataset, folder for large arrays) -> the new dataset and the report. then: called with the dataset and the
    new one when the file is written, -> one more note. var, reading: see fastds.data.opened.
    dtype: "input", integers where the input has packed ones, or "float32". origin: None, or what an archive in MLCast's
    form says of itself, as which the radar field is written, see fastds.data.io.mlcast.save_mlcast.

    Raises what check_field_target and fastds.data.opened raise.
    """
    target = Path(target)
    check_field_target(source, target)
    check_stored(dtype)
    with opened(source, var, **reading) as dataset:
        if origin is not None:
            check_mlcast(dataset, target, var)
        out, report = make(dataset, target.absolute().parent)
        report.notes[:0] = read_as(dataset)
        if origin is not None:
            save_mlcast(out, target, origin, var if var in out else None)
        else:
            save_dataset(packed_like(out, dataset) if dtype == "input" else out, target)
        report.notes.append(f"wrote {target}")
        if then is not None:
            report.notes.append(then(dataset, out))
    return report


def check_truth_file(
    truth: str | os.PathLike,
    check: Callable[[xr.Dataset], None],
    var: str | None = None,
    **reading: Unpack[Reading],
) -> None:
    """Let check look at the file that a result will be compared with, before it is computed. A ValueError says that
    it is of truth. var, reading: see fastds.data.opened, which raises, too."""
    try:
        with opened(truth, var, **reading) as dataset:
            check(dataset)
    except ValueError as error:
        raise ValueError(f"truth: {error}") from error


def read_as(dataset: xr.Dataset, always: bool = False) -> list[str]:
    """A note on raw or several files; always: on a single NetCDF file or Zarr store, too."""
    form, files = dataset.encoding.get("format", ""), dataset.encoding.get("files", 1)
    if not always and files == 1 and form.startswith(("NetCDF", "Zarr")):
        return []
    times = dataset.sizes.get("time", 1)
    return [f"read {files} file{'s' * (files > 1)} of the format {form}, {times} time{'s' * (times > 1)}"]


def store(shape: tuple[int, ...], folder: str | os.PathLike | None) -> np.ndarray:
    """An array of float32, in a file without a name in `folder` where it is large and a folder is given."""
    if folder is None or 4 * math.prod(shape) <= MAPPED_BYTES:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(dir=folder) as file:
        _reserve(file.fileno(), 4 * math.prod(shape), folder)
        return np.memmap(file, np.float32, "w+", shape=shape)


def _reserve(file: int, size: int, folder: str | os.PathLike) -> None:
    """Take the room on the disk: a map of a file that has none ends the process where it is written."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return
        needed = f"{size / 1e9:.1f} GB are needed in {folder} while the fields are computed"
        raise OSError(f"{needed}: {os.strerror(error.errno)}") from error


def mean_spacing_m(source: ReflectivityInput) -> float | None:
    """Geometric mean of the grid spacing along y and x, metres; None where the coordinates do not tell."""
    spacing = grid_spacing_m(source.raw)
    return None if spacing is None or None in spacing else math.sqrt(spacing[0] * spacing[1])
