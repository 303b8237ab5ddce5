# SPDX-License-Identifier: Apache-2.0
"""Reference of window_attention2d in PyTorch: differentiable to any order, exact in float64."""

import torch
import torch.nn.functional as F

from fastds.ops.core.layout import upcast_half


def _compute_logits(q, k, window):
    """Return the logits (B, window^2, H, W), the padding of F.pad, and the shifts (dy, dx) in the padded image."""
    half = window // 2
    pad = (half, window - half - 1) * 2
    shifts = [(dy, dx) for dy in range(window) for dx in range(window)]
    k = F.pad(k, pad)
    return torch.stack([(q * _slice_shifted(k, q, *d)).sum(1) for d in shifts], 1), pad, shifts


def _slice_shifted(padded, like, dy, dx):
    height, width = like.shape[2:]
    return padded[:, :, dy : dy + height, dx : dx + width]


def window_attention2d(q, k, v, window=30):
    """Compute y_p = sum_d softmax_d(q_p . k_{p+d}) v_{p+d}, with logit 0 and value 0 outside the image.

    Args:
        q: (B, C, H, W), queries.
        k: (B, C, H, W), keys.
        v: (B, C, H, W), values.
        window: int, size of the window in pixels.

    Returns:
        (B, C, H, W), dtype of v.
    """
    dtype = v.dtype
    q, k, v = upcast_half(q, k, v)
    logits, pad, shifts = _compute_logits(q, k, window)
    weights, v = logits.softmax(1), F.pad(v, pad)
    return sum(weights[:, i : i + 1] * _slice_shifted(v, q, *d) for i, d in enumerate(shifts)).to(dtype)


def compute_log_sum_exp(q, k, window=30):
    """Compute the logarithm of the softmax's denominator, without gradients.

    Args:
        q: (B, C, H, W), queries.
        k: (B, C, H, W), keys.
        window: int, size of the window in pixels.

    Returns:
        (B, H, W).
    """
    with torch.no_grad():
        q, k = upcast_half(q, k)
        return _compute_logits(q, k, window)[0].logsumexp(1)
