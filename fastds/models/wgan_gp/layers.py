# SPDX-License-Identifier: Apache-2.0
"""Layers of generator and critic: twice differentiable convolutions, mixed kernels, ConvGRU, attention blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fastds.nn.convolutions import convolve
from fastds.nn.recurrent import ConvGRUCell, compute_first_state, fold_time, unfold_time
from fastds.ops import conv3x3, gru_reset, gru_update
from fastds.ops.core import onednn
from fastds.ops.core.arguments import cast_for_autocast
from fastds.ops.core.layout import to_channels_last
from fastds.ops.core.registry import has_active_transforms, needs_weight_grad
from fastds.ops.impl.conv3x3.algorithm import current_algorithm, select_algorithm
from fastds.ops.impl.conv3x3.costs import ENGINES
from fastds.ops.impl.conv3x3.library import compute_bias_gradient
from fastds.ops.impl.conv3x3.op import CONV3X3, CONV3X3_GRAD_WEIGHT, CONV3X3_GRAD_X
from fastds.ops.impl.conv3x3.shared_weight_grad import defer_to_shared_node, share_weight


def strided_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Compute a 3x3 convolution with any stride and padding 1 that can be differentiated efficiently to any order.

    PyTorch computes the second derivative of a convolution in the weight as a convolution with exchanged operands,
    which takes several times as long as the library's weight gradient. Here all orders use the library's gradient.

    Args:
        x: (B, C, H, W), fastest in channels_last.
        weight: (O, C, 3, 3).
        bias: (O,) or None.
        stride: in pixels.

    Returns:
        (B, O, ceil(H/stride), ceil(W/stride)). Gradients of all arguments, to any order.
    """
    if has_active_transforms() or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.conv2d(x, weight, bias, stride, 1)
    return _StridedConv.apply(*cast_for_autocast((x, weight, bias)), stride)


class _StridedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride):
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride, 1)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        needed[1:] = needs_weight_grad(ctx, weight, grad, 1, 2)
        grad_x, grad_weight = _request_gradients(grad, x, weight, ctx.stride, needed[0], needed[1])
        return grad_x, grad_weight, compute_bias_gradient(grad, grad.dtype) if needed[2] else None, None


def _request_gradients(grad, x, weight, stride, needs_x, needs_weight):
    """Return the gradients of the input and the weight of the convolution, None for those not needed.

    With gradients enabled, the results are differentiable.

    Args:
        grad: gradient of the output.
        x: input of the convolution.
        weight: weight of the convolution.
        stride: stride of the convolution.
        needs_x: True if the gradient of the input is needed.
        needs_weight: True if the gradient of the weight is needed.
    """
    if not torch.is_grad_enabled():
        return _compute_gradients(grad, x, weight, stride, needs_x, needs_weight)
    return (
        _StridedConvGradient.apply(grad, x.detach(), weight, stride, 0) if needs_x else None,
        _StridedConvGradient.apply(grad, x, weight.detach(), stride, 1) if needs_weight else None,
    )


def _compute_gradients(grad, x, weight, stride, needs_x, needs_weight):
    """Compute the gradients with torch.ops.aten.convolution_backward."""
    if not (needs_x or needs_weight):
        return None, None
    options = (None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [needs_x, needs_weight, False])
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(to_channels_last(grad), x, weight, *options)
    return grad_x, grad_weight


class _StridedConvGradient(torch.autograd.Function):
    """Gradient of a convolution in its input (which=0) or in its weight (which=1).

    The values of that input or weight are not used, only its shape.
    """

    @staticmethod
    def forward(ctx, grad, x, weight, stride, which):
        ctx.save_for_backward(grad, x, weight)
        ctx.stride, ctx.which = stride, which
        return _compute_gradients(grad, x, weight, stride, which == 0, which == 1)[which]

    @staticmethod
    def backward(ctx, cotangent):
        grad, *operands = ctx.saved_tensors
        operands[ctx.which], other = cotangent, 1 - ctx.which
        x, weight = operands
        grad_grad = strided_conv3x3(x, weight, None, ctx.stride) if ctx.needs_input_grad[0] else None
        needed = [other == k and ctx.needs_input_grad[1 + k] for k in (0, 1)]
        return grad_grad, *_request_gradients(grad, x, weight, ctx.stride, *needed), None, None


_GEOMETRY = [1, 1], [1, 1], [1, 1], 1  # padding, stride, dilation, groups


class _PrepackedKernel:
    """Kernel in the memory format of oneDNN, packed at the first call for the forward and for the input gradient."""

    def __init__(self):
        self.packed = self.packed_transposed = None

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """Compute conv(x, weight) + bias + residual without recording gradients."""
        if not _is_onednn_faster(x, *weight.shape[:2]):
            args = (None, residual, "none", 0.0, "zeros", 1, x.dtype, current_algorithm())
            return CONV3X3(x, weight, bias, *args)
        if self.packed is None:
            self.packed = _prepack(weight.detach(), x)
        y = _convolve_onednn(x, self.packed, bias)
        return y if residual is None else y.add_(residual)

    def grad_x(self, grad: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute the adjoint of `convolve` in x without recording gradients."""
        if not _is_onednn_faster(grad, *weight.shape[:2]):
            return CONV3X3_GRAD_X.call_unchecked(grad, weight, "zeros", dtype, current_algorithm())
        if self.packed_transposed is None:
            self.packed_transposed = _prepack(weight.detach().flip(2, 3).transpose(0, 1), grad)
        return _convolve_onednn(grad, self.packed_transposed)


def _is_onednn_faster(x: Tensor, outputs: int, channels: int) -> bool:
    """Return True if oneDNN with a packed kernel is faster than the selected algorithm.

    This holds for small fields, for which the Winograd algorithm would read its transformed kernel, which is four times
    as large, in every step.

    Args:
        x: input of the convolution.
        outputs: number of output channels.
        channels: number of input channels.
    """
    if current_algorithm() != "auto" or x.dtype != torch.float32 or x.device.type != "cpu" or x.numel() == 0:
        return False
    if not onednn.can_prepare_filters(x.dtype):
        return False
    return select_algorithm("auto", x, channels, outputs, x.dtype, False) not in ENGINES


def _prepack(weight: Tensor, x: Tensor) -> Tensor:
    """Pack a kernel for oneDNN, which would otherwise repeat the packing in every call."""
    return onednn.prepare_filters(weight.contiguous(), x, *_GEOMETRY)


def _convolve_onednn(x: Tensor, prepared: Tensor, bias: Tensor | None = None) -> Tensor:
    return to_channels_last(onednn.convolve(to_channels_last(x), prepared, bias, *_GEOMETRY))


class _SharedConv(torch.autograd.Function):
    """Autograd function of conv(x, weight) + bias + residual."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual, kernel):
        ctx.save_for_backward(x, weight)
        ctx.kernel = kernel
        return kernel.convolve(x, weight, bias, residual)

    @staticmethod
    def backward(ctx, grad):
        (x, weight), kernel = ctx.saved_tensors, ctx.kernel
        needs_x, _, _, needs_residual, _ = ctx.needs_input_grad
        needs_weight, needs_bias = needs_weight_grad(ctx, weight, grad, 1, 2)
        grad_weight = _compute_grad_weight(grad, x, weight) if needs_weight else None
        grad_x = _compute_grad_x(grad, weight, x.dtype, kernel) if needs_x else None
        grad_bias = compute_bias_gradient(grad, weight.dtype) if needs_bias else None
        return grad_x, grad_weight, grad_bias, grad if needs_residual else None, None


class _SharedConvGradX(torch.autograd.Function):
    """Autograd function of the input gradient of _SharedConv."""

    @staticmethod
    def forward(ctx, grad, weight, dtype, kernel):
        ctx.save_for_backward(grad, weight)
        ctx.kernel = kernel
        return kernel.grad_x(grad, weight, dtype)

    @staticmethod
    def backward(ctx, cotangent):
        (grad, weight), kernel = ctx.saved_tensors, ctx.kernel
        grad_grad = _run_shared_conv(cotangent, weight, None, None, kernel) if ctx.needs_input_grad[0] else None
        return grad_grad, _compute_grad_weight(grad, cotangent, weight) if ctx.needs_input_grad[1] else None, None, None


def _run_shared_conv(x, weight, bias, residual, kernel):
    args = (x, weight, bias, residual)
    return _SharedConv.apply(*args, kernel) if torch.is_grad_enabled() else kernel.convolve(*args)


def _compute_grad_weight(grad, x, weight):
    """Compute the weight gradient; None if the node of the shared weight computes it."""
    if defer_to_shared_node(weight, grad, x):
        return None
    return CONV3X3_GRAD_WEIGHT.call_unchecked(grad, x, None, "zeros", weight.dtype, current_algorithm())


def _compute_grad_x(grad, weight, dtype, kernel):
    tracked = torch.is_grad_enabled()
    return _SharedConvGradX.apply(grad, weight, dtype, kernel) if tracked else kernel.grad_x(grad, weight, dtype)


class SharedKernel:
    """A 3x3 kernel for several convolutions in one graph, such as the steps of a sequence or the passes of a critic.

        y = conv3x3(x, weight) + bias + residual

    The kernel is packed once. One batched product per backward pass computes the weight gradient of all convolutions,
    see fastds/ops/impl/conv3x3/shared_weight_grad.py. Gradients exist for all arguments, to any order. Inside
    torch.compile, export and functorch transforms each call is an independent conv3x3.

    Args:
        weight: (O, C, 3, 3). It must not be modified while this object is in use.

    Shapes: x (B, C, H, W), bias (O,) or None, residual (B, O, H, W) or None -> (B, O, H, W).
    """

    def __init__(self, weight: Tensor):
        self.is_independent = torch.compiler.is_compiling() or has_active_transforms()
        self.kernel = _PrepackedKernel()
        self.weight = weight if self.is_independent else share_weight(weight)

    def __call__(self, x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        if self.is_independent:
            return conv3x3(x, self.weight, bias, residual=residual)
        x, residual = cast_for_autocast((x, residual))
        return _run_shared_conv(x, self.weight, bias, residual, self.kernel)


MIXINGS = ("parallel", "sum", "sequential")
_cached_kernels: ContextVar[dict | None] = ContextVar("kernels", default=None)


@contextmanager
def cache_kernels() -> Iterator[None]:
    """Context manager in which each layer builds its kernels once for all its calls. Weights must not change inside."""
    token = _cached_kernels.set({})
    try:
        yield
    finally:
        _cached_kernels.reset(token)


def is_caching_kernels() -> bool:
    """Return True inside of cache_kernels. The result is always False while torch.compile traces."""
    return not torch.compiler.is_compiling() and _cached_kernels.get() is not None


def get_or_build(layer: nn.Module, what: str, make: Callable[[], Any]) -> Any:
    """Return make(). Inside of cache_kernels, return the result of the first call for this layer.

    Results with and without gradients are cached separately.

    Args:
        layer: the layer.
        what: name of the object.
        make: function that builds the object.
    """
    if not is_caching_kernels():
        return make()
    cache = _cached_kernels.get()
    assert cache is not None
    key = (layer, what, torch.is_grad_enabled())
    if key not in cache:
        cache[key] = make()
    return cache[key]


def pad_kernel(weight: Tensor) -> Tensor:
    """Pad a (O, C, 2, 2) kernel to 3x3 by a row at the top and a column on the left."""
    return F.pad(weight, (1, 0, 1, 0))


def convolve_any_stride(x: Tensor, weight: Tensor, bias: Tensor, stride: int, activation: str | None = None) -> Tensor:
    """Compute a 3x3 convolution with padding 1. Stride 1 uses fastds.ops.conv3x3.

    Args:
        x: (B, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,).
        stride: in pixels.
        activation: None or "relu".
    """
    if stride == 1:
        return conv3x3(x, weight, bias, activation=activation)
    y = strided_conv3x3(x, weight, bias, stride)
    return y if activation is None else F.relu(y)


class MixedConv(nn.Module):
    """Convolution with 2x2 and 3x3 kernels.

        parallel:    y = concat(w2 * pad_{0,1}(x), w3 * pad_{1,1}(x)) + bias, half of the outputs each
        sum:         y = w2 * pad_{0,1}(x) + w3 * pad_{1,1}(x) + bias
        sequential:  y = w2 * pad_{0,1}(w3 * pad_{1,1}(x) + bias3) + bias

    The 2x2 kernel covers the pixel and its neighbours below and to the right ("same" padding), so its output is shifted
    by half a pixel. "parallel" and "sum" run as one 3x3 convolution, in which the 2x2 kernels have zeros in the first
    row and column. This is exact. Both kernels are stored separately.

    Args:
        in_channels, out_channels: numbers C and O of channels; O is even for "parallel".
        stride: in pixels.
        mixing: "parallel", "sum" or "sequential".

    Shapes: (B, C, H, W) -> (B, O, ceil(H/stride), ceil(W/stride)).

    Source: Li et al. 2024 (kernel sizes 2 and 3). The paper does not say how the kernels are combined; "parallel" is
    our reading.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, mixing: str = "parallel"):
        super().__init__()
        if mixing not in MIXINGS:
            raise ValueError(f"mixing must be one of {MIXINGS}, got {mixing!r}")
        if mixing == "parallel" and out_channels % 2:
            raise ValueError(f"out_channels must be even to be split between two kernels, got {out_channels}")
        self.in_channels, self.out_channels, self.stride, self.mixing = in_channels, out_channels, stride, mixing
        each = out_channels // 2 if mixing == "parallel" else out_channels
        inner = out_channels if mixing == "sequential" else in_channels
        self.weight2 = nn.Parameter(torch.empty(each, inner, 2, 2))
        self.weight3 = nn.Parameter(torch.empty(each, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if mixing == "sequential":
            self.bias3 = nn.Parameter(torch.zeros(out_channels))
        for weight in (self.weight2, self.weight3):
            nn.init.kaiming_normal_(weight)

    def build_kernel(self) -> Tensor:
        """Build the (O, C, 3, 3) kernel of "parallel" and "sum"."""
        two = pad_kernel(self.weight2)
        return torch.cat([two, self.weight3]) if self.mixing == "parallel" else two + self.weight3

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Compute activation(scale * y + shift), where y is the convolution of x.

        A normalisation with fixed statistics has this form. It is folded into the kernel and the bias.

        Args:
            x: (B, C, H, W).
            scale: (O,), or None together with shift.
            shift: (O,), or None together with scale.
            activation: None or "relu".
        """
        if scale is None and activation is None and self.can_share_kernel(x):
            return get_or_build(self, "shared", lambda: SharedKernel(self.build_kernel()))(x, self.bias)
        if self.mixing == "sequential":
            x = convolve_any_stride(x, self.weight3, self.bias3, self.stride)
            kernel, stride = get_or_build(self, "second", lambda: pad_kernel(self.weight2)), 1
        else:
            kernel, stride = get_or_build(self, "kernel", self.build_kernel), self.stride
        bias: Tensor = self.bias
        if scale is not None:
            assert shift is not None
            kernel, bias = kernel * scale[:, None, None, None], bias * scale + shift
        return convolve_any_stride(x, kernel, bias, stride, activation)

    def can_share_kernel(self, x: Tensor) -> bool:
        """Return True if a SharedKernel can compute this layer and the kernel has more elements than a sample of x."""
        single = self.stride == 1 and self.mixing != "sequential" and is_caching_kernels()
        return single and 9 * self.in_channels * self.out_channels > x[0].numel()

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}, mixing={self.mixing!r}"


def build_bottleneck(channels: int, reduction: int) -> nn.Sequential:
    """Build C -> max(1, C/reduction) -> C with ReLU between, on (B, C) vectors."""
    inner = max(1, channels // reduction)
    return nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels))


class SqueezeExcitation(nn.Module):
    """Channel attention from channel means.

        s = sigmoid(W2 relu(W1 mean_HW(x) + b1) + b2);  y = s * x

    Args:
        channels: number C of channels.
        reduction: the hidden layer has C/reduction channels.

    Shapes: (B, C, H, W) -> (B, C, H, W).

    Source: Hu et al. 2018, equations 2-4; Li et al. 2024, equations 1-2. The biases are our choice.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.mlp = build_bottleneck(channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.mlp(x.mean((2, 3))))[:, :, None, None]


class CBAM(nn.Module):
    """Convolutional block attention: a channel gate and then a spatial gate.

        x1 = sigmoid(MLP(mean_HW(x)) + MLP(max_HW(x))) * x;  y = sigmoid(conv7x7([mean_C(x1), max_C(x1)])) * x1

    The 7x7 convolution has a learned bias and no batch normalisation, as in equation 4 of the humidity paper and unlike
    the original code.

    Args:
        channels: number C of channels.
        reduction: the hidden layer of the shared MLP has C/reduction channels.

    Shapes: (B, C, H, W) -> (B, C, H, W).

    Source: Woo et al. 2018, equations 2 and 3; Li et al. 2024, equations 3 and 4.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.mlp = build_bottleneck(channels, reduction)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = (t.flatten(1) for t in compute_mean_and_max(x, (2, 3)))
        x = x * torch.sigmoid(self.mlp(mean) + self.mlp(largest))[:, :, None, None]
        return x * torch.sigmoid(self.spatial(torch.cat(compute_mean_and_max(x, (1,)), 1)))


class ConvGRU(ConvGRUCell):
    """3x3 convolutional GRU that starts from zero and returns all states.

    The update is h <- (1 - z) h + z n, otherwise as in ConvGRUCell. The weights of each gate are initialised
    Glorot-normal, the biases with zero. Steps are fastds.ops.conv_gru_cell. Inside of cache_kernels they are separate
    ops with shared kernels.

    Args:
        in_channels: number of channels of x.
        channels: number of channels of h.

    Shapes: (B, T, C, H, W) -> (B, T, channels, H, W).

    Source: Ballas et al. 2016 (reset before the candidate's convolution); Li et al. 2024.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__(in_channels, channels, keep="1-z")
        for gate in (*self.gates.weight.data.chunk(2), self.candidate.weight.data):
            nn.init.xavier_normal_(gate)
        for conv in (self.gates, self.candidate):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # a sequence, and not a step
        # The critic's loss has second derivatives, for which separate ops are faster than the fused cell. In generators
        # the fused cell is faster (bench/results/ops_in_networks.csv).
        return self.run_on_shared_kernels(x) if is_caching_kernels() else self.sequence(x)[0]

    def run_on_shared_kernels(self, x: Tensor) -> Tensor:
        """Compute all states by separate ops, (B, T, C, H, W) -> (B, T, channels, H, W).

        The kernels are prepared once for all calls inside of cache_kernels. In both derivatives, one product computes a
        kernel's gradient for all steps.
        """
        (batch, times), x = x.shape[:2], fold_time(x)
        gates_x, from_state, candidate_x, from_reset = get_or_build(self, "split_kernels", self.split_kernels)
        gates = unfold_time(convolve(x, gates_x, self.gates.bias), batch, times)
        candidates = unfold_time(convolve(x, candidate_x, self.candidate.bias), batch, times)
        states = [compute_first_state(gates[0], candidates[0], self.hidden_channels, self.options)]
        for gate, candidate in zip(gates[1:], candidates[1:], strict=True):
            h = states[-1]
            z, reset = gru_reset(*from_state(h, residual=gate).chunk(2, 1), h)  # type: ignore[call-arg]  # two chunks
            states.append(gru_update(z, from_reset(reset, residual=candidate), h, **self.options))
        return torch.stack(states, 1)

    def split_kernels(self) -> list[Tensor | SharedKernel]:
        """Return the kernels of the gates for x and for h, then those of the candidate."""
        both = []
        for conv in (self.gates, self.candidate):
            from_x, from_h = conv.weight.split([self.in_channels, self.hidden_channels], 1)
            both += [from_x.contiguous(), SharedKernel(from_h.contiguous())]
        return both


NORMS = ("batch", "layer", "none", "spectral")


def build_norm(kind: str, channels: int) -> nn.Module | None:
    """Build a normalisation layer.

    Args:
        kind: "batch"; "layer", over channels and space with one factor per channel; other kinds have no layer.
        channels: number of channels.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(1, channels) if kind == "layer" else None


class ResidualAttentionBlock(nn.Module):
    """Residual block of two mixed convolutions with normalisation and CBAM.

        r = CBAM(N2(conv2(relu(N1(conv1(x))))));  y = relu(r + S(x))

    S is the identity, or a 1x1 convolution if the number of channels changes, after a 2x2 mean if the stride is 2.

    Args:
        in_channels, out_channels: numbers C and O of channels.
        norm: "batch", "layer", "none" or "spectral" (weights of spectral norm 1, no layer).
        stride: 1 or 2, of the first convolution.
        attention: whether to use CBAM.
        reduction: reduction of CBAM.
        skip: whether to add S(x). False gives y = relu(r), the paper's ablation without residual blocks.
        activation: whether to apply the last ReLU.
        mixing: see MixedConv.

    Shapes: (B, C, H, W) -> (B, O, ceil(H/stride), ceil(W/stride)).

    Source: Li et al. 2024, figure 5; Woo et al. 2018 (CBAM before the addition); Gulrajani et al. 2017 (layer
    normalisation in a critic).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: str,
        stride: int = 1,
        attention: bool = True,
        reduction: int = 16,
        skip: bool = True,
        activation: bool = True,
        mixing: str = "parallel",
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
        self.stride, self.skip, self.activation = stride, skip, activation
        self.conv1 = MixedConv(in_channels, out_channels, stride, mixing)
        self.conv2 = MixedConv(out_channels, out_channels, 1, mixing)
        self.norm1, self.norm2 = build_norm(norm, out_channels), build_norm(norm, out_channels)
        self.cbam = CBAM(out_channels, reduction) if attention else None
        self.shortcut = None
        if skip and in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
            nn.init.xavier_normal_(self.shortcut.weight)
            assert self.shortcut.bias is not None
            nn.init.zeros_(self.shortcut.bias)
        if norm == "spectral":
            for conv in (self.conv1, self.conv2):
                spectral_norm(spectral_norm(conv, "weight2"), "weight3")

    def forward(self, x: Tensor) -> Tensor:
        r = apply_conv_norm(self.conv1, self.norm1, x, "relu")
        r = apply_conv_norm(self.conv2, self.norm2, r, None)
        if self.cbam is not None:
            r = self.cbam(r)
        if self.skip:
            r = r + self.compute_shortcut(x)
        return F.relu(r) if self.activation else r

    def compute_shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        return x if self.shortcut is None else self.shortcut(x)


def apply_conv_norm(conv: MixedConv, norm: nn.Module | None, x: Tensor, activation: str | None) -> Tensor:
    """Compute activation(norm(conv(x))). Fixed batch statistics are folded into the kernel.

    Args:
        conv: the convolution.
        norm: its normalisation or None.
        x: (B, C, H, W).
        activation: None or "relu".
    """
    if norm is None:
        return conv(x, activation=activation)
    if isinstance(norm, nn.BatchNorm2d) and not norm.training:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return conv(x, scale, norm.bias - norm.running_mean * scale, activation)
    y = norm(conv(x))
    return y if activation is None else F.relu(y)


class _MeanAndMax(torch.autograd.Function):
    """Mean and maximum over the same dimensions, which remain with size 1. Several equal maxima share the gradient.

    The joint backward is faster than PyTorch's two separate ones. Second derivatives with respect to the cotangents are
    computed by autograd; those with respect to x are zero.
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
        hits = x.clone().eq_(largest)  # in place, as a comparison to bool is slower
        count = hits.sum(ctx.dims, keepdim=True)
        size = x.numel() / max(1, largest.numel())
        return torch.addcmul(grad_mean / size, hits, grad_largest / count), None


def compute_mean_and_max(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Compute mean and maximum of x over dims, which remain with size 1. Differentiable to any order."""
    if has_active_transforms() or torch.compiler.is_compiling():
        return x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)
    return _MeanAndMax.apply(x, dims)
