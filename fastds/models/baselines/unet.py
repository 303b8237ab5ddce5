# SPDX-License-Identifier: Apache-2.0
"""U-Nets that refine interpolated frames, as peers of FC-ZSM: UNet in the plane, UNet3D in space and time."""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds._mixins import DownscaleMixin
from fastds.models.baselines.interpolation import check_sequence, trilinear, upsample
from fastds.models.card import ModelCard
from fastds.models.graph_cache import capturable
from fastds.models.inputs import check_input
from fastds.nn.convolutions import Conv3x3
from fastds.ops.core.layout import get_padding_to_multiple

_FRAMES = 2  # input frames; the output has three


class _RefinementNetwork(DownscaleMixin, nn.Module):
    """Base class of networks that refine an interpolated sequence.

    Subclasses define `levels` (number of halvings of the grid), `interpolate_input(x)`, which returns a tensor of the
    fine resolution, and `refine(y)`, which maps this tensor to the values of the three output frames.
    """

    levels: int
    interpolate_input: Callable[[Tensor], Tensor]
    refine: Callable[[Tensor], Tensor]

    bits_depend_on_threads = True  # those of torch's transposed and three-dimensional convolutions

    def __init__(self, name: str, config: dict):
        super().__init__()
        for key, value in config.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{key} must be a positive integer, got {value!r}")
        self.config, self.scale = config, config["scale"]
        self.card = ModelCard(name=name, space_factor=self.scale, time_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        """Downscale a pair of frames.

        Args:
            x: (B, 2, in_channels, h, w), normalised; any h and w.

        Returns:
            (B, 3, out_channels, r*h, r*w) at half the time step, normalised.

        Raises:
            ValueError: If x has another shape.
            TypeError: If x is not floating-point, or if only one of x and the weights is float64.
        """
        check_sequence(x, self.scale)
        check_input("x", x, self)
        c = self.config["in_channels"]
        if x.shape[1:3] != (_FRAMES, c):
            raise ValueError(f"x must have shape (B, {_FRAMES}, {c}, h, w), got {tuple(x.shape)}")
        return self._run(x)

    @capturable
    def _run(self, x: Tensor) -> Tensor:
        y = self.interpolate_input(x)
        height, width = y.shape[-2:]
        z = self.refine(_pad_to_multiple(y, 2**self.levels))[..., :height, :width]
        return z.reshape(x.shape[0], 2 * _FRAMES - 1, self.config["out_channels"], height, width).contiguous()

    def init_weights(self) -> None:
        """Initialise the weights for ReLU networks: normal with variance 2 / fan-in, biases zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")


class UNet(_RefinementNetwork):
    """U-Net in the plane: the channels of both interpolated frames are the input, the three fine frames are the output.

        e_1 = two(up(x)); e_k+1 = two(maxpool(e_k)); d_5 = e_5; d_k = two([e_k, transposed(d_k+1)]); y = conv1x1(d_1)
        two(z) = relu(conv3x3(relu(conv3x3(z)))), widths width * (1, 2, 4, 8, 16), zero padding, no normalisation

    Args:
        in_channels: number C of dynamic variables.
        out_channels: number of channels of each output frame.
        width: number of feature maps of the first level. 64 gives 31,031,299 parameters, 32 gives 7,759,875.
        scale: factor r in space.

    Source: Ronneberger, Fischer and Brox 2015; a baseline of Chen, Qin and Dai 2022, who do not give its widths.
    """

    levels = 4

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 64, scale: int = 2):
        config = {"in_channels": in_channels, "out_channels": out_channels, "width": width, "scale": scale}
        super().__init__("unet", config)
        widths = [width << k for k in range(self.levels + 1)]
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList([_DoubleConv(_FRAMES * in_channels, width), *(_DoubleConv(a, b) for a, b in pairs)])
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs)
        self.merge = nn.ModuleList(_DoubleConv(2 * a, a) for a, _ in pairs)
        self.last = nn.Conv2d(width, (2 * _FRAMES - 1) * out_channels, 1)
        self.init_weights()

    def interpolate_input(self, x: Tensor) -> Tensor:
        return upsample(x, self.scale, "bilinear").flatten(1, 2)

    def refine(self, y: Tensor) -> Tensor:
        y = y.contiguous(memory_format=torch.channels_last)

        def decode_level(level: int, z: Tensor, skip: Tensor) -> Tensor:
            return self.merge[level](skip, self.up[level](z))

        return self.last(_run_u_shape(y, self.down, decode_level, 2))


class UNet3D(_RefinementNetwork):
    """U-Net in space and time: the three interpolated frames are the input, the three fine frames are the output.

    The structure is that of UNet with three levels below the first. The kernels of the three-dimensional convolutions
    span three time steps, except the second kernel of the first level before pooling, which spans `kernel` time steps.
    In space they have `kernel` x `kernel` pixels at the first level and 3 x 3 pixels below. The last kernel has one
    pixel. Pooling and nearest-neighbour upsampling, which is followed by a convolution, do not change the time
    dimension.

    Args:
        in_channels, out_channels, scale: as for UNet.
        width: number of feature maps of the first level, doubled at each level below. 72 gives 34,234,057 parameters.
        kernel: size in pixels of the kernels of the first level, odd.

    Source: Serifi, Günther and Ban 2021 (their deep convolutional network without inputs of place and time). With a
    padded last convolution this is the UNet3D of Chen, Qin and Dai 2022.
    """

    levels = 3

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 72, scale: int = 2, kernel: int = 5):
        config = {"in_channels": in_channels, "out_channels": out_channels, "width": width, "scale": scale}
        super().__init__("unet3d", {**config, "kernel": kernel})
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        widths, sides = [width << k for k in range(self.levels + 1)], [kernel, 3, 3]
        pairs = list(itertools.pairwise(widths))
        first = _DoubleConv3D(in_channels, width, kernel, times=kernel)
        self.down = nn.ModuleList([first, *(_DoubleConv3D(a, b, 3) for a, b in pairs)])
        self.up = nn.ModuleList(_conv3d(b, a, k) for (a, b), k in zip(pairs, sides, strict=True))
        self.merge = nn.ModuleList(_DoubleConv3D(2 * a, a, k) for a, k in zip(widths, sides, strict=False))
        self.last = nn.Conv3d(width, out_channels, (3, 1, 1), padding=(1, 0, 0))
        self.init_weights()

    def interpolate_input(self, x: Tensor) -> Tensor:
        return trilinear(x, self.scale)

    def refine(self, y: Tensor) -> Tensor:
        y = y.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)

        def decode_level(level: int, z: Tensor, skip: Tensor) -> Tensor:
            z = F.relu(self.up[level](F.interpolate(z, scale_factor=(1, 2, 2), mode="nearest")))
            return self.merge[level](torch.cat([skip, z], 1))

        return self.last(_run_u_shape(y, self.down, decode_level, (1, 2, 2))).transpose(1, 2)


class _DoubleConv(nn.Module):
    """Two convolutions: relu(conv(relu(conv([x, x2]))))."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.conv1, self.conv2 = Conv3x3(in_channels, width), Conv3x3(width, width)

    def forward(self, x: Tensor, x2: Tensor | None = None) -> Tensor:
        return self.conv2(self.conv1(x, x2, activation="relu"), activation="relu")


class _DoubleConv3D(nn.Module):
    """Two convolutions, relu(conv(relu(conv(x)))). `times` is the time extent of the second kernel in steps."""

    def __init__(self, in_channels: int, width: int, kernel: int, times: int = 3):
        super().__init__()
        self.conv1, self.conv2 = _conv3d(in_channels, width, kernel), _conv3d(width, width, kernel, times)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))


def _conv3d(in_channels: int, out_channels: int, kernel: int, times: int = 3) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, (times, kernel, kernel), padding=(times // 2, kernel // 2, kernel // 2))


def _run_u_shape(y: Tensor, down: nn.ModuleList, decode_level: Callable[[int, Tensor, Tensor], Tensor], pool) -> Tensor:
    """Run the U shape: down through all levels, and up again by `decode_level`.

    Args:
        y: input of the first level.
        down: blocks of the levels.
        decode_level: function of the level, the feature map of the level below, and the skip feature map of this level.
        pool: pooling size.
    """
    pooled = F.max_pool2d if y.ndim == 4 else F.max_pool3d
    maps = [down[0](y)]
    for block in down[1:]:
        maps.append(block(pooled(maps[-1], pool)))
    z = maps.pop()
    for level in reversed(range(len(maps))):
        z = decode_level(level, z, maps[level])
    return z


def _pad_to_multiple(y: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of (..., H, W) until both sizes are multiples of `multiple`."""
    missing = [get_padding_to_multiple(n, multiple) for n in y.shape[-2:]]
    if all(isinstance(n, int) and n == 0 for n in missing):  # symbolic sizes of a tracer are no int
        return y
    pad = (0, missing[1], 0, missing[0])
    return F.pad(y.flatten(0, -4), pad, mode="replicate").unflatten(0, y.shape[:-3])
