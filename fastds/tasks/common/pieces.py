# SPDX-License-Identifier: Apache-2.0
"""Computation of a task in chunks along one dimension: eagerly, lazily with dask, or in several processes."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import xarray as xr

from fastds.tasks.common.inference import Report

# Target size in bytes of the result of a chunk, and maximum number of input steps in a chunk.
PIECE_BYTES, MOST_STEPS = 64 << 20, 48
_PIECES_A_WORKER = 4  # minimum number; several chunks per worker balance the load
_one_at_a_time = threading.Lock()  # a chunk uses all threads of torch


@dataclasses.dataclass(frozen=True)
class Piece:
    """A range of consecutive steps of a pipeline.

    All ranges are half-open: (first, after the last).

    Attributes:
        steps: range of steps.
        reads: range of input steps that are read, including neighbouring steps.
        outputs: range of the results along the pipeline's dimension of the output.
    """

    steps: tuple[int, int]
    reads: tuple[int, int]
    outputs: tuple[int, int]


def cut(start: int, stop: int, steps: int) -> list[tuple[int, int]]:
    """Split a range into half-open ranges of at most `steps` steps."""
    return [(first, min(first + steps, stop)) for first in range(start, stop, steps)]


def apart(count: int, steps: int) -> list[Piece]:
    """Split `count` independent steps into chunks of at most `steps`; each step has one output."""
    return [Piece(some, some, some) for some in cut(0, count, steps)]


class Job(Protocol):
    """A model and a dataset, prepared for computation in chunks; nothing is computed yet.

    Attributes:
        dim: dimension of the result along which chunks are concatenated; "" if there is a single chunk.
        variables: dimensions and shape of each variable of the result; all are float32.
        least: chunks have a multiple of this number of steps.
    """

    dim: str
    least: int
    variables: dict[str, tuple[tuple[str, ...], tuple[int, ...]]]

    def pieces(self, steps: int) -> list[Piece]:
        """Return all chunks, with at most `steps` input steps each. Each chunk can be computed without the others."""

    def compute(self, piece: Piece) -> dict[str, np.ndarray]:
        """Compute the values of a chunk by variable. The bits do not depend on how the work is split into chunks."""

    def result(self, values: Mapping[str, Any]) -> xr.Dataset:
        """Return the result with coordinates and attributes. values: NumPy or dask arrays of the shapes in `variables`."""

    def report(self) -> Report:
        """Return a summary for the user."""


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of zeros that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def outline(job: Job, zeros: Callable = _zeros) -> xr.Dataset:
    """Return the result with coordinates and attributes but without computed values.

    Args:
        job: pipeline.
        zeros: function of a shape that returns the placeholder values.
    """
    return job.result({name: zeros(shape) for name, (_, shape) in job.variables.items()})


def steps_at_once(job: Job, workers: int = 1) -> int:
    """Choose the number of steps in a chunk.

    The number keeps memory and overhead small and gives each worker several chunks. It is a multiple of job.least.

    Args:
        job: pipeline.
        workers: number of worker processes.
    """
    bytes_a_step = sum(4 * math.prod(shape) / shape[dims.index(job.dim)] for dims, shape in job.variables.values())
    multiples = int(min(MOST_STEPS, PIECE_BYTES / max(bytes_a_step, 1))) // job.least
    if workers > 1:
        last = max(piece.steps[1] for piece in job.pieces(MOST_STEPS))
        multiples = min(multiples, math.ceil(last / (_PIECES_A_WORKER * workers * job.least)))
    return job.least * max(1, multiples)


def lazy(job: Job) -> xr.Dataset:
    """Return the result of a pipeline as dask arrays, which are computed one chunk at a time."""
    import dask
    import dask.array as da

    pieces, held = job.pieces(steps_at_once(job)), dask.delayed(job, traverse=False)
    parts = [dask.delayed(computed)(held, piece) for piece in pieces]

    def values(name: str, dims: tuple[str, ...], shape: tuple[int, ...]) -> da.Array:
        axis, lengths = dims.index(job.dim), [piece.outputs[1] - piece.outputs[0] for piece in pieces]
        shapes = [(*shape[:axis], length, *shape[axis + 1 :]) for length in lengths]
        arrays = [da.from_delayed(part[name], s, np.float32) for part, s in zip(parts, shapes, strict=True)]
        return da.concatenate(arrays, axis)

    return job.result({name: values(name, *form) for name, form in job.variables.items()})


def computed(job: Job, piece: Piece) -> dict[str, np.ndarray]:
    """Compute a chunk from a dask graph.

    A lock admits one chunk at a time in a process. Lazy inputs are computed in the calling thread, because dask's
    worker threads may all be waiting for the lock.
    """
    import dask

    with _one_at_a_time, dask.config.set(scheduler="synchronous"):
        return job.compute(piece)


def is_lazy(dataset: xr.Dataset) -> bool:
    """Return whether a variable of a dataset is a dask array."""
    return any(variable.chunks is not None for variable in dataset.data_vars.values())
