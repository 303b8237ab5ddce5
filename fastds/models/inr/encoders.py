# SPDX-License-Identifier: Apache-2.0
"""Encoders from a field to feature maps at its resolution, with DPFA modules and local contrast normalisation.

An encoder has the attributes `out_channels` and `stages`, and calls between(i, features) after stage i. DPFA modules
are inserted there.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.nn.convolutions import Conv1x1, PaddedConv3x3
from fastds.ops import deform_conv2d
from fastds.ops.core.layout import get_padding_to_multiple

Between = Callable[[int, Tensor], Tensor]


class _ResidualBlock(nn.Module):
    """Residual block: x + conv(relu(conv(x)))."""

    def __init__(self, channels: int, padding_mode: str):
        super().__init__()
        self.conv1 = PaddedConv3x3(channels, channels, padding_mode=padding_mode)
        self.conv2 = PaddedConv3x3(channels, channels, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, activation="relu"), residual=x)


class EDSRBaseline(nn.Module):
    """EDSR-baseline: residual blocks between two convolutions, with a skip around all of them and without an upsampler.

    Args:
        in_channels: number of input channels.
        padding_mode: border of every convolution.
        channels, blocks: number of feature maps and of residual blocks, 64 and 16 in the paper.

    Source: Lim et al. 2017, EDSR-baseline.
    """

    def __init__(self, in_channels: int, padding_mode: str, channels: int = 64, blocks: int = 16):
        super().__init__()
        self.out_channels, self.stages = channels, blocks
        self.head = PaddedConv3x3(in_channels, channels, padding_mode=padding_mode)
        self.blocks = nn.ModuleList(_ResidualBlock(channels, padding_mode) for _ in range(blocks))
        self.tail = PaddedConv3x3(channels, channels, padding_mode=padding_mode)

    def forward(self, x: Tensor, between: Between) -> Tensor:
        first = f = self.head(x)
        for i, block in enumerate(self.blocks):
            f = between(i, block(f))
        return self.tail(f, residual=first)


class _DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int, layers: int, padding_mode: str):
        super().__init__()
        self.convs = nn.ModuleList(
            PaddedConv3x3(channels + i * growth, growth, padding_mode=padding_mode) for i in range(layers)
        )
        self.fuse = Conv1x1(channels + layers * growth, channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = x
        for conv in self.convs:
            maps = torch.cat([maps, conv(maps, activation="relu")], 1)
        return self.fuse(maps, residual=x)


class RDN(nn.Module):
    """Residual dense network (RDN).

    The defaults are configuration B of the paper: 16 blocks of 8 convolutions with growth 64 (D = 16, C = 8, G = G0 =
    64).

    Args:
        in_channels: number of input channels.
        padding_mode: border of every convolution.
        channels: number of feature maps and growth of a dense block.
        blocks: number of dense blocks.
        layers: number of convolutions of a dense block.

    Source: Zhang et al. 2018, RDN.
    """

    def __init__(self, in_channels: int, padding_mode: str, channels: int = 64, blocks: int = 16, layers: int = 8):
        super().__init__()
        self.out_channels, self.stages = channels, blocks
        self.head = PaddedConv3x3(in_channels, channels, padding_mode=padding_mode)
        self.second = PaddedConv3x3(channels, channels, padding_mode=padding_mode)
        self.blocks = nn.ModuleList(_DenseBlock(channels, channels, layers, padding_mode) for _ in range(blocks))
        self.fuse = Conv1x1(blocks * channels, channels)
        self.tail = PaddedConv3x3(channels, channels, padding_mode=padding_mode)

    def forward(self, x: Tensor, between: Between) -> Tensor:
        first = self.head(x)
        f, outputs = self.second(first), []
        for i, block in enumerate(self.blocks):
            f = between(i, block(f))
            outputs.append(f)
        return self.tail(self.fuse(torch.cat(outputs, 1)), residual=first)


class SwinIRLight(nn.Module):
    """SwinIR: shifted-window transformer blocks between two convolutions.

    Fields are padded to whole windows, and the output is cropped. The defaults are those of SwinIR-light.

    Args:
        in_channels: number of input channels.
        padding_mode: border of the convolutions. With "circular_x" and a width of whole windows, the windows are
            periodic in longitude, too.
        channels: number of feature maps.
        depth: number of window blocks per stage.
        blocks: number of stages.
        heads: number of attention heads.
        window: size of the windows in pixels.

    Source: Liang et al. 2021, SwinIR-light.
    """

    def __init__(
        self, in_channels: int, padding_mode: str, channels: int = 60, depth: int = 6, blocks: int = 4, heads: int = 6,
        window: int = 8,
    ):  # fmt: skip
        super().__init__()
        self.out_channels, self.stages, self.window = channels, blocks, window
        self.periodic = padding_mode == "circular_x"
        self.head = PaddedConv3x3(in_channels, channels, padding_mode=padding_mode)
        self.norm_in, self.norm_out = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.blocks = nn.ModuleList(ResidualWindowBlocks(channels, depth, heads, window) for _ in range(blocks))
        self.convs = nn.ModuleList(PaddedConv3x3(channels, channels, padding_mode=padding_mode) for _ in range(blocks))
        self.tail = PaddedConv3x3(channels, channels, padding_mode=padding_mode)

    def forward(self, x: Tensor, between: Between) -> Tensor:
        height, width = x.shape[2:]
        x = reflect_to_multiple(x, self.window)
        wrap = self.periodic and x.shape[3] == width
        first = self.head(x)
        f = _apply_norm(first, self.norm_in)
        for i, (block, conv) in enumerate(zip(self.blocks, self.convs, strict=True)):
            f = between(i, conv(block(f, wrap), residual=f))
        f = self.tail(_apply_norm(f, self.norm_out), residual=first)
        return f[:, :, :height, :width]


def _apply_norm(f: Tensor, norm: nn.LayerNorm) -> Tensor:
    return norm(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def pad_border(x: Tensor, n: int, padding_mode: str) -> Tensor:
    """Pad x by n pixels on every side as the convolutions with this padding mode do.

    Args:
        x: (B, C, H, W).
        n: pixels.
        padding_mode: "zeros"; "replicate" repeats the border; "circular_x" has periodic columns and repeats the outer
            rows.
    """
    if padding_mode == "zeros":
        return F.pad(x, (n, n, n, n))
    rows, columns = (torch.arange(-n, size + n, device=x.device) for size in x.shape[2:])
    columns = columns % x.shape[3] if padding_mode == "circular_x" else columns.clamp(0, x.shape[3] - 1)
    return x.index_select(3, columns).index_select(2, rows.clamp(0, x.shape[2] - 1))


def reflect_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad x at the bottom and right by reflection until its height and width are multiples of a number.

    The reflection is repeated if the field is smaller than the padding.
    """
    for axis in (2, 3):
        n = x.shape[axis]
        extra = get_padding_to_multiple(n, multiple)
        if isinstance(extra, torch.SymInt) or extra:
            period = 2 * n - 2 if n > 1 else 1
            index = torch.arange(n, n + extra, device=x.device) % period
            x = torch.cat([x, x.index_select(axis, torch.minimum(index, period - index))], axis)
    return x


ENCODERS: dict[str, type[nn.Module]] = {"edsr": EDSRBaseline, "rdn": RDN, "swinir": SwinIRLight}


_ROUNDING = 1e-6  # relative to the mean: smaller variation is rounding error, which must not be amplified


def compute_local_contrast(x: Tensor, valid: Tensor | None, window: int, periodic: bool) -> tuple[Tensor, Tensor]:
    """Compute mean m and spread s of the window around every pixel.

        m = box(x), s = sqrt(box((x - m)^2) + (1e-6 m)^2), exactly 0 where all values are 0

    Args:
        x: (B, C, H, W), any unit.
        valid: (B, C, H, W) bool, the pixels that count; None for all.
        window: size of the window in pixels, odd.
        periodic: whether columns are periodic. Other borders repeat the outer pixels.

    Returns:
        m and s, (B, C, H, W), in the unit of x.

    Source: Jarrett et al. 2009, with a box instead of the Gaussian.
    """
    weight = (
        None if valid is None else _compute_box_mean(valid.to(x.dtype), window, periodic).clamp(min=0.5 / window**2)
    )

    def mean(t: Tensor) -> Tensor:
        if valid is None or weight is None:
            return _compute_box_mean(t, window, periodic)
        return _compute_box_mean(torch.where(valid, t, 0), window, periodic) / weight

    m = mean(x)
    variance = mean((x - m).square()) + (_ROUNDING * m).square()
    return m, torch.where(variance > 0, variance, 1).sqrt() * (variance > 0)


def _compute_box_mean(x: Tensor, window: int, periodic: bool) -> Tensor:
    """Compute means of window x window pixels."""
    return F.avg_pool2d(pad_border(x, window // 2, "circular_x" if periodic else "replicate"), window, stride=1)


KINDS = ("deform", "mask", "modconv", "film", "none")
_SCALE_OCTAVES = 6
INITIAL_STRENGTH = 0.1  # initial strength of a DPFA module


class ScaleEmbedding(nn.Module):
    """Embedding of scale factors: e = W_b SiLU(W_a [gamma(log2 s_y), gamma(log2 s_x)] + a) + b.

    gamma(z) = [z, sin(2^l pi z / 4), cos(2^l pi z / 4)], l = 0..5.

    Args:
        channels: number of channels of e.

    Shapes: (B, 2) scale factors -> (B, channels).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Linear(2 * (2 * _SCALE_OCTAVES + 1), channels)
        self.second = nn.Linear(channels, channels)

    def forward(self, scale: Tensor) -> Tensor:
        z = torch.log2(scale)[..., None]
        angle = math.pi / 4 * z * 2.0 ** torch.arange(_SCALE_OCTAVES, device=z.device, dtype=z.dtype)
        gamma = torch.cat([z, torch.sin(angle), torch.cos(angle)], -1).flatten(1)
        return self.second(F.silu(self.first(gamma)))


class DPFA(nn.Module):
    """Dynamic pixel feature aggregation (DPFA).

    DPFA is a modulated deformable 3x3 convolution whose offsets and masks depend on the features f and on the embedding
    e of the scale factors:

        y = f + (tau + B e) * a(f, e)
        f~ = f (1 + g) + beta, (g, beta) = A e + a_0;  o = conv3x3(f~): 18 offsets and 9 logits, masks 2 sigmoid(logit)
        a(p) = sum_k W_k f(p + p_k + offset_k) mask_k + w_0

    The initial offsets are 0 and the initial masks are 1.

    Args:
        channels: number C of channels of f.
        embedding: number of channels of e.
        padding_mode: border of f.
        kind: "deform" is the convolution above. "mask" has no offsets. "modconv" is a convolution with the kernel W (1
            + g), renormalised per output channel. With "film", y is f~.

    Shapes: f (B, C, H, W), e (B, embedding) -> (B, C, H, W).

    Source: Li et al. 2026 (abstract); the equations are ours.
    """

    def __init__(self, channels: int, embedding: int, padding_mode: str, kind: str = "deform"):
        super().__init__()
        self.kind, self.padding_mode = kind, padding_mode
        self.modulator = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.modulator.weight)
        nn.init.zeros_(self.modulator.bias)
        if kind == "film":
            return
        self.aggregate = PaddedConv3x3(channels, channels, padding_mode=padding_mode)
        self.tau = nn.Parameter(torch.full((channels,), INITIAL_STRENGTH))
        self.strength = nn.Linear(embedding, channels, bias=False)
        nn.init.zeros_(self.strength.weight)
        if kind != "modconv":
            self.guide = PaddedConv3x3(channels, 27 if kind == "deform" else 9, padding_mode=padding_mode)
            nn.init.zeros_(self.guide.weight)
            assert self.guide.bias is not None
            nn.init.zeros_(self.guide.bias)

    def forward(self, f: Tensor, e: Tensor) -> Tensor:
        gain, shift = self.modulator(e).to(f.dtype)[..., None, None].chunk(2, 1)
        modulated = f * (1 + gain) + shift
        if self.kind == "film":
            return modulated
        a = (
            self._convolve_modulated(f, gain)
            if self.kind == "modconv"
            else self._aggregate_deformed(f, self.guide(modulated))
        )
        return f + (self.tau + self.strength(e)).to(f.dtype)[..., None, None] * a

    def _aggregate_deformed(self, f: Tensor, guide: Tensor) -> Tensor:
        # Two pixels of border: the outermost taps need one, and bilinear samples beyond the border read zeros.
        guide = F.pad(guide, (1, 1, 1, 1))
        mask = 2 * torch.sigmoid(guide[:, -9:])
        offset = guide[:, :18] if self.kind == "deform" else torch.zeros_like(guide).repeat(1, 2, 1, 1)
        assert self.aggregate.bias is not None
        weight, bias = (t.to(f.dtype) for t in (self.aggregate.weight, self.aggregate.bias))
        a = deform_conv2d(pad_border(f, 2, self.padding_mode), offset.to(f.dtype), weight, bias, mask=mask.to(f.dtype))
        return a[:, :, 1:-1, 1:-1]

    def _convolve_modulated(self, f: Tensor, gain: Tensor) -> Tensor:
        """Compute conv(f, W (1 + g)) = conv(f (1 + g), W). Each output channel keeps the norm of its filter."""
        square = self.aggregate.weight.square().sum((2, 3))
        scaled = (square[None] * (1 + gain[:, None, :, 0, 0]).square()).sum(2)
        norm = torch.sqrt(square.sum(1) / (scaled + 1e-12))[..., None, None].to(f.dtype)
        assert self.aggregate.bias is not None
        bias = self.aggregate.bias[:, None, None]
        return (self.aggregate(f * (1 + gain)) - bias) * norm + bias


class WindowBlock(nn.Module):
    """Swin transformer block: attention in windows and an MLP, each after a LayerNorm and with a residual connection.

    Args:
        channels: number of channels.
        heads: number of attention heads.
        window: size of the windows in pixels.
        shift: shift of the windows in pixels, 0 or half a window.
        ratio: ratio of the MLP's hidden width to `channels`.

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
        """Apply the block.

        Args:
            x: (B, H, W, C), H and W multiples of the window.
            wrap: whether columns are periodic, so that shifted windows may cross the seam.
        """
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
        bias = self.bias[compute_relative_index(n, x.device)].permute(2, 0, 1)[None]
        if s:
            mask = compute_shift_mask(height, width, n, s, wrap, x.device).to(x.dtype)
            bias = (bias + mask[:, None]).repeat(batch, 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(q.shape[0], -1, -1, -1))
        out = self.project(out.transpose(1, 2).reshape(-1, n * n, channels))
        out = out.reshape(batch, height // n, width // n, n, n, channels).transpose(2, 3)
        out = out.reshape(batch, height, width, channels)
        return out.roll((s, s), (1, 2)) if s else out


def compute_relative_index(n: int, device: torch.device) -> Tensor:
    """Compute the row of the bias table for every pair of pixels of a window, (n^2, n^2)."""
    index = torch.arange(n, device=device)
    y, x = (v.reshape(-1) for v in torch.meshgrid(index, index, indexing="ij"))
    return (y[:, None] - y[None] + n - 1) * (2 * n - 1) + x[:, None] - x[None] + n - 1


def compute_shift_mask(height: int, width: int, n: int, s: int, wrap: bool, device: torch.device) -> Tensor:
    """Compute the attention mask of shifted windows.

    The mask is -100 between pixels that are in one window only because of the cyclic shift, and 0 elsewhere.

    Args:
        height: rows of the field.
        width: columns of the field.
        n: size of the windows.
        s: shift.
        wrap: whether columns are periodic.
        device: device of the result.

    Returns:
        (windows, n^2, n^2).
    """

    def assign_regions(size: int, is_periodic: bool) -> Tensor:
        index = torch.arange(size, device=device)
        return torch.zeros_like(index) if is_periodic else (index >= size - s).long()

    region = 2 * assign_regions(height, False)[:, None] + assign_regions(width, wrap)[None]
    region = region.reshape(height // n, n, width // n, n).transpose(1, 2).reshape(-1, n * n)
    return -100.0 * (region[:, :, None] != region[:, None, :])


class ResidualWindowBlocks(nn.Module):
    """Stack of `depth` window blocks on (B, C, H, W). The encoder adds the convolution and the skip around them."""

    def __init__(self, channels: int, depth: int, heads: int, window: int):
        super().__init__()
        self.blocks = nn.ModuleList(WindowBlock(channels, heads, window, i % 2 * (window // 2)) for i in range(depth))

    def forward(self, x: Tensor, wrap: bool) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x, wrap)
        return x.permute(0, 3, 1, 2)


POLES = ("clamp", "cross")
HALO = 16  # rows beyond a pole, a multiple of the Winograd tile


def pad_across_poles(z: Tensor, registration: str, vector_channels: list[int]) -> tuple[Tensor, int]:
    """Extend a global field by rows beyond both poles.

    Row -k is row k (nodes: row 0 is the pole) or row k-1 (cells), rotated by 180 degrees in longitude. Vector
    components change sign.

    Args:
        z: (B, C, H, W), all longitudes, even number of columns.
        registration: "node" or "cell".
        vector_channels: channels of vector components.

    Returns:
        The extended field, and the number of added rows on each side.

    Raises:
        ValueError: If the number of columns is odd.
    """
    height, width = z.shape[2:]
    if width % 2:
        raise ValueError(f"pole='cross' needs an even number of columns, got {width}")
    first = 1 if registration == "node" else 0
    halo = min(HALO, height - first)
    other = torch.cat(z.split([width // 2] * 2, 3)[::-1], 3)
    if vector_channels:
        sign = z.new_ones(z.shape[1])
        for channel in vector_channels:
            sign[channel] = -1
        other = other * sign[:, None, None]
    north = other[:, :, first : first + halo].flip(2)
    south = other[:, :, height - first - halo : height - first].flip(2)
    return torch.cat([north, z, south], 2), halo
