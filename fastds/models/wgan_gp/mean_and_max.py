# SPDX-License-Identifier: Apache-2.0
"""Mean and maximum over the same dimensions, with one gradient for both."""

import torch
from torch import Tensor

from fastds.ops.core.registry import transforms_active


class _MeanAndMax(torch.autograd.Function):
    """Both over the same dimensions, which are kept; where several values are largest they share the gradient.

    One gradient for both in three passes over the map, where torch's two take twice as many. Its derivative in what it
    is given is autograd's own, in x it is zero.
    """

    @staticmethod
    def forward(ctx, x, dims):
        mean, largest = x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)
        ctx.save_for_backward(x, largest)
        ctx.dims = dims
        return mean, largest

    @staticmethod
    def backward(ctx, grad_mean, grad_largest):
        x, largest = (t.detach() for t in ctx.saved_tensors)
        hits = x.clone().eq_(largest)  # overwriting stays in the dtype of x, comparing to bool is several times slower
        count = hits.sum(ctx.dims, keepdim=True)
        size = x.numel() / max(1, largest.numel())
        return torch.addcmul(grad_mean / size, hits, grad_largest / count), None


def mean_and_max(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and maximum of x over dims, kept with size 1; differentiable to any order."""
    if transforms_active() or torch.compiler.is_compiling():
        return x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)
    return _MeanAndMax.apply(x, dims)
