# SPDX-License-Identifier: Apache-2.0
"""Reference of inr_query in PyTorch by index arithmetic, gathers and matrix products; differentiable to any order.

The steps are: locate and weight the four corners, compute the feature of each corner, combine the corners (ensemble),
apply the trunk, add the skip field.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.impl.inr_query.points import Axis, GridSpec

FEATURES = ("affine", "fourier", "dot", "slope")  # in the order of enum InrFeature in csrc
AFFINE = ("affine", "slope")
ENSEMBLES = ("none", "late", "early_area", "early_attn")
ACTIVATIONS = ("none", "relu")
WEIGHTS = ("bilinear", "areas")
_AREA_EPS = 1e-9


def inr_query(
    maps, weights, biases, base, frac, axes, rho_w, cell_w, bias, rho_bias, phase, cell, skip, mask, feature, ensemble,
    heads, dk, act, weighting, wrap, out_dtype,
):  # fmt: skip
    """Compute fastds.ops.inr_query. The arguments are those of query.Query.

    Args:
        maps: (B, M, H, W).
        weights: weights of the trunk.
        biases: biases of the trunk.
        base: (B or 1, Q, 2), base of PointSpec, or None for a grid.
        frac: (B or 1, Q, 2), frac of PointSpec, or None for a grid.
        axes: GridSpec.numbers(), or [] for points.
        rho_w: (D, 2) or None.
        cell_w: (D, 2) or None.
        bias: (D,) or None.
        rho_bias: (heads, 2) or None.
        phase: (N, 2) or None.
        cell: (B, 2) or (B, Q, 2), or None.
        skip: (B, O, H, W) or None.
        mask: (B, H, W) bool or None.
        feature: "affine", "slope", "fourier" or "dot".
        ensemble: "none", "late", "early_area" or "early_attn".
        heads: number of heads of early_attn.
        dk: key channels of each head.
        act: "relu" or "none".
        weighting: "bilinear" or "areas".
        wrap: pair of bools for rows and columns.
        out_dtype: dtype of the result.

    Returns:
        (B, Q, O).
    """
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    to: Any = lambda t: None if t is None else t.to(dtype)  # noqa: E731
    corners = Corners(base, frac, axes, maps, mask, wrap, ensemble == "none", weighting, dtype)
    kappa = None if cell is None else to(cell if cell.dim() == 3 else cell[:, None])
    args = (to(maps), corners, to(rho_w), to(cell_w), to(bias), to(phase), kappa)
    if feature == "dot":
        y: Any = _compute_dot(*args, act)
    else:
        make = {"fourier": _compute_fourier, "slope": _compute_slope, "affine": _compute_affine}[feature]
        depth = count_channels(feature, ensemble, maps.shape[1], heads, dk)[0]
        h = [make(*args, act, depth, j) for j in range(corners.count)]
        trunk = [(to(w), to(b)) for w, b in zip(weights, biases, strict=True)]
        if ensemble == "late":
            y = sum(w[..., None] * apply_trunk(hj, trunk) for w, hj in zip(corners.weights, h, strict=True))
        else:
            first_key = count_channels(feature, ensemble, maps.shape[1], heads, dk)[1]
            y = apply_trunk(_combine_corners(ensemble, h, to(maps), corners, to(rho_bias), heads, dk, first_key), trunk)
    valid: Any = None if mask is None else corners.valid
    if skip is not None:
        along = corners
        if ensemble == "none" or weighting == "areas":
            along = Corners(base, frac, axes, maps, mask, wrap, False, "bilinear", dtype)
        y = y + sum(w[..., None] * along.gather(to(skip), j) for j, w in enumerate(along.weights))
        valid = None if mask is None else valid & along.valid
    if mask is not None:
        y = torch.where(valid[..., None], y, math.nan)
    return y.to(out_dtype)


def count_channels(feature: str, ensemble: str, total: int, heads: int, dk: int) -> tuple[int, int]:
    """Return D, the number of channels of a corner's feature, and the number of map channels that it is computed from.

    Args:
        feature: "affine", "slope", "fourier" or "dot".
        ensemble: "none", "late", "early_area" or "early_attn".
        total: number of map channels.
        heads: number of heads of early_attn.
        dk: key channels of each head of early_attn.
    """
    used = total - (2 * heads * dk if ensemble == "early_attn" else 0)
    return used // {"fourier": 2, "slope": 3}.get(feature, 1), used


def apply_trunk(x: Tensor, trunk) -> Tensor:
    """Apply linear layers with ReLU between them, given as pairs (weight, bias)."""
    for i, (w, b) in enumerate(trunk):
        x = F.linear(x, w, b)
        x = F.relu(x) if i + 1 < len(trunk) else x
    return x


class Corners:
    """The four corners of all queries, or only the upper left one.

    Attributes:
        count: number of corners, 4 or 1.
        queries: Q, number of queries for each sample.
        index: pixel indices in flattened maps, one tensor (B, Q) for each corner.
        rho: offsets, one tensor (B, Q, 2) for each corner.
        weights: one tensor (B, Q) for each corner, zero where the mask is False.
        mask: values of the mask, one tensor (B, Q) for each corner, or None.
        valid: with a mask, (B, Q) bool, whether any corner has a weight.
    """

    def __init__(self, base, frac, axes, maps, mask, wrap, nearest, weighting, dtype):
        batch, _, height, width = maps.shape
        if axes:
            points = GridSpec(Axis(*axes[:4]), Axis(*axes[4:])).points(maps.device, dtype)
            base, frac = points.base, points.frac
        base, frac = base.long(), frac.to(dtype)
        along = [
            [_locate_corner(base[..., k], frac[..., k], n, wrap[k], a) for a in (0, 1)]
            for k, n in ((0, height), (1, width))
        ]
        pairs = [(0, 0)] if nearest else [(0, 0), (0, 1), (1, 0), (1, 1)]
        self.count = len(pairs)
        full = base.shape[1]
        self.queries = full
        self.index = [(along[0][a][0] * width + along[1][b][0]).expand(batch, full) for a, b in pairs]
        self.rho = [torch.stack([along[0][a][1], along[1][b][1]], -1).expand(batch, full, 2) for a, b in pairs]
        if nearest:
            raw = [torch.ones_like(frac[..., 0])]
        elif weighting == "areas":
            areas = [(along[0][1 - a][1] * along[1][1 - b][1]).abs() + _AREA_EPS for a, b in pairs]
            total = sum(areas)
            raw = [area / total for area in areas]
        else:
            raw = [along[0][a][2] * along[1][b][2] for a, b in pairs]
        self.weights = [w.expand(batch, full) for w in raw]
        self.mask: Any = None
        self.valid: Tensor
        if mask is not None:
            flat = mask.flatten(1)
            self.mask = [flat.gather(1, index) for index in self.index]
            known_weights = [torch.where(m, w, 0) for m, w in zip(self.mask, self.weights, strict=True)]
            known: Any = sum(known_weights)
            self.valid = known > 0
            self.weights = [w / torch.where(self.valid, known, 1) for w in known_weights]

    def gather(self, maps: Tensor, j: int) -> Tensor:
        """Return the values of maps (B, C, H, W) at corner j, (B, Q, C), zero where the mask is False."""
        batch, depth, height, width = maps.shape
        flat = maps.permute(0, 2, 3, 1).reshape(-1, depth)
        first = height * width * torch.arange(batch, device=maps.device)[:, None]
        value = flat.index_select(0, (self.index[j] + first).reshape(-1)).reshape(batch, self.queries, depth)
        return value if self.mask is None else torch.where(self.mask[j][..., None], value, 0)


def _locate_corner(base: Tensor, t: Tensor, n: int, wrap: bool, a: int) -> tuple[Tensor, Tensor, Tensor]:
    """Locate corner a of a query on one axis.

    Args:
        base: floor of the index coordinate.
        t: the remainder.
        n: pixels of the axis.
        wrap: bool, whether the axis wraps around.
        a: 0 or 1.

    Returns:
        (pixel, rho, weight): rho is 2 (u - pixel) with the pixel before wrapping, weight is the linear weight.
    """
    weight = t if a else 1 - t
    if wrap:
        return torch.remainder(base + a, n), 2 * (t - a), weight
    pixel = (base + a).clamp(0, n - 1)
    return pixel, 2 * (t + (base - pixel).to(t.dtype)), weight


def _activate(x: Tensor, act: str) -> Tensor:
    return F.relu(x) if act == "relu" else x


def _compute_offset_terms(rho, rho_w, cell_w, bias, kappa):
    """Return rho_w rho + cell_w kappa + bias, (B, Q, D), or None if rho_w, cell_w and bias are None."""
    terms = [] if rho_w is None else [rho @ rho_w.T]
    if cell_w is not None:
        terms.append(kappa @ cell_w.T)
    if bias is not None:
        terms.append(bias)
    return sum(terms) if terms else None


def _compute_affine(maps, corners, rho_w, cell_w, bias, phase, kappa, act, depth, j):
    return _add_offset(corners.gather(maps[:, :depth], j), corners, rho_w, cell_w, bias, kappa, act, j)


def _compute_slope(maps, corners, rho_w, cell_w, bias, phase, kappa, act, depth, j):
    h, along_y, along_x = corners.gather(maps[:, : 3 * depth], j).split(depth, -1)
    h = h + along_y * corners.rho[j][..., :1] + along_x * corners.rho[j][..., 1:]
    return _add_offset(h, corners, rho_w, cell_w, bias, kappa, act, j)


def _add_offset(h, corners, rho_w, cell_w, bias, kappa, act, j):
    terms = _compute_offset_terms(corners.rho[j], rho_w, cell_w, bias, kappa)
    return _activate(h if terms is None else h + terms, act)


def _compute_fourier(maps, corners, rho_w, cell_w, bias, phase, kappa, act, depth, j):
    amplitude, frequency = corners.gather(maps[:, : 2 * depth], j).split(depth, -1)
    rho = corners.rho[j]
    theta = frequency[..., 0::2] * rho[..., :1] + frequency[..., 1::2] * rho[..., 1:]
    if phase is not None:
        theta = theta + kappa @ phase.T
    theta = math.pi * theta
    return amplitude * torch.cat([torch.cos(theta), torch.sin(theta)], -1)


def _compute_dot(maps, corners, rho_w, cell_w, bias, phase, kappa, act):
    a = _activate(_compute_offset_terms(corners.rho[0], rho_w, cell_w, bias, kappa), act)
    depth = rho_w.shape[0]
    outputs = maps.shape[1] // (depth + 1)
    values = corners.gather(maps, 0)
    g, constant = values[..., : outputs * depth], values[..., outputs * depth :]
    return (g.unflatten(-1, (outputs, depth)) * a[..., None, :]).sum(-1) + constant


def _combine_corners(ensemble, h, maps, corners, rho_bias, heads, dk, first_key):
    if ensemble == "none":
        return h[0]
    if ensemble == "early_area":
        return sum(w[..., None] * hj for w, hj in zip(corners.weights, h, strict=True))
    keys, contents = maps[:, first_key:].split(heads * dk, 1)
    q = sum(w[..., None] * corners.gather(contents, j) for j, w in enumerate(corners.weights))
    q = q.unflatten(-1, (heads, dk))
    logits: Any = []
    for j in range(corners.count):
        k = corners.gather(keys, j).unflatten(-1, (heads, dk))
        term = (q * k).sum(-1) / math.sqrt(dk)
        logits.append(term if rho_bias is None else term + corners.rho[j] @ rho_bias.T)
    logits, weights = torch.stack(logits), torch.stack(corners.weights)[..., None]
    present = weights > 0
    top = torch.where(present, logits, -math.inf).amax(0).detach()
    top = torch.where(present.any(0), top, 0)
    e = weights * torch.exp(torch.where(present, logits - top, 0))
    total = e.sum(0)
    alpha = e / torch.where(total > 0, total, 1)
    split = [hj.unflatten(-1, (heads, -1)) for hj in h]
    return sum(a[..., None] * hj for a, hj in zip(alpha, split, strict=True)).flatten(-2)
