# SPDX-License-Identifier: Apache-2.0
"""Guidance of FC-ZSM: base offsets from optical flow, and features of static maps."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.fczsm.aligner import FeaturePyramid, SingleLevel


def build_offset_pyramid(displacement: Tensor, levels: int) -> list[Tensor]:
    """Build the pyramid of base offsets of a displacement.

    Args:
        displacement: (B, 2, h, w), in pixels of level 1.
        levels: number of levels.

    Returns:
        One displacement per level, in pixels of the level.
    """
    out = [displacement]
    for _ in range(levels - 1):
        out.append(0.5 * F.avg_pool2d(out[-1], 2))
    return out


def compute_interpolation_offsets(flow: Tensor, levels: int) -> tuple[list[Tensor], list[Tensor]]:
    """Compute the base offsets of both directions of the interpolation, for all pairs of frames.

    Args:
        flow: (B, N-1, 2, 2, h, w), as baselines.optical_flow returns it.
        levels: number of pyramid levels.

    Returns:
        Offset pyramids for sampling the earlier frame and for sampling the later frame, each with batch (N-1)*B. All
        samples of a pair of frames are adjacent in the batch.
    """
    halved = 0.5 * flow.transpose(0, 1).flatten(0, 1)
    return build_offset_pyramid(halved[:, 1], levels), build_offset_pyramid(halved[:, 0], levels)


def compute_state_offsets(flow: Tensor, step: int, forward_first: bool, levels: int) -> tuple[list, list] | None:
    """Compute the base offsets of one recurrent step for both time directions, with batch 2*B.

    At step s the forward direction is at frame s and the backward direction at frame 2N-2-s.

    Args:
        flow: (B, N-1, 2, 2, h, w), as baselines.optical_flow returns it.
        step: s.
        forward_first: whether the forward direction is the first half of the batch.
        levels: number of pyramid levels.

    Returns:
        Offset pyramids for warping x toward the state and the state toward x. None for step 0, which has no previous
        state.
    """
    if step == 0:
        return None
    last = 2 * flow.shape[1]
    earlier = (step - 1) // 2  # index of the frame pair of the forward direction
    later = (last - step) // 2  # index of the frame pair of the backward direction
    to_earlier, to_later = flow[:, earlier, 1], flow[:, later, 0]
    from_earlier, from_later = flow[:, earlier, 0], flow[:, later, 1]
    if not forward_first:
        to_earlier, to_later = to_later, to_earlier
        from_earlier, from_later = from_later, from_earlier
    x_way = 0.5 * torch.cat([from_earlier, from_later])
    state_way = 0.5 * torch.cat([to_earlier, to_later])
    return build_offset_pyramid(x_way, levels), build_offset_pyramid(state_way, levels)


class StaticBranch(nn.Module):
    """Extractor and feature pyramid of the static maps, with a cache of the last result.

    The cache is used only without gradients and outside of compilation. It is valid only if the input and all weights
    are equal by value to copies from the time of the write, so a weight update always invalidates it.

    Args:
        extractor: feature extractor.
        features: number ns of channels.
        levels: number of pyramid levels.

    Shapes: (1 or B, S, h, w) -> list of levels, (1 or B, ns, h / 2^l, w / 2^l).
    """

    def __init__(self, extractor: nn.Module, features: int, levels: int):
        super().__init__()
        self.extractor = extractor
        self.pyramid = SingleLevel() if levels == 1 else FeaturePyramid(features)
        self._cache: tuple[tuple, list[Tensor], list[Tensor]] | None = None

    def forward(self, static: Tensor) -> list[Tensor]:
        static = static.contiguous(memory_format=torch.channels_last)
        if torch.compiler.is_compiling() or self._needs_gradients(static):
            return self.pyramid(self.extractor(static))
        inputs = [static, *self.parameters()]
        modes: tuple = (static.device, torch.is_autocast_enabled(static.device.type))
        modes += (torch.get_autocast_dtype(static.device.type), torch.is_inference_mode_enabled())
        if self._cache is not None:
            cached_modes, copies, levels = self._cache
            if modes == cached_modes and all(_is_equal(a, b) for a, b in zip(inputs, copies, strict=True)):
                return levels
        levels = self.pyramid(self.extractor(static))
        self._cache = (modes, [z.detach().clone() for z in inputs], levels)
        return levels

    def _needs_gradients(self, static: Tensor) -> bool:
        return torch.is_grad_enabled() and (static.requires_grad or any(p.requires_grad for p in self.parameters()))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_cache"] = None
        return state


def _is_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
