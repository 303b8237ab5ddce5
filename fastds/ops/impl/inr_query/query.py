# SPDX-License-Identifier: Apache-2.0
"""Arguments of the registered op inr_query by name, and their checks."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastds.ops.core.arguments import DTYPES, check_choice, check_dense, check_shape, check_tensor, is_int
from fastds.ops.impl.inr_query.points import check_axis
from fastds.ops.impl.inr_query.reference import ACTIVATIONS, AFFINE, ENSEMBLES, FEATURES, WEIGHTS, count_channels

MAX_LAYERS = 8
MAX_HEADS = 64
MAX_POINTS = 1 << 40  # more than any memory holds
CHUNK_ROWS = 1 << 18  # rows of the trunk in a chunk of the backward pass: 128 MiB of float32 for 128 channels


class Query(NamedTuple):
    """Arguments of torch.ops.fastds.inr_query in the order of its schema: see fastds.ops.inr_query.

    Three attributes differ from the arguments of that function. `axes` is GridSpec.numbers(), or [] if base and frac
    give the points. `weighting`, of the corners, is "bilinear" or "areas". `wrap` is a pair of bools for rows and
    columns.
    """

    maps: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    base: Tensor | None
    frac: Tensor | None
    axes: list[int]
    rho_w: Tensor | None
    cell_w: Tensor | None
    bias: Tensor | None
    rho_bias: Tensor | None
    phase: Tensor | None
    cell: Tensor | None
    skip: Tensor | None
    mask: Tensor | None
    feature: str
    ensemble: str
    heads: int
    dk: int
    act: str
    weighting: str
    wrap: list[bool]
    out_dtype: torch.dtype

    @property
    def queries(self) -> int:
        """Q, number of queries for each sample of the batch."""
        if self.axes:
            return self.axes[0] * self.axes[4]
        assert self.base is not None  # points
        return self.base.shape[1]

    @property
    def depth(self) -> int:
        """D, number of channels of a corner's feature."""
        if self.feature == "dot":
            assert self.rho_w is not None
            return self.rho_w.shape[0]
        return count_channels(self.feature, self.ensemble, self.maps.shape[1], self.heads, self.dk)[0]

    @property
    def outputs(self) -> int:
        """O, number of output channels."""
        if self.feature == "dot":
            return self.maps.shape[1] // (self.depth + 1)
        return self.weights[-1].shape[0] if self.weights else self.depth

    @property
    def rows_per_query(self) -> int:
        """Number of rows of each query that enter the trunk."""
        return 4 if self.ensemble == "late" else 1

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype in which values are computed. In native calls all tensors except `maps` have it."""
        return torch.float64 if self.maps.dtype == torch.float64 else torch.float32

    @property
    def is_empty(self) -> bool:
        """True if there is no query or no sample."""
        return self.maps.shape[0] * self.queries == 0

    # ---- differentiable tensors: maps, weights, biases, rho_w, cell_w, bias, rho_bias, phase, skip

    def get_differentiable(self) -> list[Tensor | None]:
        """Return all differentiable tensors in the order above, with None for those that are not given."""
        single = (self.rho_w, self.cell_w, self.bias, self.rho_bias, self.phase, self.skip)
        return [self.maps, *self.weights, *self.biases, *single]

    def get_present_tensors(self, with_skip: bool) -> list[Tensor]:
        """Return the differentiable tensors that are not None; skip only if with_skip."""
        tensors = self.get_differentiable()
        return [t for t in (tensors if with_skip else tensors[:-1]) if t is not None]

    def replace_tensors(self, tensors) -> "Query":
        """Return the query with other tensors in the order of get_differentiable()."""
        count = len(self.weights)
        maps, *tensors = tensors
        weights, biases, single = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        names = ("rho_w", "cell_w", "bias", "rho_bias", "phase", "skip")
        changed = dict(zip(names, single, strict=True))
        return self._replace(maps=maps, weights=list(weights), biases=list(biases), **changed)

    def replace_present_tensors(self, tensors, with_skip: bool) -> "Query":
        """Return the query with other tensors in the order of get_present_tensors(with_skip)."""
        tensors, old = iter(tensors), self.get_differentiable()
        last = len(old) - 1
        new = [t if t is None or (k == last and not with_skip) else next(tensors) for k, t in enumerate(old)]
        return self.replace_tensors(new)

    # ---- parts

    def split_chunks(self) -> Iterator[tuple[int, int, "Query"]]:
        """Yield (first, stop, part) for chunks of the points first .. stop-1, which are whole rows of a grid.

        `part` is the Query of the chunk.
        """
        step = max(1, CHUNK_ROWS // max(1, self.maps.shape[0] * self.rows_per_query))
        if self.axes:
            columns = self.axes[4]
            step = max(1, step // columns) * columns
        for first in range(0, self.queries, step):
            stop = min(self.queries, first + step)
            if self.axes:
                _, pitch, start, size, *along_columns = self.axes
                rows = [(stop - first) // columns, pitch, start + pitch * (first // columns), size]
                part = self._replace(axes=rows + along_columns)
            else:
                assert self.base is not None and self.frac is not None  # points
                part = self._replace(base=self.base[:, first:stop], frac=self.frac[:, first:stop])
            if self.cell is not None and self.cell.dim() == 3:
                part = part._replace(cell=self.cell[:, first:stop])
            yield first, stop, part

    def make_skip_query(self) -> "Query":
        """Return a query that only interpolates the skip field, bilinearly for any `weighting`."""
        assert self.skip is not None
        nothing: dict[str, Any] = dict.fromkeys(("rho_w", "cell_w", "bias", "rho_bias", "phase", "cell", "skip"))
        settings: dict[str, Any] = {"feature": "affine", "ensemble": "early_area", "heads": 1, "dk": 0, "act": "none"}
        settings["weighting"] = "bilinear"
        return self._replace(maps=self.skip.to(self.compute_dtype), weights=[], biases=[], **nothing, **settings)


# ---- checks


def check(*args) -> None:
    """Raise TypeError or ValueError for invalid arguments of the op, given in the order of Query."""
    query = Query(*args)
    maps = query.maps
    check_tensor("maps", maps, 4, DTYPES, None, "maps")
    batch, total, height, width = maps.shape
    if 0 in (total, height, width):
        raise ValueError(f"maps has shape {tuple(maps.shape)}, expected at least one channel, row and column")
    check_choice("feature", query.feature, FEATURES)
    check_choice("ensemble", query.ensemble, ENSEMBLES)
    check_choice("activation", query.act, ACTIVATIONS)
    check_choice("compat", query.weighting, WEIGHTS)
    _check_combination(query)
    exact = (torch.float64,) if maps.dtype == torch.float64 else (torch.float32, maps.dtype)
    _check_parameters(query, exact)
    _check_trunk(query, exact)
    if query.axes:
        _check_axes(query.axes)
    else:
        _check_points(query)
    _check_fields(query)
    if query.out_dtype not in DTYPES:
        raise ValueError(f"out_dtype must be one of {', '.join(map(str, DTYPES))}, got {query.out_dtype}")


def _check_combination(query: Query) -> None:
    total, feature, ensemble = query.maps.shape[1], query.feature, query.ensemble
    heads, dk, rho_w = query.heads, query.dk, query.rho_w
    if feature == "dot":
        if ensemble != "none" or query.weights:
            raise ValueError("feature 'dot' takes ensemble 'none' and an empty trunk")
        if rho_w is not None:
            check_tensor("rho_w", rho_w, 2, DTYPES, query.maps.device, "maps")
        if rho_w is None or rho_w.shape[0] < 1 or total % (rho_w.shape[0] + 1):
            raise ValueError(
                f"feature 'dot' needs rho_w of shape (D, 2) with D + 1 a divisor of maps' {total} channels"
            )
    if ensemble == "early_attn":
        if feature not in AFFINE:
            raise ValueError(f"ensemble 'early_attn' takes feature {' or '.join(map(repr, AFFINE))}, got {feature!r}")
        if not (is_int(heads) and 1 <= heads <= MAX_HEADS and is_int(dk) and dk >= 1):
            raise ValueError(f"early_attn needs heads in 1..{MAX_HEADS} and dk >= 1, got {heads!r} and {dk!r}")
        if query.depth < 1 or query.depth % heads:
            raise ValueError(
                f"maps has {total} channels, expected D (slope: 3 D) + 2 heads dk with D a multiple of {heads} heads"
            )
    elif (heads, dk) != (1, 0):
        raise ValueError(f"heads and dk belong to ensemble 'early_attn', others take 1 and 0, got {heads!r} and {dk!r}")
    if feature == "slope" and count_channels(feature, ensemble, total, heads, dk)[1] % 3:
        raise ValueError(f"maps has {total} channels, expected 3 D for feature 'slope', followed by keys and contents")
    if feature == "fourier" and total % 4:
        raise ValueError(f"maps has {total} channels, expected 4 N for feature 'fourier'")
    if feature != "fourier" and query.phase is not None:
        raise ValueError("phase belongs to feature 'fourier'")
    if feature == "fourier" and (rho_w is not None or query.bias is not None):
        raise ValueError("rho_w, cell_w and bias belong to the features 'affine', 'slope' and 'dot', not to 'fourier'")


def _check_parameters(query: Query, exact: tuple) -> None:
    depth = query.depth
    shapes = {
        "rho_w": (depth, 2),
        "cell_w": (depth, 2),
        "bias": (depth,),
        "rho_bias": (query.heads, 2),
        "phase": (depth // 2, 2),
    }
    for name, shape in shapes.items():
        tensor = getattr(query, name)
        if tensor is not None:
            check_tensor(name, tensor, len(shape), exact, query.maps.device, "maps")
            check_shape(name, tensor, shape)
    if query.rho_bias is not None and query.ensemble != "early_attn":
        raise ValueError("rho_bias belongs to ensemble 'early_attn'")


def _check_trunk(query: Query, exact: tuple) -> None:
    weights, biases, width, device = query.weights, query.biases, query.depth, query.maps.device
    if len(weights) != len(biases) or len(weights) > MAX_LAYERS:
        raise ValueError(
            f"trunk has {len(weights)} weights and {len(biases)} biases, expected up to {MAX_LAYERS} pairs"
        )
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        names = weight, bias = f"trunk[{i}] weight", f"trunk[{i}] bias"
        check_dense(names, (w, b))  # the registered op would name its own lists
        check_tensor(weight, w, 2, exact, device, "maps")
        check_tensor(bias, b, 1, exact, device, "maps")
        check_shape(weight, w, (max(1, w.shape[0]), width))
        check_shape(bias, b, (w.shape[0],))
        width = w.shape[0]


def _check_axes(axes: list[int]) -> None:
    if len(axes) != 8:
        raise ValueError(f"axes has {len(axes)} values, expected size, step, start and den of rows, then of columns")
    check_axis(*axes[:4])
    check_axis(*axes[4:])
    if axes[0] * axes[4] >= MAX_POINTS:
        raise ValueError(f"where has {axes[0]} x {axes[4]} points, expected fewer than 2^40")


def _check_points(query: Query) -> None:
    base: Any
    frac: Any
    base, frac, batch, device = query.base, query.frac, query.maps.shape[0], query.maps.device
    check_tensor("where.base", base, 3, (torch.int32,), device, "maps")
    check_tensor("where.frac", frac, 3, (torch.float32, torch.float64), device, "maps")
    if base.shape[0] not in (1, batch) or base.shape[2] != 2 or frac.shape != base.shape:
        raise ValueError(f"where has shape {tuple(base.shape)}, expected ({batch} or 1, Q, 2)")


def _check_fields(query: Query) -> None:
    cell, skip, mask = query.cell, query.skip, query.mask
    batch, _, height, width = query.maps.shape
    device, allowed = query.maps.device, (torch.float32, torch.float64)
    if (query.cell_w is not None or query.phase is not None) and cell is None:
        raise ValueError("cell is None, but cell_w or phase needs it")
    if cell is not None:
        check_tensor("cell", cell, (2, 3), allowed, device, "maps")
        check_shape("cell", cell, (batch, 2) if cell.dim() == 2 else (batch, query.queries, 2))
    if skip is not None:
        check_tensor("skip", skip, 4, allowed, device, "maps")
        check_shape("skip", skip, (batch, query.outputs, height, width))
    if mask is not None:
        check_tensor("mask", mask, 3, (torch.bool,), device, "maps")
        check_shape("mask", mask, (batch, height, width))
