# SPDX-License-Identifier: Apache-2.0
"""Zarr chunks and shards of an archive, and chunks of work that no two processes write to at the same place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from fastds._options import OptionError
from fastds.inference.chunking import Chunk, Pipeline

_CHUNK_BYTES = 8 << 20  # target size of a Zarr chunk of float32 without compression
_MAX_CHUNK_SIDE = 2048  # pixels

Sizes = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Zarr chunks and shards, and the work that belongs to them.

    Attributes:
        chunks: variable -> length of a Zarr chunk along each dimension.
        shards: variable -> length of a shard along each dimension; empty without shards.
        steps: number of steps of a chunk of work.
    """

    chunks: dict[str, tuple[int, ...]]
    shards: dict[str, tuple[int, ...]]
    steps: int


def parse_sizes(name: str, value: str | Sizes | None) -> dict[str, int]:
    """Return lengths along dimensions.

    Args:
        name: name of the argument, for messages.
        value: "DIM=N,DIM=N", a mapping, or None.

    Raises:
        ValueError: a length is not a positive integer.
    """
    expected = "must be DIMENSION=LENGTH, such as time=365,latitude=100, with whole numbers from 1 on"
    if value is None:
        return {}
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",")]
        if any(
            not key.strip() or not number.strip().isascii() or not number.strip().isdigit() for key, _, number in pairs
        ):
            raise OptionError(name, f"{expected}, got {value!r}")
        found = {key.strip(): int(number) for key, _, number in pairs}
        if len(found) < len(pairs):
            raise OptionError(name, f"names a dimension twice, got {value!r}")
        value = found
    if not all(type(number) is int and number >= 1 for number in value.values()):
        raise OptionError(name, f"{expected}, got {value!r}")
    return dict(value)


def choose_layout(pipeline: Pipeline, steps: int, chunks: Sizes, shards: Sizes) -> Layout:
    """Choose Zarr chunks and shards, and a number of steps with which chunks of work end where they end.

    Without `chunks`, a Zarr chunk has about 8 MiB and holds as many times as fit into it and divide the work.

    Args:
        pipeline: pipeline.
        steps: preferred number of steps of a chunk of work.
        chunks: requested lengths of Zarr chunks, by dimension.
        shards: requested lengths of shards, by dimension.

    Raises:
        ValueError: unknown dimensions, shards that are no multiples of chunks, or lengths along pipeline.dim within
            which chunks of work end.
    """
    known = list(dict.fromkeys(dim for dims, _ in pipeline.variables.values() for dim in dims))
    for name, sizes in (("chunks", chunks), ("shards", shards)):
        unknown = [dim for dim in sizes if dim not in known]
        if unknown:
            raise OptionError(name, f"has the dimension {unknown[0]!r}; the result has {', '.join(map(str, known))}")
    dim = pipeline.dim
    if dim in shards and dim not in chunks:
        fit = math.gcd(shards[dim], _choose_chunk(pipeline, {**chunks, dim: 1})[1])
        chunks = {**chunks, dim: fit}
    unit = shards.get(dim, chunks.get(dim))
    if unit is not None:
        steps = _align_steps(pipeline, steps, unit, "shards" if dim in shards else "chunks")
        along = chunks[dim]
    else:
        along = _choose_chunk(pipeline, chunks)[1]
        steps, along = _choose_length(pipeline, steps, along)
    parts = {
        name: _choose_shape(dims, shape, {**chunks, dim: along}, dim)
        for name, (dims, shape) in pipeline.variables.items()
    }
    whole = {}
    for name, (dims, shape) in pipeline.variables.items():
        if not shards:
            break
        sides = []
        for d, size, chunk in zip(dims, shape, parts[name], strict=True):
            side = shards.get(d, chunk if d == dim else -(-size // chunk) * chunk)
            if side % chunk:
                raise OptionError("shards", f"must be a multiple of the chunks, got {d}={side} with chunks of {chunk}")
            sides.append(side)
        whole[name] = tuple(sides)
    return Layout(parts, whole, steps)


def _choose_shape(dims: Sequence[str], shape: Sequence[int], sizes: Sizes, along: str) -> tuple[int, ...]:
    """Return the shape of a Zarr chunk; other leading dimensions than `along` have chunks of 1 without a request."""
    horizontal = dims[-2:]
    return tuple(
        sizes[d] if d == along else min(sizes.get(d, _MAX_CHUNK_SIDE if d in horizontal else 1), size)
        for d, size in zip(dims, shape, strict=True)
    )


def _choose_chunk(pipeline: Pipeline, sizes: Sizes) -> tuple[int, int]:
    """Return the bytes of one step in the largest Zarr chunk, and how many steps fit into one."""
    step = max(
        4 * math.prod(_choose_shape(dims, shape, {**sizes, pipeline.dim: 1}, pipeline.dim))
        for dims, shape in pipeline.variables.values()
    )
    return step, max(1, _CHUNK_BYTES // step)


def _choose_length(pipeline: Pipeline, steps: int, fit: int) -> tuple[int, int]:
    """Return steps of a chunk of work, and the largest length of a Zarr chunk up to `fit` that divides all work."""
    ratio = _count_outputs(pipeline, steps)
    multiple = max(1, fit // ratio) // pipeline.step_multiple * pipeline.step_multiple
    if 1 < multiple <= steps:
        steps = steps // multiple * multiple
    common = _find_common_length(pipeline, steps) or steps * ratio
    return steps, next(length for length in range(min(fit, common), 0, -1) if common % length == 0)


def _align_steps(pipeline: Pipeline, steps: int, unit: int, name: str) -> int:
    """Return about `steps` steps such that chunks of work end at multiples of `unit` outputs."""
    ratio = _count_outputs(pipeline, steps)
    multiple = math.lcm(unit, ratio * pipeline.step_multiple) // ratio
    aligned = multiple * max(1, steps // multiple)
    common = _find_common_length(pipeline, aligned)
    if common % unit == 0:
        return aligned
    raise OptionError(
        name,
        f"must divide the lengths of all series without a gap, which are computed separately: along {pipeline.dim} at "
        f"most {math.gcd(unit, common)} fits, got {unit}",
    )


def _count_outputs(pipeline: Pipeline, steps: int) -> int:
    """Return the number of outputs of a step."""
    first = pipeline.make_chunks(steps)[0]
    return max(1, -(-(first.outputs[1] - first.outputs[0]) // (first.steps[1] - first.steps[0])))


def _find_common_length(pipeline: Pipeline, steps: int) -> int:
    """Return the greatest common divisor of the places where chunks of work meet; 0 for a single chunk."""
    return math.gcd(*(chunk.outputs[0] for chunk in pipeline.make_chunks(steps)))


def has_shared_parts(chunks: Sequence[Chunk], length: int) -> bool:
    """Return whether chunks of work may write to the same Zarr chunk or shard of this length."""
    return len(chunks) > 1 and any(chunk.outputs[0] % length for chunk in chunks)
