# SPDX-License-Identifier: Apache-2.0
"""Errors that are made in csrc/deform_conv2d/cuda_fused.cuh and cuda_sample.cuh are found by the reference."""

import pytest
from gpuless.deform_fused_cases import Case, finds_an_error
from gpuless.emu import CSRC, build

from tests.support.deform_cases import Problem

TILES = Case(Problem("tiles", 1, 16, 12, 9, 17, G=2))  # more steps of a block than stages
WIDE = Case(Problem("wide", 2, 24, 136, 4, 5, (1, 2), G=3))  # two parts of the outputs
ROW = Case(Problem("row", 1, 8, 8, 3, 17, (1, 1), padding=(0, 0), G=1))  # one tile more than blocks
HEADERS = ("deform_conv2d/cuda_fused.cuh", "deform_conv2d/cuda_sample.cuh")
# Text of the kernel, what replaces it, and the call that finds the error.
ERRORS = {
    "no barrier before the first stage": ("    __syncthreads();\n", "", TILES),
    "samples overwrite a stage that is in use": (
        "if (step >= kFusedStages) FASTDS_WAIT", "if (false) FASTDS_WAIT", TILES
    ),
    "parity of an empty stage": ("step / kFusedStages % 2 ^ 1)", "step / kFusedStages % 2)", TILES),
    "an empty stage after the first warp": (
        "emptied[stage], (blockDim.x - kSamplingThreads) / 32", "emptied[stage], 1", TILES
    ),
    "products before the samples": (
        "            FASTDS_WAIT_FOR_PHASE(shared->filled[stage], step / kFusedStages % 2);\n", "", TILES
    ),
    "a full stage after half of the warps": (
        "filled[stage], kSamplingWarps)", "filled[stage], kSamplingWarps / 2)", TILES
    ),
    "weights not waited for": ("        wait_for_copies<0>();\n", "        wait_for_copies<1>();\n", TILES),
    "products of the stage after": (
        "stages + stage * get_stage_bytes(work), first_pixel",
        "stages + (stage + 1) % 4 * get_stage_bytes(work), first_pixel", TILES,
    ),
    "weights of the slab after": ("const int term = slab * (kSlab", "const int term = (slab + 1) * (kSlab", TILES),
    "displacement of the tap before": (
        "        term_group = term_groups[slab * kSlabGroups];\n        next = pixel.load_sample(term_group.q);",
        "        next = pixel.load_sample(term_group.q);\n        term_group = term_groups[slab * kSlabGroups];", TILES,
    ),
    "pixel of the tile before": ("if (tile < end) pixel = Fused", "if (false) pixel = Fused", TILES),
    "displacement of the next tap": ("(offset)[q];", "(offset)[q + 1];", TILES),
    "last column of the image": ("x0 + 1 < width", "x0 + 1 <= width", TILES),
    "edge of a tile in rows": ("if (i >= height ||", "if (i > height ||", TILES),
    "edge of a tile in columns": ("|| j >= width) continue", "|| j > width) continue", TILES),
    "tiles of the shares": ("first = share * least + min(share, more)", "first = share * least", ROW),
    "outputs of the second part": ("skipped = part % work.parts * work.outputs", "skipped = 0", WIDE),
    "weights of outputs after 64": ("min(output + kFusedPixels, outputs", "min(output, outputs", WIDE),
    "order of outputs in a product": (
        "kProductOutputs + row % 8 / 2 * 8 + row % kProductOutputs / 8 * 2 + row % 2",
        "kProductOutputs + row % kProductOutputs", TILES,
    ),
    "halves of the terms in a product": ("(k + lane / 16) ^ row", "(k + lane / 8 % 2) ^ row", TILES),
    "banks of the samples": ("(term_group ^ row % 8) * 16", "term_group * 16", TILES),
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_error_in_the_kernel_is_found(emulated, fused_outputs, monkeypatch, error):
    text, replacement, case = ERRORS[error]
    emulated("deform_conv2d")
    (header,) = (name for name in HEADERS if text in (CSRC / name).read_text())
    module = build("deform_conv2d", changes=[(header, text, replacement)])
    assert finds_an_error(case, module, fused_outputs, monkeypatch)


@pytest.mark.parametrize("case", [TILES, WIDE, ROW])
def test_no_error_is_found_in_the_kernel_itself(emulated, fused_outputs, monkeypatch, case):
    emulated("deform_conv2d")
    assert not finds_an_error(case, build("deform_conv2d"), fused_outputs, monkeypatch)
