# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for attention of each pixel to a square window, with an online softmax as in FlashAttention.

One program takes a square tile of pixels and loops over blocks of all pixels that their windows cover. The products of
the tile with a block are logits; logits outside a pixel's window are masked. The forward pass updates a running maximum
and sum. The backward pass recomputes the logits, with one program for each tile of queries for grad_q, and one for each
tile of keys for grad_k and grad_v, so that no addition is atomic. Logits are never stored. Products and exponentials
limit the speed: for a window of 30, a tile of 8 x 8 pixels computes (37 / 30)^2 times as many pairs as are needed.

All feature maps have channel stride 1; channels are padded to a power of two >= 16 in registers. Logits, softmax and
sums are float32. Softmax weights and their gradients are rounded to the dtype of the feature maps before products.
Results are deterministic.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .device import ceil_div, get_dot_precision, get_stride_unit, get_strides, needs_int64, next_power_of_two, on_device
from .launch_plans import launch_kernel, planned


@triton.jit
def index_tile_pixels(height, width, TILE: tl.constexpr, USE_INT64: tl.constexpr):
    """Return first row and column of a program's tile, and row, column and validity of each of its pixels.

    A pixel is valid if it is inside the image.
    """
    tiles_w = (width + TILE - 1) // TILE
    first_row = tl.program_id(0) // tiles_w * TILE
    first_column = tl.program_id(0) % tiles_w * TILE
    i = tl.arange(0, TILE * TILE)
    row = first_row + i // TILE
    column = first_column + i % TILE
    inside = (row < height) & (column < width)
    if USE_INT64:
        row = row.to(tl.int64)
    return first_row, first_column, row, column, inside


@triton.jit
def index_block_pixels(first_row, first_column, start, height, width, FIRST: tl.constexpr, SPAN: tl.constexpr,
               BLOCK: tl.constexpr, USE_INT64: tl.constexpr):  # fmt: skip
    """Return row, column and validity of the pixels start, start + 1, ... of the SPAN x SPAN pixels around a tile.

    A pixel is valid if it is inside the image.
    """
    j = start + tl.arange(0, BLOCK)
    row = first_row + FIRST + j // SPAN
    column = first_column + FIRST + j % SPAN
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    if USE_INT64:
        row = row.to(tl.int64)
    return row, column, inside


@triton.jit
def is_in_window(row, column, other_row, other_column, FIRST: tl.constexpr, WINDOW: tl.constexpr):
    """Return a matrix (pixels, others) that is true where the other pixel is in the window of the pixel.

    The window extends from FIRST to FIRST + WINDOW - 1 relative to the pixel, in rows and in columns.
    """
    down = other_row[None, :] - row[:, None] - FIRST
    right = other_column[None, :] - column[:, None] - FIRST
    return (down >= 0) & (down < WINDOW) & (right >= 0) & (right < WINDOW)


@triton.jit
def load_map(ptr, row, column, inside, stride_h, stride_w, C: tl.constexpr, PADDED: tl.constexpr):
    """Load (pixels, PADDED) from a feature map, with zeros outside the image and for padded channels."""
    c = tl.arange(0, PADDED)
    at = row * stride_h + column * stride_w
    return tl.load(ptr + at[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)


@triton.jit
def store_map(ptr, value, row, column, inside, width, C: tl.constexpr, PADDED: tl.constexpr):
    """Store (pixels, PADDED) to a dense channels_last map."""
    c = tl.arange(0, PADDED)
    at = (row * width + column) * C
    tl.store(ptr + at[:, None] + c[None, :], value.to(ptr.dtype.element_ty), mask=inside[:, None] & (c < C)[None, :])


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, lse_ptr, height, width, q_b, q_h, q_w, k_b, k_h, k_w, v_b, v_h, v_w,
    Q_UNIT: tl.constexpr, K_UNIT: tl.constexpr, V_UNIT: tl.constexpr, WINDOW: tl.constexpr, C: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr, USE_INT64: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    FIRST: tl.constexpr = -(WINDOW // 2)
    SPAN: tl.constexpr = TILE + WINDOW - 1
    image = tl.program_id(1).to(tl.int64)
    k_ptr += image * k_b * K_UNIT
    v_ptr += image * v_b * V_UNIT
    first_row, first_column, row, column, inside = index_tile_pixels(height, width, TILE, USE_INT64)
    q = load_map(q_ptr + image * q_b * Q_UNIT, row, column, inside, q_h * Q_UNIT, q_w * Q_UNIT, C, PADDED)
    top = tl.full((TILE * TILE,), -1e30, tl.float32)
    total = tl.zeros((TILE * TILE,), tl.float32)
    acc = tl.zeros((TILE * TILE, PADDED), tl.float32)
    for start in range(0, SPAN * SPAN, BLOCK):
        other_row, other_column, exists = index_block_pixels(
            first_row, first_column, start, height, width, FIRST, SPAN, BLOCK, USE_INT64
        )
        k = load_map(k_ptr, other_row, other_column, exists, k_h * K_UNIT, k_w * K_UNIT, C, PADDED)
        v = load_map(v_ptr, other_row, other_column, exists, v_h * V_UNIT, v_w * V_UNIT, C, PADDED)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        # Keys outside the image are zeros and take part with logit 0 and value 0.
        taken = is_in_window(row, column, other_row, other_column, FIRST, WINDOW)
        logits = tl.where(taken, logits, -float("inf"))
        highest = tl.maximum(top, tl.max(logits, 1))
        factor = tl.exp(top - highest)
        p = tl.exp(logits - highest[:, None])
        total = total * factor + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * factor[:, None], input_precision=PRECISION)
        top = highest
    image *= height * width
    store_map(y_ptr + image * C, acc / total[:, None], row, column, inside, width, C, PADDED)
    tl.store(lse_ptr + image + row * width + column, top + tl.log(total), mask=inside)


@triton.jit
def _inner_kernel(
    grad_y_ptr, y_ptr, inner_ptr, pixels, C: tl.constexpr, PADDED: tl.constexpr, USE_INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute grad_y . y of each pixel; both are dense channels_last."""
    first = tl.program_id(0)
    if USE_INT64:
        first = first.to(tl.int64)
    p = first * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, PADDED)
    at = p[:, None] * C + c[None, :]
    exists = (p < pixels)[:, None] & (c < C)[None, :]
    grad = tl.load(grad_y_ptr + at, mask=exists, other=0.0).to(tl.float32)
    value = tl.load(y_ptr + at, mask=exists, other=0.0).to(tl.float32)
    tl.store(inner_ptr + p, tl.sum(grad * value, 1), mask=p < pixels)


@triton.jit
def _query_kernel(
    grad_y_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, grad_q_ptr, height, width, g_b, g_h, g_w, q_b, q_h, q_w,
    k_b, k_h, k_w, v_b, v_h, v_w,
    G_UNIT: tl.constexpr, Q_UNIT: tl.constexpr, K_UNIT: tl.constexpr, V_UNIT: tl.constexpr, WINDOW: tl.constexpr,
    C: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr, USE_INT64: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute grad_q_p = sum P (g_p . v - inner_p) k over the keys in the window of p, with P = exp(logit - lse_p)."""
    FIRST: tl.constexpr = -(WINDOW // 2)
    SPAN: tl.constexpr = TILE + WINDOW - 1
    image = tl.program_id(1).to(tl.int64)
    k_ptr += image * k_b * K_UNIT
    v_ptr += image * v_b * V_UNIT
    first_row, first_column, row, column, inside = index_tile_pixels(height, width, TILE, USE_INT64)
    q = load_map(q_ptr + image * q_b * Q_UNIT, row, column, inside, q_h * Q_UNIT, q_w * Q_UNIT, C, PADDED)
    g = load_map(grad_y_ptr + image * g_b * G_UNIT, row, column, inside, g_h * G_UNIT, g_w * G_UNIT, C, PADDED)
    image *= height * width
    lse = tl.load(lse_ptr + image + row * width + column, mask=inside, other=0.0)
    inner = tl.load(inner_ptr + image + row * width + column, mask=inside, other=0.0)
    acc = tl.zeros((TILE * TILE, PADDED), tl.float32)
    for start in range(0, SPAN * SPAN, BLOCK):
        other_row, other_column, exists = index_block_pixels(
            first_row, first_column, start, height, width, FIRST, SPAN, BLOCK, USE_INT64
        )
        k = load_map(k_ptr, other_row, other_column, exists, k_h * K_UNIT, k_w * K_UNIT, C, PADDED)
        v = load_map(v_ptr, other_row, other_column, exists, v_h * V_UNIT, v_w * V_UNIT, C, PADDED)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        slopes = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        taken = is_in_window(row, column, other_row, other_column, FIRST, WINDOW)
        p = tl.where(taken, tl.exp(logits - lse[:, None]), 0.0)
        slopes = p * (slopes - inner[:, None])
        acc = tl.dot(slopes.to(k.dtype), k, acc, input_precision=PRECISION)
    store_map(grad_q_ptr + image * C, acc, row, column, inside, width, C, PADDED)


@triton.jit
def _key_kernel(
    grad_y_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, inner_ptr, grad_k_ptr, grad_v_ptr, height, width, g_b, g_h, g_w,
    q_b, q_h, q_w, k_b, k_h, k_w, v_b, v_h, v_w,
    G_UNIT: tl.constexpr, Q_UNIT: tl.constexpr, K_UNIT: tl.constexpr, V_UNIT: tl.constexpr, WINDOW: tl.constexpr,
    C: tl.constexpr, PADDED: tl.constexpr, WANT_K: tl.constexpr, WANT_V: tl.constexpr, PRECISION: tl.constexpr,
    USE_INT64: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute grad_k = sum P (g . v - inner) q and grad_v = sum P g over the queries whose window contains the key."""
    FIRST: tl.constexpr = WINDOW // 2 + 1 - WINDOW
    SPAN: tl.constexpr = TILE + WINDOW - 1
    image = tl.program_id(1).to(tl.int64)
    q_ptr += image * q_b * Q_UNIT
    grad_y_ptr += image * g_b * G_UNIT
    first_row, first_column, row, column, inside = index_tile_pixels(height, width, TILE, USE_INT64)
    k = load_map(k_ptr + image * k_b * K_UNIT, row, column, inside, k_h * K_UNIT, k_w * K_UNIT, C, PADDED)
    v = load_map(v_ptr + image * v_b * V_UNIT, row, column, inside, v_h * V_UNIT, v_w * V_UNIT, C, PADDED)
    image *= height * width
    acc_k = tl.zeros((TILE * TILE, PADDED), tl.float32)
    acc_v = tl.zeros((TILE * TILE, PADDED), tl.float32)
    for start in range(0, SPAN * SPAN, BLOCK):
        other_row, other_column, exists = index_block_pixels(
            first_row, first_column, start, height, width, FIRST, SPAN, BLOCK, USE_INT64
        )
        q = load_map(q_ptr, other_row, other_column, exists, q_h * Q_UNIT, q_w * Q_UNIT, C, PADDED)
        g = load_map(grad_y_ptr, other_row, other_column, exists, g_h * G_UNIT, g_w * G_UNIT, C, PADDED)
        at = image + other_row * width + other_column
        lse = tl.load(lse_ptr + at, mask=exists, other=0.0)
        logits = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        taken = is_in_window(row, column, other_row, other_column, FIRST, WINDOW)
        # Queries outside the image have q = g = 0 and add nothing.
        p = tl.where(taken, tl.exp(logits - lse[None, :]), 0.0)
        if WANT_V:
            acc_v = tl.dot(p.to(g.dtype), g, acc_v, input_precision=PRECISION)
        if WANT_K:
            inner = tl.load(inner_ptr + at, mask=exists, other=0.0)
            slopes = p * (tl.dot(v, tl.trans(g), input_precision=PRECISION) - inner[None, :])
            acc_k = tl.dot(slopes.to(q.dtype), q, acc_k, input_precision=PRECISION)
    if WANT_K:
        store_map(grad_k_ptr + image * C, acc_k, row, column, inside, width, C, PADDED)
    if WANT_V:
        store_map(grad_v_ptr + image * C, acc_v, row, column, inside, width, C, PADDED)


class Tiles(NamedTuple):
    """Sizes of one program.

    Attributes:
        side: side of the square tile in pixels, a power of two >= 4.
        block: other pixels in one product, a power of two >= 16.
        warps: number of warps.
        stages: number of pipeline stages.
    """

    side: int
    block: int
    warps: int
    stages: int


def select_tiles(dtype: torch.dtype) -> Tiles:
    """Select tiles from the dtype, so that nothing is timed at run time; bench/gpu_rows times other tiles."""
    return Tiles(8, 32, 4, 1) if dtype == torch.float32 else Tiles(8, 64, 4, 2)


def _make_constants(maps, window, use_int64, tiles):
    """Return the grid and the constants that all kernels share."""
    batch, channels, height, width = maps[0].shape
    tiles = tiles or select_tiles(maps[0].dtype)
    constants = {
        "WINDOW": window, "C": channels, "PADDED": max(16, next_power_of_two(channels)),
        "PRECISION": get_dot_precision(maps[0].dtype),
        "USE_INT64": needs_int64(*maps) if use_int64 is None else use_int64,
        "TILE": tiles.side, "BLOCK": tiles.block, "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
    return (ceil_div(height, tiles.side) * ceil_div(width, tiles.side), batch), constants


@planned
def launch_forward(q, k, v, y, lse, window, *, use_int64=None, tiles=None):
    """Write y, the result of the attention, and lse, the logarithm of the sum of exponentials of the logits.

    Args:
        q: (B, C, H, W). q, k and v have channel stride 1.
        k: (B, C, H, W).
        v: (B, C, H, W).
        y: (B, C, H, W), dense channels_last.
        lse: (B, H, W) float32, contiguous.
        window: side of the square window in pixels.
        use_int64: bool, use 64-bit addresses within an image. None: if a tensor needs them.
        tiles: Tiles. None: select_tiles.
    """
    if y.numel() == 0:
        return
    grid, constants = _make_constants((q, k, v, y), window, use_int64, tiles)
    units = [get_stride_unit(t) for t in (q, k, v)]
    steps = [s for t, unit in zip((q, k, v), units, strict=True) for s in get_strides(t, unit)]
    with on_device(q):
        launch_kernel(
            _forward_kernel, grid, q, k, v, y, lse, *q.shape[2:], *steps, Q_UNIT=units[0], K_UNIT=units[1],
            V_UNIT=units[2], **constants,
        )  # fmt: skip


def launch_backward(grad_y, q, k, v, y, lse, grad_q, grad_k, grad_v, window, *, use_int64=None, tiles=None):
    """Write the gradients of q, k and v.

    Args:
        grad_y: (B, C, H, W), dense channels_last.
        q: (B, C, H, W). q, k and v have channel stride 1.
        k: (B, C, H, W).
        v: (B, C, H, W).
        y: (B, C, H, W), dense channels_last, result of the forward pass.
        lse: (B, H, W), from the forward pass.
        grad_q: output (B, C, H, W), dense channels_last, or None if not needed.
        grad_k: output (B, C, H, W), dense channels_last, or None if not needed.
        grad_v: output (B, C, H, W), dense channels_last, or None if not needed.
        window: side of the square window in pixels.
        use_int64: see launch_forward.
        tiles: see launch_forward.
    """
    if q.numel() == 0:
        return
    inner, grads = torch.empty_like(lse), (grad_q, grad_k, grad_v)
    _launch_gradients(grad_y, q, k, v, y, lse, inner, *grads, window, use_int64=use_int64, tiles=tiles)


@planned
def _launch_gradients(grad_y, q, k, v, y, lse, inner, grad_q, grad_k, grad_v, window, *, use_int64, tiles) -> None:
    """Write the gradients as launch_backward does. `inner` is an output (B, H, W) float32, contiguous."""
    maps = (grad_y, q, k, v)
    grid, constants = _make_constants((*maps, y), window, use_int64, tiles)
    units = [get_stride_unit(t) for t in maps]
    steps = [s for t, unit in zip(maps, units, strict=True) for s in get_strides(t, unit)]
    constants |= dict(zip(("G_UNIT", "Q_UNIT", "K_UNIT", "V_UNIT"), units, strict=True))
    with on_device(q):
        if grad_q is not None or grad_k is not None:
            names = ("C", "PADDED", "USE_INT64")
            launch_kernel(
                _inner_kernel, (ceil_div(lse.numel(), 64),), grad_y, y, inner, lse.numel(),
                **{name: constants[name] for name in names}, BLOCK=64, num_warps=4,
            )  # fmt: skip
        if grad_q is not None:
            launch_kernel(_query_kernel, grid, *maps, lse, inner, grad_q, *q.shape[2:], *steps, **constants)
        if grad_k is not None or grad_v is not None:
            needs_grad = {"WANT_K": grad_k is not None, "WANT_V": grad_v is not None}
            outputs, sizes = (grad_k, grad_v), q.shape[2:]
            launch_kernel(_key_kernel, grid, *maps, lse, inner, *outputs, *sizes, *steps, **needs_grad, **constants)
