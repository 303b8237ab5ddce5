# SPDX-License-Identifier: Apache-2.0
"""U-Nets that FC-ZSM is compared with: they refine two interpolated fields, in the plane or in space and time."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds._mixins import DownscaleMixin
from fastds.models.baselines.interpolation import check_sequence, trilinear, upsample
from fastds.models.card import ModelCard
from fastds.models.inputs import check_input
from fastds.nn.convolutions import Conv3x3
from fastds.ops.core.layout import to_multiple

_FRAMES = 2  # known fields; three come out


class _Refines(DownscaleMixin, nn.Module):
    """What both have in common: config and card, interpolation before the network, sizes of any number.

    Subclasses give levels, the halvings of the grid, interpolated(x) -> (B, ..., r*h, r*w), and refine(y) -> the same
    with 3 * out_channels maps in place of the channels.
    """

    levels: int

    def __init__(self, name: str, config: dict):
        super().__init__()
        for key, value in config.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{key} must be a positive integer, got {value!r}")
        self.config, self.scale = config, config["scale"]
        self.card = ModelCard(name=name, space_factor=self.scale, time_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        """Downscale a pair of fields.

        Args:
            x: (B, 2, in_channels, h, w), normalised; any h and w.

        Returns:
            (B, 3, out_channels, r*h, r*w) at half the time step, normalised.

        Raises:
            ValueError, TypeError: x of another shape or type.
        """
        check_sequence(x, self.scale)
        check_input("x", x, self)
        c = self.config["in_channels"]
        if x.shape[1:3] != (_FRAMES, c):
            raise ValueError(f"x must have shape (B, {_FRAMES}, {c}, h, w), got {tuple(x.shape)}")
        y = self.interpolated(x)
        height, width = y.shape[-2:]
        z = self.refine(_pad(y, 2**self.levels))[..., :height, :width]
        return z.reshape(x.shape[0], 2 * _FRAMES - 1, self.config["out_channels"], height, width).contiguous()

    def start(self) -> None:
        """Fresh weights of a network of ReLUs: normal with variance 2 / fan in, biases zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")


class UNet(_Refines):
    """U-Net of the plane: both fields, bilinearly interpolated, are its channels, the three fine ones its outputs.

        e_1 = two(up(x)); e_k+1 = two(maxpool(e_k)); d_5 = e_5; d_k = two([e_k, transposed(d_k+1)]); y = conv1x1(d_1)
        two(z) = relu(conv3x3(relu(conv3x3(z)))), widths width * (1, 2, 4, 8, 16), zero padding, no normalisation

    Args:
        in_channels: C, dynamic variables. out_channels: of each of the three fields.
        width: feature maps of the first level; 64 has 31,031,299 parameters, 32 has 7,759,875.
        scale: r, factor in space.

    Source: Ronneberger, Fischer and Brox 2015; the baseline of Chen, Qin and Dai 2022, who tell no widths.
    """

    levels = 4

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 64, scale: int = 2):
        config = {"in_channels": in_channels, "out_channels": out_channels, "width": width, "scale": scale}
        super().__init__("unet", config)
        widths = [width << k for k in range(self.levels + 1)]
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList([_Two(_FRAMES * in_channels, width), *(_Two(a, b) for a, b in pairs)])
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs)
        self.merge = nn.ModuleList(_Two(2 * a, a) for a, _ in pairs)
        self.last = nn.Conv2d(width, (2 * _FRAMES - 1) * out_channels, 1)
        self.start()

    def interpolated(self, x: Tensor) -> Tensor:
        return upsample(x, self.scale, "bilinear").flatten(1, 2)

    def refine(self, y: Tensor) -> Tensor:
        y = y.contiguous(memory_format=torch.channels_last)

        def finer(level: int, z: Tensor, skip: Tensor) -> Tensor:
            return self.merge[level](skip, self.up[level](z))

        return self.last(_u_shape(y, self.down, finer, 2))


class UNet3D(_Refines):
    """U-Net of space and time: the three interpolated fields go in, the three fine ones come out.

    As UNet with three levels below the first, ReLU and zero padding, but: kernels reach over three times, kernel x
    kernel pixels at the first level (over kernel times in the second convolution there) and 3 x 3 below; pooling and
    nearest-neighbour upsampling, which a convolution follows, leave time alone; the last convolution is (3, 1, 1).

    Args:
        in_channels, out_channels, scale: as UNet.
        width: feature maps of the first level, doubled at each below; 72 has 34,234,057 parameters.
        kernel: pixels of the first level's kernels, odd.

    Source: Serifi, Günther and Ban 2021 (their deep convolutional network, without its inputs of place and time); with
    a padded last convolution the UNet3D of Chen, Qin and Dai 2022.
    """

    levels = 3

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 72, scale: int = 2, kernel: int = 5):
        config = {"in_channels": in_channels, "out_channels": out_channels, "width": width, "scale": scale}
        super().__init__("unet3d", {**config, "kernel": kernel})
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        widths, sides = [width << k for k in range(self.levels + 1)], [kernel, 3, 3]
        pairs = list(zip(widths, widths[1:], strict=False))
        first = _Two3D(in_channels, width, kernel, times=kernel)
        self.down = nn.ModuleList([first, *(_Two3D(a, b, 3) for a, b in pairs)])
        self.up = nn.ModuleList(_conv3d(b, a, k) for (a, b), k in zip(pairs, sides, strict=True))
        self.merge = nn.ModuleList(_Two3D(2 * a, a, k) for a, k in zip(widths, sides, strict=False))
        self.last = nn.Conv3d(width, out_channels, (3, 1, 1), padding=(1, 0, 0))
        self.start()

    def interpolated(self, x: Tensor) -> Tensor:
        return trilinear(x, self.scale)

    def refine(self, y: Tensor) -> Tensor:
        y = y.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)

        def finer(level: int, z: Tensor, skip: Tensor) -> Tensor:
            z = F.relu(self.up[level](F.interpolate(z, scale_factor=(1, 2, 2), mode="nearest")))
            return self.merge[level](torch.cat([skip, z], 1))

        return self.last(_u_shape(y, self.down, finer, (1, 2, 2))).transpose(1, 2)


class _Two(nn.Module):
    """relu(conv(relu(conv([x, x2]))))"""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.conv1, self.conv2 = Conv3x3(in_channels, width), Conv3x3(width, width)

    def forward(self, x: Tensor, x2: Tensor | None = None) -> Tensor:
        return self.conv2(self.conv1(x, x2, act="relu"), act="relu")


class _Two3D(nn.Module):
    """relu(conv(relu(conv(x)))); times: of the second kernel."""

    def __init__(self, in_channels: int, width: int, kernel: int, times: int = 3):
        super().__init__()
        self.conv1, self.conv2 = _conv3d(in_channels, width, kernel), _conv3d(width, width, kernel, times)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))


def _conv3d(in_channels: int, out_channels: int, kernel: int, times: int = 3) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, (times, kernel, kernel), padding=(times // 2, kernel // 2, kernel // 2))


def _u_shape(y: Tensor, down: nn.ModuleList, finer: Callable[[int, Tensor, Tensor], Tensor], pool) -> Tensor:
    """Down through the levels, and up again by finer(level, map below, map of that level on the way down)."""
    pooled = F.max_pool2d if y.ndim == 4 else F.max_pool3d
    maps = [down[0](y)]
    for level in down[1:]:
        maps.append(level(pooled(maps[-1], pool)))
    z = maps.pop()
    for level in reversed(range(len(maps))):
        z = finer(level, z, maps[level])
    return z


def _pad(y: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of (..., H, W) until both sizes are multiples."""
    missing = [to_multiple(n, multiple) for n in y.shape[-2:]]
    if all(isinstance(n, int) and n == 0 for n in missing):  # sizes that a tracer leaves open are no int
        return y
    pad = (0, missing[1], 0, missing[0])
    return F.pad(y.flatten(0, -4), pad, mode="replicate").unflatten(0, y.shape[:-3])
