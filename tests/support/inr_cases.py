# SPDX-License-Identifier: Apache-2.0
"""Random cases of inr_query, and LIIF, LTE and MetaSR written with grid_sample."""

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
    """Convert keywords of the public function to positional arguments of the registered op."""
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
    """Compute a query with the reference."""
    return reference(*flat_arguments(*args, **keywords))


def random_case(kind, source=(7, 9), batch=2, outputs=3, depth=16, dtype=torch.float64, skip=True, seed=0):
    """Return maps, trunk and keywords of a random query.

    Args:
        kind: feature and ensemble, such as "affine-late".
        source: height and width of the maps.
        batch: number of samples.
        outputs: number of output channels.
        depth: number of features.
        dtype: dtype of the tensors.
        skip: True for a skip field.
        seed: seed of the random numbers.
    """
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
    """Return the coordinates of cell centres."""
    y, x = torch.meshgrid(*(cell_centres(n) for n in size), indexing="ij")
    return torch.stack([y, x], -1).reshape(1, -1, 2).expand(batch, -1, -1)


def sample(field, coord, mode="nearest", padding="zeros"):
    """Sample a field (B, C, H, W) at coordinates (B, Q, 2) with grid_sample; the result is (B, Q, C)."""
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
    """Compute the published ensemble of four corners with area weights.

    Args:
        features: (B, C, H, W).
        coord: (B, Q, 2).
        predict: function of the shifted coordinate and the offset in half cells that returns (B, Q, O).
    """
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
    """Compute LIIF (Chen, Liu and Wang 2021): an MLP of unfolded features, offset and cell at each corner."""
    unfolded = F.unfold(features, 3, padding=1).unflatten(2, features.shape[2:])
    n = torch.tensor(features.shape[2:], dtype=torch.float64)

    def predict(near, offset):
        width = (cell * n)[:, None].expand_as(offset)
        return _mlp(torch.cat([sample(unfolded, near), offset, width], -1), layers)

    return _local_ensemble(features, coord, predict)


def lte(features, coord, cell, coefficient, frequency, phase, layers, field):
    """Compute LTE (Lee and Jin 2022) with interleaved frequencies and a bilinear skip connection."""
    n = torch.tensor(features.shape[2:], dtype=torch.float64)
    maps = [F.conv2d(features, w, b, padding=1) for w, b in (coefficient, frequency)]

    def predict(near, offset):
        a, f = (sample(m, near) for m in maps)
        theta = (f.unflatten(-1, (-1, 2)) * offset[..., None, :]).sum(-1) + ((cell * n) @ phase.T)[:, None]
        return _mlp(a * torch.cat([torch.cos(torch.pi * theta), torch.sin(torch.pi * theta)], -1), layers)

    return _local_ensemble(features, coord, predict) + sample(field, coord, "bilinear", "border")


def meta_sr(features, coord, cell, layers, outputs):
    """Compute continuous MetaSR (Hu et al. 2019): a predicted kernel times the unfolded features of a pixel."""
    unfolded = F.unfold(features, 3, padding=1).unflatten(2, features.shape[2:])
    n = torch.tensor(features.shape[2:], dtype=torch.float64)
    corner = coord - cell[:, None] / 2
    near = (corner + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
    offset = (corner - (sample(_cells(features), near) - 1 / n)) * n / 2
    ratio = (cell[:, :1] * n[0] / 2)[:, None].expand(-1, offset.shape[1], -1)
    kernels = _mlp(torch.cat([offset, ratio], -1), layers).unflatten(-1, (-1, outputs))
    return torch.einsum("bqc,bqco->bqo", sample(unfolded, near), kernels)
