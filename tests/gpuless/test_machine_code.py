# SPDX-License-Identifier: Apache-2.0
"""Tests of the machine code of CUDA kernels: registers, spills, widths of loads and stores, instructions of a loop."""

import subprocess

import pytest
from gpuless import kernel_table
from gpuless.machine_code import ARCHS, Instruction, MachineKernel, compile_kernels, find_nvcc

GATES = tuple(
    f"gates_run_kernel<{formula}, FastFloat>(const GatesParams, uint32_t, uint32_t)"
    for formula in ("LstmGates", "LstmGatesBackward", "GruUpdate<false>")
)
SAMPLE_ARGUMENTS = (
    "(const DeformConv2dDims, const Inputs<{0}>, const DeformConv2dOffsetEpilogue, const SampleLines, {0}*)"
)
SAMPLES = tuple(
    f"deform_conv2d_sample_kernel<{dtype}, {offset}, {packs}>" + SAMPLE_ARGUMENTS.format(dtype)
    for dtype, offset, packs in (
        ("BFloat16", "float", 1), ("BFloat16", "BFloat16", 1), ("Half", "float", 1), ("float", "float", 1),
        ("BFloat16", "float", 2), ("float", "float", 2),
    )
)  # fmt: skip
LIMITS = {  # by the kernel of SAMPLES: registers, instructions of the loop for a tap; see docs/kernels.md
    "BFloat16, float, 1": (64, 190),
    "BFloat16, BFloat16, 1": (64, 192),
    "Half, float, 1": (64, 190),
    "float, float, 1": (64, 140),
    "BFloat16, float, 2": (80, 270),
    "float, float, 2": (80, 165),
}
SCATTER_ARGUMENTS = (
    "(const DeformConv2dDims, const Inputs<{0}>, const DeformConv2dOffsetEpilogue, const SampleLines, const int, "
    "const {0}*, const DeformConv2dMapGradients)"
)
SCATTERS = tuple(
    f"deform_conv2d_scatter_kernel<{dtype}, {offset}>" + SCATTER_ARGUMENTS.format(dtype)
    for dtype, offset in (("BFloat16", "float"), ("Half", "Half"), ("float", "float"))
)
SCATTER_LIMITS = {"BFloat16, float": 470, "Half, Half": 470, "float, float": 380}  # instructions of the loop for a tap
FUSED = tuple(
    f"deform_conv2d_fused_kernel<{dtype}, {offset}>(const DeformConv2dDims, const Inputs<{dtype}>, "
    f"const DeformConv2dOffsetEpilogue, const FusedWork, const {dtype}*, const {dtype}*, {dtype}*)"
    for dtype, offset in (("BFloat16", "float"), ("BFloat16", "BFloat16"), ("Half", "float"), ("Half", "Half"))
)

WINDOWS = tuple(
    f"conv3x3_window_kernel<{dtype}, {warps}>(const WindowArguments)"
    for dtype in ("BFloat16", "Half")
    for warps in (4, 2, 1)
)
CELLS = tuple(  # gates, products of a warp
    (gates, gates * parts, f"conv_gates_window_kernel<{dtype}, {gates}, {parts}, 1>(const CellArguments)")
    for dtype, gates, parts in (("BFloat16", 4, 1), ("BFloat16", 3, 1), ("BFloat16", 1, 3), ("Half", 2, 2))
)
UNSHUFFLE_ARGUMENTS = "(const {0}*, const {0}*, {0}*, float*, UnshuffleTiles, Activation<float>)"
UNSHUFFLES = tuple(
    f"pixel_unshuffle_kernel<{dtype}, {vector}>" + UNSHUFFLE_ARGUMENTS.format(dtype)
    for dtype, vector in (("BFloat16", 8), ("Half", 8), ("float", 4), ("BFloat16", 2), ("float", 1))
)


@pytest.mark.parametrize("arch", ARCHS)
def test_gates_load_all_operands_before_the_first_conversion(arch):
    for kernel, inputs in zip(compile_kernels("gates/cuda.cuh", GATES, arch), (5, 7, 3), strict=True):
        loads, stores = kernel.find("LDG"), kernel.find("STG")
        assert len(loads) == 2 * inputs  # 32 bytes of float32 operands; the second load has a predicate
        assert all(i.width == 16 for i in (*loads, *stores)), loads + stores
        assert kernel.find_early_use() is None
        assert kernel.stack == 0 and kernel.registers <= 80


@pytest.mark.parametrize("arch", ARCHS)
def test_samples_of_a_tap_are_loaded_and_stored_as_vectors(arch):
    for instance, kernel in zip(SAMPLES, compile_kernels("deform_conv2d/cuda_sample.cuh", SAMPLES, arch), strict=True):
        key = instance.partition("<")[2].partition(">")[0]
        registers, instructions = LIMITS[key]
        loop, packs = kernel.find_loop("LDG.E.128"), int(key[-1])
        corners = [i for i in loop if i.name.startswith("LDG") and i.width == 16]
        stores = [i for i in loop if i.name.startswith("STG")]
        assert len(corners) == 4 * packs and all(i.predicate for i in corners), (key, corners)
        assert [i.width for i in stores] == packs * [16], (key, stores)
        assert sum(i.name.startswith("LDG") for i in loop) == 4 * packs + 2  # offset and mask of the next tap
        before_the_end = loop[: loop.index(stores[-1])]
        branches = [i.name for i in before_the_end if i.name.startswith(("BRA", "BSSY", "CALL", "WARPSYNC"))]
        assert not branches, (key, branches)
        assert kernel.stack == 0 and kernel.registers <= registers, (key, kernel.registers)
        assert len(loop) <= instructions, (key, len(loop))


@pytest.mark.parametrize("arch", ARCHS)
def test_fused_kernel_loads_ahead_and_multiplies(arch):
    for instance, kernel in zip(FUSED, compile_kernels("deform_conv2d/cuda_fused.cuh", FUSED, arch), strict=True):
        loop, step = kernel.find_loop("LDG.E.128"), kernel.find_loop("HMMA")  # of sampling and of multiplying warps
        corners = [i for i in loop if i.name.startswith("LDG.") and i.width == 16]
        assert len(corners) == 4 and all(i.predicate for i in corners), (instance, corners)
        stores = [i for i in loop if i.name.startswith("STS")]
        assert [i.width for i in stores] == [16], (instance, stores)
        last_corner, store = loop.index(corners[-1]), loop.index(stores[0])
        pair = "LDG.E.64" if "float>" in instance else "LDG.E"
        ahead = [k for k, i in enumerate(loop) if i.name.split(".CONSTANT")[0] == pair and k > last_corner]
        assert ahead and ahead[-1] < store, (instance, ahead)  # the next displacement
        assert all(i.width == 16 for i in kernel.find("LDGSTS")) and kernel.find("LDGSTS"), instance
        assert len(loop) - kernel.count_longest_skip(loop) <= 250, (instance, len(loop))
        loads = [i.name for i in step if i.name.startswith("LDSM")]
        assert sum(i.name.startswith("HMMA") for i in step) == 32 and len(loads) == 16, (instance, loads)
        assert all(".x4" in name or name.endswith(".4") for name in loads) and len(step) <= 130, (instance, len(step))
        assert {i.width for i in kernel.find("STG")} == {16, 2}, (
            instance
        )  # outputs that are a multiple of 8, and others
        assert kernel.stack == 0 and kernel.registers <= 80, (instance, kernel.registers)


@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_of_a_tap_are_loaded_and_added_as_vectors(arch):
    for instance, kernel in zip(
        SCATTERS, compile_kernels("deform_conv2d/cuda_scatter.cuh", SCATTERS, arch), strict=True
    ):
        key = instance.partition("<")[2].partition(">")[0]
        channels = 4 if key.startswith("float") else 8  # of 16 bytes
        tap, pack = kernel.find_loop("FRND"), kernel.find_loop("LDG.E.128")
        loads = [i for i in pack if i.name.startswith("LDG")]
        assert [i.width for i in loads] == 5 * [16] and sum(bool(i.predicate) for i in loads) == 4, (key, loads)
        added = [i.name for i in pack if i.name.startswith("RED")]
        width = 4 if arch >= 90 else 1  # floats of an atomic addition
        assert len(added) == 4 * channels // width and all((".F32x4" in name) == (width == 4) for name in added), added
        assert kernel.stack == 0 and kernel.registers <= 128, (key, kernel.registers)
        assert len(tap) <= SCATTER_LIMITS[key] + (16 if arch < 90 else 0), (key, len(tap))


@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_of_pixel_shuffle_are_loaded_and_stored_as_vectors(arch):
    kernels = compile_kernels("pixel_shuffle/cuda_backward.cuh", UNSHUFFLES, arch)
    for instance, kernel in zip(UNSHUFFLES, kernels, strict=True):
        dtype, vector = instance.partition("<")[2].partition(">")[0].split(", ")
        width = int(vector) * (4 if dtype == "float" else 2)
        loads, count = kernel.find("LDG"), min(16 // width * 2, 4)  # of a part of a tile
        assert {i.width for i in loads} == {width}, (instance, loads)
        # The first tile and the next one, with and without results, of which a part may be shared.
        assert 4 * count <= len(loads) <= 6 * count, (instance, len(loads))
        # Gradients that have come do not wait for the next loads: all loads of a part stand together.
        positions = [kernel.code.index(i) for i in loads]
        between = [
            i.name for i in kernel.code[positions[0] : positions[count - 1]] if i.name.startswith(("STS", "BAR"))
        ]
        assert not between, (instance, between)
        stores = [i for i in kernel.find("STG") if i.width == width]
        assert stores and {i.width for i in kernel.find("STG")} <= {width, 4}, instance  # sums are floats
        assert kernel.stack == 0 and kernel.registers <= 80, (instance, kernel.registers)


@pytest.mark.parametrize("arch", ARCHS)
def test_convolution_with_a_window_is_mostly_products(arch):
    for instance, kernel in zip(WINDOWS, compile_kernels("conv3x3/cuda_window.cuh", WINDOWS, arch), strict=True):
        step = kernel.find_loop("HMMA")  # once or twice 16 channels
        products = sum(i.name.startswith("HMMA") for i in step)
        loads = [i.name for i in step if i.name.startswith("LDSM")]
        assert products % 72 == 0 and len(loads) == products // 72 * 27, (instance, products, len(loads))
        assert all(".x4" in name or name.endswith(".4") for name in loads) and len(step) <= products * 1.52, instance
        copies, residual, stores = kernel.find("LDGSTS"), kernel.find("LDG.E.64"), kernel.find("STG")
        assert all(i.width == 16 for i in copies) and [i.width for i in stores] == 8 * [8], (instance, stores)
        assert len(residual) == 8 and max(i.address for i in residual) < step[0].address, instance
        branches = [i.name for i in step[:-1] if i.name.startswith(("BRA", "BSSY", "BAR", "DEPBAR"))]
        assert not branches and kernel.stack == 0 and kernel.registers <= 168, (instance, branches, kernel.registers)


@pytest.mark.parametrize("arch", ARCHS)
def test_cell_with_a_window_loads_its_state_before_the_products(arch):
    kernels = compile_kernels("conv_rnn/cuda_window.cuh", tuple(instance for *_, instance in CELLS), arch)
    for (gates, count, instance), kernel in zip(CELLS, kernels, strict=True):
        step = kernel.find_loop("HMMA")  # 16 channels
        products = sum(i.name.startswith("HMMA") for i in step)
        loads = [i.name for i in step if i.name.startswith("LDSM")]
        assert products == 36 * count and len(loads) == 18 + 9 * (-(-count // 2)), (instance, products, len(loads))
        assert all(".x4" in name or name.endswith(".4") for name in loads) and len(step) <= products * 1.46, instance
        states = kernel.find("LDG.E.64")  # in float32
        assert len(states) == 8 * count // gates * (2 if gates == 1 else 1), (instance, states)
        assert max(i.address for i in states) < step[0].address, instance
        assert all(i.width == 16 for i in kernel.find("LDGSTS")), instance
        assert {i.width for i in kernel.find("STG")} == {4, 8}, instance  # two channels
        branches = [i.name for i in step[:-1] if i.name.startswith(("BRA", "BSSY", "BAR", "DEPBAR"))]
        assert not branches and kernel.stack == 0 and kernel.registers <= 255, (instance, branches, kernel.registers)


def test_table_of_kernels_is_that_of_the_machine_code():
    version = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    if "release 13.0" not in version:
        pytest.skip("the table is for nvcc 13.0")
    assert kernel_table.read_table() == kernel_table.make_table()  # else run python -m gpuless.kernel_table --write


def test_kernels_of_the_table_do_not_spill():
    for row in kernel_table.ROWS:
        (kernel,) = compile_kernels(row.header, (row.instance,), kernel_table.ARCH)
        assert kernel.stack == 0, row.label


def test_bounds_of_a_row():
    """At 75 % of its rate the memory is the bound, and a launch takes 2 us."""
    row = kernel_table.Row("name", "", "", "", 1e6, 1e6, 55e6, 428e6)
    kernel = MachineKernel(40, 0, tuple(Instruction(16 * i, "", "FADD", "") for i in range(100)))
    assert row.format(kernel) == "| name | 40 | 100 | 96 | 0 | 4 | 10 | 100 | 135 |  |\n"
