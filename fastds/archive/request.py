# SPDX-License-Identifier: Apache-2.0
"""Description of the computation of an archive, in a form that is stored in its manifest."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
from pathlib import Path
from typing import Any

import xarray as xr

from fastds._version import __version__
from fastds.data.formats.opening import InputPaths, check_compatible, list_files
from fastds.data.reading import open_input
from fastds.inference.chunking import Pipeline


@dataclasses.dataclass(frozen=True)
class Request:
    """A task, a model and input files. All values can be stored as JSON.

    Attributes:
        task: Name of a task in fastds.tasks.
        files: Input files in the order in which they are opened.
        model: Name or weights file; None: the task's default.
        options: Options of the task's `prepare`.
        reading: See fastds.data.reading.ReadOptions.
        dtype: "input" or "float32", dtype of the stored fields.
        threads: Threads of torch.
    """

    task: str
    files: tuple[str, ...]
    model: str | None
    options: dict[str, Any]
    reading: dict[str, Any]
    dtype: str = "input"
    threads: int | None = None

    def compute_fingerprint(self) -> dict:
        """Return all that the result depends on except the input files. The number of threads is not part of it."""
        weights = Path(self.model) if self.model and os.path.exists(self.model) else None
        stamp = None if weights is None else get_file_stamp(weights)
        found = {"task": self.task, "model": self.model, "weights": stamp, "dtype": self.dtype, "version": __version__}
        return json.loads(json.dumps(found | {"options": self.options, "reading": self.reading}))

    def __hash__(self) -> int:
        return hash((self.task, self.files, self.model))


def get_file_stamp(file: str | os.PathLike) -> list[int]:
    """Return size and modification time (ns) of a file, or of the metadata of a Zarr store, which growth changes."""
    names = ("zarr.json", ".zmetadata", ".zgroup", "*/zarr.json", "*/.zarray")
    parts: list[str | os.PathLike] = (
        [path for name in names for path in Path(file).glob(name)] if os.path.isdir(file) else []
    )
    found = [os.stat(path) for path in parts or [file]]
    return [sum(status.st_size for status in found), max(status.st_mtime_ns for status in found)]


def create_pipeline(request: Request) -> Pipeline:
    """Create the pipeline of a request; errors as those of open_dataset and of the task."""
    return importlib.import_module(f"fastds.tasks.{request.task}.pipeline").prepare(
        request.model, open_request_dataset(request), threads=request.threads, **request.options
    )


@functools.lru_cache(maxsize=1)
def open_request_dataset(request: Request) -> xr.Dataset:
    """Open the dataset of a request's files once and keep it open."""
    files: Any = request.files[0] if len(request.files) == 1 else list(request.files)
    return open_input(files, request.options.get("var"), **request.reading).__enter__()


def filter_readable(source: InputPaths, array: str | None = None) -> tuple[tuple[str, ...], list[str]]:
    """Select the files that can be opened and are compatible with the first readable one.

    Args:
        source: File, folder, pattern or list.
        array: Layout of raw binary files, see fastds.data.open_dataset.

    Returns:
        The files, and a message about each other file.

    Raises:
        FileNotFoundError: There are no files.
        ValueError: No file can be read.
    """
    good, others, first = [], [], None
    for file in list_files(source):
        try:
            with open_input(file, array=array) as dataset:
                outline = dataset.isel(time=slice(0)).load() if "time" in dataset.dims else dataset
                first = first or (file, outline)
                check_compatible(*first, file, outline)
            good.append(str(file))
        except (ValueError, OSError, ImportError) as error:
            others.append(" ".join(str(error).split()))
    if not good:
        raise ValueError(f"none of the files can be read; the first: {others[0]}")
    return tuple(good), others
