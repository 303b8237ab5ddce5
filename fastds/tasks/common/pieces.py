# SPDX-License-Identifier: Apache-2.0
"""What a task makes of a dataset: all at once, lazily, or piece by piece in many processes."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import xarray as xr

from fastds.tasks.common.inference import Report

# What is computed at once has about so many bytes of result, and at most so many steps of the input.
PIECE_BYTES, MOST_STEPS = 64 << 20, 48
_PIECES_A_WORKER = 4  # at least, so that all end at about the same time
_one_at_a_time = threading.Lock()  # a piece uses every thread that torch has


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some steps of a job, one after another.

    Attributes: steps: from the first to behind the last. reads: what is read of the input, steps beside them included.
    outputs: where their fields lie along the job's dimension of the result.
    """

    steps: tuple[int, int]
    reads: tuple[int, int]
    outputs: tuple[int, int]


def cut(start: int, stop: int, steps: int) -> list[tuple[int, int]]:
    """Ranges (first, behind the last) of at most so many steps."""
    return [(first, min(first + steps, stop)) for first in range(start, stop, steps)]


def apart(count: int, steps: int) -> list[Piece]:
    """Pieces of steps that need no others and give one each."""
    return [Piece(some, some, some) for some in cut(0, count, steps)]


class Job(Protocol):
    """A task, its model and a dataset, of which nothing is computed yet.

    Attributes:
        dim: the dimension of the result along which pieces follow one another; "" where there is but one.
        variables: dimensions and shape of each variable of the result, all float32.
        least: pieces have a multiple of so many steps.
    """

    dim: str
    least: int
    variables: dict[str, tuple[tuple[str, ...], tuple[int, ...]]]

    def pieces(self, steps: int) -> list[Piece]:
        """The whole work, in pieces of at most so many steps of the input; each can be computed without the others."""

    def compute(self, piece: Piece) -> dict[str, np.ndarray]:
        """The values of a piece by variable; the same bits whatever the pieces are. Raises and warns as the task."""

    def result(self, values: Mapping[str, Any]) -> xr.Dataset:
        """The result with its coordinates and attributes; values: arrays of the shapes of `variables`, of dask, too."""

    def report(self) -> Report:
        """What is done, for the user."""


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros that take no memory."""
    return np.broadcast_to(np.float32(0), shape)


def outline(job: Job, zeros: Callable = _zeros) -> xr.Dataset:
    """The result before anything is computed: its coordinates and attributes. zeros: makes its values of a shape."""
    return job.result({name: zeros(shape) for name, (_, shape) in job.variables.items()})


def steps_at_once(job: Job, workers: int = 1) -> int:
    """How many steps a piece has where memory and overhead both stay small and every worker gets some, a multiple of
    job.least."""
    bytes_a_step = sum(4 * math.prod(shape) / shape[dims.index(job.dim)] for dims, shape in job.variables.values())
    multiples = int(min(MOST_STEPS, PIECE_BYTES / max(bytes_a_step, 1))) // job.least
    if workers > 1:
        last = max(piece.steps[1] for piece in job.pieces(MOST_STEPS))
        multiples = min(multiples, math.ceil(last / (_PIECES_A_WORKER * workers * job.least)))
    return job.least * max(1, multiples)


def lazy(job: Job) -> xr.Dataset:
    """The result of a job with values that dask computes when they are asked for, a piece at a time."""
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
    """job.compute(piece) where other pieces are computed, too: one at a time in a process, and what is read of dask is
    read here, not by workers that wait for this one."""
    import dask

    with _one_at_a_time, dask.config.set(scheduler="synchronous"):
        return job.compute(piece)


def is_lazy(dataset: xr.Dataset) -> bool:
    """Whether dask holds the fields of a dataset."""
    return any(variable.chunks is not None for variable in dataset.data_vars.values())
