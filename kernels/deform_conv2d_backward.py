# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for the gradients of modulated deformable convolution.

One kernel computes the gradients of the feature maps x, offset and mask. A program takes BLOCK_M output pixels, some
taps and some offset groups. For each tap the program multiplies grad_y by the weights, which gives the gradient of the
sampled values, gathers the four corners again and sums over all channels of an offset group. Each element of
grad_offset and grad_mask is thus written once, without atomics. grad_x is summed by float32 atomic additions, so that
its last bits vary between runs.

The other kernel computes the gradient of the weight. A program takes one tap, a slab of channels, BLOCK_N outputs and a
fixed range of pixels. It gathers the samples as the forward pass does and multiplies them by grad_y. The partial sums
of the ranges are then added.
"""

import math

import torch
import triton
import triton.language as tl

from .deform_conv2d import (
    Tiles,
    index_channels,
    load_corner,
    load_offsets,
    locate_cell,
    locate_pixels,
    sample_channels,
    select_slab_shape,
)
from .device import ceil_div, get_dot_precision, get_stride_unit, get_strides, needs_int64, next_power_of_two, on_device
from .launch_plans import launch_kernel, planned


@triton.jit
def _scatter(grad_x_ptr, at, exists, channel, present, weight, grad):
    """Add weight * grad to grad_x at one corner."""
    exists = exists[:, :, None] & present[None, :, :]
    at = at[:, :, None] + channel[None, :, :]
    tl.atomic_add(grad_x_ptr + at, weight[:, :, None] * grad, mask=exists, sem="relaxed")


@triton.jit
def _scatter_corners(
    grad_x_ptr, at, row_step, column_step, top, bottom, left, right, m, ly, lx, channel, present, grad
):  # fmt: skip
    """Add grad, times the mask and the bilinear weight of a corner, to grad_x at each of the four corners."""
    upper = m * (1.0 - ly)
    lower = m * ly
    _scatter(grad_x_ptr, at, top & left, channel, present, upper * (1.0 - lx), grad)
    _scatter(grad_x_ptr, at + column_step, top & right, channel, present, upper * lx, grad)
    at += row_step
    _scatter(grad_x_ptr, at, bottom & left, channel, present, lower * (1.0 - lx), grad)
    _scatter(grad_x_ptr, at + column_step, bottom & right, channel, present, lower * lx, grad)


@triton.jit
def _maps_kernel(
    grad_y_ptr, x_ptr, offset_ptr, mask_ptr, base_ptr, weight_ptr, grad_x_ptr, grad_offset_ptr, grad_mask_ptr,
    points, height, width, h_out, w_out, x_b, x_h, x_w, offset_b, offset_h, offset_w, mask_b, mask_h, mask_w,
    grad_offset_p, grad_mask_p,
    X_UNIT: tl.constexpr, OFFSET_UNIT: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, C:
    tl.constexpr, C_GROUP: tl.constexpr,
    O_GROUP: tl.constexpr, OUTPUTS: tl.constexpr, C_OFFSET: tl.constexpr, SEGMENT: tl.constexpr, HAS_MASK: tl.constexpr,
    SIGMOID: tl.constexpr, HAS_BASE: tl.constexpr, WANT_X: tl.constexpr, WANT_OFFSET: tl.constexpr,
    WANT_MASK: tl.constexpr, PRECISION: tl.constexpr, USE_INT64: tl.constexpr, TAPS_EACH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SEGMENTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    OFFSET_GROUPS: tl.constexpr = C // C_OFFSET
    PARTS: tl.constexpr = (SEGMENT + CHANNELS - 1) // CHANNELS
    STEPS: tl.constexpr = C_OFFSET // SEGMENT * PARTS
    EIGHT: tl.constexpr = min(CHANNELS, 8)  # channels of a lane
    PER_SEGMENT: tl.constexpr = CHANNELS // EIGHT
    LANES: tl.constexpr = SEGMENTS * PER_SEGMENT
    first = tl.program_id(0)
    if USE_INT64:
        first = first.to(tl.int64)
    p, image, row, column, valid, base_y, base_x, at_offset, at_mask = locate_pixels(
        first * BLOCK_M, points, base_ptr, h_out, w_out, offset_b, offset_h, offset_w, mask_b, mask_h, mask_w,
        OFFSET_UNIT, STRIDE_H, STRIDE_W, PAD_H, PAD_W, HAS_BASE, BLOCK_M, USE_INT64,
    )  # fmt: skip
    at_grad_x = image * height * width
    image = image * x_b * X_UNIT
    x_h = x_h * X_UNIT
    x_w = x_w * X_UNIT
    g = tl.program_id(2) * SEGMENTS + tl.arange(0, SEGMENTS)
    known = valid[:, None] & (g < OFFSET_GROUPS)[None, :]
    lane_g = tl.program_id(2) * SEGMENTS + tl.arange(0, LANES) // PER_SEGMENT
    lane_c = tl.arange(0, LANES) % PER_SEGMENT * EIGHT
    lane_known = valid[:, None] & (lane_g < OFFSET_GROUPS)[None, :]
    within = lane_c[:, None] + tl.arange(0, EIGHT)[None, :]
    inner = tl.arange(0, SEGMENTS * CHANNELS)
    ONE_BLOCK: tl.constexpr = C_GROUP == C and OUTPUTS <= BLOCK_N
    if ONE_BLOCK:  # grad_y is the same for all taps
        o = tl.arange(0, BLOCK_N)
        exists = valid[:, None] & (o < OUTPUTS)[None, :]
        grad_y_of_pixels = tl.load(grad_y_ptr + p[:, None] * OUTPUTS + o[None, :], mask=exists, other=0.0)
    for tap in range(TAPS_EACH):
        k = tl.program_id(1) * TAPS_EACH + tap
        at_tap = lane_g * TAPS + k
        dy, dx, m = load_offsets(offset_ptr, mask_ptr, at_offset, at_mask, at_tap, lane_known, HAS_MASK, SIGMOID)
        y = (row + k // KW * DIL_H).to(tl.float32)[:, None] + (dy + base_y[:, None])
        x = (column + k % KW * DIL_W).to(tl.float32)[:, None] + (dx + base_x[:, None])
        y0, x0, ly, lx, top, bottom, left, right = locate_cell(y, x, lane_known, height, width, USE_INT64)
        at = image[:, None] + y0 * x_h + x0 * x_w
        at_grad = (at_grad_x[:, None] + y0 * width + x0) * C
        d0 = tl.zeros((BLOCK_M, LANES), tl.float32)  # sums over channels of gradient times corner
        d1 = tl.zeros((BLOCK_M, LANES), tl.float32)
        d2 = tl.zeros((BLOCK_M, LANES), tl.float32)
        d3 = tl.zeros((BLOCK_M, LANES), tl.float32)
        for step in range(STEPS):
            # Channels c of segment `step // PARTS` of each offset group, and the outputs that read them.
            start = step // PARTS * SEGMENT + step % PARTS * CHANNELS
            c = (tl.program_id(2) * SEGMENTS + inner // CHANNELS) * C_OFFSET + start + inner % CHANNELS
            c_exists = c < C
            if SEGMENT % CHANNELS != 0:
                c_exists = c_exists & (step % PARTS * CHANNELS + inner % CHANNELS < SEGMENT)
            lowest = tl.program_id(2) * SEGMENTS * C_OFFSET + start
            highest = tl.minimum(lowest + (SEGMENTS - 1) * C_OFFSET + SEGMENT - 1, C - 1)
            acc = tl.zeros((BLOCK_M, SEGMENTS * CHANNELS), tl.float32)
            for o_first in range(lowest // C_GROUP * O_GROUP, (highest // C_GROUP + 1) * O_GROUP, BLOCK_N):
                o = o_first + tl.arange(0, BLOCK_N)
                o_exists = o < OUTPUTS
                if ONE_BLOCK:
                    grad_y = grad_y_of_pixels
                else:
                    exists = valid[:, None] & o_exists[None, :]
                    grad_y = tl.load(grad_y_ptr + p[:, None] * OUTPUTS + o[None, :], mask=exists, other=0.0)
                linked = o_exists[:, None] & c_exists[None, :]
                if C_GROUP == C:
                    at_weight = (o[:, None] * TAPS + k) * C_GROUP + c[None, :]
                else:
                    at_weight = (o[:, None] * TAPS + k) * C_GROUP + (c % C_GROUP)[None, :]
                    linked = linked & (o[:, None] // O_GROUP == (c // C_GROUP)[None, :])
                w = tl.load(weight_ptr + at_weight, mask=linked, other=0.0)
                acc = tl.dot(grad_y, w, acc, input_precision=PRECISION)
            grad = tl.reshape(acc, (BLOCK_M, LANES, EIGHT))
            channel = (lane_g * C_OFFSET + start)[:, None] + within
            present = (lane_g < OFFSET_GROUPS)[:, None]
            if SEGMENT % CHANNELS != 0:
                present = present & (step % PARTS * CHANNELS + within < SEGMENT)
            if WANT_OFFSET or WANT_MASK:
                d0 += tl.sum(grad * load_corner(x_ptr, at, top & left, channel, present), 2)
                d1 += tl.sum(grad * load_corner(x_ptr, at + x_w, top & right, channel, present), 2)
                d2 += tl.sum(grad * load_corner(x_ptr, at + x_h, bottom & left, channel, present), 2)
                d3 += tl.sum(grad * load_corner(x_ptr, at + x_h + x_w, bottom & right, channel, present), 2)
            if WANT_X and EIGHT == 8:
                # One atomic instruction adds four float32 values. The eight channels of a lane are split into halves,
                # so that no value moves between lanes.
                halves = tl.permute(tl.reshape(grad, (BLOCK_M, LANES, 2, 4)), (0, 1, 3, 2))
                near, far = tl.split(halves)
                four = (lane_g * C_OFFSET + start + lane_c)[:, None] + tl.arange(0, 4)[None, :]
                some = (lane_g < OFFSET_GROUPS)[:, None]
                rest = some
                if SEGMENT % CHANNELS != 0:
                    last = SEGMENT - step % PARTS * CHANNELS - lane_c[:, None]
                    some = some & (tl.arange(0, 4)[None, :] < last)
                    rest = rest & (tl.arange(0, 4)[None, :] + 4 < last)
                _scatter_corners(
                    grad_x_ptr, at_grad, width * C, C, top, bottom, left, right, m, ly, lx, four, some, near
                )
                _scatter_corners(
                    grad_x_ptr, at_grad, width * C, C, top, bottom, left, right, m, ly, lx, four + 4, rest, far
                )
            elif WANT_X:
                _scatter_corners(
                    grad_x_ptr, at_grad, width * C, C, top, bottom, left, right, m, ly, lx, channel, present, grad
                )
        if PER_SEGMENT > 1:  # the lanes of a segment share its offset and mask
            d0 = tl.sum(tl.reshape(d0, (BLOCK_M, SEGMENTS, PER_SEGMENT)), 2)
            d1 = tl.sum(tl.reshape(d1, (BLOCK_M, SEGMENTS, PER_SEGMENT)), 2)
            d2 = tl.sum(tl.reshape(d2, (BLOCK_M, SEGMENTS, PER_SEGMENT)), 2)
            d3 = tl.sum(tl.reshape(d3, (BLOCK_M, SEGMENTS, PER_SEGMENT)), 2)
            if WANT_OFFSET or WANT_MASK:
                at_tap = g * TAPS + k
                dy, dx, m = load_offsets(offset_ptr, mask_ptr, at_offset, at_mask, at_tap, known, HAS_MASK, SIGMOID)
                y = (row + k // KW * DIL_H).to(tl.float32)[:, None] + (dy + base_y[:, None])
                x = (column + k % KW * DIL_W).to(tl.float32)[:, None] + (dx + base_x[:, None])
                y0, x0, ly, lx, top, bottom, left, right = locate_cell(y, x, known, height, width, USE_INT64)
        if WANT_OFFSET:
            to = grad_offset_ptr + p[:, None] * grad_offset_p + 2 * at_tap[None, :]
            grad_dy = m * ((1.0 - lx) * (d2 - d0) + lx * (d3 - d1))
            grad_dx = m * ((1.0 - ly) * (d1 - d0) + ly * (d3 - d2))
            inside = (top | bottom) & (left | right)  # outside, the gradient is 0 even if m is not finite
            grad_dy = tl.where(inside, grad_dy, 0.0)
            grad_dx = tl.where(inside, grad_dx, 0.0)
            tl.store(to, grad_dy.to(grad_offset_ptr.dtype.element_ty), mask=known)
            tl.store(to + 1, grad_dx.to(grad_offset_ptr.dtype.element_ty), mask=known)
        if WANT_MASK:
            grad_m = (1.0 - ly) * ((1.0 - lx) * d0 + lx * d1) + ly * ((1.0 - lx) * d2 + lx * d3)
            if SIGMOID:
                grad_m = grad_m * m * (1.0 - m)
            to = grad_mask_ptr + p[:, None] * grad_mask_p + at_tap[None, :]
            tl.store(to, grad_m.to(grad_mask_ptr.dtype.element_ty), mask=known)


@triton.jit
def _weight_kernel(
    grad_y_ptr, x_ptr, offset_ptr, mask_ptr, base_ptr, sums_ptr, points, share, height, width, h_out, w_out,
    x_b, x_h, x_w, offset_b, offset_h, offset_w, mask_b, mask_h, mask_w,
    X_UNIT: tl.constexpr, OFFSET_UNIT: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, C_GROUP:
    tl.constexpr, O_GROUP: tl.constexpr,
    OUTPUTS: tl.constexpr, C_OFFSET: tl.constexpr, SEGMENT: tl.constexpr, HAS_MASK: tl.constexpr, SIGMOID: tl.constexpr,
    HAS_BASE: tl.constexpr, PRECISION: tl.constexpr, USE_INT64: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SEGMENTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    N_TILES: tl.constexpr = (O_GROUP + BLOCK_N - 1) // BLOCK_N
    COUNT: tl.constexpr = C_GROUP // SEGMENT
    PARTS: tl.constexpr = (SEGMENT + CHANNELS - 1) // CHANNELS
    SLABS: tl.constexpr = (COUNT + SEGMENTS - 1) // SEGMENTS * PARTS
    k = tl.program_id(0) // SLABS
    segment = tl.program_id(0) % SLABS // PARTS * SEGMENTS
    part = tl.program_id(0) % PARTS
    group = tl.program_id(1) // N_TILES
    channel, present = index_channels(group * COUNT + segment, SEGMENT, part, SEGMENTS, CHANNELS, (group + 1) * COUNT)
    at_tap = (group * COUNT + segment + tl.arange(0, SEGMENTS)) * SEGMENT // C_OFFSET * TAPS + k
    exists = (segment + tl.arange(0, SEGMENTS) < COUNT)[None, :]
    o = tl.program_id(1) % N_TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    o_exists = o < O_GROUP
    o += group * O_GROUP
    at_share = tl.program_id(2)
    if USE_INT64:
        at_share = at_share.to(tl.int64)
    first = at_share * share
    acc = tl.zeros((BLOCK_N, SEGMENTS * CHANNELS), tl.float32)
    for start in range(0, share, BLOCK_M):
        p, image, row, column, valid, base_y, base_x, at_offset, at_mask = locate_pixels(
            first + start, points, base_ptr, h_out, w_out, offset_b, offset_h, offset_w, mask_b, mask_h, mask_w,
            OFFSET_UNIT, STRIDE_H, STRIDE_W, PAD_H, PAD_W, HAS_BASE, BLOCK_M, USE_INT64,
        )  # fmt: skip
        known = valid[:, None] & exists
        dy, dx, m = load_offsets(offset_ptr, mask_ptr, at_offset, at_mask, at_tap, known, HAS_MASK, SIGMOID)
        y = (row + k // KW * DIL_H).to(tl.float32)[:, None] + (dy + base_y[:, None])
        x = (column + k % KW * DIL_W).to(tl.float32)[:, None] + (dx + base_x[:, None])
        at_image = image * x_b * X_UNIT
        v = sample_channels(
            x_ptr, at_image, y, x, m, known, channel, present, height, width, x_h * X_UNIT, x_w * X_UNIT, USE_INT64
        )  # fmt: skip
        at = p[:, None] * OUTPUTS + o[None, :]
        grad_y = tl.load(grad_y_ptr + at, mask=valid[:, None] & o_exists[None, :], other=0.0)
        acc = tl.dot(tl.trans(grad_y), v, acc, input_precision=PRECISION)
    inner = tl.arange(0, SEGMENTS * CHANNELS)
    within = part * CHANNELS + inner % CHANNELS
    c = (segment + inner // CHANNELS) * SEGMENT + within
    c_exists = (segment + inner // CHANNELS < COUNT) & (within < SEGMENT)
    at = ((at_share * OUTPUTS + o[:, None]) * TAPS + k) * C_GROUP + c[None, :]
    tl.store(sums_ptr + at, acc, mask=o_exists[:, None] & c_exists[None, :])


def select_map_tiles(points: int, dtype: torch.dtype) -> tuple[Tiles, int]:
    """Select the tiles for the gradients of the feature maps.

    Args:
        points: number of output pixels.
        dtype: dtype of x.

    Returns:
        The tiles, and whether each tap has its own programs, which is the case for few pixels.
    """
    slab = 32 if dtype == torch.float32 else 64
    pixels = 64 if points >= 64 * 256 else 32
    return Tiles(pixels, 64 if dtype != torch.float32 else 32, slab, 8 if pixels == 64 else 4, 1), points < 64 * 256


def select_weight_tiles(outputs: int, dtype: torch.dtype) -> Tiles:
    """Select the tiles for the gradient of the weight, where `pixels` is the number of pixels of one product."""
    pixels, warps = (
        (32, 4) if dtype == torch.float32 else (64, 8)
    )  # the slab has as many channels as a product has pixels
    return Tiles(pixels, min(max(next_power_of_two(outputs), 16), 64), pixels, warps, 1)


def split_pixels(points: int, pixels: int) -> tuple[int, int]:
    """Return the number of pixel ranges with partial sums of the weight gradient, and the number of pixels in each."""
    each = math.ceil(points / min(32, math.ceil(points / (8 * pixels))))
    each = math.ceil(each / pixels) * pixels
    return math.ceil(points / each), each


def _make_constants(x, weight, offset, mask, problem, base, sigmoid):
    c_group, c_offset = x.shape[1] // problem.groups, x.shape[1] // problem.offset_groups
    return {
        "X_UNIT": get_stride_unit(x), "OFFSET_UNIT": get_stride_unit(offset),
        "KW": problem.kernel[1], "TAPS": problem.kernel[0] * problem.kernel[1],
        "STRIDE_H": problem.stride[0], "STRIDE_W": problem.stride[1], "PAD_H": problem.padding[0],
        "PAD_W": problem.padding[1], "DIL_H": problem.dilation[0], "DIL_W": problem.dilation[1],
        "C_GROUP": c_group, "O_GROUP": weight.shape[0] // problem.groups, "OUTPUTS": weight.shape[0],
        "C_OFFSET": c_offset, "SEGMENT": math.gcd(c_group, c_offset), "HAS_MASK": mask is not None, "SIGMOID": sigmoid,
        "HAS_BASE": base is not None, "PRECISION": get_dot_precision(x.dtype),
    }  # fmt: skip


@planned
def launch_maps(
    grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, problem, *, base=None, sigmoid=False,
    use_int64=None,
    tiles=None,
):  # fmt: skip
    """Compute the gradients of x, offset and mask. Gradients that are None are not computed.

    Args:
        grad_y: (B, O, H', W'), dense channels_last.
        x: see launch_forward.
        offset: see launch_forward.
        mask: see launch_forward.
        weight: see launch_forward.
        grad_x: (B, C, H, W) float32, dense channels_last, to which the gradient is added, or None.
        grad_offset: (B, 2GK, H', W'), dense channels_last or a channel slice of such a tensor, or None.
        grad_mask: (B, GK, H', W'), in the same layouts, or None. With sigmoid=True it is the gradient of the logits.
        problem: Problem.
        base: see launch_forward.
        sigmoid: see launch_forward.
        use_int64: see launch_forward.
        tiles: Tiles. None: select_map_tiles.
    """
    if grad_y.numel() == 0 or (grad_x is None and grad_offset is None and grad_mask is None):
        return
    constants = _make_constants(x, weight, offset, mask, problem, base, sigmoid)
    points = grad_y.shape[0] * grad_y.shape[2] * grad_y.shape[3]
    default, few = select_map_tiles(points, x.dtype)
    tiles = tiles or default
    taps_each = 1 if few else constants["TAPS"]
    segments, part = select_slab_shape(constants["SEGMENT"], problem.offset_groups, tiles.slab)
    blocks = ceil_div(problem.offset_groups, segments)
    grid = (ceil_div(points, tiles.pixels), ceil_div(constants["TAPS"], taps_each), blocks)
    use_int64 = needs_int64(x, offset, mask, grad_y, grad_x) if use_int64 is None else use_int64
    with on_device(x):
        launch_kernel(
            _maps_kernel, grid,
            grad_y, x, offset, mask, base, weight, grad_x, grad_offset, grad_mask, points, *x.shape[2:],
            *grad_y.shape[2:], *get_strides(x, constants["X_UNIT"]), *get_strides(offset, constants["OFFSET_UNIT"]),
            *get_strides(mask), get_strides(grad_offset)[2],
            get_strides(grad_mask)[2], C=x.shape[1], WANT_X=grad_x is not None, WANT_OFFSET=grad_offset is not None,
            WANT_MASK=grad_mask is not None, USE_INT64=use_int64, TAPS_EACH=taps_each, BLOCK_M=tiles.pixels,
            BLOCK_N=tiles.outputs, SEGMENTS=segments, CHANNELS=part, num_warps=tiles.warps, num_stages=tiles.stages,
            **constants,
        )  # fmt: skip


def compute_weight_gradient(
    grad_y, x, offset, mask, weight, problem, *, base=None, sigmoid=False, use_int64=None, tiles=None
) -> torch.Tensor:
    """Return the gradient of the weight, (O, C/groups, k_h, k_w) float32.

    Args:
        grad_y: (B, O, H', W'), dense channels_last.
        x: see launch_forward.
        offset: see launch_forward.
        mask: see launch_forward.
        weight: see launch_forward; only its shape is used.
        problem: Problem.
        base: see launch_forward.
        sigmoid: see launch_forward.
        use_int64: see launch_forward.
        tiles: Tiles. None: select_weight_tiles.
    """
    outputs, c_group, *kernel = weight.shape
    tiles = tiles or select_weight_tiles(outputs // problem.groups, x.dtype)
    shares, _ = split_pixels(grad_y.shape[0] * grad_y.shape[2] * grad_y.shape[3], tiles.pixels)
    sums = torch.empty(shares, outputs, math.prod(kernel), c_group, dtype=torch.float32, device=x.device)
    options = {"base": base, "sigmoid": sigmoid, "use_int64": use_int64}
    _launch_weight_sums(grad_y, x, offset, mask, weight, sums, problem, tiles, **options)
    total = sums.sum(0) if shares > 1 else sums[0]
    return total.transpose(1, 2).reshape(weight.shape)


@planned
def _launch_weight_sums(grad_y, x, offset, mask, weight, sums, problem, tiles, *, base, sigmoid, use_int64) -> None:
    """Write the sums (ranges of pixels, O, taps, C/groups) over the pixels of each range."""
    constants = _make_constants(x, weight, offset, mask, problem, base, sigmoid)
    points = grad_y.shape[0] * grad_y.shape[2] * grad_y.shape[3]
    segment, c_group, taps = constants["SEGMENT"], constants["C_GROUP"], constants["TAPS"]
    segments, part = select_slab_shape(segment, c_group // segment, tiles.slab)
    slabs = ceil_div(c_group // segment, segments) * ceil_div(segment, part)
    shares, each = split_pixels(points, tiles.pixels)
    grid = (taps * slabs, problem.groups * ceil_div(constants["O_GROUP"], tiles.outputs), shares)
    use_int64 = needs_int64(x, offset, mask, grad_y, sums) if use_int64 is None else use_int64
    with on_device(x):
        launch_kernel(
            _weight_kernel, grid,
            grad_y, x, offset, mask, base, sums, points, each, *x.shape[2:], *grad_y.shape[2:],
            *get_strides(x, constants["X_UNIT"]), *get_strides(offset, constants["OFFSET_UNIT"]), *get_strides(mask),
            USE_INT64=use_int64, BLOCK_M=tiles.pixels, BLOCK_N=tiles.outputs,
            SEGMENTS=segments, CHANNELS=part, num_warps=tiles.warps, num_stages=tiles.stages, **constants,
        )  # fmt: skip
