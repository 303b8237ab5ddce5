# SPDX-License-Identifier: Apache-2.0
"""Calls of the native convolution engine, and packed filters for it.

The engine computes matrix products of Winograd transforms or, with amx=True, of the inputs themselves on AMX tiles.
"""

import math

import torch
from torch import Tensor

from fastds.ops.core import native, packed_weight_cache
from fastds.ops.core.layout import as_nhwc, empty_map, to_channels_last, to_contiguous

PADDING_CODES = {"zeros": (0, 0), "replicate": (1, 1), "circular_x": (1, 2)}  # rows, columns: csrc/conv3x3/params.h
ACTIVATION_CODES = {"none": 0, "relu": 1, "leaky_relu": 2}
PACKED_BYTES = 16  # for each element of a weight: 36 float32 values for 9 taps
# Limits for the number of tiles of 4 x 4 outputs, see get_uncached_threshold. With fewer tiles, the products take less
# time than reading many packed filters from memory.
MAX_UNCACHED_TILES, MAX_EAGER_UNCACHED_TILES = 32, 16
TRAINING_THRESHOLD_BYTES, INFERENCE_THRESHOLD_BYTES = 4 << 20, 16 << 20  # see get_uncached_threshold
HUGE_PAGE_BYTES = 32 << 20  # glibc allocates larger blocks from the system and returns them when freed


def _allocate_output(shape, dtype, like: Tensor) -> Tensor:
    """Allocate an output for the engine. Large outputs use huge pages, because page faults would take much time."""
    tensor = empty_map(shape, dtype, like)
    if tensor.nbytes > HUGE_PAGE_BYTES:
        native.get_module().use_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def get_packed_filters(weight: Tensor, adjoint: bool, shuffle: int, amx: bool) -> Tensor:
    """Return the filters packed for the engine, from the cache of packed weights.

    Args:
        weight: (O, C, 3, 3).
        adjoint: bool, pack for the gradient of the input.
        shuffle: factor of the pixel shuffle of the output.
        amx: bool, pack for AMX tiles.
    """
    module = native.get_module()

    def pack(weight: Tensor, entry: packed_weight_cache.Entry | None) -> packed_weight_cache.Entry:
        given = describe_filters(weight, adjoint, shuffle)
        copy, result = entry or _allocate_entry(weight.nbytes, module.conv3x3_packed_size(given, amx))
        module.conv3x3_pack_weight(given, amx, result.data_ptr(), copy.data_ptr(), native.get_threads())
        return copy, result

    return packed_weight_cache.get_packed_weight(weight, ("conv3x3", adjoint, shuffle, amx, module.isa()), pack)


def describe_filters(weight: Tensor, adjoint: bool, shuffle: int) -> tuple:
    """Describe the filters for the native functions of csrc/conv3x3.

    The caller must hold a reference to the weight until the native call returns.

    Args:
        weight: (O, C, 3, 3).
        adjoint: bool, whether the gradient of the input is computed.
        shuffle: factor of the pixel shuffle of the output.

    Returns:
        Address, dtype code, first three sizes, strides, adjoint and shuffle.
    """
    kind = native.DTYPE_CODES[weight.dtype]
    return weight.data_ptr(), kind, *weight.shape[:3], *weight.stride(), adjoint, shuffle


def _allocate_entry(weight_bytes: int, packed_size: int) -> packed_weight_cache.Entry:
    """Return memory for a copy of the weight and packed filters, reusing an old cache entry of these sizes."""

    def fits(entry: packed_weight_cache.Entry) -> bool:
        copy, packed = entry
        return copy.nbytes == weight_bytes and packed.numel() == packed_size and copy.dtype == torch.uint8

    if (entry := packed_weight_cache.evict_matching(fits)) is not None:
        return entry
    return torch.empty(weight_bytes, dtype=torch.uint8), torch.empty(packed_size, dtype=torch.float32)


def pack_filters_uncached(weight: Tensor, adjoint: bool) -> Tensor:
    """Return the filters packed for the engine, for one call."""
    given, module = describe_filters(weight, adjoint, 1), native.get_module()
    copy, result = torch.empty_like(weight), torch.empty(module.conv3x3_packed_size(given, False), dtype=torch.float32)
    module.conv3x3_pack_weight(given, False, result.data_ptr(), copy.data_ptr(), native.get_threads())
    return result


def get_filter_arguments(
    weight: Tensor, adjoint: bool, shuffle: int, amx: bool, size: tuple[int, int, int], trained: bool
) -> tuple:  # fmt: skip
    """Return the filter arguments of conv3x3_run, and a tensor that must stay referenced during the call.

    Packed filters are cached between calls. If there are many filters and few tiles, the engine packs the filters
    itself during the call, with the same bits.

    Args:
        weight: (O, C, 3, 3).
        adjoint: bool, compute the gradient of the input.
        shuffle: factor of the pixel shuffle of the output.
        amx: bool, use AMX tiles.
        size: (batch, height, width) of the maps.
        trained: bool, whether the weight changes in the next step.

    Returns:
        address of the packed filters or 0, list of descriptions of filters to pack, tensor to keep referenced.
    """
    tiles = size[0] * -(-size[1] // 4) * -(-size[2] // 4)
    if amx or PACKED_BYTES * weight.numel() <= get_uncached_threshold(tiles, trained):
        filters = get_packed_filters(weight, adjoint, shuffle, amx)
        return filters.data_ptr(), [], filters
    return 0, [describe_filters(weight, adjoint, shuffle)], weight


def get_uncached_threshold(tiles: int, trained: bool) -> float:
    """Return the size in bytes of packed filters above which packing them in each call is faster than reading them.

    Args:
        tiles: number of tiles of 4 x 4 outputs.
        trained: bool, whether the weight changes in the next step.
    """
    if tiles > MAX_UNCACHED_TILES:
        return math.inf
    if tiles > MAX_EAGER_UNCACHED_TILES:
        return packed_weight_cache.MAX_CACHE_BYTES // 4
    return TRAINING_THRESHOLD_BYTES if trained else INFERENCE_THRESHOLD_BYTES


def forward(
    x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, amx
) -> Tensor:  # fmt: skip
    """Compute conv3x3 on the engine, see fastds.ops.conv3x3.

    Args:
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, 3, 3).
        bias: (O,) or None.
        x2: (B, C2, H, W), second source, or None.
        residual: (B, O, H, W) or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle, 1: none.
        out_dtype: dtype of the result.
        amx: bool, use AMX tiles.

    Returns:
        (B, O / shuffle^2, shuffle * H, shuffle * W).
    """
    batch, _, height, width = x.shape
    y = _allocate_output((batch, weight.shape[0] // shuffle**2, height * shuffle, width * shuffle), out_dtype, x)
    sources = to_readable_layout((x, x2), amx)
    if residual is not None:
        residual = as_nhwc(residual)
    if bias is not None:
        bias = to_contiguous(bias)
    address, filters, _owner = get_filter_arguments(
        weight, False, shuffle, amx, (batch, height, width), x.requires_grad and weight.requires_grad
    )
    native.call_with_workspace(
        native.get_module().conv3x3_run, (batch, height, width, height, width, 1, 1, *PADDING_CODES[padding_mode]),
        [native.describe_map(t) for t in sources], 1, 0, [native.describe_map(y)], shuffle, address, filters,
        *((0, 0) if bias is None else (bias.data_ptr(), native.DTYPE_CODES[bias.dtype])),
        [] if residual is None else [native.describe_map(residual)], ACTIVATION_CODES[act], negative_slope, amx,
    )  # fmt: skip
    return y


def to_readable_layout(sources: tuple[Tensor | None, ...], amx: bool) -> list[Tensor]:
    """Return the sources that are not None in a layout that the engine reads.

    The channel stride must be 1. For AMX the pixel stride may be 1 instead.
    """
    return [t if amx and t.stride(3) == 1 and not t.is_neg() else as_nhwc(t) for t in sources if t is not None]


def _describe_addend(tensor: Tensor | None, sink: Tensor) -> tuple:
    """Describe a tensor that the engine adds to an output.

    Returns:
        arguments of csrc/conv3x3, and a tensor to keep referenced during the call, or None.
    """
    if tensor is None:
        return (0, *native.describe_map(sink)[1:]), None
    tensor = as_nhwc(tensor)
    return native.describe_map(tensor), tensor


def grad_sources(
    grad, weight, padding_mode, shuffle, sign, negative_slope, channels, dtype, fold, fold_rows, added, in_place, amx
):  # fmt: skip
    """Compute the gradients of the sources of a convolution.

    Args:
        grad: gradient of the result. grad and sign are dense in channels_last memory.
        weight: (O, C, 3, 3), where C is the number of channels of all sources.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle of the result.
        sign: output of the activation, or None without activation.
        negative_slope: float, slope of the activation for negative inputs.
        channels: list of int, channels of each source.
        dtype: dtype of the gradients.
        fold: function(full, padding_mode), adjoint of the padding.
        fold_rows: function(full), adjoint of repeating the outer rows.
        added: list of tensors or None, which are added to the gradients.
        in_place: bool, whether the sums may overwrite the tensors in `added`, which are then channels_last and of
            `dtype`.
        amx: bool, use AMX tiles.

    Returns:
        list of the gradients, channels_last.
    """
    batch, (height, width) = grad.shape[0], (grad.shape[2] // shuffle, grad.shape[3] // shuffle)
    extra_h, extra_w = (int(padding_mode != "zeros"), int(padding_mode == "replicate"))
    size = (height + 2 * extra_h, width + 2 * extra_w)
    address, filters, _owner = get_filter_arguments(weight, True, shuffle, amx, (batch, *size), True)
    mode_w = PADDING_CODES[padding_mode][1] if padding_mode == "circular_x" else 0
    geometry = (batch, height, width, *size, 1 + extra_h, 1 + extra_w, 0, mode_w)
    folded = extra_h or extra_w
    sinks = [
        _allocate_output((batch, c, *size), torch.float32 if folded else dtype, grad)
        if folded or not in_place or addend is None
        else addend
        for c, addend in zip(channels, added, strict=True)
    ]
    adds = not folded and any(t is not None for t in added)
    residual = [_describe_addend(*pair) for pair in zip(added, sinks, strict=True)] if adds else []
    native.call_with_workspace(
        native.get_module().conv3x3_run, geometry, [native.describe_map(grad)], shuffle, native.get_address(sign),
        [native.describe_map(t) for t in sinks], 1, address, filters, 0, 0, [view for view, _ in residual],
        ACTIVATION_CODES["none"], negative_slope, amx,
    )  # fmt: skip
    if not folded:
        return sinks
    unfold = fold_rows if padding_mode == "circular_x" else lambda full: fold(full, padding_mode)
    sums = (unfold(t) if more is None else unfold(t) + more for t, more in zip(sinks, added, strict=True))
    return [to_channels_last(t.to(dtype)) for t in sums]


def grad_weight(grad, sources, padding_mode, shuffle, sign, negative_slope, dtype, bias: bool, amx: bool):
    """Compute the gradient of the weight and, if `bias` is true, of the bias.

    Args:
        grad: gradient of the result. grad and sign are dense in channels_last memory.
        sources: list of one or two inputs from to_readable_layout.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle of the result.
        sign: output of the activation, or None without activation.
        negative_slope: float, slope of the activation for negative inputs.
        dtype: dtype of the gradients.
        bias: bool, compute the gradient of the bias.
        amx: bool, use AMX tiles.

    Returns:
        gradient of the weight, gradient of the bias or None.
    """
    batch, _, height, width = sources[0].shape
    shape = (grad.shape[1] * shuffle**2, sum(t.shape[1] for t in sources), 3, 3)
    grad_weight = torch.empty(shape, dtype=dtype, device=grad.device)
    grad_bias = torch.empty(shape[0], dtype=dtype, device=grad.device) if bias else None
    native.call_with_workspace(
        native.get_module().conv3x3_grad_weight, (batch, height, width, height, width, 1, 1,
        *PADDING_CODES[padding_mode]),
        [native.describe_map(t) for t in sources], native.describe_map(grad), shuffle, native.get_address(sign),
        negative_slope, native.DTYPE_CODES[dtype], grad_weight.data_ptr(), native.get_address(grad_bias), amx,
    )  # fmt: skip
    return grad_weight, grad_bias
