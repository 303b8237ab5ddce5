# SPDX-License-Identifier: Apache-2.0
"""Blocks of generator and critic: attention, recurrence, residual block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fastds.models.wgan_gp.mixed_conv import MixedConv, keeps_kernels, once
from fastds.models.wgan_gp.shared_kernel import SharedKernel
from fastds.nn.convolutions import convolve
from fastds.nn.recurrent import ConvGRUCell, compute_first_state, fold_time, unfold_time
from fastds.ops import gru_reset, gru_update
from fastds.ops.core.registry import has_active_transforms


def bottleneck(channels: int, reduction: int) -> nn.Sequential:
    """C -> max(1, C/reduction) -> C with ReLU between, on (B, C) vectors."""
    inner = max(1, channels // reduction)
    return nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels))


class SqueezeExcitation(nn.Module):
    """Weight every channel by what the channels' means say.

    s = sigmoid(W2 relu(W1 mean_HW(x) + b1) + b2);  y = s * x

    Args:
        channels: C.
        reduction: C/reduction hidden channels.

    Shapes: (B, C, H, W) -> (B, C, H, W).

    Source: Hu et al. 2018, equations 2-4; Li et al. 2024, equations 1-2 (biases are our choice).
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.mlp = bottleneck(channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.mlp(x.mean((2, 3))))[:, :, None, None]


class CBAM(nn.Module):
    """Channel gate, then spatial gate.

    x1 = sigmoid(MLP(mean_HW(x)) + MLP(max_HW(x))) * x;  y = sigmoid(conv7x7([mean_C(x1), max_C(x1)])) * x1

    No batch normalisation after the 7x7 convolution, and its bias is learned, as in the humidity paper's equation 4 and
    unlike the original code.

    Args:
        channels: C.
        reduction: C/reduction hidden channels of the shared MLP.

    Shapes: (B, C, H, W) -> (B, C, H, W).

    Source: Woo et al. 2018, equations 2 and 3; Li et al. 2024, equations 3 and 4.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.mlp = bottleneck(channels, reduction)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = (t.flatten(1) for t in mean_and_max(x, (2, 3)))
        x = x * torch.sigmoid(self.mlp(mean) + self.mlp(largest))[:, :, None, None]
        return x * torch.sigmoid(self.spatial(torch.cat(mean_and_max(x, (1,)), 1)))


class ConvGRU(ConvGRUCell):
    """3x3 convolutional GRU from a zero state, all states returned.

    h <- (1 - z) h + z n, the rest as in ConvGRUCell; weights start Glorot-normal gate by gate, biases at zero. Steps
    are fastds.ops.conv_gru_cell; inside kernels_kept they are single ops on kernels that all calls share.

    Args:
        in_channels, channels: of x and of h.

    Shapes: (B, T, C, H, W) -> (B, T, channels, H, W).

    Source: Ballas et al. 2016 (reset before the candidate's convolution); Li et al. 2024.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__(in_channels, channels, keep="1-z")
        for gate in (*self.gates.weight.data.chunk(2), self.candidate.weight.data):
            nn.init.xavier_normal_(gate)
        for conv in (self.gates, self.candidate):
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        # The critic's loss differentiates twice, and the cell, which can be, takes 1.0 to 1.4 times as long there; in
        # generators it takes 0.7 to 1.0 times as long (bench/results/ops_in_networks.csv).
        return self.sequence_on_shared_kernels(x) if keeps_kernels() else self.sequence(x)[0]

    def sequence_on_shared_kernels(self, x: Tensor) -> Tensor:
        """The states of all steps, (B, T, channels, H, W), by single ops: kernels prepared once for all calls of a
        kernels_kept, and in both derivatives one gradient of a kernel for all steps."""
        (batch, times), x = x.shape[:2], fold_time(x)
        gates_x, from_state, candidate_x, from_reset = once(self, "kernels", self.kernels)
        gates = unfold_time(convolve(x, gates_x, self.gates.bias), batch, times)
        candidates = unfold_time(convolve(x, candidate_x, self.candidate.bias), batch, times)
        states = [compute_first_state(gates[0], candidates[0], self.hidden_channels, self.options)]
        for gate, candidate in zip(gates[1:], candidates[1:], strict=True):
            h = states[-1]
            z, reset = gru_reset(*from_state(h, residual=gate).chunk(2, 1), h)
            states.append(gru_update(z, from_reset(reset, residual=candidate), h, **self.options))
        return torch.stack(states, 1)

    def kernels(self) -> list[Tensor | SharedKernel]:
        """Of gates and candidate, that of x and that of h."""
        both = []
        for conv in (self.gates, self.candidate):
            of_x, of_h = conv.weight.split([self.in_channels, self.hidden_channels], 1)
            both += [of_x.contiguous(), SharedKernel(of_h.contiguous())]
        return both


NORMS = ("batch", "layer", "none", "spectral")


def normalisation(kind: str, channels: int) -> nn.Module | None:
    """ "batch", "layer" (over channels and space with one factor per channel) or None."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(1, channels) if kind == "layer" else None


class ResidualAttentionBlock(nn.Module):
    """Two mixed convolutions with normalisation and CBAM, and a skip around them.

    r = CBAM(N2(conv2(relu(N1(conv1(x))))));  y = relu(r + S(x)),
    S the identity, a 1x1 convolution where the channels change, after a 2x2 mean where stride is 2.

    Args:
        in_channels, out_channels: C and O.
        norm: "batch", "layer", "none" or "spectral" (weights of spectral norm 1, no layer).
        stride: 1 or 2, of the first convolution.
        attention: with CBAM of `reduction`.
        skip: with S; False: y = relu(r), the ablation without residual blocks.
        activation: the ReLU after the sum.
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
        self.norm1, self.norm2 = normalisation(norm, out_channels), normalisation(norm, out_channels)
        self.cbam = CBAM(out_channels, reduction) if attention else None
        self.shortcut = None
        if skip and in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
            nn.init.xavier_normal_(self.shortcut.weight)
            nn.init.zeros_(self.shortcut.bias)
        if norm == "spectral":
            for conv in (self.conv1, self.conv2):
                spectral_norm(spectral_norm(conv, "weight2"), "weight3")

    def forward(self, x: Tensor) -> Tensor:
        r = normalised(self.conv1, self.norm1, x, "relu")
        r = normalised(self.conv2, self.norm2, r, None)
        if self.cbam is not None:
            r = self.cbam(r)
        if self.skip:
            r = r + self.identity(x)
        return F.relu(r) if self.activation else r

    def identity(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        return x if self.shortcut is None else self.shortcut(x)


def normalised(conv: MixedConv, norm: nn.Module | None, x: Tensor, act: str | None) -> Tensor:
    """act(norm(conv(x))); batch statistics that are fixed go into the kernel."""
    if norm is None:
        return conv(x, act=act)
    if isinstance(norm, nn.BatchNorm2d) and not norm.training:
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return conv(x, scale, norm.bias - norm.running_mean * scale, act)
    y = norm(conv(x))
    return y if act is None else F.relu(y)


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
    if has_active_transforms() or torch.compiler.is_compiling():
        return x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)
    return _MeanAndMax.apply(x, dims)
