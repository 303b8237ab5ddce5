# SPDX-License-Identifier: Apache-2.0
"""Table of the machine code of CUDA C++ kernels with bounds of their time on a GPU, without a GPU.

    PYTHONPATH=tests python -m gpuless.kernel_table --write

prints the table, and writes it to docs/benchmarks/machine-code.md.
"""

import argparse
import re
from dataclasses import dataclass

from gpuless.emu import CSRC
from gpuless.machine_code import MachineKernel, compile_kernels

PAGE = CSRC.parent / "docs" / "benchmarks" / "machine-code.md"
ARCH = 90
# An H200: warp instructions, lines of the L1 caches of 128 bytes, and bytes of the L2 cache and of the memory in a
# second. An L1 cache, which also is the shared memory, reads one line a cycle. Tensor cores of a multiprocessor compute
# a product of 16 x 8 x 16 in two cycles by mma.sync.
CLOCK, MULTIPROCESSORS = 1.98e9, 132
INSTRUCTIONS, LINES, L2_BYTES, BYTES = 4 * MULTIPROCESSORS * CLOCK, MULTIPROCESSORS * CLOCK, 5.5e12, 4.28e12
PRODUCTS = MULTIPROCESSORS * CLOCK / 2
SHARE, LAUNCH = 0.75, 2e-6  # of a bound that kernels reach; seconds of a launch
HEADER = (
    "| kernel, call | registers | instructions | issue | products | L1 | L2 | memory | expected | measured |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)


@dataclass(frozen=True)
class Row:
    """A kernel and its work for one call.

    Attributes:
        label: kernel and call.
        header: file in csrc that defines the kernel.
        instance: kernel with template arguments and parameter types.
        anchor: start of the name of an instruction of the loop that is counted, or "" for the whole kernel.
        warps: number of times that warps run these instructions.
        lines: lines of the L1 caches and of shared memory that are read and written.
        l2_bytes: bytes read from and written to the L2 cache; atomic additions count as 32 bytes a sector.
        memory_bytes: bytes read from and written to memory.
        measured: microseconds measured on an H200, or "" if no GPU has run the kernel in this form.
        products: products of 16 x 8 x 16 on tensor cores.
        inner: start of the name of an instruction of an inner loop, or of a loop of other warps, or "" for none.
        repeats: how many times more often than the outer loop the inner loop runs, less one; how often a loop of other
            warps runs for each run of the first loop.
        rare: number of runs of the loop for each run of the longest part of it that a branch skips.
    """

    label: str
    header: str
    instance: str
    anchor: str
    warps: float
    lines: float
    l2_bytes: float
    memory_bytes: float
    measured: str = ""
    products: float = 0
    inner: str = ""
    repeats: float = 0
    rare: int = 1

    def count_instructions(self, kernel: MachineKernel) -> int:
        """Return the number of counted instructions; of branches all sides count, but for a rare part."""
        inner = len(kernel.find_loop(self.inner)) * self.repeats if self.inner else 0
        loop = kernel.find_loop(self.anchor) if self.anchor else kernel.code
        skipped = kernel.count_longest_skip(loop) * (1 - 1 / self.rare) if self.rare > 1 else 0
        return round(len(loop) - skipped + inner)

    def format(self, kernel: MachineKernel) -> str:
        """Return the line of the table."""
        count = self.count_instructions(kernel)
        bounds = [
            self.warps * count / INSTRUCTIONS, self.products / PRODUCTS, self.lines / LINES,
            self.l2_bytes / L2_BYTES, self.memory_bytes / BYTES,
        ]  # fmt: skip
        cells = [self.label, str(kernel.registers), str(count), *(f"{1e6 * bound:.0f}" for bound in bounds)]
        cells += [f"{1e6 * (max(bounds) / SHARE + LAUNCH):.0f}", self.measured]
        return "| " + " | ".join(cells) + " |\n"


def _make_rows() -> list[Row]:
    cells = 8 * 64 * 160 * 160  # elements of a map of lstm_gates
    shuffled = 8 * 1024 * 64 * 64  # elements of the maps of pixel_shuffle
    samples = 40_000 * 9 * 8  # packs of 8 channels at all taps of (1, 64, 200, 200)
    gathered = 4 * 24.6  # lines of the corners of a warp, from a simulation with offsets of 2 pixels
    maps, offsets = 2 * 40_000 * 64, 40_000 * 9 * 8 * (4 + 4 + 2)  # bytes of x, and of offset and mask
    # The kernel that samples and multiplies: weights from the L2 cache; lines that a sampling warp writes, copies and
    # reads, and its share of the lines of four multiplying warps.
    fused_tiles = 25 * 25
    fused_weights, fused_lines = fused_tiles * 9 * 64 * 128, 4 + 4 + 1 + 4 * 16 * 4 / 16
    inputs = "(const DeformConv2dDims, const Inputs<BFloat16>, const DeformConv2dOffsetEpilogue, const SampleLines, "
    runs = "BFloat16*, ShuffleRuns, Activation<float>)"
    tiles, window, weights = 50 * 13, 6 * 18 * 128, 9 * 64 * 128  # a convolution; bytes in shared memory
    loads = 4 * 4 * 27 * 4  # lines of shared memory that the warps of a tile read in 4 steps of 16 channels
    step, states = 4 * 400, 4 * 25_600 * 24  # a ConvLSTM: tiles of 256 pixels, of which three blocks compute 8 channels
    cell_window, cell_loads = 18 * 18 * 96, 4 * 3 * 36 * 4
    return [
        Row(
            "lstm_gates, 8 x 64 x 160 x 160", "gates/cuda.cuh",
            "gates_run_kernel<LstmGates, FastFloat>(const GatesParams, uint32_t, uint32_t)", "", cells / 8 / 32,
            cells * 18 / 128, cells * 18, cells * 18,
        ),
        Row(
            "pixel_shuffle, (8, 1024, 64, 64) x 2", "pixel_shuffle/cuda.cuh",
            f"pixel_shuffle_run_kernel<BFloat16, 2>(const BFloat16*, const float*, {runs}", "", shuffled / 32 / 32,
            shuffled * 4 / 128, shuffled * 4, shuffled * 4, "45",
        ),
        Row(
            "its gradients", "pixel_shuffle/cuda_backward.cuh",
            "pixel_unshuffle_kernel<BFloat16, 8>(const BFloat16*, const BFloat16*, BFloat16*, float*, UnshuffleTiles, "
            "Activation<float>)", "BAR", shuffled / 16 / 32, shuffled * 6 / 128, shuffled * 6, shuffled * 6,
        ),
        Row(
            "conv3x3 64 -> 64, 200 x 200, residual, window", "conv3x3/cuda_window.cuh",
            "conv3x3_window_kernel<BFloat16, 4>(const WindowArguments)", "STG", 4 * tiles,
            tiles * (loads + (window + 2 * 64 * 128) / 128) + MULTIPROCESSORS * weights / 128,
            tiles * window + MULTIPROCESSORS * weights + 2 * maps, 3 * maps, products=tiles * 4 * 8 * 36, inner="HMMA",
            repeats=3,
        ),
        Row(
            "conv_lstm_cell 24, 4 x 160 x 160, window", "conv_rnn/cuda_window.cuh",
            "conv_gates_window_kernel<BFloat16, 4, 1, 1>(const CellArguments)", "STG", 3 * step,
            3 * step / 4 * (cell_loads + cell_window / 128) + states * 10 / 128,
            3 * step / 4 * cell_window + MULTIPROCESSORS * 9 * 32 * 96 + states * 10, states * 14,
            products=3 * step * 3 * 144, inner="HMMA", repeats=2,
        ),
        Row(
            "deform_conv2d (1, 64, 200, 200), samples of two passes", "deform_conv2d/cuda_sample.cuh",
            f"deform_conv2d_sample_kernel<BFloat16, float, 1>{inputs}BFloat16*)", "LDG.E.128", samples / 32,
            samples / 32 * (gathered + 4), 13e6 + offsets + samples * 16, maps + offsets,
        ),
        Row(
            "the same call in one kernel that samples and multiplies", "deform_conv2d/cuda_fused.cuh",
            "deform_conv2d_fused_kernel<BFloat16, float>(const DeformConv2dDims, const Inputs<BFloat16>, "
            "const DeformConv2dOffsetEpilogue, const FusedWork, const BFloat16*, const BFloat16*, BFloat16*)",
            "LDG.E.128", samples / 32, samples / 32 * (gathered + fused_lines), 13e6 + offsets + fused_weights + maps,
            2 * maps + offsets, products=fused_tiles * 9 * 4 * 8 * 4, inner="HMMA", repeats=4 / 16, rare=9,
        ),
        Row(
            "gradients of maps in two passes", "deform_conv2d/cuda_scatter.cuh",
            f"deform_conv2d_scatter_kernel<BFloat16, float>{inputs}const int, const BFloat16*, "
            "const DeformConv2dMapGradients)", "FRND", samples / 32, samples / 32 * (gathered + 4),
            samples * (4 * 32 + 16) + 13e6 + 2 * offsets, 3 * maps + 2 * offsets,
        ),
    ]  # fmt: skip


ROWS = _make_rows()


def make_table() -> str:
    """Compile the kernels and return the table."""
    lines = [row.format(compile_kernels(row.header, (row.instance,), ARCH)[0]) for row in ROWS]
    return HEADER + "".join(lines)


def read_table() -> str:
    """Return the table in PAGE."""
    found = re.search(re.escape(HEADER) + r"(?:\|.*\n)+", PAGE.read_text())
    assert found is not None, f"{PAGE} has no table of kernels"
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table to the page")
    arguments = parser.parse_args()
    table = make_table()
    print(table, end="")
    if arguments.write:
        PAGE.write_text(PAGE.read_text().replace(read_table(), table))


if __name__ == "__main__":
    main()
