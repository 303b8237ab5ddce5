# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of null_op (y = scale * x + other), the template of a kernel.

One program computes BLOCK elements. Memory bandwidth limits the speed.
"""

import torch
import triton
import triton.language as tl

from .device import ceil_div, on_device
from .launch_plans import launch_kernel, planned

BLOCK = 1024


@triton.jit
def null_op(x_ptr, other_ptr, y_ptr, n, scale, HAS_OTHER: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = scale * tl.load(x_ptr + i, mask=i < n).to(tl.float32)
    if HAS_OTHER:
        y += tl.load(other_ptr + i, mask=i < n).to(tl.float32)
    tl.store(y_ptr + i, y.to(y_ptr.dtype.element_ty), mask=i < n)


@planned
def launch(x: torch.Tensor, other: torch.Tensor | None, y: torch.Tensor, scale: float) -> None:
    """Compute y = scale * x + other for contiguous tensors of one shape and dtype. other: None for zero."""
    n = x.numel()
    if n == 0:
        return
    with on_device(x):
        grid = (ceil_div(n, BLOCK),)
        launch_kernel(null_op, grid, x, other, y, n, scale, HAS_OTHER=other is not None, BLOCK=BLOCK)
