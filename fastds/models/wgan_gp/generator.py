# SPDX-License-Identifier: Apache-2.0
"""Generator of the humidity WGAN-GP: fine fields from coarse fields and noise."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastds._mixins import DownscaleMixin
from fastds.models.baselines.interpolation import interpolate
from fastds.models.card import ModelCard
from fastds.models.graph_cache import capturable
from fastds.models.inputs import check_input
from fastds.models.wgan_gp.layers import MIXINGS, ConvGRU, MixedConv, ResidualAttentionBlock, SqueezeExcitation
from fastds.nn.convolutions import Conv1x1, Conv3x3
from fastds.ops import pixel_shuffle

NOISES = ("add", "learned", "concat")


def fold(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer for (N, C, H, W) to every step of (B, T, C, H, W)."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Upsampler(nn.Module):
    """Chain of x2 stages: 3x3 convolution to four times the channels, ReLU, pixel shuffle.

    Each stage computes C -> 4C -> C channels. With narrow=True the C channels are first shuffled to C/4, and the other
    stages compute C/4 -> C -> C/4.

    Args:
        channels: number C of channels.
        scale: factor in space, a power of two.
        narrow: see above; C must be divisible by 4.
    """

    def __init__(self, channels: int, scale: int, narrow: bool):
        super().__init__()
        steps = scale.bit_length() - 1
        self.shuffle_first = narrow and steps > 0
        inner = channels // 4 if self.shuffle_first else channels
        self.convs = nn.ModuleList(Conv3x3(inner, 4 * inner) for _ in range(steps - self.shuffle_first))
        self.out_channels = inner
        conv: Any
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.shuffle_first:
            x = pixel_shuffle(x, 2)
        for conv in self.convs:
            x = conv(x, activation="relu", upscale_factor=2)
        return x


class HumidityGenerator(DownscaleMixin, nn.Module):
    """Generator of the humidity WGAN-GP. The defaults are the paper's network, as far as the paper describes it.

    The layers are: a stem with mixed kernels, noise, squeeze-and-excitation, residual blocks, a ConvGRU over the time
    steps, residual blocks, a chain of sub-pixel x2 stages, a 1x1 convolution. The number of time steps and the size of
    the fields are free.

    Args:
        in_channels, out_channels: numbers of input and output variables.
        scale: factor in space, a power of two.
        width, post_width: channels before and after the ConvGRU.
        pre_blocks, post_blocks: number of residual blocks before and after the ConvGRU.
        reduction: reduction of squeeze-and-excitation and CBAM.
        mixing: combination of the kernels, "parallel", "sum" or "sequential", see MixedConv.
        noise: "add" adds sigma * N(0, 1) to the output of the stem. "learned" does the same with a trained sigma.
            "concat" appends noise_channels channels of N(0, 1) to the input.
        noise_std: sigma; the initial value for "learned".
        noise_channels: number of noise channels for "concat".
        upsampling: "wide" or "narrow", see Upsampler.
        use_resblocks, use_cbam: False for the paper's ablations.
        block_activation: whether to apply ReLU after the sum of a residual block.
        stem_activation: whether to apply ReLU after the stem.
        residual: None, "center" or "grid". The last two add the first out_channels input channels, interpolated
            bicubically with coarse values at block centres (area means) or at the first corner of blocks (decimated
            fields). The head is then initialised with zeros.

    Source: Li, Wang, Wang and Han 2024, figure 3.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        scale: int = 8,
        width: int = 128,
        post_width: int = 256,
        pre_blocks: int = 3,
        post_blocks: int = 3,
        reduction: int = 16,
        mixing: str = "parallel",
        noise: str = "add",
        noise_std: float = 1.0,
        noise_channels: int = 8,
        upsampling: str = "wide",
        use_resblocks: bool = True,
        use_cbam: bool = True,
        block_activation: bool = True,
        stem_activation: bool = False,
        residual: str | None = None,
    ):
        super().__init__()
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_config(config)
        self.config = config
        self.card = ModelCard(name="wgan-gp", space_factor=scale, time_factor=1)
        block: dict[str, Any] = {
            "norm": "batch",
            "attention": use_cbam,
            "reduction": reduction,
            "skip": use_resblocks,
            "activation": block_activation,
            "mixing": mixing,
        }
        self.stem = MixedConv(in_channels + (noise_channels if noise == "concat" else 0), width, mixing=mixing)
        self.se = SqueezeExcitation(width, reduction)
        if noise == "learned":
            self.noise_std = nn.Parameter(torch.tensor(float(noise_std)))
        self.pre = nn.Sequential(*(ResidualAttentionBlock(width, width, **block) for _ in range(pre_blocks)))
        self.gru = ConvGRU(width, width)
        widths = [width] + post_blocks * [post_width]
        blocks = (ResidualAttentionBlock(a, b, **block) for a, b in itertools.pairwise(widths))
        self.post = nn.Sequential(*blocks)
        self.upsampler = Upsampler(widths[-1], scale, upsampling == "narrow")
        self.head = Conv1x1(self.upsampler.out_channels, out_channels)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        nn.init.xavier_normal_(self.head.weight)
        if residual is not None:  # without training the output is the interpolation
            nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, noise: str | Tensor = "random", seed: int | None = None) -> Tensor:
        """Draw one ensemble member.

        Args:
            x: (B, T, C, h, w), normalised.
            noise: "random", "zero" (deterministic), or a tensor of N(0, 1) numbers of shape noise_shape(x).
            seed: seed of "random" noise. The numbers for a seed and shape are the same on all devices. None uses
                torch's random state.

        Returns:
            (B, T, O, scale*h, scale*w), normalised.

        Raises:
            ValueError: If x or noise has a wrong shape, or if noise is an unknown string.
            TypeError: If x is not floating-point, or if only one of x and the weights is float64.
        """
        c = self.config
        check_input("x", x, self)
        if x.ndim != 5 or x.shape[2] != c["in_channels"]:
            raise ValueError(f"x must have shape (B, T, {c['in_channels']}, h, w), got {tuple(x.shape)}")
        return self._run(x, self.draw(x, noise, seed))

    @capturable
    def _run(self, x: Tensor, eps: Tensor | None) -> Tensor:
        """Run the network on a checked input and its noise, see `draw`."""
        c = self.config
        if c["noise"] == "concat":
            assert eps is not None
            h = torch.cat([x, eps], 2)
        else:
            h = x
        h = self.stem(h.flatten(0, 1), activation="relu" if c["stem_activation"] else None)
        if c["noise"] != "concat" and eps is not None:
            sigma = self.noise_std if c["noise"] == "learned" else c["noise_std"]
            h = h + sigma * eps.flatten(0, 1).to(h.dtype)
        h = self.pre(self.se(h)).unflatten(0, x.shape[:2])
        y = self.head(self.upsampler(self.post(self.gru(h).flatten(0, 1)))).unflatten(0, x.shape[:2])
        if c["residual"] is None:
            return y
        return interpolate(x[:, :, : c["out_channels"]].float(), c["scale"], "bicubic", c["residual"]) + y

    def noise_shape(self, x: Tensor) -> tuple[int, ...]:
        """Return the shape of the noise for an input x: (B, T, width or noise_channels, h, w)."""
        channels = self.config["noise_channels" if self.config["noise"] == "concat" else "width"]
        return (*x.shape[:2], channels, *x.shape[3:])

    def draw(self, x: Tensor, noise: str | Tensor, seed: int | None) -> Tensor | None:
        """Draw the noise of a call, in the dtype of x.

        Args:
            x: (B, T, C, h, w), input of the call.
            noise: "random", "zero", or a tensor of shape noise_shape(x).
            seed: seed of "random" noise, or None for torch's random state.

        Returns:
            The noise, or None if noise is "zero" and would only be added.

        Raises:
            ValueError: If the tensor has a wrong shape, or if noise is an unknown string.
        """
        shape = self.noise_shape(x)
        if isinstance(noise, Tensor):
            if tuple(noise.shape) != shape:
                raise ValueError(f"noise must have shape {shape}, got {tuple(noise.shape)}")
            return noise.to(x)
        if noise == "zero":
            return x.new_zeros(shape) if self.config["noise"] == "concat" else None
        if noise != "random":
            raise ValueError(f"noise must be 'random', 'zero' or a Tensor, got {noise!r}")
        if seed is None:
            return torch.randn(shape, device=x.device, dtype=x.dtype)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(x)

    def ensemble(self, x: Tensor, members: int, seed: int = 0) -> Tensor:
        """Draw several ensemble members with the seeds seed, seed + 1, ..., without gradients.

        A member does not depend on the number of members.

        Args:
            x: (B, T, C, h, w), normalised.
            members: number M of members.
            seed: seed of the first member.

        Returns:
            (M, B, T, O, scale*h, scale*w), normalised.

        Raises:
            ValueError: If members is below 1.
        """
        if members < 1:
            raise ValueError(f"members must be at least 1, got {members}")
        with torch.no_grad():
            return torch.stack([self(x, seed=seed + m) for m in range(members)])


def check_config(config: dict) -> None:
    """Check the configuration of a HumidityGenerator.

    Raises:
        ValueError: If an argument has a wrong value. The message names the argument.
    """
    for name in ("in_channels", "out_channels", "width", "post_width", "reduction", "noise_channels", "scale"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise ValueError(f"{name} must be a positive integer, got {config[name]!r}")
    for name in ("pre_blocks", "post_blocks"):
        if not isinstance(config[name], int) or config[name] < 0:
            raise ValueError(f"{name} must be an integer >= 0, got {config[name]!r}")
    if config["scale"] & (config["scale"] - 1):
        raise ValueError(f"scale must be a power of two, got {config['scale']}")
    choices = {
        "mixing": MIXINGS,
        "noise": NOISES,
        "upsampling": ("wide", "narrow"),
        "residual": (None, "center", "grid"),
    }
    for name, allowed in choices.items():
        if config[name] not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {config[name]!r}")
    last = config["post_width"] if config["post_blocks"] else config["width"]
    if config["upsampling"] == "narrow" and last % 4:
        raise ValueError(
            f"upsampling='narrow' shuffles channels by 4, so post_width must be divisible by 4, got {last}"
        )
    if config["residual"] and config["out_channels"] > config["in_channels"]:
        raise ValueError(
            f"residual={config['residual']!r} adds the first input channels to the output, so out_channels must be at "
            f"most in_channels={config['in_channels']}, got {config['out_channels']}"
        )
