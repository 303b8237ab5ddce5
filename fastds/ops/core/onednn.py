# SPDX-License-Identifier: Apache-2.0
"""Convolutions by oneDNN with filters that are reordered in advance, as in graphs of torch.compile.

With ordinary filters oneDNN reorders them in each call. The two operators used in this module are private in torch.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from fastds.ops.core import native, packed_weight_cache

MAX_CACHED_BYTES = 24 << 20  # weight and filters; comparing more bytes takes as long as reordering the filters
_HAS_PRIVATE_OPS = all(
    hasattr(torch.ops.mkldnn, name) for name in ("_reorder_convolution_weight", "_convolution_pointwise")
)
_CONVOLUTION: Any = torch.ops.mkldnn._convolution_pointwise.default if _HAS_PRIVATE_OPS else None


def can_prepare_filters(dtype: torch.dtype) -> bool:
    """Return True if this build and processor can reorder filters of this dtype in advance and oneDNN is enabled."""
    return torch._C._get_mkldnn_enabled() and _can_prepare(dtype)


@functools.cache
def _can_prepare(dtype: torch.dtype) -> bool:
    if not (_HAS_PRIVATE_OPS and torch.backends.mkldnn.is_available()):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepare_filters(weight: Tensor, x: Tensor, padding, stride, dilation, groups: int) -> Tensor:
    """Return the filters in the blocked layout that oneDNN reads.

    Args:
        weight: (O, C / groups, k, k), dtype of x.
        x: (B, C, H, W), an input of the convolution.
        padding: pair, in pixels.
        stride: pair, in pixels.
        dilation: pair, in pixels.
        groups: number of groups.
    """
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, x.shape)


def can_cache_filters(weight: Tensor, x: Tensor) -> bool:
    """Return True if filters of this weight can be reordered for inputs like x and are small enough for the cache."""
    if not x.is_cpu or native.get_missing_reason() is not None or not can_prepare_filters(x.dtype):
        return False
    return weight.nbytes + weight.numel() * x.dtype.itemsize <= MAX_CACHED_BYTES


def get_cached_filters(
    weight: Tensor, x: Tensor, padding: tuple, stride: tuple, dilation: tuple, groups: int
) -> Tensor:
    """Return the reordered filters of a weight in the dtype of x, from the cache of packed weights.

    The layout is chosen for the first x. For an x of another shape oneDNN may reorder the filters again in the call.

    Args:
        weight: (O, C / groups, k, k), the filters.
        x: (B, C, H, W), input of the convolution.
        padding: pair, in pixels.
        stride: pair, in pixels.
        dilation: pair, in pixels.
        groups: number of groups.
    """
    geometry = padding, stride, dilation, groups

    def prepare(weight: Tensor, _) -> packed_weight_cache.Entry:
        return weight.clone(), prepare_filters(weight.to(x.dtype), x, *geometry)

    return packed_weight_cache.get_packed_weight(weight, ("onednn", x.dtype, *geometry), prepare)


def convolve(x: Tensor, filters: Tensor, bias: Tensor | None, padding, stride, dilation, groups: int) -> Tensor:
    """Convolve x with reordered filters.

    Args:
        x: (B, C, H, W), input.
        filters: result of prepare_filters.
        bias: (O,) or None.
        padding: pair, in pixels.
        stride: pair, in pixels.
        dilation: pair, in pixels.
        groups: number of groups.
    """
    return _CONVOLUTION(x, filters, bias, padding, stride, dilation, groups, "none", [], "")
