# SPDX-License-Identifier: Apache-2.0
"""inr_query against LIIF as published (unfold, grid_sample per corner, concatenation, four MLPs) at x4, C = 64.

The grid has 720 x 1440 queries; a case takes some of its rows, time and work are proportional to them.
"""

import functools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from fastds.models.inr import Encoded, bands
from fastds.nn import LocalEnsembleDecoder
from fastds.ops import inr_query
from fastds.ops.impl.inr_query.points import GridSpec
from fastds.ops.impl.inr_query.reference import inr_query as reference

CHANNELS, HIDDEN, OUTPUTS, HEADS, KEY = 64, 256, 4, 4, 16
NAIVE_CHUNK = 30_000  # queries at once, as the published test code does


@dataclass(frozen=True)
class Case:
    source: tuple[int, int]
    scale: int
    rows: tuple[int, int]

    @property
    def target(self):
        return self.source[0] * self.scale, self.source[1] * self.scale

    @property
    def grid(self):
        return GridSpec.cells(self.source, self.target).window(self.rows, (0, self.target[1]))

    def flops(self, decoder):
        """Of the published formula for LIIF (four corners, first layer of 9C + 4 inputs), of ours for the attention."""
        if decoder == "liif":
            widths = (9 * CHANNELS + 4, HIDDEN, HIDDEN, HIDDEN, HIDDEN, OUTPUTS)
            return self.grid.count * 4 * 2 * sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))
        return self.grid.count * 2 * (3 * 128 * 128 + 128 * OUTPUTS)


CASES = {
    "180x360 x4, 1/24": Case((180, 360), 4, (0, 30)),
    "180x360 x4, 1/4": Case((180, 360), 4, (0, 180)),
    "48x48 x4": Case((48, 48), 4, (0, 192)),
}


def normal(*shape, scale=1.0, seed=7):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def liif_layers():
    widths = (9 * CHANNELS + 4, HIDDEN, HIDDEN, HIDDEN, HIDDEN, OUTPUTS)
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return [(normal(b, a, scale=a**-0.5, seed=i), normal(b, scale=0.1, seed=50 + i)) for i, (a, b) in enumerate(pairs)]


def features(case, dtype, device="cpu"):
    return normal(1, CHANNELS, *case.source).to(device, dtype)


def coordinates(case):
    return coordinates_of(case.target, case.rows)


def coordinates_of(target, rows=(0, None)):
    y, x = (-1 + (2 * torch.arange(n) + 1) / n for n in target)
    grid = torch.meshgrid(y[slice(*rows)], x, indexing="ij")
    return torch.stack(grid, -1).reshape(1, -1, 2)


def kappa(case, device="cpu"):
    return torch.full((1, 2), 2 / case.scale, device=device)


def moved(layers, device, dtype=torch.float32):
    return [(w.to(device, dtype), b.to(device, dtype)) for w, b in layers]


def liif_maps(x, w, b):
    """The convolution that the first layer has become; the last four columns of w belong to offset and cell."""
    kernel = w[:, :-4].unflatten(1, (CHANNELS, 3, 3)).to(x.dtype).contiguous(memory_format=torch.channels_last)
    return F.conv2d(x.contiguous(memory_format=torch.channels_last), kernel, b.to(x.dtype), padding=1)


def fastds_liif(case, dtype, device="cpu"):
    """The decoder of the models from features on: its first layer is a convolution, made for the rows that are read."""
    decoder = LocalEnsembleDecoder(CHANNELS, OUTPUTS, "zeros", HIDDEN)
    (w, b), *layers = liif_layers()
    decoder.local.weight.data, decoder.local.bias.data = w[:, :-4].unflatten(1, (CHANNELS, 3, 3)).contiguous(), b
    decoder.offset.data, decoder.cell.data = w[:, -4:-2], w[:, -2:]
    for linear, (weight, bias) in zip(decoder.trunk, layers, strict=True):
        linear.weight.data, linear.bias.data = weight, bias
    decoder.to(device), decoder.local.to(dtype)
    encoded, cell = Encoded(features(case, dtype, device), None, None), kappa(case, device)
    return lambda: bands.decode(decoder, encoded, case.grid, cell, ("clamp", "clamp"))


def naive_liif(case, dtype, device="cpu", chunk=NAIVE_CHUNK):
    x, coord = features(case, dtype, device), coordinates(case).to(device)
    layers, cell = moved(liif_layers(), device, dtype), kappa(case, device)
    return lambda: published_liif(x, coord, cell, layers, chunk).float()


def published_liif(x, coord, cell, layers, chunk=NAIVE_CHUNK):
    """The values at coord (1, Q, 2) as the published code computes them, some queries at once."""
    source, dtype = x.shape[2:], x.dtype
    n = torch.tensor(source, device=x.device)

    def sample(field, at):
        return F.grid_sample(field, at.flip(-1)[:, None], mode="nearest", align_corners=False)[:, :, 0]

    centres = (-1 + (2 * torch.arange(m) + 1) / m for m in source)
    cells = torch.stack(torch.meshgrid(*centres, indexing="ij"))[None].to(x.device)
    steps = [torch.tensor([sy, sx], device=x.device) / n for sy in (-1, 1) for sx in (-1, 1)]

    def part(unfolded, at):
        values, areas = [], []
        for step in steps:
            near = (at + step + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
            q = sample(unfolded, near).transpose(1, 2)
            offset = (at - sample(cells, near).transpose(1, 2)) * n
            h = torch.cat([q.to(dtype), offset.to(dtype), cell[:, None].expand_as(offset).to(dtype)], -1)
            for i, (w, b) in enumerate(layers):
                h = F.linear(h, w, b)
                h = h.relu() if i + 1 < len(layers) else h
            values.append(h)
            areas.append((offset[..., 0] * offset[..., 1]).abs() + 1e-9)
        total = sum(areas)
        return sum(v * (a / total)[..., None] for v, a in zip(values, reversed(areas), strict=True))

    # Sampled in float32, as under autocast: coordinates in bfloat16 put most queries into a wrong cell.
    unfolded = F.unfold(x.float(), 3, padding=1).unflatten(2, source)
    return torch.cat([part(unfolded, c) for c in coord.split(chunk, 1)], 1)


def attention_arguments(case, dtype, device="cpu"):
    maps = normal(1, 128 + 2 * HEADS * KEY, *case.source).to(device, dtype)
    widths = [*3 * [(128, 128)], (128, OUTPUTS)]
    trunk = [(normal(b, a, scale=a**-0.5, seed=a + b), normal(b, seed=b)) for a, b in widths]
    extra = {"rho_w": normal(128, 2), "cell_w": normal(128, 2), "rho_bias": normal(HEADS, 2)}
    extra = {name: t.to(device) for name, t in extra.items()} | {"cell": kappa(case, device)}
    maps = maps.contiguous(memory_format=torch.channels_last)
    return maps, case.grid, moved(trunk, device), extra | {"heads": HEADS, "dk": KEY}


def fastds_attention(case, dtype, device="cpu"):
    maps, grid, trunk, extra = attention_arguments(case, dtype, device)
    return lambda: inr_query(maps, grid, trunk, **extra)


BUILDERS = {"fastds": fastds_liif, "naive": naive_liif, "attention": fastds_attention}


def build(peer, case, dtype, device="cpu"):
    run = BUILDERS[peer](case, dtype, device)

    def without_gradients():
        with torch.no_grad():
            return run()

    return without_gradients


def exact_liif(case, device):
    """A row of the grid at a time: the reference keeps every feature."""
    (w, b), *layers = moved(liif_layers(), device, torch.float64)
    maps = liif_maps(features(case, torch.float64, device), w, b)
    weights, biases = [w for w, _ in layers], [b for _, b in layers]
    cell = kappa(case, device).double()
    options = (None, None, None, cell, None, None, "affine", "late", 1, 0, "relu", "bilinear", [False, False])
    rows = []
    for row in range(*case.rows):
        axes = GridSpec.cells(case.source, case.target).window((row, row + 1), (0, case.target[1])).numbers()
        points = (None, None, axes, w[:, -4:-2], w[:, -2:])
        rows.append(reference(maps, weights, biases, *points, *options, torch.float64))
    return torch.cat(rows, 1)


@functools.lru_cache(maxsize=2)
def expected(case, decoder, device="cpu"):
    if decoder == "liif":
        return exact_liif(case, device)
    maps, grid, trunk, extra = attention_arguments(case, torch.float64, device)
    extra = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in extra.items()}
    return inr_query(maps, grid, moved(trunk, device, torch.float64), **extra)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("peer", BUILDERS)
@pytest.mark.parametrize("case", CASES)
def test_inr_query(measure, case, peer, dtype):
    if case == "180x360 x4, 1/4" and peer == "naive":
        pytest.skip("takes many seconds; its time is that of 1/24 times six")
    decoder = "attention" if peer == "attention" else "liif"
    queries = CASES[case].grid.count
    measure(
        build, (peer, CASES[case], dtype), op=f"inr_query {decoder}", case=case, mode="forward",
        peer="fastds" if peer == "attention" else peer,
        dtype=str(dtype).removeprefix("torch."), flops=CASES[case].flops(decoder), bytes=queries * OUTPUTS * 4,
        expected=expected(CASES[case], decoder), tolerance=1e-4 if dtype == torch.float32 else 6e-2,
    )  # fmt: skip
