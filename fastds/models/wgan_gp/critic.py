# SPDX-License-Identifier: Apache-2.0
"""Critic of the humidity WGAN-GP: from a day of fine fields to one score."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.card import ModelCard
from fastds.models.wgan_gp.layers import MIXINGS, NORMS, ConvGRU, MixedConv, ResidualAttentionBlock


class HumidityCritic(nn.Module):
    """Critic of the humidity WGAN-GP. It is twice differentiable in its input and its parameters.

    The layers are: a stem with mixed kernels, residual blocks of stride 2 that double the channels, a ConvGRU over the
    time steps, residual blocks, the mean over the field, a linear layer, the mean over the time steps. The number of
    time steps and the size of the fields are free.

    Batch normalisation would couple the samples of a batch in the gradient penalty. "layer" normalises each field
    independently.

    Args:
        in_channels: number of variables.
        width: channels of the stem.
        down_blocks: number of residual blocks of stride 2.
        recurrent_width: channels of the ConvGRU and the blocks after it; None takes those before it.
        post_blocks: number of residual blocks after the ConvGRU.
        norm: "layer", "none", "batch" (as in the paper's figure; couples samples) or "spectral".
        conditional: also read the coarse fields, repeated to the fine grid.
        coarse_channels: number of variables of the coarse fields.
        per_step: return one score per time step instead of their mean.
        reduction, mixing, use_cbam, use_resblocks, block_activation: as for HumidityGenerator.

    Source: Li, Wang, Wang and Han 2024, figure 3 and Algorithm 1; Gulrajani et al. 2017.
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 32,
        down_blocks: int = 3,
        recurrent_width: int | None = None,
        post_blocks: int = 2,
        norm: str = "layer",
        conditional: bool = False,
        coarse_channels: int = 1,
        per_step: bool = False,
        reduction: int = 16,
        mixing: str = "parallel",
        use_cbam: bool = True,
        use_resblocks: bool = True,
        block_activation: bool = True,
    ):
        super().__init__()
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_config(config)
        self.config = config
        self.card = ModelCard(name="wgan-gp-critic")
        block: dict[str, Any] = {
            "norm": norm,
            "attention": use_cbam,
            "reduction": reduction,
            "skip": use_resblocks,
            "activation": block_activation,
            "mixing": mixing,
        }
        self.stem = MixedConv(in_channels + (coarse_channels if conditional else 0), width, mixing=mixing)
        widths = [width * 2**k for k in range(down_blocks + 1)]
        pairs = itertools.pairwise(widths)
        self.down = nn.Sequential(*(ResidualAttentionBlock(a, b, stride=2, **block) for a, b in pairs))
        recurrent = recurrent_width or widths[-1]
        self.gru = ConvGRU(widths[-1], recurrent)
        blocks = (ResidualAttentionBlock(recurrent, recurrent, **block) for _ in range(post_blocks))
        self.post = nn.Sequential(*blocks)
        self.linear = nn.Linear(recurrent, 1)

    @property
    def has_independent_samples(self) -> bool:
        """True if the score of a sample depends on this sample alone."""
        return self.config["norm"] != "batch"

    def forward(self, x: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Score a sequence of fields.

        Args:
            x: (B, T, C, H, W), fine fields, normalised.
            coarse: (B, T, Cc, h, w), coarse fields, where H and W are multiples of h and w. Required if `conditional`,
                not allowed otherwise.

        Returns:
            (B,), or (B, T) with per_step.

        Raises:
            ValueError: If x or coarse has a wrong shape, or if coarse is missing or not allowed.
        """
        x = self.stack_condition(x, coarse)
        h = self.down(self.stem(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        h = self.post(self.gru(h).flatten(0, 1)).mean((2, 3))
        score = self.linear(h).unflatten(0, x.shape[:2])[..., 0]
        return score if self.config["per_step"] else score.mean(1)

    def stack_condition(self, x: Tensor, coarse: Tensor | None) -> Tensor:
        """Return x, with the coarse fields as further channels if the critic is conditional."""
        c = self.config
        if x.ndim != 5 or x.shape[2] != c["in_channels"]:
            raise ValueError(f"x must have shape (B, T, {c['in_channels']}, H, W), got {tuple(x.shape)}")
        if not c["conditional"]:
            if coarse is not None:
                raise ValueError("coarse was given, but this critic has conditional=False")
            return x
        if coarse is None:
            raise ValueError("coarse is missing: this critic has conditional=True")
        expected = (*x.shape[:2], c["coarse_channels"])
        fits = coarse.ndim == 5 and tuple(coarse.shape[:3]) == expected
        if not fits or any(fine % size for fine, size in zip(x.shape[3:], coarse.shape[3:], strict=True)):
            height, width = x.shape[3:]
            raise ValueError(
                f"coarse must have shape {expected} + (h, w) to go with x, {height} x {width} a multiple of h x w; "
                f"got {tuple(coarse.shape)}"
            )
        fine = F.interpolate(coarse.flatten(0, 1).to(x.dtype), x.shape[3:], mode="nearest")
        return torch.cat([x, fine.unflatten(0, x.shape[:2])], 2)


def check_config(config: dict) -> None:
    """Check the configuration of a HumidityCritic.

    Raises:
        ValueError: If an argument has a wrong value. The message names the argument.
    """
    for name in ("in_channels", "width", "reduction", "coarse_channels"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise ValueError(f"{name} must be a positive integer, got {config[name]!r}")
    for name in ("down_blocks", "post_blocks"):
        if not isinstance(config[name], int) or config[name] < 0:
            raise ValueError(f"{name} must be an integer >= 0, got {config[name]!r}")
    recurrent = config["recurrent_width"]
    if recurrent is not None and (not isinstance(recurrent, int) or recurrent < 1):
        raise ValueError(f"recurrent_width must be None or a positive integer, got {recurrent!r}")
    for name, allowed in {"norm": NORMS, "mixing": MIXINGS}.items():
        if config[name] not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {config[name]!r}")
