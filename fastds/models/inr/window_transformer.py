# SPDX-License-Identifier: Apache-2.0
"""Shifted-window self-attention of SwinIR on NHWC maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowBlock(nn.Module):
    """LayerNorm, attention in windows (shifted by half a window in every second block), LayerNorm, MLP; both residual.

    Source: Liu et al. 2021 (Swin); Liang et al. 2021 (SwinIR).
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int, ratio: int = 2):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.up, self.down = nn.Linear(channels, ratio * channels), nn.Linear(ratio * channels, channels)
        nn.init.trunc_normal_(self.bias, std=0.02)

    def forward(self, x: Tensor, wrap: bool) -> Tensor:
        """x: (B, H, W, C) of whole windows; wrap: columns are a circle, so windows may cross the seam."""
        x = x + self._attend(self.norm1(x), wrap)
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def _attend(self, x: Tensor, wrap: bool) -> Tensor:
        batch, height, width, channels = x.shape
        n, s = self.window, self.shift
        if s:
            x = x.roll((-s, -s), (1, 2))
        windows = x.reshape(batch, height // n, n, width // n, n, channels).transpose(2, 3)
        windows = windows.reshape(-1, n * n, channels)
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias[relative_index(n, x.device)].permute(2, 0, 1)[None]
        if s:
            mask = shift_mask(height, width, n, s, wrap, x.device).to(x.dtype)
            bias = (bias + mask[:, None]).repeat(batch, 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(q.shape[0], -1, -1, -1))
        out = self.project(out.transpose(1, 2).reshape(-1, n * n, channels))
        out = out.reshape(batch, height // n, width // n, n, n, channels).transpose(2, 3)
        out = out.reshape(batch, height, width, channels)
        return out.roll((s, s), (1, 2)) if s else out


def relative_index(n: int, device: torch.device) -> Tensor:
    """(n^2, n^2) rows of the bias table for every pair of pixels of a window."""
    at = torch.arange(n, device=device)
    y, x = (v.reshape(-1) for v in torch.meshgrid(at, at, indexing="ij"))
    return (y[:, None] - y[None] + n - 1) * (2 * n - 1) + x[:, None] - x[None] + n - 1


def shift_mask(height: int, width: int, n: int, s: int, wrap: bool, device: torch.device) -> Tensor:
    """(windows, n^2, n^2): -100 between pixels that are neighbours only because the roll joined opposite borders."""

    def regions(size: int, open_: bool) -> Tensor:
        at = torch.arange(size, device=device)
        return torch.zeros_like(at) if open_ else (at >= size - s).long()

    region = 2 * regions(height, False)[:, None] + regions(width, wrap)[None]
    region = region.reshape(height // n, n, width // n, n).transpose(1, 2).reshape(-1, n * n)
    return -100.0 * (region[:, :, None] != region[:, None, :])


class ResidualWindowBlocks(nn.Module):
    """`depth` window blocks on NCHW maps; the convolution and skip around them belong to the encoder."""

    def __init__(self, channels: int, depth: int, heads: int, window: int):
        super().__init__()
        self.blocks = nn.ModuleList(WindowBlock(channels, heads, window, i % 2 * (window // 2)) for i in range(depth))

    def forward(self, x: Tensor, wrap: bool) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x, wrap)
        return x.permute(0, 3, 1, 2)
