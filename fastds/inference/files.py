# SPDX-License-Identifier: Apache-2.0
"""Input and output of inference: target checks, models, large arrays, file processing.

Torch is imported where a model is loaded, because `fastds convert` needs none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import xarray as xr

from fastds._options import OptionError, spell_argument
from fastds._outputs import check_replaceable, resolve_target
from fastds.data import ReflectivityInput, grid_spacing_m, open_input, save_dataset
from fastds.data.formats.opening import InputPaths, list_files
from fastds.data.io.files import check_output_format, is_zarr_path
from fastds.data.io.mlcast import ArchiveMetadata, check_mlcast, save_mlcast
from fastds.data.io.packing import check_stored_dtype, pack_like
from fastds.data.reading import InputFiles, ReadOptions

if TYPE_CHECKING:
    from torch import nn

    from fastds.models import ModelCard
    from fastds.models.card import Network

# Larger arrays are memory-mapped to a temporary file while a command runs.
MAPPED_BYTES = 256 << 20


@dataclasses.dataclass
class RunSummary:
    """Summary of a run.

    Attributes:
        model: name of the model.
        settings: values written to the attributes of the output.
        notes: messages for the user, one a line.
    """

    model: str
    settings: dict
    notes: list[str]

    def summary(self) -> str:
        """Return the notes, one a line."""
        return "\n".join(self.notes)


def check_target(source: InputPaths, target: str | os.PathLike) -> None:
    """Check that the output can be written, before anything is computed.

    Args:
        source: input files.
        target: output path.

    Raises:
        ValueError: the output would replace an input (also under another name), or is not a regular file.
        FileNotFoundError: the folder of the output does not exist.
        PermissionError: the folder of the output is read-only.
        IsADirectoryError: the output is a folder and not a Zarr store.
    """
    target = Path(target)
    check_replaceable(target)
    if target.exists() and any(os.path.samefile(file, target) for file in _list_existing(source)):
        raise ValueError(f"the output must be another file than the input, got {target} twice")
    folder = resolve_target(target).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if target.is_dir() and not is_zarr_path(target):
        raise IsADirectoryError(f"the output must be a file, {target} is a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder of the output is read-only: {folder}")


def _list_existing(source: InputPaths) -> list[Path]:
    """Return the existing files of an input, and the input itself if it is an existing file or folder."""
    existing = [Path(source)] if isinstance(source, str | os.PathLike) and os.path.exists(source) else []
    with contextlib.suppress(FileNotFoundError):
        return existing + list_files(source)
    return existing


def check_field_target(source: InputPaths, target: str | os.PathLike) -> None:
    """Check an output path as check_target does, and that its extension is one of NetCDF or Zarr.

    Raises:
        ValueError: the extension belongs to another format, or the output would replace an input.
        OSError: the output cannot be written, see check_target.
    """
    check_target(source, target)
    check_output_format(target)


def check_reads_static(card: ModelCard, needed: int) -> None:
    """Raise ValueError for a model that reads no static maps."""
    if not needed:
        raise ValueError(
            f"model {card.name or 'without a name'} reads no static maps; leave out {spell_argument('static')}"
        )


def check_static(card: ModelCard, needed: int, static: xr.Dataset | list[str] | None) -> None:
    """Raise ValueError if static maps are missing, not used by the model, or not listed in the model card.

    Args:
        card: model card.
        needed: number of static maps that the network reads.
        static: static maps given by the user.
    """
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
            f"model {card.name or 'without a name'} reads static maps, {names}: give them with "
            f"{spell_argument('static')} (FILE.nc, or FILE.nc:VARIABLE, one for each map)"
        )


def load_model(model: nn.Module | str | os.PathLike) -> Network:
    """Return the model itself, or load it from a shipped name or a weights file as fastds.load does."""
    from fastds.models import load

    return load(model) if isinstance(model, str | os.PathLike) else model


def describe_model(model: Network, given: nn.Module | str | os.PathLike) -> str:
    """Return the name of a model for messages, with the file if it was given as a file."""
    name = f"model {model.card.name or 'without a name'}"
    return f"{name} ({given})" if isinstance(given, str | os.PathLike) and str(given) != model.card.name else name


def process_file(
    source: InputFiles,
    target: str | os.PathLike,
    transform: Callable[[xr.Dataset, Path], tuple[xr.Dataset, RunSummary]],
    finalize: Callable[[xr.Dataset, xr.Dataset], str] | None = None,
    *,
    var: str | None = None,
    dtype: str = "input",
    origin: ArchiveMetadata | None = None,
    **reading: Unpack[ReadOptions],
) -> RunSummary:
    """Process a file and write the result atomically.

    Args:
        source: input file, folder, pattern or list of files.
        target: output file, NetCDF or Zarr.
        transform: function (dataset, folder for large arrays) -> (new dataset, run summary).
        finalize: function (dataset, new dataset) -> one more note, called after the file is written; None: no further
            note.
        var: variable to read, see fastds.data.open_input.
        dtype: "input" (packed integers if the input is packed) or "float32".
        origin: metadata of an MLCast archive, the format in which the radar field is then written, see
            fastds.data.io.mlcast.save_mlcast; None: CF output.
        reading: further options of fastds.data.open_input.

    Returns:
        The run summary.

    Raises:
        ValueError: invalid input, output or options.
        OSError: the input does not exist, or the output cannot be written.
    """
    target = Path(target)
    check_field_target(source, target)
    check_stored_dtype(dtype)
    with open_input(source, var, **reading) as dataset:
        if origin is not None:
            check_mlcast(dataset, target, var)
        out, summary = transform(dataset, target.absolute().parent)
        summary.notes[:0] = describe_source(dataset)
        if origin is not None:
            save_mlcast(out, target, origin, var if var in out else None)
        else:
            save_dataset(pack_like(out, dataset) if dtype == "input" else out, target)
        summary.notes.append(f"wrote {target}")
        if finalize is not None:
            summary.notes.append(finalize(dataset, out))
    return summary


def check_truth_file(
    truth: str | os.PathLike,
    check: Callable[[xr.Dataset], None],
    var: str | None = None,
    **reading: Unpack[ReadOptions],
) -> None:
    """Check the file of true values before anything is computed.

    Args:
        truth: file, see fastds.data.open_input.
        check: function that raises ValueError if the dataset does not fit.
        var: variable to read.
        reading: further options of fastds.data.open_input.

    Raises:
        ValueError: the check failed; the message begins with "truth: ".
    """
    try:
        with open_input(truth, var, **reading) as dataset:
            check(dataset)
    except ValueError as error:
        raise OptionError("truth", f": {error}") from error


def describe_source(dataset: xr.Dataset, always: bool = False) -> list[str]:
    """Return a note on the format and the number of the input files, or no note for a single NetCDF file or Zarr store.

    Args:
        dataset: dataset of the files.
        always: True returns a note for a single NetCDF file or Zarr store, too.
    """
    form, files = dataset.encoding.get("format", ""), dataset.encoding.get("files", 1)
    if not always and files == 1 and form.startswith(("NetCDF", "Zarr")):
        return []
    times = dataset.sizes.get("time", 1)
    return [f"read {files} file{'s' * (files > 1)} of the format {form}, {times} time{'s' * (times > 1)}"]


def allocate_output(shape: tuple[int, ...], folder: str | os.PathLike | None) -> np.ndarray:
    """Allocate a float32 array, memory-mapped to an unnamed file in `folder` if it is large and a folder is given."""
    if folder is None or 4 * math.prod(shape) <= MAPPED_BYTES:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(dir=os.fspath(folder)) as file:
        _reserve(file.fileno(), 4 * math.prod(shape), folder)
        return np.memmap(file, np.float32, "w+", shape=shape)


def _reserve(file: int, size: int, folder: str | os.PathLike) -> None:
    """Allocate disk space for a mapped file. Without allocated space, a full disk ends the process with a signal."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return
        needed = f"{size / 1e9:.1f} GB are needed in {folder} while the fields are computed"
        raise OSError(f"{needed}: {os.strerror(error.errno or 0)}") from error


def compute_mean_spacing(source: ReflectivityInput) -> float | None:
    """Return the geometric mean of the grid spacings along y and x in metres, or None if it is unknown."""
    spacing = grid_spacing_m(source.raw)
    return None if spacing is None or spacing[0] is None or spacing[1] is None else math.sqrt(spacing[0] * spacing[1])
