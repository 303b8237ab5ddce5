# SPDX-License-Identifier: Apache-2.0
"""conv3x3 and its gradients by the library's convolution: oneDNN on a CPU, cuDNN on a GPU."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core import onednn, triton_loader
from fastds.ops.core.arguments import autocast_dtype, outside_autocast
from fastds.ops.core.layout import CHANNELS_LAST, WORTH_A_CALL, channel_sums, dense, empty_map, plain
from fastds.ops.core.registry import is_batched, observed, transforms_active
from fastds.ops.impl.conv3x3 import implicit, reference
from fastds.ops.impl.conv3x3.algorithm import current
from fastds.ops.impl.conv3x3.costs import ONE_MAP, has_matrix_tiles

FEW_OUTPUTS = 16  # of a group


def _for_onednn(x: Tensor) -> Tensor:
    """x in channels_last by its strides, too: torch takes the layout of a result from them, and those of one channel
    fit both layouts.

    To rearrange the input and not the result is up to 40 times quicker with few input channels. float64, which oneDNN
    leaves to torch, stays as it is.
    """
    if x.dtype == torch.float64:
        return x
    x = dense(x)
    batch, channels, height, width = x.shape
    return x if channels > 1 else x.view(batch, height, width, 1).permute(0, 3, 1, 2)


def _continued(x: Tensor, size: int, padding_mode: str) -> tuple[Tensor, int]:
    """x as a convolution of `size` taps each way reads it, and the zeros that it adds on every side."""
    return (x, size // 2) if padding_mode == "zeros" else (reference.pad(x, padding_mode), 0)


def _is_rearranged(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight is better brought into the layout that oneDNN's maps have, which torch does more slowly."""
    return weight.numel() >= WORTH_A_CALL and weight.is_cpu and dtype != torch.float64


class Library(NamedTuple):
    """How the library convolves tensors of one kind: what does not depend on their numbers."""

    turns: bool  # x into channels_last
    rearranges: bool  # the weight into the layout of the maps
    keeps: bool  # filters, in the order that oneDNN multiplies
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]  # padding, stride, dilation, groups

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """In the dtype of x; differentiable unless filters are kept."""
        if autocast_dtype(x) is not None:  # would cast again
            with torch.autocast(x.device.type, enabled=False):
                return self(x, weight, bias)
        if self.turns:
            x = _for_onednn(x)
        bias = None if bias is None else bias.to(x.dtype)
        if self.keeps and not (weight.is_neg() or is_batched(x)):
            return onednn.convolve(x, onednn.kept(weight, x, *self.geometry), bias, *self.geometry)
        weight = weight.to(x.dtype)
        padding, stride, dilation, groups = self.geometry
        return F.conv2d(x, dense(weight) if self.rearranges else weight, bias, stride, padding, dilation, groups)


def library_of(x: Tensor, weight: Tensor, padding: int, trained: bool, stride: int = 1, groups: int = 1) -> Library:
    """Of one convolution. Filters are kept where nothing is trained and nobody watches."""
    turns = x.dtype != torch.float64 and not (x.is_contiguous(memory_format=CHANNELS_LAST) and x.stride(1) == 1)
    rearranges = _is_rearranged(weight, x.dtype)
    if turns and rearranges and is_one_map(x):  # to rearrange the weight takes longer than what is saved
        turns = rearranges = False
    keeps = not trained and _keeps_filters(x, weight)
    geometry = (padding,) * 2, (stride,) * 2, (1, 1), groups
    return Library(turns, rearranges, keeps, geometry)


def is_trained(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the call has to be differentiable, or the weight is another in the next step."""
    if not torch.is_grad_enabled():
        return x.requires_grad and weight.requires_grad  # true inside an autograd function, too
    return x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)


def is_one_map(x: Tensor) -> bool:
    """Whether torch convolves it without oneDNN: one small map of float32."""
    return x.dtype == torch.float32 and x.shape[0] == 1 and x.numel() <= ONE_MAP


def _keeps_filters(x: Tensor, weight: Tensor) -> bool:
    if x.numel() == 0 or not onednn.keeps(weight, x):
        return False
    return not (is_one_map(x) or torch.compiler.is_compiling() or observed(x, weight))


def activate_(y: Tensor, act: str | None, negative_slope: float = 0.1) -> Tensor:
    """Overwrite y by its activation: None or "none", "relu" or "leaky_relu"."""
    if act == "leaky_relu":
        return F.leaky_relu_(y, negative_slope)
    return F.relu_(y) if act == "relu" else y


def convolve(x, weight, bias, x2, residual, act, negative_slope, shuffle, stride, by=None):
    """shuffle(act(convolution of both sources + bias + residual)), what follows the convolution overwriting its output;
    on a GPU one kernel where that pays.

    weight: of any odd size. Two sources are the sum of two convolutions, so that no concatenated map is made or saved
    for the gradient. channels_last; act "none", "relu" or "leaky_relu". by: the convolution of one source with its
    weight and bias; None: the library's.
    """
    split, in_one_pass = x.shape[1], fused(x)
    in_one_kernel = in_one_pass and current() in ("auto", "implicit_gemm")
    if in_one_kernel and implicit.pays(x, weight, bias, x2, residual, act, shuffle, x.dtype):
        args = (x, weight, bias, x2, residual, act, negative_slope, "zeros", shuffle, x.dtype, stride)
        return implicit.forward(*args)

    def library(source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if source.is_cpu and not (is_one_map(source) or transforms_active() or torch.compiler.is_compiling()):
            return conv2d(source, weight, bias, 1, stride)
        bias = None if bias is None else bias.to(source.dtype)
        return F.conv2d(source, weight.to(source.dtype), bias, stride, weight.shape[-1] // 2)

    convolution = by or library
    y = convolution(x, weight if x2 is None else weight[:, :split], None if in_one_pass else bias)
    second = None if x2 is None else convolution(x2, weight[:, split:], None)
    if in_one_pass:
        return epilogue(y, bias, second, residual, act, negative_slope, shuffle)
    if transforms_active():  # vmap follows no results that overwrite others and no memory formats
        y = y if second is None else y + second
        return reference.channels_last(reference.finish(y, residual, act, negative_slope, shuffle))
    # One input channel leaves the layout to oneDNN's choice.
    y = dense(y if second is None else y.add_(second))
    return finish(y, residual, act, negative_slope, shuffle)


def fused(x: Tensor) -> bool:
    """Whether what follows a convolution of x is one pass of a Triton kernel: on a GPU, where nobody differentiates or
    traces it."""
    if not x.is_cuda or torch.is_grad_enabled() or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    return not (transforms_active() or torch.compiler.is_compiling()) and triton_loader.refusal(x) is None


def epilogue(
    y: Tensor,
    bias: Tensor | None,
    second: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    negative_slope: float,
    shuffle: int,
) -> Tensor:
    """shuffle(act(y + second + residual + bias)) in one pass; y is overwritten where shuffle is 1."""
    y = dense(y)  # no view, which autograd would not let anybody overwrite
    second, residual = (None if z is None else dense(z.expand_as(y)) for z in (second, residual))
    slope = {"relu": 0.0, "leaky_relu": negative_slope}.get(act)
    if shuffle == 1 and slope is None and bias is second is residual is None:
        return y
    batch, channels, height, width = y.shape
    out = (
        y if shuffle == 1 else empty_map((batch, channels // shuffle**2, height * shuffle, width * shuffle), y.dtype, y)
    )
    triton_loader.kernels("conv3x3").epilogue(y, out, bias, second, residual, slope, shuffle)
    return out


def finish(y: Tensor, residual: Tensor | None, act: str | None, negative_slope: float, shuffle: int) -> Tensor:
    """shuffle(act(y + residual)); y in channels_last is overwritten."""
    if residual is not None:
        y = y.add_(residual)
    y = activate_(y, act, negative_slope)
    return y if shuffle == 1 else dense(F.pixel_shuffle(y, shuffle))


@outside_autocast
def forward(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype):
    """conv3x3 by the library."""
    bias, in_one_pass = None if bias is None else bias.to(out_dtype), fused(x)
    source, padding = _continued(_source(x, x2).to(out_dtype), 3, padding_mode)
    library = library_of(source, weight, padding, is_trained(x, weight, bias))
    y = library(source, weight, None if in_one_pass else bias)
    if in_one_pass:
        return epilogue(y, bias, None, residual, act, negative_slope, shuffle)
    return finish(dense(y), residual, act, negative_slope, shuffle)


def _source(x, x2):
    """Both sources as one map: two convolutions and their sum take 2 to 4 times as long."""
    return x if x2 is None else torch.cat([dense(x), dense(x2)], 1)


def bias_gradient(grad: Tensor, dtype: torch.dtype) -> Tensor:
    return channel_sums(grad).to(dtype)


def _is_quicker_turned(grad: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether the gradient of x takes less time as a forward convolution: oneDNN fills matrix tiles with several taps
    of few channels there, and with zeros backward."""
    return grad.is_cpu and weight.shape[0] // groups < FEW_OUTPUTS and has_matrix_tiles(grad.dtype)


def _turned(weight: Tensor, groups: int) -> Tensor:
    """The filters of the adjoint: turned round, with outputs as inputs."""
    outputs, inputs, *size = weight.shape
    parts = weight.reshape(groups, outputs // groups, inputs, *size).flip(3, 4).transpose(1, 2)
    return parts.reshape(groups * inputs, outputs // groups, *size)


def _gradients(grad, x, weight, padding_mode, wanted_x, wanted_weight, wanted_bias=False, groups=1):
    """Gradients of source, weight and bias by the library, in the dtype of x."""
    source, padding = _continued(x, weight.shape[-1], padding_mode)
    source, grad, weight = _for_onednn(source), _for_onednn(grad.to(x.dtype)), weight.to(x.dtype)
    turned = wanted_x and _is_quicker_turned(grad, weight, groups)
    if wanted_x and not turned:
        weight = dense(weight) if _is_rearranged(weight, weight.dtype) else weight
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, source, weight, weight.shape[:1], [1, 1], [padding] * 2, [1, 1], False, [0, 0], groups,
        [wanted_x and not turned, wanted_weight, wanted_bias],
    )  # fmt: skip
    if turned:
        grad_x = F.conv2d(grad, _turned(weight, groups), padding=weight.shape[-1] - 1 - padding, groups=groups)
    if wanted_x:
        grad_x = dense(grad_x if padding_mode == "zeros" else reference.fold(grad_x, padding_mode))
    return grad_x, grad_weight, grad_bias


def conv2d(x, weight, bias, groups, stride=1):
    """A convolution of any odd size, in groups, differentiable; the layout of the result is torch's choice.

    In channels_last, in which torch takes a quarter of the time for groups."""
    trained = is_trained(x, weight, bias)
    return library_of(x, weight, weight.shape[-1] // 2, trained, stride, groups)(x, weight, bias)


@outside_autocast
def conv2d_backward(grad, x, weight, groups, wanted_x, wanted_weight):
    """Gradients of x and weight, None where not wanted."""
    grad_x, grad_weight, _ = _gradients(grad, x, weight, "zeros", wanted_x, wanted_weight, groups=groups)
    return grad_x, plain(grad_weight.to(weight.dtype)) if wanted_weight else None


@outside_autocast
def grad_x(grad, weight, padding_mode, dtype):
    batch, _, height, width = grad.shape
    like = empty_map((batch, weight.shape[1], height, width), dtype, grad)
    return _gradients(grad, like, weight, padding_mode, True, False)[0]


@outside_autocast
def grad_weight(grad, x, x2, padding_mode, dtype):
    source = _source(x, x2)
    like = torch.empty((1, 1, 1, 1), dtype=x.dtype, device=grad.device).expand(grad.shape[1], source.shape[1], 3, 3)
    return plain(_gradients(grad, source, like, padding_mode, False, True)[1].to(dtype))


def pre_gradient(grad_y: Tensor, y: Tensor | None, negative_slope: float, shuffle: int) -> Tensor:
    """reference.pre_gradient in one pass of torch's, without a graph."""
    if y is not None:
        grad_y = torch.ops.aten.leaky_relu_backward(grad_y, y, negative_slope, True)
    return reference.unshuffled(grad_y, shuffle) if shuffle > 1 else grad_y


@outside_autocast
def backward(grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted):
    grad, want_source = pre_gradient(grad_y, y, negative_slope, shuffle), wanted[0] or wanted[3]
    settings = (padding_mode, want_source, wanted[1], wanted[2])
    of_source, grad_weight, grad_bias = _gradients(grad, _source(x, x2), weight, *settings)
    grad_x = grad_x2 = None
    if want_source:
        grad_x, grad_x2 = (dense(part) for part in of_source.tensor_split([x.shape[1]], 1))
    if wanted[1]:
        grad_weight = plain(grad_weight.to(weight.dtype))
    if wanted[2]:
        grad_bias = grad_bias.to(weight.dtype)
    return [grad_x, grad_weight, grad_bias, grad_x2, dense(grad) if wanted[4] else None]
