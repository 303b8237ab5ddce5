# SPDX-License-Identifier: Apache-2.0
"""oneDNN's convolution by name, as compiled graphs of torch call it: with filters that it need not rearrange in every
call. Both are private functions of torch."""

import functools

import torch
from torch import Tensor

from fastds.ops.core import native, packed_weight_cache

MAX_CACHED_BYTES = 24 << 20  # of a weight and its filters; to compare more takes as long as to rearrange them
_HAS_PRIVATE_OPS = all(
    hasattr(torch.ops.mkldnn, name) for name in ("_reorder_convolution_weight", "_convolution_pointwise")
)
_CONVOLUTION = torch.ops.mkldnn._convolution_pointwise.default if _HAS_PRIVATE_OPS else None


def can_prepare_filters(dtype: torch.dtype) -> bool:
    """Whether filters of this type can be prepared here."""
    return torch._C._get_mkldnn_enabled() and _can_prepare(dtype)


@functools.cache
def _can_prepare(dtype: torch.dtype) -> bool:
    if not (_HAS_PRIVATE_OPS and torch.backends.mkldnn.is_available()):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepare_filters(weight: Tensor, x: Tensor, padding, stride, dilation, groups: int) -> Tensor:
    """The filters in the blocks that oneDNN reads for maps like x (B, C, H, W)."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, x.shape)


def can_cache_filters(weight: Tensor, x: Tensor) -> bool:
    """Whether filters of this weight, for maps like x, can be kept and are not too many."""
    if not x.is_cpu or native.get_missing_reason() is not None or not can_prepare_filters(x.dtype):
        return False
    return weight.nbytes + weight.numel() * x.dtype.itemsize <= MAX_CACHED_BYTES


def get_cached_filters(
    weight: Tensor, x: Tensor, padding: tuple, stride: tuple, dilation: tuple, groups: int
) -> Tensor:
    """prepared() of a weight in the dtype of x, kept while its bytes stay the same. The blocks are those for the first
    x that it met: in a call for others oneDNN rearranges them as it does filters that are not prepared."""
    geometry = padding, stride, dilation, groups

    def prepare(weight: Tensor, _) -> packed_weight_cache.Entry:
        return weight.clone(), prepare_filters(weight.to(x.dtype), x, *geometry)

    return packed_weight_cache.get_packed_weight(weight, ("onednn", x.dtype, *geometry), prepare)


def convolve(x: Tensor, filters: Tensor, bias: Tensor | None, padding, stride, dilation, groups: int) -> Tensor:
    """The convolution with prepared filters."""
    return _CONVOLUTION(x, filters, bias, padding, stride, dilation, groups, "none", [], "")
