# SPDX-License-Identifier: Apache-2.0
"""oneDNN's convolution by name, as compiled graphs of torch call it: with filters that it need not rearrange in every
call. Both are private functions of torch."""

import functools

import torch
from torch import Tensor

from fastds.ops.core import kept_weights, native

MOST_KEPT_BYTES = 24 << 20  # of a weight and its filters; to compare more takes as long as to rearrange them
_HAS_THEM = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_convolution_weight", "_convolution_pointwise"))
_CONVOLUTION = torch.ops.mkldnn._convolution_pointwise.default if _HAS_THEM else None


def prepares(dtype: torch.dtype) -> bool:
    """Whether filters of this type can be prepared here."""
    return torch._C._get_mkldnn_enabled() and _can_prepare(dtype)


@functools.cache
def _can_prepare(dtype: torch.dtype) -> bool:
    if not (_HAS_THEM and torch.backends.mkldnn.is_available()):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepared(weight: Tensor, x: Tensor, padding, stride, dilation, groups: int) -> Tensor:
    """The filters in the blocks that oneDNN reads for maps like x (B, C, H, W)."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, x.shape)


def keeps(weight: Tensor, x: Tensor) -> bool:
    """Whether filters of this weight, for maps like x, can be kept and are not too many."""
    if not x.is_cpu or native.missing() is not None or not prepares(x.dtype):
        return False
    return weight.nbytes + weight.numel() * x.dtype.itemsize <= MOST_KEPT_BYTES


def kept(weight: Tensor, x: Tensor, padding: tuple, stride: tuple, dilation: tuple, groups: int) -> Tensor:
    """prepared() of a weight in the dtype of x, kept while its bytes stay the same. The blocks are those for the first
    x that it met: in a call for others oneDNN rearranges them as it does filters that are not prepared."""
    geometry = padding, stride, dilation, groups

    def prepare(weight: Tensor, _) -> kept_weights.Entry:
        return weight.clone(), prepared(weight.to(x.dtype), x, *geometry)

    return kept_weights.made_of(weight, ("onednn", x.dtype, *geometry), prepare)


def convolve(x: Tensor, filters: Tensor, bias: Tensor | None, padding, stride, dilation, groups: int) -> Tensor:
    """The convolution with prepared filters."""
    return _CONVOLUTION(x, filters, bias, padding, stride, dilation, groups, "none", [], "")
