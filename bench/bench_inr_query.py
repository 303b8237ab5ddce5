# SPDX-License-Identifier: Apache-2.0
"""inr_query compared with the published code of LIIF at factor 4, with 64 channels.

The published code unfolds the feature map and, for each of four corners, samples it by grid_sample, concatenates and
runs an MLP. Cases named by a fraction take that part of the rows of the grid; time and FLOPs are proportional to the
rows.
"""

import functools
import itertools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastds.models.inr import Encoded, decoders
from fastds.nn import LocalEnsembleDecoder
from fastds.ops import inr_query
from fastds.ops.impl.inr_query.points import GridSpec
from fastds.ops.impl.inr_query.reference import inr_query as reference

CHANNELS, HIDDEN, OUTPUTS, HEADS, KEY = 64, 256, 4, 4, 16
NAIVE_CHUNK = 30_000  # queries at once, as in the published code


@dataclass(frozen=True)
class Case:
    """Queries of some rows of a grid.

    Args:
        source: height and width of the feature map.
        scale: factor between the feature map and the grid.
        rows: first row of the grid and the row after the last.
    """

    source: tuple[int, int]
    scale: int
    rows: tuple[int, int]

    @property
    def target(self):
        return self.source[0] * self.scale, self.source[1] * self.scale

    @property
    def grid(self):
        return GridSpec.cells(self.source, self.target).window(self.rows, (0, self.target[1]))

    def count_flops(self, decoder):
        """Return the FLOPs of a decoder.

        Args:
            decoder: "liif" for the published formula (four corners, first layer with 9 C + 4 inputs), "attention" for
                the formula of the op.
        """
        if decoder == "liif":
            widths = (9 * CHANNELS + 4, HIDDEN, HIDDEN, HIDDEN, HIDDEN, OUTPUTS)
            return self.grid.count * 4 * 2 * sum(a * b for a, b in itertools.pairwise(widths))
        return self.grid.count * 2 * (3 * 128 * 128 + 128 * OUTPUTS)


CASES = {
    "180x360 x4, 1/24": Case((180, 360), 4, (0, 30)),
    "180x360 x4, 1/4": Case((180, 360), 4, (0, 180)),
    "48x48 x4": Case((48, 48), 4, (0, 192)),
}


def draw_normal(*shape, scale=1.0, seed=7):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def make_liif_layers():
    """Return the weights and biases of the MLP of LIIF."""
    widths = (9 * CHANNELS + 4, HIDDEN, HIDDEN, HIDDEN, HIDDEN, OUTPUTS)
    pairs = itertools.pairwise(widths)
    return [
        (draw_normal(b, a, scale=a**-0.5, seed=i), draw_normal(b, scale=0.1, seed=50 + i))
        for i, (a, b) in enumerate(pairs)
    ]


def make_features(case, dtype, device="cpu"):
    return draw_normal(1, CHANNELS, *case.source).to(device, dtype)


def make_coordinates(target, rows=(0, None)):
    """Return the coordinates (1, Q, 2) of some rows of a grid, between -1 and 1, as LIIF takes them."""
    y, x = (-1 + (2 * torch.arange(n) + 1) / n for n in target)
    grid = torch.meshgrid(y[slice(*rows)], x, indexing="ij")
    return torch.stack(grid, -1).reshape(1, -1, 2)


def make_cell(case, device="cpu"):
    return torch.full((1, 2), 2 / case.scale, device=device)


def move_layers(layers, device, dtype=torch.float32):
    return [(w.to(device, dtype), b.to(device, dtype)) for w, b in layers]


def convolve_first_layer(x, w, b):
    """Compute the first layer of LIIF as a convolution, without the last four columns of w (offset and cell)."""
    kernel = w[:, :-4].unflatten(1, (CHANNELS, 3, 3)).to(x.dtype).contiguous(memory_format=torch.channels_last)
    return F.conv2d(x.contiguous(memory_format=torch.channels_last), kernel, b.to(x.dtype), padding=1)


def build_liif(case, dtype, device="cpu"):
    """Build the LIIF decoder of fastds, whose first layer is a convolution of the rows that the queries need."""
    decoder = LocalEnsembleDecoder(CHANNELS, OUTPUTS, padding_mode="zeros", width=HIDDEN)
    (w, b), *layers = make_liif_layers()
    decoder.local.weight = nn.Parameter(w[:, :-4].unflatten(1, (CHANNELS, 3, 3)).contiguous())
    decoder.local.bias = nn.Parameter(b)
    decoder.offset, decoder.cell = nn.Parameter(w[:, -4:-2]), nn.Parameter(w[:, -2:])
    for linear, (weight, bias) in zip(decoder.trunk, layers, strict=True):
        linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    decoder.to(device), decoder.local.to(dtype)
    encoded, cell = Encoded(make_features(case, dtype, device), None, None), make_cell(case, device)
    return lambda: decoders.decode(decoder, encoded, case.grid, cell, ("clamp", "clamp"))


def build_published_liif(case, dtype, device="cpu", chunk=NAIVE_CHUNK):
    x, coord = make_features(case, dtype, device), make_coordinates(case.target, case.rows).to(device)
    layers, cell = move_layers(make_liif_layers(), device, dtype), make_cell(case, device)
    return lambda: compute_published_liif(x, coord, cell, layers, chunk).float()


def compute_published_liif(x, coord, cell, layers, chunk=NAIVE_CHUNK):
    """Compute LIIF as the published code does.

    Args:
        x: feature map (1, C, H, W).
        coord: coordinates of the queries (1, Q, 2), between -1 and 1.
        cell: size of the queried cells (1, 2).
        layers: weights and biases of the MLP.
        chunk: number of queries at once.

    Returns:
        Values (1, Q, O).
    """
    source, dtype = x.shape[2:], x.dtype
    n = torch.tensor(source, device=x.device)

    def sample(field, at):
        return F.grid_sample(field, at.flip(-1)[:, None], mode="nearest", align_corners=False)[:, :, 0]

    centres = (-1 + (2 * torch.arange(m) + 1) / m for m in source)
    cells = torch.stack(torch.meshgrid(*centres, indexing="ij"))[None].to(x.device)
    steps = [torch.tensor([sy, sx], device=x.device) / n for sy in (-1, 1) for sx in (-1, 1)]

    def compute_chunk(unfolded, at):
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

    # Sampled in float32, as under autocast: most coordinates in bfloat16 lie in a wrong cell.
    unfolded = F.unfold(x.float(), 3, padding=1).unflatten(2, source)
    return torch.cat([compute_chunk(unfolded, c) for c in coord.split(chunk, 1)], 1)


def make_attention_arguments(case, dtype, device="cpu"):
    """Return feature map, grid, layers and keyword arguments of inr_query for attention over four corners."""
    maps = draw_normal(1, 128 + 2 * HEADS * KEY, *case.source).to(device, dtype)
    widths = [*3 * [(128, 128)], (128, OUTPUTS)]
    trunk = [(draw_normal(b, a, scale=a**-0.5, seed=a + b), draw_normal(b, seed=b)) for a, b in widths]
    extra = {"rho_w": draw_normal(128, 2), "cell_w": draw_normal(128, 2), "rho_bias": draw_normal(HEADS, 2)}
    extra = {name: t.to(device) for name, t in extra.items()} | {"cell": make_cell(case, device)}
    maps = maps.contiguous(memory_format=torch.channels_last)
    return maps, case.grid, move_layers(trunk, device), extra | {"heads": HEADS, "dk": KEY}


def build_attention(case, dtype, device="cpu"):
    maps, grid, trunk, extra = make_attention_arguments(case, dtype, device)
    return lambda: inr_query(maps, grid, trunk, **extra)


BUILDERS = {"fastds": build_liif, "naive": build_published_liif, "attention": build_attention}


def build(peer, case, dtype, device="cpu"):
    """Build the callable to time, which records no gradients.

    Args:
        peer: key of BUILDERS.
        case: the queries.
        dtype: dtype of the features.
        device: device of all tensors.
    """
    run = BUILDERS[peer](case, dtype, device)

    def without_gradients():
        with torch.no_grad():
            return run()

    return without_gradients


def compute_exact_liif(case, device):
    """Compute LIIF by the reference in float64, row by row because of the memory for the features of all queries."""
    (w, b), *layers = move_layers(make_liif_layers(), device, torch.float64)
    maps = convolve_first_layer(make_features(case, torch.float64, device), w, b)
    weights, biases = [w for w, _ in layers], [b for _, b in layers]
    cell = make_cell(case, device).double()
    options = (None, None, None, cell, None, None, "affine", "late", 1, 0, "relu", "bilinear", [False, False])
    rows = []
    step = case.rows[1] - case.rows[0] if device == "meta" else 1
    for row in range(*case.rows, step):
        axes = GridSpec.cells(case.source, case.target).window((row, row + step), (0, case.target[1])).numbers()
        points = (None, None, axes, w[:, -4:-2], w[:, -2:])
        rows.append(reference(maps, weights, biases, *points, *options, torch.float64))
    return torch.cat(rows, 1)


@functools.lru_cache(maxsize=2)
def compute_expected(case, decoder, device="cpu"):
    """Compute the float64 result of the decoder "liif" or "attention"."""
    if decoder == "liif":
        return compute_exact_liif(case, device)
    maps, grid, trunk, extra = make_attention_arguments(case, torch.float64, device)
    extra = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in extra.items()}
    return inr_query(maps, grid, move_layers(trunk, device, torch.float64), **extra)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("peer", BUILDERS)
@pytest.mark.parametrize("case", CASES)
def test_inr_query(measure, case, peer, dtype):
    if case == "180x360 x4, 1/4" and peer == "naive":
        pytest.skip("takes many seconds; the time is six times that of 1/24")
    decoder = "attention" if peer == "attention" else "liif"
    queries = CASES[case].grid.count
    measure(
        build, (peer, CASES[case], dtype), op=f"inr_query {decoder}", case=case, mode="forward",
        peer="fastds" if peer == "attention" else peer,
        dtype=str(dtype).removeprefix("torch."), flops=CASES[case].count_flops(decoder), bytes=queries * OUTPUTS * 4,
        expected=compute_expected(CASES[case], decoder), tolerance=1e-4 if dtype == torch.float32 else 6e-2,
    )  # fmt: skip
