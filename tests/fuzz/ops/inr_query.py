# SPDX-License-Identifier: Apache-2.0
"""Random calls of queries of implicit networks."""

from dataclasses import replace

import torch

from fastds import ops
from fastds.ops import GridSpec

from ..cases import Grid, Points, Spec
from ..small import B, H, W, maps, vector, weight


def where(d):
    if d.pick((True, False)):
        make, least = d.pick(((GridSpec.cells, 0), (GridSpec.corners, 1)))
        return Grid(tuple(make(d.size, (d.int(least, 7), d.int(1, 7))).numbers()))
    shape = (d.pick((1, max(1, d.batch))) if d.batch else 1, d.int(0, 9), 2)
    frac = d.tensor(*shape, dtype=d.pick(("float32", "float64")), role="uncast", fill="unit", layout="contiguous")
    return Points(Spec(shape, fill="base"), replace(frac, grad=False))


def inr_query(d):
    feature = d.pick(("affine", "slope", "fourier", "dot"))
    ensembles = {"dot": ("none",), "fourier": ("none", "late", "early_area")}
    ensemble = d.pick(ensembles.get(feature, ("none", "late", "early_area", "early_attn")))
    heads, dk = (d.int(1, 3), d.int(1, 4)) if ensemble == "early_attn" else (1, 0)
    depth = heads * d.int(1, 6) * (2 if feature == "fourier" else 1)
    outputs = d.int(1, 4)
    total = {"affine": depth, "slope": 3 * depth, "fourier": 2 * depth, "dot": outputs * (depth + 1)}[feature]
    trunk, width = [], depth
    for _ in range(0 if feature == "dot" else d.pick((0, 1, 2, 3))):
        wide = d.int(1, 6)
        trunk.append((d.parameter(wide, width, scale=width**-0.5), d.parameter(wide)))
        width = wide
    width = outputs if feature == "dot" else width
    offsets = feature != "fourier"
    place = where(d)
    queries = place.numbers[0] * place.numbers[4] if isinstance(place, Grid) else place.base.shape[1]
    cell = d.tensor(d.batch, *d.pick(((), (queries,))), 2, role="uncast", dtype=d.pick(("float32", "float64")))
    cell = d.maybe(replace(cell, grad=False))
    return {
        "maps": d.image(total + 2 * heads * dk),
        "where": place,
        "trunk": tuple(trunk),
        "feature": feature,
        "ensemble": ensemble,
        "rho_w": d.parameter(depth, 2) if feature == "dot" else d.maybe(d.parameter(depth, 2)) if offsets else None,
        "cell_w": d.maybe(d.parameter(depth, 2)) if cell and offsets else None,
        "bias": d.maybe(d.parameter(depth)) if offsets else None,
        "heads": heads,
        "dk": dk,
        "rho_bias": d.maybe(d.parameter(heads, 2)) if ensemble == "early_attn" else None,
        "phase": d.maybe(d.parameter(depth // 2, 2)) if cell and not offsets else None,
        "cell": cell,
        "skip": d.maybe(d.image(width, role="uncast", dtype="float64" if d.dtype == "float64" else "float32")),
        "activation": d.pick(("none", "relu")),
        "edge": (d.pick(("clamp", "wrap")), d.pick(("clamp", "wrap"))),
        "mask": d.maybe(Spec((d.batch, *d.size), fill="mask")),
        "compat": d.pick((None, None, "liif")),
        "out_dtype": d.pick((None, None, torch.float32, torch.bfloat16)),
    }


STRATEGIES = {"inr_query": inr_query}


def examples():
    query = {"rho_w": vector((8, 2)), "cell_w": vector((8, 2)), "bias": vector(8), "cell": torch.rand(B, 2)}
    trunk = [(weight(7, 8, 1).squeeze(-1), vector(7)), (weight(3, 7, 1).squeeze(-1), vector(3))]
    attention = {**query, "heads": 2, "dk": 3, "rho_bias": vector((2, 2)), "skip": maps(3)}
    grid = GridSpec.cells((H, W), (7, 8))
    points = ops.PointSpec(grid.points().base.expand(B, -1, -1), torch.rand(B, grid.count, 2))
    fourier = {"feature": "fourier", "ensemble": "late", "phase": vector((4, 2)), "cell": torch.rand(B, 2)}
    yield lambda: ops.inr_query(maps(8 + 2 * 2 * 3), grid, trunk, **attention)
    yield lambda: ops.inr_query(maps(16), points, trunk, **fourier, mask=torch.rand(B, H, W) < 0.8)
