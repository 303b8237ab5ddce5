# SPDX-License-Identifier: Apache-2.0
"""Encoders: the input at its own resolution to feature maps. One registry; a decoder does not know which it reads.

An encoder has `out_channels` and `stages`, and calls between(i, features) after stage i, where DPFA modules sit.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.inr.window_transformer import ResidualWindowBlocks
from fastds.nn.convolutions import BorderConv, Conv1x1
from fastds.ops.core.layout import get_padding_to_multiple

Between = Callable[[int, Tensor], Tensor]


class _Block(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, channels: int, padding_mode: str):
        super().__init__()
        self.conv1 = BorderConv(channels, channels, padding_mode)
        self.conv2 = BorderConv(channels, channels, padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, act="relu"), residual=x)


class EDSRBaseline(nn.Module):
    """Residual blocks between two convolutions, a skip around all of them; no upsampler.

    Args:
        in_channels: V. padding_mode: of every convolution. channels, blocks: 64 and 16 in the paper's baseline.

    Source: Lim et al. 2017, EDSR-baseline.
    """

    def __init__(self, in_channels: int, padding_mode: str, channels: int = 64, blocks: int = 16):
        super().__init__()
        self.out_channels, self.stages = channels, blocks
        self.head = BorderConv(in_channels, channels, padding_mode)
        self.blocks = nn.ModuleList(_Block(channels, padding_mode) for _ in range(blocks))
        self.tail = BorderConv(channels, channels, padding_mode)

    def forward(self, x: Tensor, between: Between) -> Tensor:
        first = f = self.head(x)
        for i, block in enumerate(self.blocks):
            f = between(i, block(f))
        return self.tail(f, residual=first)


class _DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int, layers: int, padding_mode: str):
        super().__init__()
        self.convs = nn.ModuleList(BorderConv(channels + i * growth, growth, padding_mode) for i in range(layers))
        self.fuse = Conv1x1(channels + layers * growth, channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = x
        for conv in self.convs:
            maps = torch.cat([maps, conv(maps, act="relu")], 1)
        return self.fuse(maps, residual=x)


class RDN(nn.Module):
    """Residual dense network, configuration B: 16 blocks of 8 convolutions, growth 64.

    Source: Zhang et al. 2018, RDN; D = 16, C = 8, G = G0 = 64.
    """

    def __init__(self, in_channels: int, padding_mode: str, channels: int = 64, blocks: int = 16, layers: int = 8):
        super().__init__()
        self.out_channels, self.stages = channels, blocks
        self.head = BorderConv(in_channels, channels, padding_mode)
        self.second = BorderConv(channels, channels, padding_mode)
        self.blocks = nn.ModuleList(_DenseBlock(channels, channels, layers, padding_mode) for _ in range(blocks))
        self.fuse = Conv1x1(blocks * channels, channels)
        self.tail = BorderConv(channels, channels, padding_mode)

    def forward(self, x: Tensor, between: Between) -> Tensor:
        first = self.head(x)
        f, outputs = self.second(first), []
        for i, block in enumerate(self.blocks):
            f = between(i, block(f))
            outputs.append(f)
        return self.tail(self.fuse(torch.cat(outputs, 1)), residual=first)


class SwinIRLight(nn.Module):
    """Shifted-window transformer blocks between two convolutions; pads to whole windows and crops by itself.

    Args:
        in_channels: V. padding_mode: of the convolutions; with "circular_x" and a width of whole windows the windows
            wrap in longitude too. channels, depth, stages, heads, window: 60, 6, 4, 6, 8 in the light preset.

    Source: Liang et al. 2021, SwinIR-light.
    """

    def __init__(
        self, in_channels: int, padding_mode: str, channels: int = 60, depth: int = 6, blocks: int = 4, heads: int = 6,
        window: int = 8,
    ):  # fmt: skip
        super().__init__()
        self.out_channels, self.stages, self.window = channels, blocks, window
        self.periodic = padding_mode == "circular_x"
        self.head = BorderConv(in_channels, channels, padding_mode)
        self.norm_in, self.norm_out = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.blocks = nn.ModuleList(ResidualWindowBlocks(channels, depth, heads, window) for _ in range(blocks))
        self.convs = nn.ModuleList(BorderConv(channels, channels, padding_mode) for _ in range(blocks))
        self.tail = BorderConv(channels, channels, padding_mode)

    def forward(self, x: Tensor, between: Between) -> Tensor:
        height, width = x.shape[2:]
        x = reflect_to_multiple(x, self.window)
        wrap = self.periodic and x.shape[3] == width
        first = self.head(x)
        f = _normed(first, self.norm_in)
        for i, (block, conv) in enumerate(zip(self.blocks, self.convs, strict=True)):
            f = between(i, conv(block(f, wrap), residual=f))
        f = self.tail(_normed(f, self.norm_out), residual=first)
        return f[:, :, :height, :width]


def _normed(f: Tensor, norm: nn.LayerNorm) -> Tensor:
    return norm(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def extend(x: Tensor, n: int, padding_mode: str) -> Tensor:
    """x continued by n pixels on every side as the convolutions see it."""
    if padding_mode == "zeros":
        return F.pad(x, (n, n, n, n))
    rows, columns = (torch.arange(-n, size + n, device=x.device) for size in x.shape[2:])
    columns = columns % x.shape[3] if padding_mode == "circular_x" else columns.clamp(0, x.shape[3] - 1)
    return x.index_select(3, columns).index_select(2, rows.clamp(0, x.shape[2] - 1))


def reflect_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """x extended below and to the right to whole multiples by reflection, repeated where the field is too small."""
    for axis in (2, 3):
        n = x.shape[axis]
        extra = get_padding_to_multiple(n, multiple)
        if isinstance(extra, torch.SymInt) or extra:
            period = 2 * n - 2 if n > 1 else 1
            at = torch.arange(n, n + extra, device=x.device) % period
            x = torch.cat([x, x.index_select(axis, torch.minimum(at, period - at))], axis)
    return x


ENCODERS: dict[str, type[nn.Module]] = {"edsr": EDSRBaseline, "rdn": RDN, "swinir": SwinIRLight}
