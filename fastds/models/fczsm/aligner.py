# SPDX-License-Identifier: Apache-2.0
"""Deformable alignment of one feature map toward another: feature pyramid and one-way aligners.

Shapes: a pyramid is a list [L1, L2, L3] of (B, n, h, w), (B, n, h/2, w/2), (B, n, h/4, w/4); a single map is the
list [L1]. A base offset is a list of (B, 2, h, w) float32 displacements (dy, dx) in pixels of each level, or None.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fastds.nn.convolutions import Conv3x3, convolve
from fastds.nn.deform_conv2d import GuidedDeformConv2d
from fastds.nn.resize import upsample2
from fastds.ops.impl.conv3x3.library import activate_

LEVELS = 3


class FeaturePyramid(nn.Module):
    """L1 = x; L2 = act(conv(act(conv_stride2(L1)))); L3 likewise from L2.  act = leaky ReLU, slope 0.1."""

    levels = LEVELS

    def __init__(self, features: int):
        super().__init__()
        self.down2 = Conv3x3(features, features, stride=2)
        self.conv2 = Conv3x3(features, features)
        self.down3 = Conv3x3(features, features, stride=2)
        self.conv3 = Conv3x3(features, features)

    def forward(self, x: Tensor) -> list[Tensor]:
        second = self.conv2(self.down2(x, act="leaky_relu"), act="leaky_relu")
        third = self.conv3(self.down3(second, act="leaky_relu"), act="leaky_relu")
        return [x, second, third]

    def of_zeros(self, like: Tensor) -> list[Tensor | None]:
        """Levels of an all-zero map of like's size, batch 1; None stands for the zero map itself."""
        _, c, h, w = like.shape
        first = F.leaky_relu(self.down2.bias, 0.1).to(like.dtype)
        second = self.conv2(first.reshape(1, c, 1, 1).expand(1, c, h // 2, w // 2), act="leaky_relu")
        third = self.conv3(self.down3(second, act="leaky_relu"), act="leaky_relu")
        return [None, second, third]


class SingleLevel(nn.Module):
    """The pyramid of alignment="plain": the map itself."""

    levels = 1

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]

    def of_zeros(self, like: Tensor) -> list[Tensor | None]:
        return [None]


class _AlignLevel(nn.Module):
    """Layers of one level: guide_in (U), guide_mix (V), guide_out (X), deform (DCN), fuse (Q)."""

    def __init__(self, features: int, static_features: int, groups: int, modulated: bool, coarsest: bool, plain: bool):
        super().__init__()
        self.guide_in = Conv3x3(2 * features + static_features, features)
        self.guide_mix = Conv3x3(features if coarsest else 2 * features, features)
        if not coarsest:
            self.guide_out = Conv3x3(features, features)
            self.fuse = Conv3x3(2 * features, features)
        self.deform = GuidedDeformConv2d(features, features, groups, modulated=modulated)
        self.plain = plain

    def warp(self, source: Tensor | None, guide: Tensor, base: Tensor | None, act: str | None = None) -> Tensor:
        """Deform source by the guide; a zero source (None) gives the bias, whatever the offsets."""
        if source is None:
            bias = self.deform.bias.to(guide.dtype).reshape(1, -1, 1, 1)
            return activate_(bias.clone(), act).expand_as(guide)
        return self.deform(source, guide, base, act)


class Way(nn.Module):
    """Deform source toward target, guided by both (and by static features), coarse to fine.

        u_l = act(U_l[source_l, target_l, static_l])
        coarsest:  o = act(V(u));                       f = act(DCN(source | o))
        finer:     o = act(X(act(V[u, 2 up(o)])));      f = act(Q[DCN(source | o), up(f)])   (finest: no act)

    [.,.] concatenates channels, up is bilinear x2, DCN(z | g) a deformable convolution of z whose offsets and mask
    come from g. With levels=1 ("plain") it is DCN(source | act(V(act(U[source, target, static])))), no act after it.

    Source: Chen, Qin and Dai 2022, eq. 2-5, 7 and 8; Xiang et al. 2020 (Zooming Slow-Mo) for the pyramid.
    """

    def __init__(self, features: int, groups: int, levels: int, static_features: int = 0, modulated: bool = True):
        super().__init__()
        self.features = features
        self.levels = nn.ModuleList(
            _AlignLevel(features, static_features, groups, modulated, level == levels - 1, levels == 1)
            for level in range(levels)
        )

    def static_part(self, static: list[Tensor] | None) -> list[Tensor | None]:
        """The static maps' share of U before bias and activation, per level."""
        if static is None:
            return [None] * len(self.levels)
        n = self.features
        return [convolve(s, lv.guide_in.weight[:, 2 * n :]) for s, lv in zip(static, self.levels, strict=True)]

    def guides(self, source: list[Tensor], target: list[Tensor], static: list[Tensor | None]) -> list[Tensor]:
        """u_l of maps that are used once; static is static_part's answer."""
        out = []
        for s, t, part, level in zip(source, target, static, self.levels, strict=True):
            weight = level.guide_in.weight[:, : 2 * self.features]
            out.append(convolve(s, weight, level.guide_in.bias, x2=t, residual=part, act="leaky_relu"))
        return out

    def half(self, x: list[Tensor], role: str, static: list[Tensor | None]) -> list[Tensor]:
        """The share of x (role "source" or "target") in U, with bias and static part, before the activation."""
        out = []
        for level, (z, part) in zip(self.levels, zip(x, static, strict=True), strict=True):
            out.append(convolve(z, self._half_weight(level, role), level.guide_in.bias, residual=part))
        return out

    def guides_from_half(self, half: list[Tensor], x: list[Tensor | None], role: str) -> list[Tensor]:
        """u_l from the precomputed half of the other role and the maps x in this role; None is a zero map."""
        out = []
        for level, other, z in zip(self.levels, half, x, strict=True):
            if z is None:
                out.append(F.leaky_relu(other, 0.1))
                continue
            if z.shape[0] != other.shape[0]:  # constant maps of the zero state come with batch 1
                share = convolve(z, self._half_weight(level, role))
                out.append(F.leaky_relu_(other + share, 0.1))
            else:
                out.append(convolve(z, self._half_weight(level, role), residual=other, act="leaky_relu"))
        return out

    def _half_weight(self, level: _AlignLevel, role: str) -> Tensor:
        n = self.features
        return level.guide_in.weight[:, :n] if role == "source" else level.guide_in.weight[:, n : 2 * n]

    def align(self, source: list[Tensor | None], guides: list[Tensor], base: list[Tensor] | None) -> Tensor:
        """Warp source's levels with offsets from the guides u_l; base offsets are added to every tap."""
        base = [None] * len(self.levels) if base is None else base
        offset_features = aligned = None
        for number in reversed(range(len(self.levels))):
            level = self.levels[number]
            if aligned is None:
                offset_features = level.guide_mix(guides[number], act="leaky_relu")
                act = None if level.plain else "leaky_relu"
                aligned = level.warp(_batched(source[number], offset_features), offset_features, base[number], act)
                continue
            if source[number] is not None:
                mixed = level.guide_mix(guides[number], upsample2(2 * offset_features), act="leaky_relu")
                offset_features = level.guide_out(mixed, act="leaky_relu")
            else:
                offset_features = guides[number]
            warped = level.warp(_batched(source[number], offset_features), offset_features, base[number])
            aligned = level.fuse(warped, upsample2(aligned), act="leaky_relu" if number else None)
        return aligned

    def forward(
        self,
        source: list[Tensor],
        target: list[Tensor],
        static: list[Tensor] | None = None,
        base: list[Tensor] | None = None,
    ) -> Tensor:
        """Return source warped toward target, (B, n, h, w)."""
        return self.align(source, self.guides(source, target, self.static_part(static)), base)


def _batched(source: Tensor | None, like: Tensor) -> Tensor | None:
    if source is None or source.shape[0] == like.shape[0]:
        return source
    return source.expand(like.shape[0], -1, -1, -1)
