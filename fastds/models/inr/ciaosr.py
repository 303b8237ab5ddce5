# SPDX-License-Identifier: Apache-2.0
"""CiaoSR's decoder without its non-local branch: a baseline in plain operations, written from its equations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.inr.encoders import extend
from fastds.ops.impl.inr_query.points import Axis, GridSpec, PointSpec
from fastds.ops.impl.inr_query.reference import Corners


class CiaoSRDecoder(nn.Module):
    """Attention over four corners whose keys and values are unfolded features times a network of themselves.

    k_j = U_j * phi_k([U_j, rho_j, kappa]), v_j = U_j * phi_v([U_j, rho_j, kappa]), U the unfolded 3x3 neighbourhood;
    alpha = softmax_j <U_nearest, k_j>; y = phi_q(sum_j alpha_j v_j) + bilinear(x). Corners lie half a pixel apart as in
    LIIF; the published shift (1 - cell) / (n - 1) equals that at factor 2 and picks one pixel twice at factor 1.

    Source: Cao et al. 2023 (CiaoSR), local part.
    """

    def __init__(self, channels, outputs, padding_mode, width=256, hidden=3):
        super().__init__()
        self.padding_mode = padding_mode
        unfolded = 9 * channels
        self.key = perceptron([unfolded + 4, *(hidden + 1) * [width], unfolded])
        self.value = perceptron([unfolded + 4, *(hidden + 1) * [width], unfolded])
        self.head = perceptron([unfolded, *(hidden + 1) * [width], outputs])

    def prepare(self, features: Tensor) -> Tensor:
        return features

    def query(self, maps, where, cell, skip, edge, mask, gain=None) -> Tensor:
        wrap = [e == "wrap" for e in edge]
        batch, _, height, width = maps.shape
        unfolded = F.unfold(extend(maps, 1, self.padding_mode), 3).unflatten(2, (height, width))
        place = (where, unfolded, mask, wrap)
        corners = _corners(*place, nearest=False)
        query = _corners(_moved_half(where), unfolded, mask, wrap, nearest=True).gather(unfolded, 0)
        cell = (cell if cell.dim() == 3 else cell[:, None]).to(query.dtype).expand(batch, query.shape[1], 2)
        logits, values = [], []
        for j in range(4):
            u = corners.gather(unfolded, j)
            inputs = torch.cat([u, corners.rho[j], cell], -1)
            logits.append((query * u * self.key(inputs)).sum(-1))
            values.append(u * self.value(inputs))
        logits = torch.stack(logits)
        if mask is not None:
            logits = logits.masked_fill(~torch.stack(corners.mask), -torch.inf)
            logits = torch.where(corners.valid, logits, 0)
        alpha = torch.softmax(logits, 0)
        y = self.head(sum(a[..., None] * v for a, v in zip(alpha, values, strict=True)))
        y = y if gain is None else y * gain
        if skip is not None:
            y = y + sum(w[..., None] * corners.gather(skip.to(y.dtype), j) for j, w in enumerate(corners.weights))
        return y if mask is None else torch.where(corners.valid[..., None], y, torch.nan)


def perceptron(widths) -> nn.Sequential:
    layers = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _corners(where, maps, mask, wrap, nearest) -> Corners:
    grid = isinstance(where, GridSpec)
    base, frac, axes = (None, None, where.numbers()) if grid else (where.base, where.frac, [])
    return Corners(base, frac, axes, maps, mask, wrap, nearest, "bilinear", maps.dtype)


def _moved_half(where):
    """Places half a pixel on, so that their upper left corner is the nearest pixel."""
    if isinstance(where, GridSpec):
        return GridSpec(
            *(Axis(a.size, 2 * a.step, 2 * a.start + a.den, 2 * a.den) for a in (where.rows, where.columns))
        )
    moved = where.frac + 0.5
    carry = torch.floor(moved.detach())
    return PointSpec((where.base + carry.int()).int(), moved - carry)
