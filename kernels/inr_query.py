# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for inr_query: the features, their ensemble, the trunk and the skip in one kernel.

One program takes BLOCK queries. The program gathers the features of the queries through the L1 cache and combines them
in float32. The tile of features stays in registers and shared memory from layer to layer, in the dtype of the maps with
float32 accumulators, and only y is written. Weights are read from the L2 cache for every tile. With the ensemble "late"
the trunk runs for each of the four corners, which are rows of one product, and the results are summed. In this case,
the rows are divided into parts of CHUNK channels, and each part is multiplied by its rows of the weights.

Results are deterministic, and do not depend on how queries are grouped into calls with the same BLOCK.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from .device import ceil_div, next_power_of_two, on_device
from .launch_plans import launch_kernel, planned

SUPPORTED_WIDTHS = (64, 128)  # D: a weight matrix of 256 x 256 and its tile do not fit on the chip together
SUPPORTED_LATE_WIDTHS = (64, 128, 256)  # D of the late ensemble, which reads matrices in parts
MAX_OUTPUTS = 64


@triton.jit
def locate_on_grid(k, step, start, den):
    """Return floor(u) and u - floor(u) of u = (start + step k) / den, computed in 64-bit integers."""
    numerator = start + step * k.to(tl.int64)
    base = numerator // den
    base = tl.where(base * den > numerator, base - 1, base)  # // truncates towards zero
    # Both are below 2^24 for realistic grids, so that the float32 quotient is correctly rounded.
    return base.to(tl.int32), (numerator - base * den).to(tl.float32) / den.to(tl.float32)


@triton.jit
def locate_query(
    q, image, valid, base_ptr, frac_ptr, point_b, columns, step_y, start_y, den_y, step_x, start_x, den_x,
    GRID: tl.constexpr,
):  # fmt: skip
    """Return row and column of query q of an image, each as the pixel before it and the fraction to the next pixel."""
    if GRID:
        i, t = locate_on_grid(q // columns, step_y, start_y, den_y)
        k, r = locate_on_grid(q % columns, step_x, start_x, den_x)
    else:
        at = 2 * (image * point_b + q)
        i = tl.load(base_ptr + at, mask=valid, other=0)
        k = tl.load(base_ptr + at + 1, mask=valid, other=0)
        t = tl.load(frac_ptr + at, mask=valid, other=0.0)
        r = tl.load(frac_ptr + at + 1, mask=valid, other=0.0)
    return i, t, k, r


@triton.jit
def locate_corner(base, frac, n, a, WRAP: tl.constexpr):
    """Return pixel, rho and linear weight of corner a, 0 or 1, on one axis."""
    at = base + a
    weight = tl.where(a == 1, frac, 1.0 - frac)
    if WRAP:
        pixel = at % n
        pixel = tl.where(pixel < 0, pixel + n, pixel)
        rho = 2.0 * (frac - a)
    else:
        pixel = tl.minimum(tl.maximum(at, 0), n - 1)
        rho = 2.0 * (frac + (base - pixel).to(tl.float32))
    return pixel, rho, weight


@triton.jit
def compute_feature(
    maps_ptr, at, rho_y, rho_x, kappa_y, kappa_x, rho_w_ptr, cell_w_ptr, bias_ptr, valid, D: tl.constexpr,
    RELU: tl.constexpr, HAS_RHO: tl.constexpr, HAS_CELL: tl.constexpr, HAS_BIAS: tl.constexpr,
    FIRST: tl.constexpr = 0, CHUNK: tl.constexpr = 0,
):  # fmt: skip
    """Return the feature of corner j, act(maps_j + rho_w rho_j + cell_w kappa + bias), as float32 (BLOCK, D).

    rho_j is the offset of the query from the corner, and kappa is the cell size. If CHUNK is not 0, only CHUNK channels
    from FIRST on are computed.
    """
    c = FIRST + tl.arange(0, CHUNK if CHUNK else D)
    h = tl.load(maps_ptr + at[:, None] + c[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    if HAS_BIAS:
        h += tl.load(bias_ptr + c)[None, :]
    if HAS_CELL:  # recomputed for each corner, because storing it would need as many registers as the features
        h += kappa_y[:, None] * tl.load(cell_w_ptr + c)[None, :]
        h += kappa_x[:, None] * tl.load(cell_w_ptr + D + c)[None, :]
    if HAS_RHO:
        h += rho_y[:, None] * tl.load(rho_w_ptr + c)[None, :]
        h += rho_x[:, None] * tl.load(rho_w_ptr + D + c)[None, :]
    return tl.maximum(h, 0.0, propagate_nan=tl.PropagateNan.ALL) if RELU else h


@triton.jit
def compute_logits(maps_ptr, at, query, rho_y, rho_x, rho_bias_ptr, valid, D: tl.constexpr, HEADS: tl.constexpr,
           DK: tl.constexpr, SCALE: tl.constexpr, HAS_BIAS: tl.constexpr):  # fmt: skip
    """Return the attention logits (BLOCK, HEADS) of corner j: <query_h, key_jh> / sqrt(dk) + <rho_bias_h, rho_j>."""
    e = tl.arange(0, HEADS * DK)
    key = tl.load(maps_ptr + at[:, None] + D + e[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    result = tl.sum(tl.reshape(key * query, (key.shape[0], HEADS, DK)), axis=2) * SCALE
    if HAS_BIAS:
        h = tl.arange(0, HEADS)
        result += rho_y[:, None] * tl.load(rho_bias_ptr + h)[None, :]
        result += rho_x[:, None] * tl.load(rho_bias_ptr + HEADS + h)[None, :]
    return result


@triton.jit
def load_content(maps_ptr, at, valid, D: tl.constexpr, INNER: tl.constexpr):
    """Load the content channels of a corner, which are averaged to the query of the attention."""
    e = tl.arange(0, INNER)
    return tl.load(maps_ptr + at[:, None] + D + INNER + e[None, :], mask=valid[:, None], other=0.0).to(tl.float32)


@triton.jit
def scale_heads(h, alpha, D: tl.constexpr, HEADS: tl.constexpr):
    """Return h (BLOCK, D) times alpha (BLOCK, HEADS), where each head scales its own channels."""
    split = tl.reshape(h, (h.shape[0], HEADS, D // HEADS)) * alpha[:, :, None]
    return tl.reshape(split, (h.shape[0], D))


@triton.jit
def apply_trunk(
    x, weight_ptr, bias_ptr, last_ptr, last_bias_ptr, D: tl.constexpr, OP: tl.constexpr, HIDDEN: tl.constexpr
):
    """Apply the trunk: HIDDEN layers of width D with ReLU, then the last layer with OP outputs (padded).

    The weights of hidden layers are stored as (layer, in, out), and the weight of the last layer as (out, in). With the
    order (in, out) for the last layer, the assembler of CUDA 12.8 generates wrong addresses in shared memory: see
    lost_addresses in tests/gpuless/triton_rig.py.
    """
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    c = tl.arange(0, D)
    o = tl.arange(0, OP)
    x = x.to(dtype)
    for layer in tl.static_range(HIDDEN):
        w = tl.load(weight_ptr + layer * D * D + c[:, None] * D + c[None, :])
        x = tl.dot(x, w) + tl.load(bias_ptr + layer * D + c)[None, :]
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL).to(dtype)
    w = tl.load(last_ptr + o[:, None] * D + c[None, :])
    return tl.dot(x, tl.trans(w)) + tl.load(last_bias_ptr + o)[None, :]


@triton.jit
def _query_kernel(
    maps_ptr, base_ptr, frac_ptr, rho_w_ptr, cell_w_ptr, bias_ptr, rho_bias_ptr, cell_ptr, skip_ptr,
    weight_ptr, hidden_bias_ptr, last_ptr, last_bias_ptr, y_ptr, total, queries, height, width, outputs,
    maps_b, maps_h, maps_w, point_b, cell_b, cell_q, columns, step_y, start_y, den_y, step_x, start_x, den_x,
    D: tl.constexpr, OP: tl.constexpr, HIDDEN: tl.constexpr, HEADS: tl.constexpr, DK: tl.constexpr,
    SCALE: tl.constexpr, ENSEMBLE: tl.constexpr, RELU: tl.constexpr, WRAP_Y: tl.constexpr, WRAP_X: tl.constexpr,
    GRID: tl.constexpr, HAS_RHO: tl.constexpr, HAS_CELL: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RHO_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute y for the ensembles "early_area" and "early_attn"."""
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = p < total
    image = p // queries
    q = p % queries
    i, t, k, r = locate_query(
        q, image, valid, base_ptr, frac_ptr, point_b, columns, step_y, start_y, den_y, step_x, start_x, den_x, GRID
    )  # fmt: skip
    y0, ry0, wy0 = locate_corner(i, t, height, 0, WRAP_Y)
    y1, ry1, wy1 = locate_corner(i, t, height, 1, WRAP_Y)
    x0, rx0, wx0 = locate_corner(k, r, width, 0, WRAP_X)
    x1, rx1, wx1 = locate_corner(k, r, width, 1, WRAP_X)
    origin = image * maps_b
    a0 = origin + y0.to(tl.int64) * maps_h + x0.to(tl.int64) * maps_w
    a1 = origin + y0.to(tl.int64) * maps_h + x1.to(tl.int64) * maps_w
    a2 = origin + y1.to(tl.int64) * maps_h + x0.to(tl.int64) * maps_w
    a3 = origin + y1.to(tl.int64) * maps_h + x1.to(tl.int64) * maps_w
    w0 = wy0 * wx0
    w1 = wy0 * wx1
    w2 = wy1 * wx0
    w3 = wy1 * wx1
    ky = t
    kx = t
    if HAS_CELL:
        at = image * cell_b + q * cell_q
        ky = tl.load(cell_ptr + at, mask=valid, other=0.0)
        kx = tl.load(cell_ptr + at + 1, mask=valid, other=0.0)
    if ENSEMBLE == "early_attn":
        query = w0[:, None] * load_content(maps_ptr, a0, valid, D, HEADS * DK)
        query += w1[:, None] * load_content(maps_ptr, a1, valid, D, HEADS * DK)
        query += w2[:, None] * load_content(maps_ptr, a2, valid, D, HEADS * DK)
        query += w3[:, None] * load_content(maps_ptr, a3, valid, D, HEADS * DK)
        l0 = compute_logits(maps_ptr, a0, query, ry0, rx0, rho_bias_ptr, valid, D, HEADS, DK, SCALE, HAS_RHO_BIAS)
        l1 = compute_logits(maps_ptr, a1, query, ry0, rx1, rho_bias_ptr, valid, D, HEADS, DK, SCALE, HAS_RHO_BIAS)
        l2 = compute_logits(maps_ptr, a2, query, ry1, rx0, rho_bias_ptr, valid, D, HEADS, DK, SCALE, HAS_RHO_BIAS)
        l3 = compute_logits(maps_ptr, a3, query, ry1, rx1, rho_bias_ptr, valid, D, HEADS, DK, SCALE, HAS_RHO_BIAS)
        # Corners of weight 0 are excluded, also from the maximum.
        l0 = tl.where(w0[:, None] > 0, l0, -float("inf"))
        l1 = tl.where(w1[:, None] > 0, l1, -float("inf"))
        l2 = tl.where(w2[:, None] > 0, l2, -float("inf"))
        l3 = tl.where(w3[:, None] > 0, l3, -float("inf"))
        top = tl.maximum(tl.maximum(l0, l1), tl.maximum(l2, l3))
        e0 = w0[:, None] * tl.exp(l0 - top)
        e1 = w1[:, None] * tl.exp(l1 - top)
        e2 = w2[:, None] * tl.exp(l2 - top)
        e3 = w3[:, None] * tl.exp(l3 - top)
        scale = 1.0 / ((e0 + e1) + (e2 + e3))
    else:
        scale = tl.full((BLOCK, HEADS), 1.0, tl.float32)
        e0 = w0[:, None] * scale
        e1 = w1[:, None] * scale
        e2 = w2[:, None] * scale
        e3 = w3[:, None] * scale
    h = compute_feature(
        maps_ptr, a0, ry0, rx0, ky, kx, rho_w_ptr, cell_w_ptr, bias_ptr, valid, D, RELU, HAS_RHO, HAS_CELL,
        HAS_BIAS,
    )  # fmt: skip
    z = scale_heads(h, e0 * scale, D, HEADS)
    h = compute_feature(
        maps_ptr, a1, ry0, rx1, ky, kx, rho_w_ptr, cell_w_ptr, bias_ptr, valid, D, RELU, HAS_RHO, HAS_CELL,
        HAS_BIAS,
    )  # fmt: skip
    z += scale_heads(h, e1 * scale, D, HEADS)
    h = compute_feature(
        maps_ptr, a2, ry1, rx0, ky, kx, rho_w_ptr, cell_w_ptr, bias_ptr, valid, D, RELU, HAS_RHO, HAS_CELL,
        HAS_BIAS,
    )  # fmt: skip
    z += scale_heads(h, e2 * scale, D, HEADS)
    h = compute_feature(
        maps_ptr, a3, ry1, rx1, ky, kx, rho_w_ptr, cell_w_ptr, bias_ptr, valid, D, RELU, HAS_RHO, HAS_CELL,
        HAS_BIAS,
    )  # fmt: skip
    z += scale_heads(h, e3 * scale, D, HEADS)
    y = apply_trunk(z, weight_ptr, hidden_bias_ptr, last_ptr, last_bias_ptr, D, OP, HIDDEN)
    o = tl.arange(0, OP)
    inside = valid[:, None] & (o < outputs)[None, :]
    if HAS_SKIP:
        s = skip_ptr + o[None, :]
        row = image * height
        y += w0[:, None] * tl.load(s + (((row + y0) * width + x0) * outputs)[:, None], mask=inside, other=0.0)
        y += w1[:, None] * tl.load(s + (((row + y0) * width + x1) * outputs)[:, None], mask=inside, other=0.0)
        y += w2[:, None] * tl.load(s + (((row + y1) * width + x0) * outputs)[:, None], mask=inside, other=0.0)
        y += w3[:, None] * tl.load(s + (((row + y1) * width + x1) * outputs)[:, None], mask=inside, other=0.0)
    tl.store(y_ptr + p[:, None] * outputs + o[None, :], y, mask=inside)


@triton.jit
def _late_kernel(
    maps_ptr, base_ptr, frac_ptr, rho_w_ptr, cell_w_ptr, bias_ptr, rho_bias_ptr, cell_ptr, skip_ptr,
    weight_ptr, hidden_bias_ptr, last_ptr, last_bias_ptr, y_ptr, total, queries, height, width, outputs,
    maps_b, maps_h, maps_w, point_b, cell_b, cell_q, columns, step_y, start_y, den_y, step_x, start_x, den_x,
    D: tl.constexpr, OP: tl.constexpr, HIDDEN: tl.constexpr, HEADS: tl.constexpr, DK: tl.constexpr,
    SCALE: tl.constexpr, ENSEMBLE: tl.constexpr, RELU: tl.constexpr, WRAP_Y: tl.constexpr, WRAP_X: tl.constexpr,
    GRID: tl.constexpr, HAS_RHO: tl.constexpr, HAS_CELL: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RHO_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Compute y for the ensemble "late": the sum over corners j of weight_j (trunk(h_j) + skip_j).

    Row 4 q + j of a product is corner j of query q.
    """
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * BLOCK
    row = tl.arange(0, 4 * BLOCK)
    p = first + row // 4
    valid = p < total
    image = p // queries
    q = p % queries
    i, t, k, r = locate_query(
        q, image, valid, base_ptr, frac_ptr, point_b, columns, step_y, start_y, den_y, step_x, start_x, den_x, GRID
    )  # fmt: skip
    pixel_y, rho_y, weight_y = locate_corner(i, t, height, row % 4 // 2, WRAP_Y)
    pixel_x, rho_x, weight_x = locate_corner(k, r, width, row % 2, WRAP_X)
    at = image * maps_b + pixel_y.to(tl.int64) * maps_h + pixel_x.to(tl.int64) * maps_w
    ky = t
    kx = t
    if HAS_CELL:
        of_cell = image * cell_b + q * cell_q
        ky = tl.load(cell_ptr + of_cell, mask=valid, other=0.0)
        kx = tl.load(cell_ptr + of_cell + 1, mask=valid, other=0.0)
    x = ()
    for part in tl.static_range(D // CHUNK):
        h = compute_feature(
            maps_ptr, at, rho_y, rho_x, ky, kx, rho_w_ptr, cell_w_ptr, bias_ptr, valid, D, RELU, HAS_RHO, HAS_CELL,
            HAS_BIAS, part * CHUNK, CHUNK,
        )  # fmt: skip
        x = x + (h.to(dtype),)
    c = tl.arange(0, CHUNK)
    for layer in range(HIDDEN):
        made = ()
        for n in tl.static_range(D // CHUNK):
            acc = tl.zeros((4 * BLOCK, CHUNK), tl.float32)
            for part in tl.static_range(D // CHUNK):
                w_ptr = weight_ptr + layer * D * D + (part * CHUNK + c)[:, None] * D + n * CHUNK + c[None, :]
                acc = tl.dot(x[part], tl.load(w_ptr), acc)
            acc += tl.load(hidden_bias_ptr + layer * D + n * CHUNK + c)[None, :]
            made = made + (tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL).to(dtype),)
        x = made
    o = tl.arange(0, OP)
    y = tl.zeros((4 * BLOCK, OP), tl.float32)
    for part in tl.static_range(D // CHUNK):
        w = tl.load(last_ptr + o[:, None] * D + (part * CHUNK + c)[None, :])
        y = tl.dot(x[part], tl.trans(w), y)
    y += tl.load(last_bias_ptr + o)[None, :]
    if HAS_SKIP:
        at = ((image * height + pixel_y) * width + pixel_x) * outputs
        y += tl.load(skip_ptr + at[:, None] + o[None, :], mask=valid[:, None] & (o < outputs)[None, :], other=0.0)
    y = tl.sum(tl.reshape(y * (weight_y * weight_x)[:, None], (BLOCK, 4, OP)), axis=1)
    p = first + tl.arange(0, BLOCK)
    tl.store(y_ptr + p[:, None] * outputs + o[None, :], y, mask=(p < total)[:, None] & (o < outputs)[None, :])


class Query(NamedTuple):
    """Arguments of one call.

    maps has channel stride 1. The other tensors are contiguous; they are float32 unless another dtype is given.

    Attributes:
        maps: (B, M, H, W).
        trunk: pairs (weight (out, in), bias) of any dtype; all hidden layers have the width D.
        base: (B or 1, Q, 2) int32, or None if axes are given.
        frac: (B or 1, Q, 2), or None if axes are given.
        axes: GridSpec.numbers(), or [] if base and frac are given.
        rho_w: (2, D) or None.
        cell_w: (2, D) or None.
        bias: (D,) or None.
        rho_bias: (2, heads) or None.
        cell: (B, 2), (B, Q, 2) or None.
        skip: (B, H, W, O) or None.
        ensemble: "late", "early_area" or "early_attn".
        heads: number of heads.
        dk: key channels of each head.
        relu: bool, whether features are passed through a ReLU.
        wrap: pair of bools, whether rows and columns wrap.
    """

    maps: torch.Tensor
    trunk: list
    base: torch.Tensor | None
    frac: torch.Tensor | None
    axes: list
    rho_w: torch.Tensor | None
    cell_w: torch.Tensor | None
    bias: torch.Tensor | None
    rho_bias: torch.Tensor | None
    cell: torch.Tensor | None
    skip: torch.Tensor | None
    ensemble: str
    heads: int
    dk: int
    relu: bool
    wrap: tuple[bool, bool]


def unsupported_reason(ensemble, width, widths, outputs, heads, dk, capability=None):
    """Return the reason why the kernels do not support a call, or None if they do.

    Args:
        ensemble: "late", "early_area" or "early_attn".
        width: D, channels of the features.
        widths: outputs of each layer of the trunk.
        outputs: outputs of the last layer.
        heads: number of heads.
        dk: key channels of each head.
        capability: compute capability of the GPU, or None.
    """
    known = SUPPORTED_LATE_WIDTHS if ensemble == "late" else SUPPORTED_WIDTHS
    if width not in known:
        return f"the fused kernel has D in {known}, got {width}"
    if not widths or any(w != width for w in widths[:-1]) or outputs > MAX_OUTPUTS:
        return f"the fused kernel needs hidden layers of width {width} and up to {MAX_OUTPUTS} outputs, got {widths}"
    blackwell = capability is not None and capability >= (10, 0)
    if ensemble == "late" and width == 256 and blackwell and get_triton_version() < (3, 9):
        return f"Triton {triton.__version__} cannot compile the late ensemble with D = 256 for this GPU, Triton 3.9 can"
    if heads & (heads - 1) or dk & (dk - 1):
        return f"the fused kernel needs powers of two as heads and dk, got {heads} and {dk}"
    return None


def get_triton_version():
    return tuple(map(int, triton.__version__.split(".")[:2]))


def select_tile(width):
    """Return the number of queries and of warps of a program, chosen so that the float32 tiles stay in registers."""
    rows = 64
    if driver.active.get_current_target().arch < 90:
        rows //= 2
    return rows, 4 if width == 64 else 8


def select_late_tile(width):
    """Return the tile for the late ensemble: queries of a program, channels of a part, and warps.

    The sizes are chosen so that registers are not spilled.
    """
    if driver.active.get_current_target().arch < 90:
        return {64: (16, 64, 4), 128: (16, 128, 8), 256: (8, 128, 8)}[width]
    return 32, 64, 8


def launch(call: Query, y: torch.Tensor) -> None:
    """Compute one call and write y (B, Q, O), contiguous float32."""
    maps, dtype = call.maps, call.maps.dtype
    outputs, depth = y.shape[2], call.trunk[0][0].shape[1]
    padded = max(16, next_power_of_two(outputs))
    hidden = call.trunk[:-1]
    weight = torch.stack([w.T for w, _ in hidden]).to(dtype).contiguous() if hidden else maps.new_empty(1)
    hidden_bias = torch.stack([b for _, b in hidden]).float().contiguous() if hidden else y
    last, last_bias = maps.new_zeros((padded, depth)), y.new_zeros(padded)
    last[:outputs], last_bias[:outputs] = call.trunk[-1][0].to(dtype), call.trunk[-1][1].float()
    _launch(
        maps, call.base, call.frac, call.rho_w, call.cell_w, call.bias, call.rho_bias, call.cell, call.skip, weight,
        hidden_bias, last, last_bias, y, len(hidden), call.ensemble, call.heads, call.dk, call.relu, call.wrap,
        *call.axes,
    )  # fmt: skip


@planned
def _launch(
    maps, base, frac, rho_w, cell_w, bias, rho_bias, cell, skip, weight, hidden_bias, last, last_bias, y, hidden,
    ensemble, heads, dk, relu, wrap, *axes,
) -> None:  # fmt: skip
    """Write y from the fields of a Query and its packed trunk. `hidden` is the number of hidden layers."""
    batch, _, height, width = maps.shape
    queries, outputs, (padded, depth) = y.shape[1], y.shape[2], last.shape
    grid_axes = axes or (1, 0, 0, 1, 1, 0, 0, 1)
    b, _, h, w = maps.stride()
    per_query = cell is not None and cell.dim() == 3
    kernel, chunk = _query_kernel, {}
    if ensemble == "late":
        kernel, (block, chunk["CHUNK"], warps) = _late_kernel, select_late_tile(depth)
    else:
        block, warps = select_tile(depth)
    filler = y  # placeholder for absent tensors, which are not read
    attention = ensemble == "early_attn"
    with on_device(maps):
        launch_kernel(
            kernel, (ceil_div(batch * queries, block),), maps,
            *(filler if t is None else t for t in (base, frac, rho_w, cell_w, bias, rho_bias, cell, skip)),
            weight, hidden_bias, last, last_bias, y, batch * queries, queries, height, width, outputs, b, h, w,
            0 if base is None or base.shape[0] == 1 else queries,
            0 if cell is None else (2 * queries if per_query else 2), 2 if per_query else 0,
            grid_axes[4], *grid_axes[1:4], *grid_axes[5:8],
            D=depth, OP=padded, HIDDEN=hidden, HEADS=heads if attention else 1,
            DK=dk if attention else 1, SCALE=1 / math.sqrt(max(1, dk)), ENSEMBLE=ensemble,
            RELU=relu, WRAP_Y=wrap[0], WRAP_X=wrap[1], GRID=bool(axes),
            HAS_RHO=rho_w is not None, HAS_CELL=cell_w is not None, HAS_BIAS=bias is not None,
            HAS_RHO_BIAS=rho_bias is not None, HAS_SKIP=skip is not None,
            BLOCK=block, num_warps=warps, num_stages=1, **chunk,
        )  # fmt: skip
