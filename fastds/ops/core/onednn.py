# SPDX-License-Identifier: Apache-2.0
"""oneDNN's convolution by name, as compiled graphs of torch call it: with filters that it need not rearrange in every
call. Both are private functions of torch."""

import torch
from torch import Tensor

_HAS_THEM = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_convolution_weight", "_convolution_pointwise"))


def prepares(dtype: torch.dtype) -> bool:
    """Whether filters of this type can be prepared here."""
    if not (_HAS_THEM and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepared(weight: Tensor, x: Tensor, padding, stride, dilation, groups: int) -> Tensor:
    """The filters in the blocks that oneDNN reads for maps like x (B, C, H, W)."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, x.shape)


def convolve(x: Tensor, filters: Tensor, bias: Tensor | None, padding, stride, dilation, groups: int) -> Tensor:
    """The convolution with prepared filters."""
    return torch.ops.mkldnn._convolution_pointwise(x, filters, bias, padding, stride, dilation, groups, "none", [], "")
