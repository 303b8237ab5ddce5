# SPDX-License-Identifier: Apache-2.0
"""Errors that are made in csrc/conv3x3/cuda_window.cuh and window_product.cuh are found by the reference."""

import pytest
import torch
from gpuless.conv3x3_window_cases import Case, finds_an_error, poison_outputs
from gpuless.emu import CSRC, build

# Calls of different parts of the kernel, as small as an error is still found.
TILES = Case(1, (8,), 64, 17, 17, activation="leaky_relu", bias=torch.bfloat16, residual=True)
SLABS = Case(1, (72,), 16, 20, 18, sliced=True)
SOURCES = Case(2, (8, 16), 24, 3, 6, sliced=True)
WRAPPED = Case(1, (16,), 8, 3, 18, padding_mode="circular_x")
SHUFFLED = Case(1, (16,), 32, 3, 4, shuffle=2)
HEADERS = ("conv3x3/cuda_window.cuh", "conv3x3/window_product.cuh")
# Text of the kernel, what replaces it, and the call that finds the error.
ERRORS = {
    "no barrier before a window is overwritten": ("        FASTDS_SYNC_NAMED(1 + warpgroup, kWarpgroup);\n", "", TILES),
    "wait of one window too few": (
        "        wait_for_copies<0>();\n        FASTDS", "        wait_for_copies<1>();\n        FASTDS", TILES
    ),
    "no barrier before the first window": ("    __syncthreads();\n", "", TILES),
    "first window not waited for": (
        "    wait_for_copies<0>();\n    __sync", "    wait_for_copies<1>();\n    __sync", TILES
    ),
    "one barrier for all warpgroups": ("FASTDS_SYNC_NAMED(1 + warpgroup,", "FASTDS_SYNC_NAMED(1,", TILES),
    "the same window for all tiles": ("        slab++, stage ^= 1;", "        slab++;", TILES),
    "copy to the first window": ("windows + stage * Tile::kWindowBytes, at, slab", "windows, at, slab", TILES),
    "sums of the tile before": ("        if (tile < a.tiles) epilogue", "        if (false) epilogue", TILES),
    "weights of the first slab": ("shared + slab * Tile::kSlabBytes", "shared", SLABS),
    "rows of the window": ("MapLine(at.row + r - 1, a.height, source.h, false), own)",
                           "MapLine(at.row + r, a.height, source.h, false), own)", SOURCES),
    "columns of the border": ("last(at.column + border - 1,", "last(at.column + border - 2,", TILES),
    "last column of the border": ("border = kTileColumns + column % 2", "border = kTileColumns", TILES),
    "edge of a tile in rows": ("r < rows &&", "r <= rows &&", TILES),
    "edge of a tile in columns": ("8 * half < columns", "8 * half <= columns", TILES),
    "columns that do not wrap": ("        if (wrap) at +=", "        if (false) at +=", WRAPPED),
    "channels after the last one": ("exists = pack < packs,", "exists = pack <= packs,", SOURCES),
    "no zeros after the last channel": ("(pack >= (packs + 1) / 2 * 2) return", "(pack >= packs) return", SOURCES),
    "channels of the second source": (": first ? pack : pack - a.source[0].packs)", ": pack)", SOURCES),
    "order of outputs in a product": ("return place / 2 % 4 * 4 + place / 8 * 2 +", "return place + 0 *", SOURCES),
    "halves of the channels": ("* kPixelBytes + lane / 16 * 16", "* kPixelBytes + lane / 8 % 2 * 16", SOURCES),
    "banks of the weights": ("(pack ^ row % 8) * 16", "pack * 16", SOURCES),
    "order of taps": ("(dy * 3 + dx) * (Tile", "(dx * 3 + dy) * (Tile", SOURCES),
    "rows of a tap": ("m)[4] = map[r + dy]", "m)[4] = map[r + 2 - dy]", SOURCES),
    "columns of the residual": ("8 * half * a.residual_w", "half * a.residual_w", TILES),
    "residual after the activation": (
        """                value[i] += unpack_value<T>(i < 2 ? added.x : added.y, i % 2);
                value[i] = value[i] < 0 ? (a.slope == 0 ? 0 : value[i] * a.slope) : value[i];""",
        """                value[i] = value[i] < 0 ? value[i] * a.slope : value[i];
                value[i] += unpack_value<T>(i < 2 ? added.x : added.y, i % 2);""", TILES,
    ),
    "order of sub-pixels": ("    if (a.shuffle == 1) return n;\n", "    return n;\n", SHUFFLED),
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_error_in_the_kernel_is_found(emulated, monkeypatch, error):
    text, replacement, case = ERRORS[error]
    emulated("conv3x3")
    (header,) = (name for name in HEADERS if text in (CSRC / name).read_text())
    module = build("conv3x3", changes=[(header, text, replacement)])
    assert finds_an_error(case, module, poison_outputs(monkeypatch), monkeypatch)


@pytest.mark.parametrize("case", [TILES, SLABS, SOURCES, WRAPPED, SHUFFLED])
def test_no_error_is_found_in_the_kernel_itself(emulated, monkeypatch, case):
    emulated("conv3x3")
    assert not finds_an_error(case, build("conv3x3"), poison_outputs(monkeypatch), monkeypatch)
