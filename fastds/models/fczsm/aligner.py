# SPDX-License-Identifier: Apache-2.0
"""Deformable alignment of one feature map with another: feature pyramids and aligners of one direction.

A feature pyramid is a list of levels [L1, L2, L3] of shapes (B, n, h, w), (B, n, h/2, w/2) and (B, n, h/4, w/4). A
single feature map is the list [L1]. Base offsets are a list with one float32 displacement (B, 2, h, w), (dy, dx) in
pixels of the level, per level, or None.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastds.nn.convolutions import Conv3x3, convolve
from fastds.nn.deform_conv2d import GuidedDeformConv2d
from fastds.nn.resize import upsample2
from fastds.ops.impl.conv3x3.library import activate_

LEVELS = 3


class FeaturePyramid(nn.Module):
    """Three-level feature pyramid [L1, L2, L3] of a feature map x.

    L1 is x, and L2 is act(conv(act(conv_stride2(L1)))). L3 is computed from L2 in the same way, with its own weights.
    The activation is leaky ReLU with slope 0.1.
    """

    levels = LEVELS

    def __init__(self, features: int):
        super().__init__()
        self.down2 = Conv3x3(features, features, stride=2)
        self.conv2 = Conv3x3(features, features)
        self.down3 = Conv3x3(features, features, stride=2)
        self.conv3 = Conv3x3(features, features)

    def forward(self, x: Tensor) -> list[Tensor]:
        second = self.conv2(self.down2(x, activation="leaky_relu"), activation="leaky_relu")
        third = self.conv3(self.down3(second, activation="leaky_relu"), activation="leaky_relu")
        return [x, second, third]

    def compute_from_zeros(self, like: Tensor) -> list[Tensor | None]:
        """Compute the pyramid of an all-zero feature map.

        Args:
            like: feature map of the same shape.

        Returns:
            Levels with batch size 1. None stands for the zero map of the first level.
        """
        _, c, h, w = like.shape
        assert self.down2.bias is not None
        first = F.leaky_relu(self.down2.bias, 0.1).to(like.dtype)
        second = self.conv2(first.reshape(1, c, 1, 1).expand(1, c, h // 2, w // 2), activation="leaky_relu")
        third = self.conv3(self.down3(second, activation="leaky_relu"), activation="leaky_relu")
        return [None, second, third]


class SingleLevel(nn.Module):
    """Pyramid with one level, the feature map itself, for alignment="plain"."""

    levels = 1

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]

    def compute_from_zeros(self, like: Tensor) -> list[Tensor | None]:
        """Return the pyramid of an all-zero feature map; None stands for the zero map."""
        return [None]


class _AlignLevel(nn.Module):
    """Layers of one pyramid level of a DirectionalAligner.

    In the equations of DirectionalAligner, guide_in is U, guide_mix is V, guide_out is X, deform is DCN and fuse is Q.
    """

    def __init__(self, features: int, static_features: int, groups: int, modulated: bool, coarsest: bool, plain: bool):
        super().__init__()
        self.guide_in = Conv3x3(2 * features + static_features, features)
        self.guide_mix = Conv3x3(features if coarsest else 2 * features, features)
        if not coarsest:
            self.guide_out = Conv3x3(features, features)
            self.fuse = Conv3x3(2 * features, features)
        self.deform = GuidedDeformConv2d(features, features, offset_groups=groups, modulated=modulated)
        self.plain = plain

    def warp(self, source: Tensor | None, guide: Tensor, base: Tensor | None, activation: str | None = None) -> Tensor:
        """Deform a source feature map.

        Args:
            source: (B, n, h, w). None stands for a zero map, for which the result is the bias at every pixel.
            guide: features from which offsets and mask are computed.
            base: base offsets or None.
            activation: activation or None.
        """
        if source is None:
            bias = self.deform.bias.to(guide.dtype).reshape(1, -1, 1, 1)
            return activate_(bias.clone(), activation).expand_as(guide)
        return self.deform(source, guide, base, activation=activation)


class DirectionalAligner(nn.Module):
    """Warp a source feature map toward a target in one direction, from the coarsest to the finest pyramid level.

        u_l = act(U_l[source_l, target_l, static_l])
        coarsest:  o = act(V(u));                       f = act(DCN(source | o))
        finer:     o = act(X(act(V[u, 2 up(o)])));      f = act(Q[DCN(source | o), up(f)])   (finest: no act)

    [.,.] concatenates channels and up is bilinear x2. DCN(z | g) is a deformable convolution of z whose offsets and
    mask are computed from g. With one level ("plain") the result is DCN(source | act(V(act(U[source, target,
    static])))) without a final activation.

    Args:
        features: number n of channels.
        groups: offset groups of the deformable convolutions.
        levels: number of pyramid levels.
        static_features: channels of the static features, 0 for none.
        modulated: deformable convolutions with a mask.

    Source: Chen, Qin and Dai 2022, eq. 2-5, 7 and 8; Xiang et al. 2020 (Zooming Slow-Mo) for the pyramid.
    """

    def __init__(self, features: int, groups: int, levels: int, static_features: int = 0, modulated: bool = True):
        super().__init__()
        self.features = features
        self.levels: Any = nn.ModuleList(
            _AlignLevel(features, static_features, groups, modulated, level == levels - 1, levels == 1)
            for level in range(levels)
        )

    def compute_static_share(self, static: list[Tensor] | None) -> list[Tensor | None]:
        """Compute the contribution of the static features to the guides u_l of each level, see the class docstring.

        The bias and the activation are not applied. If `static` is None, the result is None for each level.
        """
        if static is None:
            return [None] * len(self.levels)
        n = self.features
        return [convolve(s, lv.guide_in.weight[:, 2 * n :]) for s, lv in zip(static, self.levels, strict=True)]

    def compute_guides(self, source: list[Tensor], target: list[Tensor], static: list[Tensor | None]) -> list[Tensor]:
        """Compute the guides u_l of source and target.

        Args:
            source: levels of the pyramid of the source.
            target: levels of the pyramid of the target.
            static: result of `compute_static_share`.
        """
        out = []
        for s, t, part, level in zip(source, target, static, self.levels, strict=True):
            weight = level.guide_in.weight[:, : 2 * self.features]
            out.append(convolve(s, weight, level.guide_in.bias, second_input=t, residual=part, activation="leaky_relu"))
        return out

    def compute_share(self, x: list[Tensor], role: str, static: list[Tensor | None]) -> list[Tensor]:
        """Compute the contribution of one pyramid to the guides before the activation.

        The result includes the bias and the contribution of the static features.

        Args:
            x: levels of a pyramid.
            role: "source" or "target".
            static: result of `compute_static_share`.
        """
        out = []
        for level, (z, part) in zip(self.levels, zip(x, static, strict=True), strict=True):
            out.append(convolve(z, self._select_role_weight(level, role), level.guide_in.bias, residual=part))
        return out

    def complete_guides(self, share: list[Tensor], x: list[Tensor | None], role: str) -> list[Tensor]:
        """Compute the guides u_l from the precomputed contribution of the other role.

        Args:
            share: result of `compute_share` of the other role.
            x: levels of this role; None stands for a zero map.
            role: "source" or "target", the role of x.
        """
        out = []
        for level, other, z in zip(self.levels, share, x, strict=True):
            if z is None:
                out.append(F.leaky_relu(other, 0.1))
                continue
            if z.shape[0] != other.shape[0]:  # pyramid of the zero state, with batch size 1
                role_output = convolve(z, self._select_role_weight(level, role))
                out.append(F.leaky_relu_(other + role_output, 0.1))
            else:
                out.append(convolve(z, self._select_role_weight(level, role), residual=other, activation="leaky_relu"))
        return out

    def _select_role_weight(self, level: _AlignLevel, role: str) -> Tensor:
        n = self.features
        return level.guide_in.weight[:, :n] if role == "source" else level.guide_in.weight[:, n : 2 * n]

    def align(self, source: Sequence[Tensor | None], guides: list[Tensor], base: list[Tensor] | None) -> Tensor:
        """Warp the source with offsets computed from the guides.

        Args:
            source: levels of the pyramid; None stands for a zero map.
            guides: u_l of each level.
            base: base offsets that are added to every tap, or None.
        """
        bases: Sequence[Tensor | None] = [None] * len(self.levels) if base is None else base
        offset_features: Any = None
        aligned: Any = None
        for number in reversed(range(len(self.levels))):
            level = self.levels[number]
            if aligned is None:
                offset_features = level.guide_mix(guides[number], activation="leaky_relu")
                activation = None if level.plain else "leaky_relu"
                aligned = level.warp(
                    _expand_batch(source[number], offset_features), offset_features, bases[number], activation
                )
                continue
            if source[number] is not None:
                mixed = level.guide_mix(guides[number], upsample2(2 * offset_features), activation="leaky_relu")
                offset_features = level.guide_out(mixed, activation="leaky_relu")
            else:
                offset_features = guides[number]
            warped = level.warp(_expand_batch(source[number], offset_features), offset_features, bases[number])
            aligned = level.fuse(warped, upsample2(aligned), activation="leaky_relu" if number else None)
        return aligned

    def forward(
        self,
        source: list[Tensor],
        target: list[Tensor],
        static: list[Tensor] | None = None,
        base: list[Tensor] | None = None,
    ) -> Tensor:
        """Warp the source toward the target.

        Args:
            source: levels of the pyramid of the source.
            target: levels of the pyramid of the target.
            static: static features, one per level, or None.
            base: base offsets, one per level, or None.

        Returns:
            (B, n, h, w).
        """
        return self.align(source, self.compute_guides(source, target, self.compute_static_share(static)), base)


def _expand_batch(source: Tensor | None, like: Tensor) -> Tensor | None:
    if source is None or source.shape[0] == like.shape[0]:
        return source
    return source.expand(like.shape[0], -1, -1, -1)
