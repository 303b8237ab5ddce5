# SPDX-License-Identifier: Apache-2.0
"""What guides the network: the motion of the field, and static maps."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.fczsm.aligner import FeaturePyramid, SingleLevel


def level_offsets(displacement: Tensor, levels: int) -> list[Tensor]:
    """Pyramid of base offsets of a displacement (B, 2, h, w) in pixels of level 1."""
    out = [displacement]
    for _ in range(levels - 1):
        out.append(0.5 * F.avg_pool2d(out[-1], 2))
    return out


def interpolation_offsets(flow: Tensor, levels: int) -> tuple[list[Tensor], list[Tensor]]:
    """Base offsets of both interpolation ways for all pairs, pair-major batch ((N-1)*B, 2, h, w)."""
    half = 0.5 * flow.transpose(0, 1).flatten(0, 1)
    return level_offsets(half[:, 1], levels), level_offsets(half[:, 0], levels)


def state_offsets(flow: Tensor, step: int, forward_first: bool, levels: int) -> tuple[list, list] | None:
    """Base offsets (x toward state, state toward x) of one recurrent step of both directions, batch (2*B, 2, h, w).

    Step s is sequence index s of the forward and 2N-2-s of the backward direction; forward_first gives the order of
    the two in the batch. Step 0 has no previous state: None.
    """
    if step == 0:
        return None
    last = 2 * flow.shape[1]
    earlier = (step - 1) // 2  # pair of the forward direction's states
    later = (last - step) // 2  # pair of the backward direction's states, indices last-step and last-step+1
    to_earlier, to_later = flow[:, earlier, 1], flow[:, later, 0]
    from_earlier, from_later = flow[:, earlier, 0], flow[:, later, 1]
    if not forward_first:
        to_earlier, to_later = to_later, to_earlier
        from_earlier, from_later = from_later, from_earlier
    x_way = 0.5 * torch.cat([from_earlier, from_later])
    state_way = 0.5 * torch.cat([to_earlier, to_later])
    return level_offsets(x_way, levels), level_offsets(state_way, levels)


class StaticBranch(nn.Module):
    """Extractor and pyramid of the static maps with a cache of the last answer.

    The cache is read only without gradients and outside of compilation, and only if the input and every weight are
    equal, value for value, to copies taken when it was written; it can never be stale after a weight update.

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
        modes = (static.device, torch.is_autocast_enabled(static.device.type))
        modes += (torch.get_autocast_dtype(static.device.type), torch.is_inference_mode_enabled())
        if self._cache is not None:
            cached_modes, copies, levels = self._cache
            if modes == cached_modes and all(_same(a, b) for a, b in zip(inputs, copies, strict=True)):
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


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
