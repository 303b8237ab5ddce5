# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of inr_query: random cases, and LIIF, LTE and MetaSR written with grid_sample."""

import torch
import torch.nn.functional as F

from fastds.ops import inr_query
from fastds.ops.impl.inr_query.points import GridSpec
from fastds.ops.impl.inr_query.reference import inr_query as reference

KINDS = (
    "affine-early_attn", "affine-early_area", "affine-late", "affine-none", "slope-early_attn", "slope-late",
    "fourier-late", "dot-none",
)  # fmt: skip


def flat_arguments(
    maps, where, trunk=(), *, feature="affine", ensemble="early_attn", rho_w=None, cell_w=None, bias=None,
    rho_bias=None, phase=None, cell=None, skip=None, mask=None, heads=1, dk=0, activation="relu", weighting="bilinear",
    edge=("clamp", "clamp"), out_dtype=None,
):  # fmt: skip
    """The positional arguments of the registered op from the keywords of the public function."""
    grid = isinstance(where, GridSpec)
    points = (None, None, where.numbers()) if grid else (where.base, where.frac, [])
    weights, biases = [w for w, _ in trunk], [b for _, b in trunk]
    wrap = [e == "wrap" for e in edge]
    out_dtype = out_dtype or (torch.float64 if maps.dtype == torch.float64 else torch.float32)
    return (
        maps, weights, biases, *points, rho_w, cell_w, bias, rho_bias, phase, cell, skip, mask, feature, ensemble,
        heads, dk, activation, weighting, wrap, out_dtype,
    )  # fmt: skip


def query(maps, where, trunk=(), *, weighting="bilinear", **keywords):
    return inr_query(maps, where, trunk, compat="liif" if weighting == "areas" else None, **keywords)


def exact(*args, **keywords):
    """The reference."""
    return reference(*flat_arguments(*args, **keywords))


def random_case(kind, source=(7, 9), batch=2, outputs=3, depth=16, dtype=torch.float64, skip=True, seed=0):
    """(maps, trunk, keywords) of a random query of the given feature-ensemble kind."""
    g = torch.Generator().manual_seed(seed)
    feature, ensemble = kind.split("-")
    heads, dk = (2, 5) if ensemble == "early_attn" else (1, 0)

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)

    used = {"affine": depth, "slope": 3 * depth, "fourier": 2 * depth, "dot": outputs * (depth + 1)}[feature]
    maps = normal(batch, used + 2 * heads * dk if dk else used, *source)
    keywords = {"feature": feature, "ensemble": ensemble, "heads": heads, "dk": dk, "cell": normal(batch, 2).abs()}
    if feature == "fourier":
        keywords["phase"] = normal(depth // 2, 2)
    else:
        keywords |= {"rho_w": normal(depth, 2), "cell_w": normal(depth, 2), "bias": normal(depth)}
    if ensemble == "early_attn":
        keywords["rho_bias"] = normal(heads, 2)
    trunk = []
    if feature != "dot":
        for n_in, n_out in ((depth, 32), (32, outputs)):
            trunk.append((normal(n_out, n_in, scale=n_in**-0.5), normal(n_out)))
    if skip:
        keywords["skip"] = normal(batch, outputs, *source)
    return maps, trunk, keywords


def cell_centres(n):
    return -1 + (2 * torch.arange(n, dtype=torch.float64) + 1) / n


def grid_coordinates(size, batch):
    """(B, H'*W', 2) normalised (y, x) of cell centres."""
    y, x = torch.meshgrid(*(cell_centres(n) for n in size), indexing="ij")
    return torch.stack([y, x], -1).reshape(1, -1, 2).expand(batch, -1, -1)


def sample(field, coord, mode="nearest", padding="zeros"):
    """(B, C, H, W) at (B, Q, 2) -> (B, Q, C) with torch's own sampler."""
    out = F.grid_sample(field, coord.flip(-1)[:, None], mode=mode, padding_mode=padding, align_corners=False)
    return out[:, :, 0].transpose(1, 2)


def _mlp(x, layers):
    for i, (w, b) in enumerate(layers):
        x = x @ w.T + b
        x = x.relu() if i + 1 < len(layers) else x
    return x


def _cells(features):
    y, x = torch.meshgrid(cell_centres(features.shape[2]), cell_centres(features.shape[3]), indexing="ij")
    return torch.stack([y, x]).expand(features.shape[0], -1, -1, -1)


def _local_ensemble(features, coord, predict):
    """The published four-corner ensemble with areas: predict(shifted coordinate, offset in half cells) -> (B, Q, O)."""
    n = torch.tensor(features.shape[2:], dtype=torch.float64)
    values, areas = [], []
    for sy in (-1, 1):
        for sx in (-1, 1):
            near = (coord + torch.tensor([sy, sx]) / n + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
            offset = (coord - sample(_cells(features), near)) * n
            values.append(predict(near, offset))
            areas.append((offset[..., 0] * offset[..., 1]).abs() + 1e-9)
    total = sum(areas)
    return sum(v * (a / total)[..., None] for v, a in zip(values, reversed(areas), strict=True))


def liif(features, coord, cell, layers):
    """Chen, Liu and Wang 2021: unfold 3x3, concatenate offset and cell, one MLP per corner, areas."""
    unfolded = F.unfold(features, 3, padding=1).unflatten(2, features.shape[2:])
    n = torch.tensor(features.shape[2:], dtype=torch.float64)

    def predict(near, offset):
        width = (cell * n)[:, None].expand_as(offset)
        return _mlp(torch.cat([sample(unfolded, near), offset, width], -1), layers)

    return _local_ensemble(features, coord, predict)


def lte(features, coord, cell, coefficient, frequency, phase, layers, field):
    """Lee and Jin 2022, frequencies interleaved: amplitudes times cosines and sines, bilinear skip."""
    n = torch.tensor(features.shape[2:], dtype=torch.float64)
    maps = [F.conv2d(features, w, b, padding=1) for w, b in (coefficient, frequency)]

    def predict(near, offset):
        a, f = (sample(m, near) for m in maps)
        theta = (f.unflatten(-1, (-1, 2)) * offset[..., None, :]).sum(-1) + ((cell * n) @ phase.T)[:, None]
        return _mlp(a * torch.cat([torch.cos(torch.pi * theta), torch.sin(torch.pi * theta)], -1), layers)

    return _local_ensemble(features, coord, predict) + sample(field, coord, "bilinear", "border")


def meta_sr(features, coord, cell, layers, outputs):
    """Hu et al. 2019 in its continuous form: a kernel predicted per query times the unfolded features of one pixel."""
    unfolded = F.unfold(features, 3, padding=1).unflatten(2, features.shape[2:])
    n = torch.tensor(features.shape[2:], dtype=torch.float64)
    corner = coord - cell[:, None] / 2
    near = (corner + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
    offset = (corner - (sample(_cells(features), near) - 1 / n)) * n / 2
    ratio = (cell[:, :1] * n[0] / 2)[:, None].expand(-1, offset.shape[1], -1)
    kernels = _mlp(torch.cat([offset, ratio], -1), layers).unflatten(-1, (-1, outputs))
    return torch.einsum("bqc,bqco->bqo", sample(unfolded, near), kernels)
