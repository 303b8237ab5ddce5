# SPDX-License-Identifier: Apache-2.0
"""What is asked of an archive, in a form that goes into the manifest."""

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
from fastds.data.formats.opening import Source, check_alike, files_of
from fastds.data.reading import opened
from fastds.inference.chunking import Pipeline


@dataclasses.dataclass(frozen=True)
class Request:
    """A task, a model and files.

    Attributes: task: of fastds.tasks. files: in the order that they are opened in. model: name or weights file, None
    for the task's choice. options: of the task's `prepare`. reading: see fastds.data.reading. dtype: "input" or
    "float32". threads: of torch. All is what JSON holds.
    """

    task: str
    files: tuple[str, ...]
    model: str | None
    options: dict[str, Any]
    reading: dict[str, Any]
    dtype: str = "input"
    threads: int | None = None

    def told(self) -> dict:
        """What the result depends on but the files, whatever the number of threads."""
        weights = Path(self.model) if self.model and os.path.exists(self.model) else None
        stamp = None if weights is None else stamp_of(weights)
        told = {"task": self.task, "model": self.model, "weights": stamp, "dtype": self.dtype, "version": __version__}
        return json.loads(json.dumps(told | {"options": self.options, "reading": self.reading}))

    def __hash__(self) -> int:
        return hash((self.task, self.files, self.model))


def stamp_of(file: str | os.PathLike) -> list[int]:
    """Size and time of change of a file or store."""
    status = os.stat(file)
    return [status.st_size, status.st_mtime_ns]


def job_of(request: Request) -> Pipeline:
    """The job of a request. Raises what open_dataset and the task raise."""
    return importlib.import_module(f"fastds.tasks.{request.task}.pipeline").prepare(
        request.model, dataset_of(request), threads=request.threads, **request.options
    )


@functools.lru_cache(maxsize=1)
def dataset_of(request: Request) -> xr.Dataset:
    """The dataset of a request's files, opened once and kept open."""
    files = request.files[0] if len(request.files) == 1 else list(request.files)
    return opened(files, request.options.get("var"), **request.reading).__enter__()


def readable(source: Source) -> tuple[tuple[str, ...], list[str]]:
    """The files of a source that can be opened and go together with the first of them, and a sentence about each of
    the others. Raises: FileNotFoundError where there are no files, ValueError where none can be read."""
    good, others, first = [], [], None
    for file in files_of(source):
        try:
            with opened(file) as dataset:
                outline = dataset.isel(time=slice(0)).load() if "time" in dataset.dims else dataset
                first = first or (file, outline)
                check_alike(*first, file, outline)
            good.append(str(file))
        except (ValueError, OSError, ImportError) as error:
            others.append(" ".join(str(error).split()))
    if not good:
        raise ValueError(f"none of the files can be read; the first: {others[0]}")
    return tuple(good), others
