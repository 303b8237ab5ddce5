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

from fastds.inference.files import RunSummary

# Target size in bytes of the result of a chunk, and maximum number of input steps in a chunk, unless its result is
# smaller than SMALL_BYTES.
CHUNK_BYTES, MAX_STEPS, SMALL_BYTES = 64 << 20, 48, 8 << 20
_CHUNKS_PER_WORKER = 4  # minimum number; several chunks per worker balance the load
_compute_lock = threading.Lock()  # a chunk uses all threads of torch


@dataclasses.dataclass(frozen=True)
class Chunk:
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


def split_range(start: int, stop: int, steps: int) -> list[tuple[int, int]]:
    """Split a range into consecutive half-open ranges.

    Args:
        start: first index.
        stop: index after the last index.
        steps: maximum length of a range.

    Returns:
        Pairs (first index, index after the last index).
    """
    return [(first, min(first + steps, stop)) for first in range(start, stop, steps)]


def make_independent_chunks(count: int, steps: int) -> list[Chunk]:
    """Split `count` independent steps into chunks of at most `steps`; each step has one output."""
    return [Chunk(some, some, some) for some in split_range(0, count, steps)]


class Pipeline(Protocol):
    """A model and a dataset, prepared for computation in chunks; nothing is computed yet.

    Attributes:
        dim: dimension of the result along which chunks are concatenated; "" if there is a single chunk.
        variables: dimensions and shape of each variable of the result; all are float32.
        step_multiple: the number of steps of a chunk is chosen as a multiple of this number.
    """

    dim: str
    step_multiple: int
    variables: dict[str, tuple[tuple[str, ...], tuple[int, ...]]]

    def make_chunks(self, steps: int) -> list[Chunk]:
        """Return all chunks, with at most `steps` input steps each. Each chunk can be computed without the others."""

    def compute(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Compute the values of a chunk by variable. The bits do not depend on how the work is split into chunks."""

    def make_result(self, values: Mapping[str, Any]) -> xr.Dataset:
        """Return the result with coordinates and attributes.

        Args:
            values: NumPy or dask arrays of the shapes in `variables`, by variable.
        """

    def make_summary(self) -> RunSummary:
        """Return a summary for the user."""


def _make_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of zeros that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def make_template(pipeline: Pipeline, zeros: Callable = _make_zeros) -> xr.Dataset:
    """Return the result with coordinates and attributes but without computed values.

    Args:
        pipeline: pipeline.
        zeros: function of a shape that returns the placeholder values.
    """
    return pipeline.make_result({name: zeros(shape) for name, (_, shape) in pipeline.variables.items()})


def choose_chunk_steps(pipeline: Pipeline, workers: int = 1) -> int:
    """Choose the number of steps in a chunk.

    The number keeps memory and overhead small and gives each worker several chunks. It is a multiple of
    pipeline.step_multiple.

    Args:
        pipeline: pipeline.
        workers: number of worker processes.
    """
    step_bytes = sum(
        4 * math.prod(shape) / shape[dims.index(pipeline.dim)] for dims, shape in pipeline.variables.values()
    )
    fitting, small = (limit / max(step_bytes, 1) for limit in (CHUNK_BYTES, SMALL_BYTES))
    multiples = int(min(max(MAX_STEPS, small), fitting)) // pipeline.step_multiple
    if workers > 1:
        last = max(chunk.steps[1] for chunk in pipeline.make_chunks(MAX_STEPS))
        multiples = min(multiples, math.ceil(last / (_CHUNKS_PER_WORKER * workers * pipeline.step_multiple)))
    return pipeline.step_multiple * max(1, multiples)


def compute_lazily(pipeline: Pipeline) -> xr.Dataset:
    """Return the result of a pipeline as dask arrays, which are computed one chunk at a time."""
    import dask
    import dask.array as da

    limit = max(1, MAX_STEPS // pipeline.step_multiple) * pipeline.step_multiple  # a single time may be requested
    steps = min(choose_chunk_steps(pipeline), limit)
    chunks, delayed = pipeline.make_chunks(steps), dask.delayed(pipeline, traverse=False)
    parts = [dask.delayed(compute_chunk)(delayed, chunk) for chunk in chunks]

    def values(name: str, dims: tuple[str, ...], shape: tuple[int, ...]) -> da.Array:
        axis, lengths = dims.index(pipeline.dim), [chunk.outputs[1] - chunk.outputs[0] for chunk in chunks]
        shapes = [(*shape[:axis], length, *shape[axis + 1 :]) for length in lengths]
        arrays = [da.from_delayed(part[name], s, np.float32) for part, s in zip(parts, shapes, strict=True)]
        return da.concatenate(arrays, axis)

    return pipeline.make_result({name: values(name, *form) for name, form in pipeline.variables.items()})


def compute_chunk(pipeline: Pipeline, chunk: Chunk) -> dict[str, np.ndarray]:
    """Compute a chunk from a dask graph.

    A lock admits one chunk at a time in a process. Lazy inputs are computed in the calling thread, because dask's
    worker threads may all be waiting for the lock.
    """
    import dask

    with _compute_lock, dask.config.set(scheduler="synchronous"):
        return pipeline.compute(chunk)


def is_lazy(dataset: xr.Dataset) -> bool:
    """Return whether a variable of a dataset is a dask array."""
    return any(variable.chunks is not None for variable in dataset.data_vars.values())
