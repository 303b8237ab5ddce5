# SPDX-License-Identifier: Apache-2.0
"""Calls of the native inr_query kernels, and the backward pass in chunks of queries.

On a CPU, the forward pass is one kernel. On a GPU, a kernel computes the rows that enter the trunk, and the library's
matrix products compute the trunk. The backward pass computes these rows again. It then computes the gradients of the
trunk and of the rows, on a CPU by a kernel and on a GPU by the library's matrix products. Another kernel computes the
gradients of maps and parameters from the gradients of the rows.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastds.ops.core import native, triton_loader
from fastds.ops.core.layout import as_nhwc, to_channels_last, to_contiguous
from fastds.ops.impl.inr_query.query import Query
from fastds.ops.impl.inr_query.reference import ENSEMBLES, FEATURES

_BLOCK_ROWS = 1 << 13  # rows of one partial weight gradient


class NativeCall:
    """First arguments of the native functions, and the tensors whose addresses are among them.

    Attributes:
        dims: sizes and options, InrQueryDims.
        addresses: of the tensors in the order of csrc/inr_query/params.h, of the trunk's weights, and of its biases.

    Args:
        query: the arguments of the op.
        trunk: bool, whether the call includes the trunk. False: only the rows that enter the trunk are computed.
    """

    def __init__(self, query: Query, trunk: bool = True):
        q, exact = query, query.compute_dtype
        batch, _, height, width = q.maps.shape
        self.maps = as_nhwc(q.maps)
        self.tensors = [
            self.maps, None if q.base is None else q.base.contiguous(), _to_dtype(q.frac, exact),
            _to_columns(q.rho_w, exact), _to_columns(q.cell_w, exact), _to_dtype(q.bias, exact),
            _to_columns(q.rho_bias, exact),
            _to_columns(q.phase, exact), _to_dtype(q.cell, exact), _to_nhwc(q.skip, exact),
            None if q.mask is None else q.mask.contiguous(),
        ]  # fmt: skip
        self.weights: list[Any] = [_to_dtype(w, exact) for w in q.weights] if trunk else []
        self.biases: list[Any] = [_to_dtype(b, exact) for b in q.biases] if trunk else []
        per_query = q.cell is not None and q.cell.dim() == 3
        outputs = q.outputs if trunk or q.feature == "dot" else q.depth
        b, _, h, w = self.maps.stride()
        self.dims = native.get_module().InrQueryDims(
            dtype=native.DTYPE_CODES[q.maps.dtype], feature=FEATURES.index(q.feature),
            ensemble=ENSEMBLES.index(q.ensemble), relu=q.act == "relu", areas=q.weighting == "areas", wrap=list(q.wrap),
            sizes=[batch, q.queries, height, width, q.depth, outputs, q.heads, q.dk], maps_strides=[b, h, w],
            axes=list(q.axes),
            strides=[
                0 if q.base is None or q.base.shape[0] == 1 else q.queries,
                0 if q.cell is None else (2 * q.queries if per_query else 2), 2 if per_query else 0,
            ],
            widths=[w.shape[0] for w in self.weights],
        )  # fmt: skip
        self.addresses = tuple([native.get_address(t) for t in ts] for ts in (self.tensors, self.weights, self.biases))


def _to_dtype(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else to_contiguous(tensor.detach().to(dtype))


def _to_columns(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a tensor (D, 2) as (2, D) in dtype."""
    return None if tensor is None else _to_dtype(tensor.T, dtype)


def _to_nhwc(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a tensor (B, C, H, W) as contiguous (B, H, W, C) in dtype."""
    return None if tensor is None else _to_dtype(tensor.permute(0, 2, 3, 1), dtype)


def forward(query: Query) -> Tensor:
    """Compute the result on the native kernels."""
    maps = query.maps
    if native.runs_on_cuda(maps):
        return torch.cat([_forward_cuda(part) for _, _, part in query.split_chunks()], 1).to(query.out_dtype)
    if query.weighting == "areas" and query.skip is not None:  # the kernel has one set of corner weights
        parts = (query._replace(skip=None), query.make_skip_query())
        y: Any = sum(forward(part._replace(out_dtype=query.compute_dtype)) for part in parts)
        return y.to(query.out_dtype)
    call = NativeCall(query)
    y = torch.empty((maps.shape[0], query.queries, query.outputs), dtype=query.compute_dtype, device=maps.device)
    native.get_module().inr_query_forward(call.dims, call.addresses, y.data_ptr(), native.get_threads())
    return y.to(query.out_dtype)


def forward_triton(query: Query) -> Tensor:
    """Compute the result on the fused kernel of fastds.kernels.inr_query."""
    kernels, exact = triton_loader.load_kernels("inr_query"), torch.float32
    call = kernels.Query(
        query.maps if query.maps.stride(1) == 1 else to_channels_last(query.maps),
        [(w.detach(), b.detach()) for w, b in zip(query.weights, query.biases, strict=True)],
        None if query.base is None else query.base.contiguous(), _to_dtype(query.frac, exact), list(query.axes),
        _to_columns(query.rho_w, exact), _to_columns(query.cell_w, exact), _to_dtype(query.bias, exact),
        _to_columns(query.rho_bias, exact), _to_dtype(query.cell, exact), _to_nhwc(query.skip, exact), query.ensemble,
        query.heads, query.dk, query.act == "relu", tuple(query.wrap),
    )  # fmt: skip
    shape = (query.maps.shape[0], query.queries, query.outputs)
    y = torch.empty(shape, dtype=torch.float32, device=query.maps.device)
    kernels.launch(call, y)
    return y.to(query.out_dtype)


def _compute_features(call: NativeCall, query: Query) -> tuple[Tensor, Tensor]:
    """Compute the rows that enter the trunk and the corner weights.

    Returns:
        rows (B * Q [* 4], D), on CUDA in the dtype of the maps, and corner weights (B * Q, 4).
    """
    maps, module, total = query.maps, native.get_module(), query.maps.shape[0] * query.queries
    cuda = native.runs_on_cuda(maps)
    shape = (total * query.rows_per_query, query.outputs if query.feature == "dot" else query.depth)
    rows = torch.empty(shape, dtype=maps.dtype if cuda else query.compute_dtype, device=maps.device)
    omega = torch.empty((total, 4), dtype=query.compute_dtype, device=maps.device)
    if cuda:
        module.inr_query_features_cuda(
            call.dims, call.addresses, rows.data_ptr(), omega.data_ptr(), *native.get_cuda_launch_arguments(maps)
        )
    else:
        module.inr_query_features(call.dims, call.addresses, rows.data_ptr(), omega.data_ptr(), native.get_threads())
    return rows, omega


def _forward_cuda(query: Query) -> Tensor:
    """Compute one chunk on a GPU, with the native kernel for the rows and the library's matrix products for the trunk.

    Returns:
        (B, Q, O) in the compute dtype.
    """
    batch, outputs = query.maps.shape[0], query.outputs
    rows, omega = _compute_features(NativeCall(query, trunk=False), query)
    for i, (w, b) in enumerate(zip(query.weights, query.biases, strict=True)):
        rows = torch.addmm(b.to(rows.dtype), rows, w.to(rows.dtype).T)
        rows = rows.relu_() if i + 1 < len(query.weights) else rows
    y = rows.to(query.compute_dtype)
    if query.ensemble == "late":
        y = (omega[:, :, None] * y.reshape(batch * query.queries, 4, outputs)).sum(1)
    skip_weights = None
    if query.skip is not None:
        skip = query.make_skip_query()
        rows, skip_weights = _compute_features(NativeCall(skip, trunk=False), skip)
        y = y + rows
    if query.mask is not None:
        y = torch.where(_find_valid_queries(query, omega, skip_weights)[:, None], y, float("nan"))
    return y.reshape(batch, query.queries, outputs)


class Gradients(NamedTuple):
    """Gradients of a chunk in the compute dtype.

    Attributes:
        maps: gradient of the feature maps.
        skip: gradient of the skip field, empty if not needed.
        offsets: (5, D), gradients of rho_w (2 rows), bias, and cell_w or phase (2 rows).
        rho_bias: (2, heads).
        trunk: gradients of all weights, then of all biases.
    """

    maps: Tensor
    skip: Tensor
    offsets: Tensor
    rho_bias: Tensor
    trunk: list[Tensor]

    def add_(self, other: "Gradients") -> None:
        """Add the gradients of another chunk."""
        for total, part in zip((*self[:4], *self.trunk), (*other[:4], *other.trunk), strict=True):
            total += part


def backward(grad_y: Tensor, query: Query, with_skip: bool) -> list[Tensor]:
    """Compute the gradients of the tensors query.get_present_tensors(with_skip).

    Args:
        grad_y: (B, Q, O), gradient of the result.
        query: arguments of the op.
        with_skip: bool, whether to include the gradient of the skip field.

    Returns:
        One gradient for each of these tensors, in its dtype.
    """
    exact = query.compute_dtype
    total: Any = None
    for first, stop, part in query.split_chunks():
        found = _backward_chunk(grad_y[:, first:stop].to(exact), part, with_skip)
        if total is None:
            total = found
        else:
            total.add_(found)
    offsets = total.offsets[:, : query.depth // 2 if query.feature == "fourier" else query.depth]
    single = (offsets[:2].T, offsets[3:].T, offsets[2], total.rho_bias.T, offsets[3:].T, total.skip)
    tensors = query.get_differentiable()
    pairs: list[Any] = list(zip((total.maps, *total.trunk, *single), tensors, strict=True))
    pairs = [(g, t) for g, t in (pairs if with_skip else pairs[:-1]) if t is not None]
    return [g.to(t.dtype) if g.dim() == 4 else _copy_part(g, t.dtype) for g, t in pairs]


def _copy_part(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a contiguous copy, which does not keep the memory of the gradients of other tensors alive."""
    return gradient.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _find_valid_queries(query: Query, omega: Tensor, skip_weights: Tensor | None = None) -> Tensor:
    """Return for each query whether it has a valid corner, (B * Q,) bool.

    With a skip field, the query also needs a valid corner of that field.

    Args:
        query: the arguments of the op.
        omega: (B * Q, 4), corner weights of the features.
        skip_weights: corner weights of the skip field, or None to compute them if they differ from omega, which is
            the case with weighting "areas".
    """
    valid = omega.sum(1) > 0
    if query.skip is not None and query.weighting == "areas":
        skip = query.make_skip_query()
        skip_weights = (
            _compute_features(NativeCall(skip, trunk=False), skip)[1] if skip_weights is None else skip_weights
        )
        valid &= skip_weights.sum(1) > 0
    return valid


def _backward_chunk(grad_y: Tensor, query: Query, with_skip: bool) -> Gradients:
    outputs, uses_kernel = query.outputs, len(query.weights) > 0 and not native.runs_on_cuda(query.maps)
    call = NativeCall(query, trunk=uses_kernel)
    rows: Any
    omega: Any
    rows, omega = (None, None) if uses_kernel and query.mask is None else _compute_features(call, query)
    grad_y = grad_y.reshape(-1, outputs)
    if query.mask is not None:
        grad_y = torch.where(_find_valid_queries(query, omega)[:, None], grad_y, 0)
    if uses_kernel:
        grad_rows, grad_trunk = _trunk_backward(call, grad_y, query)
    else:
        by_corner = query.ensemble == "late"
        grad_rows = (omega[:, :, None] * grad_y[:, None]).reshape(-1, outputs) if by_corner else grad_y
        grad_rows, grad_trunk = _trunk_backward_by_library(rows.to(grad_y.dtype), grad_rows, query)
    grad_maps, offsets, grad_rho_bias = _features_backward(call, grad_rows.contiguous(), query)
    grad_skip = grad_y.new_empty(0)
    if with_skip:
        skip = query.make_skip_query()
        grad_skip = _features_backward(NativeCall(skip, trunk=False), grad_y.contiguous(), skip)[0]
    return Gradients(grad_maps, grad_skip, offsets, grad_rho_bias, grad_trunk)


def _features_backward(call: NativeCall, grad_rows: Tensor, query: Query) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of maps, offsets and rho_bias from the gradient of the rows."""
    maps, depth, heads = query.maps, query.depth, query.heads
    exact, module = grad_rows.dtype, native.get_module()
    shape = (maps.shape[0], *maps.shape[2:], maps.shape[1])
    if native.runs_on_cuda(maps):
        grad_maps = grad_rows.new_zeros(shape)
        partials = grad_rows.new_zeros((module.inr_query_cuda_partials(call.dims), 5 * depth + 2 * heads))
        addresses = [call.addresses, *(t.data_ptr() for t in (grad_rows, grad_maps, partials))]
        module.inr_query_features_backward_cuda(call.dims, *addresses, *native.get_cuda_launch_arguments(maps))
        offsets, rho_bias = partials.sum(0).split([5 * depth, 2 * heads])
        return grad_maps.permute(0, 3, 1, 2), offsets.reshape(5, depth), rho_bias.reshape(2, heads)
    grad_maps = torch.empty(shape, dtype=exact)
    offsets, rho_bias = torch.empty((5, depth), dtype=exact), torch.empty((2, heads), dtype=exact)
    workspace = torch.empty(call.dims.workspace, dtype=torch.uint8)
    addresses = [t.data_ptr() for t in (grad_rows, grad_maps, offsets, rho_bias, workspace)]
    module.inr_query_features_backward(call.dims, call.addresses, *addresses, native.get_threads())
    return grad_maps.permute(0, 3, 1, 2), offsets, rho_bias


def _trunk_backward(call: NativeCall, grad_y: Tensor, query: Query) -> tuple[Tensor, list[Tensor]]:
    """Compute the gradient of the rows, and a list of the gradients of all weights, followed by those of all biases."""
    sizes = [n for w, b in zip(call.weights, call.biases, strict=True) for n in (w.numel(), b.numel())]
    grad_y, grad_layers = to_contiguous(grad_y), torch.empty(sum(sizes), dtype=grad_y.dtype)
    grad_rows = torch.empty((grad_y.shape[0] * query.rows_per_query, query.depth), dtype=grad_y.dtype)
    workspace = torch.empty(call.dims.trunk_workspace, dtype=torch.uint8)
    addresses = [t.data_ptr() for t in (grad_y, grad_rows, grad_layers, workspace)]
    native.get_module().inr_query_trunk_backward(call.dims, call.addresses, *addresses, native.get_threads())
    parts = grad_layers.split(sizes)
    return grad_rows, [*(g.view_as(w) for g, w in zip(parts[::2], call.weights, strict=True)), *parts[1::2]]


def _trunk_backward_by_library(rows: Tensor, grad: Tensor, query: Query) -> tuple[Tensor, list[Tensor]]:
    """Compute the results of _trunk_backward by matrix products.

    Args:
        rows: (N, D), rows that enter the trunk.
        grad: (N, O), gradient of the trunk's output.
        query: the arguments of the op.
    """
    layers = zip(query.weights, query.biases, strict=True)
    trunk = [(w.detach().to(rows.dtype), b.detach().to(rows.dtype)) for w, b in layers]
    inputs = [rows]
    for w, b in trunk[:-1]:
        inputs.append(torch.addmm(b, inputs[-1], w.T).relu_())
    grad_weights, grad_biases = [], []
    for i in reversed(range(len(trunk))):
        grad_weights.append(_multiply_in_blocks(grad, inputs[i]))
        grad_biases.append(grad.sum(0))
        grad = grad @ trunk[i][0]
        if i:
            grad.masked_fill_(inputs[i] <= 0, 0)
    return grad, [*reversed(grad_weights), *reversed(grad_biases)]


def _multiply_in_blocks(grad: Tensor, x: Tensor) -> Tensor:
    """Compute grad^T x, summed over blocks of rows in a fixed order."""
    total: Any = None
    for g, part in zip(grad.split(_BLOCK_ROWS), x.split(_BLOCK_ROWS), strict=True):
        total = g.T @ part if total is None else total.addmm_(g.T, part)
    return total
