# SPDX-License-Identifier: Apache-2.0
"""pixel_shuffle and its adjoint in plain PyTorch: differentiable to any order, exact in float64."""

import torch
from torch import Tensor

from fastds.ops.impl.conv3x3.reference import activate, channels_last, shuffled, unshuffled


def _as(like: Tensor, result: Tensor) -> Tensor:
    """Contiguous where `like` is, else channels_last; vmap knows no question for channels_last."""
    return result.contiguous() if like.is_contiguous() else channels_last(result)


def pixel_shuffle(x, r, bias=None, act="none", negative_slope=0.1) -> Tensor:
    """shuffle_r(act(x + bias)) of fastds.ops.pixel_shuffle."""
    y = x if bias is None else x + bias[:, None, None]
    return _as(x, shuffled(activate(y, act, negative_slope), r).to(x.dtype))


def pixel_unshuffle(x, r) -> Tensor:
    """Coarse channel c*r*r + i*r + j at (h, w) = x at channel c, (r*h + i, r*w + j)."""
    return _as(x, unshuffled(x, r))


def activation_gradient(grad_y, y, negative_slope) -> Tensor:
    """Gradient of act(x + bias), shuffled, from that of the result y; y None: no activation."""
    return grad_y if y is None else torch.where(y > 0, grad_y, negative_slope * grad_y)


def pixel_shuffle_backward(grad_y, y, r, negative_slope, bias_dtype, wanted) -> list[Tensor]:
    """The wanted gradients of x and bias; bias_dtype: of the bias."""
    grad_x = pixel_unshuffle(activation_gradient(grad_y, y, negative_slope), r)
    grads = [grad_x]
    if wanted[1]:
        grads.append(grad_x.sum((0, 2, 3), dtype=torch.promote_types(grad_x.dtype, torch.float32)).to(bias_dtype))
    return [g.clone() for g, want in zip(grads, wanted, strict=False) if want]
