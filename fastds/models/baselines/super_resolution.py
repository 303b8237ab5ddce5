# SPDX-License-Identifier: Apache-2.0
"""Published super-resolution networks, SRCNN and SRGAN, applied to each field independently."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.baselines.interpolation import interpolate
from fastds.models.card import ModelCard
from fastds.nn.convolutions import Conv2d, Conv3x3, convolve, get_parameters


class SRCNN(nn.Module):
    """SRCNN: three convolutions on the bicubically interpolated field.

        y = conv_c(relu(conv_b(relu(conv_a(bicubic(x))))))

    Args:
        channels: number of variables.
        scale: factor in space.
        kernels: sizes of the three convolutions. (9, 1, 5) has 8,129 parameters, (9, 5, 5) has 57,281.
        align: alignment of the interpolation, see `interpolate`.

    Shapes: (..., C, h, w) -> (..., C, scale*h, scale*w).

    Source: Dong et al. 2016.
    """

    def __init__(
        self, channels: int = 1, scale: int = 8, kernels: tuple[int, int, int] = (9, 1, 5), align: str = "center"
    ):
        super().__init__()
        self.config = {"channels": channels, "scale": scale, "kernels": list(kernels), "align": align}
        self.card = ModelCard(name="srcnn", space_factor=scale, time_factor=1)
        self.scale, self.align = scale, align
        widths = (channels, 64, 32, channels)
        layers = zip(widths, widths[1:], kernels, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, k, padding=k // 2) for a, b, k in layers)

    def forward(self, x: Tensor) -> Tensor:
        y = interpolate(x, self.scale, "bicubic", self.align)
        a, b, c = self.convs
        h = c(F.relu(b(F.relu(a(y.flatten(0, -4))))))
        return h.view(y.shape)


def apply_conv_norm(conv: Conv3x3, norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Compute norm(conv(x)) + residual.

    In evaluation mode the normalisation is folded into the kernel and the sum is fused with the convolution.

    Args:
        conv: the convolution.
        norm: its batch normalisation.
        x: (B, C, H, W).
        residual: tensor of the shape of the result, or None.
    """
    if norm.training:
        y = norm(conv(x))
        return y if residual is None else residual + y
    weight, bias = get_parameters(conv)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    assert bias is not None
    shift = (bias - norm.running_mean) * scale + norm.bias
    return convolve(x, weight * scale[:, None, None, None], shift, residual=residual)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.norm1 = Conv3x3(width, width), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = Conv3x3(width, width), nn.BatchNorm2d(width)
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(apply_conv_norm(self.conv1, self.norm1, x))
        return apply_conv_norm(self.conv2, self.norm2, h, residual=x)


class _UpsamplingConv(Conv3x3):
    """Convolution to four times the channels, fused with a pixel shuffle to twice the resolution."""

    def __init__(self, width: int):
        super().__init__(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the options are fixed
        return super().forward(x, upscale_factor=2)


class SRResNet(nn.Module):
    """SRResNet, the generator of SRGAN: residual blocks and sub-pixel x2 stages between two 9x9 convolutions.

    The output is linear and the network is trained without a perceptual loss, because the outputs are fields and not
    photographs.

    Args:
        channels: number of variables.
        scale: factor in space, a power of two. x8 has three stages (1,676,437 parameters with 16 blocks and one
            variable).
        width: number of feature maps.
        blocks: number of residual blocks.

    Shapes: (..., C, h, w) -> (..., C, scale*h, scale*w).

    Source: Ledig et al. 2017.
    """

    def __init__(self, channels: int = 1, scale: int = 8, width: int = 64, blocks: int = 16):
        super().__init__()
        if scale < 2 or scale & (scale - 1):
            raise ValueError(f"scale must be a power of two above 1, got {scale}")
        self.config = {"channels": channels, "scale": scale, "width": width, "blocks": blocks}
        self.card = ModelCard(name="srgan", space_factor=scale, time_factor=1)
        self.first = nn.Sequential(Conv2d(channels, width, 9, padding="same"), nn.PReLU())
        self.blocks = nn.Sequential(*(_ResidualBlock(width) for _ in range(blocks)))
        self.middle: Any = nn.Sequential(Conv3x3(width, width), nn.BatchNorm2d(width))
        stages = []
        for _ in range(
            scale.bit_length() - 1
        ):  # nn.Identity keeps the state_dict keys of a network with a separate shuffle layer
            stages += [_UpsamplingConv(width), nn.Identity(), nn.PReLU()]
        self.up = nn.Sequential(*stages)
        self.last = Conv2d(width, channels, 9, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        flat = self.first(x.flatten(0, -4))
        conv, norm = self.middle
        y = self.last(self.up(apply_conv_norm(conv, norm, self.blocks(flat), residual=flat)))
        return y.view(*x.shape[:-2], *y.shape[-2:])


class SRGANDiscriminator(nn.Module):
    """Discriminator of SRGAN, one logit per field.

    Args:
        channels: number of variables.
        width: number of feature maps of the first layer.

    Shapes: (..., C, H, W) -> (...).

    Source: Ledig et al. 2017.
    """

    def __init__(self, channels: int = 1, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.2)]
        inputs = width
        for outputs, stride in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2)):
            layers += [nn.Conv2d(inputs, outputs * width, 3, stride, 1), nn.BatchNorm2d(outputs * width)]
            layers.append(nn.LeakyReLU(0.2))
            inputs = outputs * width
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(8 * width, 16 * width), nn.LeakyReLU(0.2), nn.Linear(16 * width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.flatten(0, -4)).mean((2, 3))).view(x.shape[:-3])
