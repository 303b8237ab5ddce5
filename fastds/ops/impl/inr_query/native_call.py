# SPDX-License-Identifier: Apache-2.0
"""Calls of the native inr_query kernels: addresses and layouts, and the backward pass around the trunk.

The forward is one kernel. The backward takes chunks of queries: the rows that enter the trunk are computed again, the
gradients of the trunk are matrix products here, and a second kernel carries that of the rows on to maps and parameters.
"""

import torch
from torch import Tensor

from fastds.ops.core import native as _native
from fastds.ops.core import triton_loader as _triton
from fastds.ops.impl.inr_query.reference import ENSEMBLES, FEATURES

CHUNK_ROWS = 1 << 18  # of the trunk in the backward pass: 128 MB at 128 channels
_BLOCK_ROWS = 1 << 13  # rows of one partial weight gradient


class Call:
    """One InrQueryCall and the tensors whose addresses it holds."""

    def __init__(self, args, queries, depth, outputs, trunk=True):
        (
            maps, weights, biases, base, frac, axes, rho_w, cell_w, bias, rho_bias, phase, cell, skip, mask, feature,
            ensemble, heads, dk, act, weighting, wrap, _,
        ) = args  # fmt: skip
        exact = exact_dtype(maps)
        batch, _, height, width = maps.shape
        self.maps = maps if maps.stride(1) == 1 or maps.shape[1] == 1 else _channels_last(maps)
        pairs = [_dense(t.T, exact) if t is not None else None for t in (rho_w, cell_w)]
        self.tensors = [
            self.maps, None if base is None else base.contiguous(), _dense(frac, exact), *pairs, _dense(bias, exact),
            _dense(None if rho_bias is None else rho_bias.T, exact), _dense(None if phase is None else phase.T, exact),
            _dense(cell, exact), None if skip is None else _dense(skip.permute(0, 2, 3, 1), exact),
            None if mask is None else mask.contiguous(),
        ]  # fmt: skip
        self.weights = [_dense(w, exact) for w in weights] if trunk else []
        self.biases = [_dense(b, exact) for b in biases] if trunk else []
        per_query = cell is not None and cell.dim() == 3
        if not trunk and feature != "dot":
            outputs = depth
        b, _, h, w = self.maps.stride()
        self.native = _native.native().InrQueryCall(
            dtype=_native.DTYPES[maps.dtype], feature=FEATURES.index(feature), ensemble=ENSEMBLES.index(ensemble),
            relu=act == "relu", areas=weighting == "areas", wrap=list(wrap),
            sizes=[batch, queries, height, width, depth, outputs, heads, dk], maps_strides=[b, h, w], axes=list(axes),
            strides=[
                0 if base is None or base.shape[0] == 1 else queries,
                0 if cell is None else (2 * queries if per_query else 2), 2 if per_query else 0,
            ],
            widths=[w.shape[0] for w in self.weights], tensors=[_address(t) for t in self.tensors],
            weights=[w.data_ptr() for w in self.weights], biases=[b.data_ptr() for b in self.biases],
        )  # fmt: skip


def exact_dtype(maps: Tensor) -> torch.dtype:
    """What the kernel calculates in and all tensors but maps are handed over in."""
    return torch.float64 if maps.dtype == torch.float64 else torch.float32


def _dense(tensor, dtype):
    return None if tensor is None else tensor.detach().to(dtype).contiguous()


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _address(tensor) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def forward(args, queries, depth, outputs) -> Tensor:
    maps, out_dtype = args[0], args[-1]
    if _native.runs_on_cuda(maps):
        return torch.cat([_forward_cuda(p, b - a, depth, outputs) for a, b, p in chunks(args, queries)], 1).to(
            out_dtype
        )
    call = Call(args, queries, depth, outputs)
    y = torch.empty((maps.shape[0], queries, outputs), dtype=exact_dtype(maps), device=maps.device)
    _native.native().inr_query_forward(call.native, y.data_ptr(), torch.get_num_threads())
    return y.to(out_dtype)


def forward_triton(args, queries, depth, outputs) -> Tensor:
    """The fused kernel of fastds.kernels.inr_query; the layouts are those of the native call."""
    (
        maps, weights, biases, base, frac, axes, rho_w, cell_w, bias, rho_bias, _, cell, skip, _, _, ensemble, heads,
        dk, act, _, wrap, out_dtype,
    ) = args  # fmt: skip
    kernels = _triton.kernels("inr_query")
    transposed = [None if t is None else _dense(t.T, torch.float32) for t in (rho_w, cell_w, rho_bias)]
    call = kernels.Query(
        maps if maps.stride(1) == 1 else _channels_last(maps),
        [(w.detach(), b.detach()) for w, b in zip(weights, biases, strict=True)],
        None if base is None else base.contiguous(), _dense(frac, torch.float32), list(axes), *transposed[:2],
        _dense(bias, torch.float32), transposed[2], _dense(cell, torch.float32),
        None if skip is None else _dense(skip.permute(0, 2, 3, 1), torch.float32), ensemble, heads, dk, act == "relu",
        tuple(wrap),
    )  # fmt: skip
    y = torch.empty((maps.shape[0], queries, outputs), dtype=torch.float32, device=maps.device)
    kernels.launch(call, y)
    return y.to(out_dtype)


def _features(call: Call, args, queries, depth, outputs) -> tuple[Tensor, Tensor]:
    """Rows that enter the trunk, (B * Q [* 4], D), on CUDA of the maps' dtype, and corner weights (B * Q, 4)."""
    maps, feature, per_query = args[0], args[14], 4 if args[15] == "late" else 1
    exact, module, total = exact_dtype(maps), _native.native(), maps.shape[0] * queries
    cuda = _native.runs_on_cuda(maps)
    shape = (total * per_query, outputs if feature == "dot" else depth)
    rows = torch.empty(shape, dtype=maps.dtype if cuda else exact, device=maps.device)
    omega = torch.empty((total, 4), dtype=exact, device=maps.device)
    if cuda:
        module.inr_query_features_cuda(call.native, rows.data_ptr(), omega.data_ptr(), *_native.cuda_launch(maps))
    else:
        module.inr_query_features(call.native, rows.data_ptr(), omega.data_ptr(), torch.get_num_threads())
    return rows, omega


def _forward_cuda(args, queries, depth, outputs) -> Tensor:
    """One chunk: our gather, the library's matrix products, ensemble and skip; (B, Q, O) in the exact dtype."""
    maps, weights, biases, skip, mask, ensemble = args[0], args[1], args[2], args[12], args[13], args[15]
    exact, total = exact_dtype(maps), maps.shape[0] * queries
    rows, omega = _features(Call(args, queries, depth, outputs, trunk=False), args, queries, depth, outputs)
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        rows = torch.addmm(b.to(rows.dtype), rows, w.to(rows.dtype).T)
        rows = rows.relu_() if i + 1 < len(weights) else rows
    y = rows.to(exact)
    if ensemble == "late":
        y = (omega[:, :, None] * y.reshape(total, 4, outputs)).sum(1)
    if skip is not None:
        bilinear = _bilinear_arguments(args)
        y = (
            y
            + _features(Call(bilinear, queries, outputs, outputs, trunk=False), bilinear, queries, outputs, outputs)[0]
        )
    if mask is not None:
        y = torch.where((omega.sum(1) > 0)[:, None], y, float("nan"))
    return y.reshape(maps.shape[0], queries, outputs)


def _bilinear_arguments(args) -> list:
    """The arguments that interpolate the skip of `args` and do nothing else."""
    skip, mask = args[12].to(exact_dtype(args[0])), args[13]
    return [skip, [], [], *args[3:6], *5 * [None], None, None, mask, "affine", "early_area", 1, 0, "none", *args[19:]]


def chunks(args, queries):
    """(first query, one past the last, arguments of these queries): whole rows of a grid, or runs of points."""
    base, frac, axes, cell = args[3], args[4], args[5], args[11]
    per_query = 4 if args[15] == "late" else 1
    step = max(1, CHUNK_ROWS // max(1, args[0].shape[0] * per_query))
    if axes:
        columns = axes[4]
        step = max(1, step // columns) * columns
    for first in range(0, queries, step):
        stop, part = min(queries, first + step), list(args)
        if axes:
            rows = [(stop - first) // columns, axes[1], axes[2] + axes[1] * (first // columns), axes[3]]
            part[5] = rows + list(axes[4:])
        else:
            part[3], part[4] = base[:, first:stop], frac[:, first:stop]
        if cell is not None and cell.dim() == 3:
            part[11] = cell[:, first:stop]
        yield first, stop, part


def backward(grad_y, args, queries, depth, outputs, with_skip) -> list[Tensor]:
    """Gradients of maps, weights, biases, rho_w, cell_w, bias, rho_bias, phase and skip; None is left out."""
    maps, weights, biases, skip = args[0], args[1], args[2], args[12]
    exact = exact_dtype(maps)
    trunk = [(w.detach().to(exact), b.detach().to(exact)) for w, b in zip(weights, biases, strict=True)]
    total = None
    for first, stop, part in chunks(args, queries):
        grads = _chunk(grad_y[:, first:stop].to(exact), part, stop - first, depth, outputs, trunk, with_skip)
        if total is None:
            total = grads
        else:
            for sum_, grad in zip(total, grads, strict=True):
                sum_ += grad
    grad_maps, grad_skip, offsets, grad_rho_bias, *trunk_grads = total
    width = depth // 2 if args[14] == "fourier" else depth
    offsets = offsets[:, :width]
    singles = [offsets[:2].T, offsets[3:].T, offsets[2], grad_rho_bias.T, offsets[3:].T, grad_skip]
    given = [args[i] for i in (6, 7, 8, 9, 10)] + [skip if with_skip else None]
    result = [(grad_maps, maps), *zip(trunk_grads, [*weights, *biases], strict=True)]
    result += [(g, t) for g, t in zip(singles, given, strict=True) if t is not None]
    return [g.to(t.dtype).contiguous() if g.dim() < 4 else g.to(t.dtype) for g, t in result]


def _chunk(grad_y, args, queries, depth, outputs, trunk, with_skip):
    """maps, skip, offsets, rho_bias, weights and biases, in the exact dtype."""
    maps, mask, ensemble = args[0], args[13], args[15]
    batch, exact = maps.shape[0], grad_y.dtype
    call = Call(args, queries, depth, outputs, trunk=False)
    rows, omega = _features(call, args, queries, depth, outputs)
    rows = rows.to(exact)
    grad_y = grad_y.reshape(batch * queries, outputs)
    if mask is not None:
        grad_y = torch.where((omega.sum(1) > 0)[:, None], grad_y, 0)
    grad_rows = grad_y
    if ensemble == "late":
        grad_rows = (omega[:, :, None] * grad_y[:, None]).reshape(-1, outputs)
    grad_rows, trunk_grads = _trunk_backward(rows, grad_rows, trunk)
    grads = _features_backward(call, grad_rows.contiguous(), maps, depth, args[16])
    grad_skip = grad_y.new_zeros(0)
    if with_skip:
        bilinear = _bilinear_arguments(args)
        skip_call = Call(bilinear, queries, outputs, outputs, trunk=False)
        grad_skip = _features_backward(skip_call, grad_y.contiguous(), bilinear[0], outputs, 1)[0]
    return [grads[0], grad_skip, *grads[1:], *trunk_grads]


def _features_backward(call: Call, grad_rows: Tensor, maps: Tensor, depth: int, heads: int):
    exact, module = grad_rows.dtype, _native.native()
    shape = (maps.shape[0], *maps.shape[2:], maps.shape[1])
    if _native.runs_on_cuda(maps):
        grad_maps = grad_rows.new_zeros(shape)
        partials = grad_rows.new_zeros((module.inr_query_cuda_partials(call.native), 5 * depth + 2 * heads))
        addresses = [t.data_ptr() for t in (grad_rows, grad_maps, partials)]
        module.inr_query_features_backward_cuda(call.native, *addresses, *_native.cuda_launch(maps))
        offsets, rho_bias = partials.sum(0).split([5 * depth, 2 * heads])
        return grad_maps.permute(0, 3, 1, 2), offsets.reshape(5, depth), rho_bias.reshape(2, heads)
    grad_maps = torch.empty(shape, dtype=exact)
    offsets, rho_bias = torch.empty((5, depth), dtype=exact), torch.empty((2, heads), dtype=exact)
    workspace = torch.empty(call.native.workspace, dtype=torch.uint8)
    addresses = [t.data_ptr() for t in (grad_rows, grad_maps, offsets, rho_bias, workspace)]
    module.inr_query_features_backward(call.native, *addresses, torch.get_num_threads())
    return grad_maps.permute(0, 3, 1, 2), offsets, rho_bias


def _trunk_backward(rows: Tensor, grad: Tensor, trunk) -> tuple[Tensor, list[Tensor]]:
    """Gradient of the rows, and of all weights, then all biases."""
    inputs = [rows]
    for w, b in trunk[:-1]:
        inputs.append(torch.addmm(b, inputs[-1], w.T).relu_())
    grad_weights, grad_biases = [], []
    for i in reversed(range(len(trunk))):
        grad_weights.append(_product_in_blocks(grad, inputs[i]))
        grad_biases.append(grad.sum(0))
        grad = grad @ trunk[i][0]
        if i:
            grad.masked_fill_(inputs[i] <= 0, 0)
    return grad, [*reversed(grad_weights), *reversed(grad_biases)]


def _product_in_blocks(grad: Tensor, x: Tensor) -> Tensor:
    """grad^T x, summed over blocks of rows in a fixed order."""
    total = None
    for g, part in zip(grad.split(_BLOCK_ROWS), x.split(_BLOCK_ROWS), strict=True):
        total = g.T @ part if total is None else total.addmm_(g.T, part)
    return total
