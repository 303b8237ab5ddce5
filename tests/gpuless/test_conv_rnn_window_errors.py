# SPDX-License-Identifier: Apache-2.0
"""Errors that are made in csrc/conv_rnn/cuda_window.cuh and the products that it shares are found by the reference."""

import pytest
import torch
from gpuless.conv3x3_window_cases import finds_an_error
from gpuless.conv_rnn_window_cases import Case, poison_results
from gpuless.emu import CSRC, build

HEADERS = ("conv_rnn/cuda_window.cuh", "conv3x3/window_product.cuh")
# Calls of different parts of the kernel, as small as an error is still found.
TILES = Case("lstm_gates", 3, (8, 8), 8, 3, 18, residual=True, keep=True)
WARPS = Case("lstm_gates", 1, (8, 16), 16, 10, 5, bias=None)  # two warps with different channels, two with rows
SLABS = Case("memory_gates", 1, (72,), 8, 17, 3, state=torch.bfloat16)  # an odd number of products
PARTS = Case("gru_reset", 1, (8,), 16, 3, 5, residual=True, keep=True)  # 16 channels of a warp
UPDATE = Case("gru_update_leaky", 1, (8, 8), 8, 3, 5)  # channels of a warp that do not exist, two other inputs
MEMORY = Case("st_lstm_gates", 1, (8,), 8, 3, 12)
# Only the block of the call is compiled.
ALL_BLOCKS = "X(4, 1, 2) X(4, 1, 1) X(3, 1, 2) X(3, 1, 1) X(2, 2, 1) X(2, 1, 1) X(1, 3, 1) X(1, 2, 1)"
BLOCKS = {
    TILES: "X(4, 1, 1)", WARPS: "X(4, 1, 2)", SLABS: "X(3, 1, 1)", PARTS: "X(2, 2, 1)", UPDATE: "X(1, 2, 1)",
    MEMORY: "X(4, 1, 1)",
}  # fmt: skip
# Text of the kernel, what replaces it, and the call that finds the error.
ERRORS = {
    "order of gates": ("? gate * a.channels + c : -1", "? (kGates - 1 - gate) * a.channels + c : -1", TILES),
    "gates of the parts of a warp": (
        "part = n / kGates, gate = n % kGates;", "part = n % kParts, gate = n / kParts;", PARTS
    ),
    "weights of the second warp": ("first + get_first_channel(row / Tile::kWarpOutputs)", "first", WARPS),
    "bias of the first gate": ("output = n % kGates * a.channels + channel", "output = channel", TILES),
    "residual of the first gate": ("gate = n % kGates * a.channels + n", "gate = n", PARTS),
    "columns of the state": ("8 * half * map.w", "half * map.w", TILES),
    "second other input": ("= k < kFirst ? k : k < kFirst", "= k < kFirst ? 1 : k < kFirst", UPDATE),
    "options of the formula": ("options{a.option, a.slope}", "options{a.slope, a.option}", UPDATE),
    "sums of the first part": ("value[r][part * kGates + k - kFirst]", "value[r][k - kFirst]", PARTS),
    "channels that do not exist": ("            if (!exists(part)) return;\n", "", UPDATE),
    "pixels outside of the map": ("                    if (!pixels.exist(r, half)) continue;\n", "", TILES),
    "pre-activations of the first gate": ("a.outputs + gate * a.channels", "a.outputs", TILES),
    "first result twice": ("(result[k] + distance", "(result[0] + distance", MEMORY),
    "no barrier before a window is overwritten": ("        FASTDS_SYNC_NAMED(1 + warpgroup, kWarpgroup);\n", "", TILES),
    "wait of one window too few": (
        "        wait_for_copies<0>();\n        FASTDS", "        wait_for_copies<1>();\n        FASTDS", TILES
    ),
    "sums of the tile before": ("        if (tile < a.tiles) epilogue", "        if (false) epilogue", TILES),
    "inputs of the first slab": ("typename Epilogue::Loaded loaded{};\n        if (is_last)",
                                 "typename Epilogue::Loaded loaded{};\n        if (slab == 0)", SLABS),
    "weights of one product twice": ("(n + 1 < Tile::kProducts ? 0 : second)", "second", SLABS),
    "outputs of a warp": ("output_warp * Tile::kWarpOutputs", "output_warp * 16", WARPS),
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_error_in_the_kernel_is_found(emulated, monkeypatch, error):
    text, replacement, case = ERRORS[error]
    emulated("conv_rnn")
    (header,) = (name for name in HEADERS if text in (CSRC / name).read_text())
    module = build("conv_rnn", changes=[(header, text, replacement), (HEADERS[0], ALL_BLOCKS, BLOCKS[case])])
    assert finds_an_error(case, module, poison_results(monkeypatch), monkeypatch)


@pytest.mark.parametrize("case", [TILES, WARPS, SLABS, PARTS, UPDATE, MEMORY], ids=lambda case: case.formula)
def test_no_error_is_found_in_the_kernel_itself(emulated, monkeypatch, case):
    emulated("conv_rnn")
    assert not finds_an_error(case, build("conv_rnn"), poison_results(monkeypatch), monkeypatch)
