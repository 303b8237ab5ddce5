# SPDX-License-Identifier: Apache-2.0
"""Upsampling of feature maps."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core import triton_loader
from fastds.ops.core.layout import empty_map, to_channels_last
from fastds.ops.impl.conv3x3 import library


def upsample2(x: Tensor) -> Tensor:
    """Upsample feature maps by 2, bilinear with half-pixel centres: (B, C, H, W) -> (B, C, 2 H, 2 W).

    On a GPU and without gradients, a Triton kernel runs where Triton supports the tensor, and the result is
    channels_last. Otherwise torch's function runs, and the result has the memory format of x. On a GPU, autocast casts
    the input of torch's function to float32. This is disabled without gradients, where it does not change the result,
    and kept with gradients, because the gradient sums up to 16 pixels.
    """
    batch, channels, height, width = x.shape
    if library.can_fuse_epilogue(x):
        out = empty_map((batch, channels, 2 * height, 2 * width), x.dtype, x)
        triton_loader.load_kernels("resize").upsample2(to_channels_last(x), out)
        return out
    with torch.autocast("cuda", enabled=False) if x.is_cuda and not torch.is_grad_enabled() else nullcontext():
        return F.interpolate(x, (2 * height, 2 * width), mode="bilinear", align_corners=False)
