# SPDX-License-Identifier: Apache-2.0
"""Reference of conv3x3 and its gradients in PyTorch: differentiable to any order, exact in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING_MODES = ("zeros", "replicate", "circular_x")
ACTIVATIONS = ("none", "relu", "leaky_relu")


def to_channels_last(x: Tensor) -> Tensor:
    """Return x in channels_last, by operations that vmap supports."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def shuffle_pixels(x: Tensor, r: int) -> Tensor:
    """Apply pixel_shuffle with factor r. torch's function does not change the shape of an empty tensor."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels // r**2, r, r, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, channels // r**2, height * r, width * r)


def unshuffle_pixels(x: Tensor, r: int) -> Tensor:
    """Apply pixel_unshuffle with factor r. torch's function does not change the shape of an empty tensor."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // r, r, width // r, r).permute(0, 1, 3, 5, 2, 4)
    return parts.reshape(batch, channels * r**2, height // r, width // r)


def pad(x: Tensor, padding_mode: str) -> Tensor:
    """Pad (B, C, H, W) by one pixel on every side. "circular_x" wraps columns and repeats the outer rows."""
    if padding_mode == "zeros":
        return F.pad(x, (1, 1, 1, 1))
    x = F.pad(x, (1, 1, 0, 0), mode="circular" if padding_mode == "circular_x" else "replicate")
    return F.pad(x, (0, 0, 1, 1), mode="replicate")


def activate(y: Tensor, act: str, negative_slope: float) -> Tensor:
    """Apply an activation.

    Args:
        y: any tensor.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
    """
    if act == "none":
        return y
    return F.relu(y) if act == "relu" else F.leaky_relu(y, negative_slope)


def conv3x3(
    x, weight, bias=None, x2=None, residual=None, act="none", negative_slope=0.1, padding_mode="zeros", shuffle=1,
    out_dtype=None, algorithm="auto",
):  # fmt: skip
    """Compute shuffle(act(conv(concat(x, x2)) + bias + residual)), see fastds.ops.conv3x3.

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
        out_dtype: dtype of the result; None: that of x.
        algorithm: ignored.

    Returns:
        (B, O / shuffle^2, shuffle * H, shuffle * W), channels_last.
    """
    out_dtype = out_dtype or x.dtype
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), out_dtype)
    source = pad(x if x2 is None else torch.cat([x, x2], 1), padding_mode).to(dtype)
    y = F.conv2d(source, weight.to(dtype), None if bias is None else bias.to(dtype))
    return to_channels_last(apply_epilogue(y, residual, act, negative_slope, shuffle).to(out_dtype))


def apply_epilogue(y: Tensor, residual: Tensor | None, act: str, negative_slope: float, shuffle: int) -> Tensor:
    """Compute shuffle(act(y + residual)).

    Args:
        y: (B, O, H, W).
        residual: (B, O, H, W) or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
        shuffle: factor of the pixel shuffle, 1: none.
    """
    y = activate(y if residual is None else y + residual, act, negative_slope)
    return y if shuffle == 1 else shuffle_pixels(y, shuffle)


def backpropagate_epilogue(grad_y: Tensor, y: Tensor | None, negative_slope: float, shuffle: int) -> Tensor:
    """Compute the gradient of conv + bias + residual from the gradient of the result.

    Args:
        grad_y: gradient of the result.
        y: the result if there is an activation, else None.
        negative_slope: float, slope of the activation for negative inputs.
        shuffle: factor of the pixel shuffle, 1: none.
    """
    if y is not None:
        grad_y = torch.where(y > 0, grad_y, negative_slope * grad_y)
    return unshuffle_pixels(grad_y, shuffle) if shuffle > 1 else grad_y


def conv3x3_grad_x(grad, weight, padding_mode, dtype, algorithm="auto"):
    """Compute the gradient of the concatenated input of conv(concat(x, x2)).

    Args:
        grad: (B, O, H, W), gradient of the result.
        weight: (O, C, 3, 3).
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the gradient.
        algorithm: ignored.
    """
    compute = torch.promote_types(torch.promote_types(grad.dtype, weight.dtype), dtype)
    full = F.conv_transpose2d(grad.to(compute), weight.to(compute))
    return to_channels_last(fold(full, padding_mode).to(dtype))


def fold(full: Tensor, padding_mode: str) -> Tensor:
    """Apply the adjoint of pad, (B, C, H + 2, W + 2) -> (B, C, H, W).

    Each outer pixel is added to the pixel from which pad copies it, or dropped if pad sets it to zero.
    """
    if padding_mode == "zeros":
        return full[:, :, 1:-1, 1:-1]
    left, right = full[..., :1], full[..., -1:]
    if padding_mode == "circular_x":
        left, right = right, left
    return fold_rows(_add_ends(full[..., 1:-1], left, right, -1))


def fold_rows(full: Tensor) -> Tensor:
    """Apply the adjoint of repeating the outer rows, (B, C, H + 2, W) -> (B, C, H, W)."""
    return _add_ends(full[:, :, 1:-1], full[:, :, :1], full[:, :, -1:], -2)


def _add_ends(inner, first, last, dim):
    """Add `first` and `last` to the first and last slice of `inner` along `dim`."""
    if inner.shape[dim] == 1:
        return inner + first + last
    middle = inner.narrow(dim, 1, inner.shape[dim] - 2)
    return torch.cat([inner.narrow(dim, 0, 1) + first, middle, inner.narrow(dim, -1, 1) + last], dim)


def conv3x3_grad_weight(grad, x, x2, padding_mode, dtype, algorithm="auto"):
    """Compute the gradient of the weight of conv(concat(x, x2)).

    Args:
        grad: (B, O, H, W), gradient of the result.
        x: (B, C1, H, W), first source.
        x2: (B, C2, H, W), second source or None.
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the gradient.
        algorithm: ignored.

    Returns:
        (O, C1 + C2, 3, 3).
    """
    compute = torch.promote_types(torch.promote_types(grad.dtype, x.dtype), dtype)
    source = pad(x if x2 is None else torch.cat([x, x2], 1), padding_mode).to(compute).transpose(0, 1)
    return F.conv2d(source, grad.to(compute).transpose(0, 1)).transpose(0, 1).to(dtype).contiguous()


def conv3x3_backward(
    grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, needs_grad, add_x=None, add_x2=None
):  # fmt: skip
    """Compute the gradients of x, weight, bias, x2 and residual from the gradient of the result y.

    Args:
        grad_y: gradient of the result.
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, 3, 3).
        x2: (B, C2, H, W), second source, or None.
        y: result if there is an activation, else None.
        negative_slope: float, slope of the activation for negative inputs.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle, 1: none.
        algorithm: ignored.
        needs_grad: five bools, one for each gradient.
        add_x: tensor that is added to the gradient of x, or None.
        add_x2: tensor that is added to the gradient of x2, or None.

    Returns:
        The requested gradients, in the order above.
    """
    grad = backpropagate_epilogue(grad_y, y, negative_slope, shuffle)
    grad_x = grad_x2 = grad_weight = grad_bias = None
    if needs_grad[0] or needs_grad[3]:
        both = conv3x3_grad_x(grad, weight, padding_mode, x.dtype)
        grad_x, grad_x2 = both.split([x.shape[1], weight.shape[1] - x.shape[1]], 1)
        grad_x, grad_x2 = (
            to_channels_last(part if more is None else part + more)
            for part, more in ((grad_x, add_x), (grad_x2, add_x2))
        )
    if needs_grad[1]:
        grad_weight = conv3x3_grad_weight(grad, x, x2, padding_mode, weight.dtype)
    if needs_grad[2]:
        grad_bias = grad.sum((0, 2, 3)).to(weight.dtype)
    grad = to_channels_last(grad)
    grads = (grad_x, grad_weight, grad_bias, grad_x2, grad)
    return [g for g, needed in zip(grads, needs_grad, strict=True) if needed]
