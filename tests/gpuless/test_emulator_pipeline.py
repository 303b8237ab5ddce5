# SPDX-License-Identifier: Apache-2.0
"""Tests of the emulator with kernels that load tiles ahead (core/pipeline.h), and of their machine code."""

import pytest
import torch
from gpuless.emu import Emulator, build
from gpuless.machine_code import ARCHS, compile_kernels
from gpuless.test_emulator import RIG

TILES = 8
SEEDS = range(50)


@pytest.fixture(scope="module")
def rig():
    return Emulator([build(RIG)])


def draw_tiles():
    x = torch.randn(TILES, 64, 4)
    return x, torch.full_like(x, float("nan")), x.flip(1)


def count_wrong(rig, run) -> int:
    """Return for how many orders of threads a kernel gives a wrong result or raises an error."""
    wrong = 0
    for rig.seed in SEEDS:
        x, y, expected = draw_tiles()
        try:
            run(x.data_ptr(), y.data_ptr())
            wrong += not torch.equal(y, expected)
        except RuntimeError:
            wrong += 1
    return wrong


def test_copies_ahead(rig):
    assert count_wrong(rig, lambda x, y: rig.copy_ahead(x, y, TILES, 0, 0)) == 0
    x, y, expected = draw_tiles()
    rig.copy_ahead(x.data_ptr(), y.data_ptr(), TILES, 2, 0)
    expected[-2:] = 0
    assert torch.equal(y, expected)


@pytest.mark.parametrize("mistake", [1, 2, 3], ids=["wait", "barrier_after_wait", "barrier_before_fill"])
def test_mistakes_of_copies_are_found(rig, mistake):
    assert count_wrong(rig, lambda x, y: rig.copy_ahead(x, y, TILES, 0, mistake)) >= len(SEEDS) - 5


def test_copies_that_nobody_waits_for_are_reported(rig):
    x, y, _ = draw_tiles()
    with pytest.raises(RuntimeError, match="a thread returned before its copies were complete"):
        rig.copy_ahead(x.data_ptr(), y.data_ptr(), TILES, 0, 4)
    rig.copy_ahead(x.data_ptr(), y.data_ptr(), TILES, 0, 0)  # the emulator is usable afterwards


def test_specialised_warps(rig):
    assert count_wrong(rig, lambda x, y: rig.specialized(x, y, TILES, 0)) == 0


@pytest.mark.parametrize("mistake", [1, 2, 3, 4], ids=["full", "empty", "arrival", "parity"])
def test_mistakes_of_specialised_warps_are_found(rig, mistake):
    assert count_wrong(rig, lambda x, y: rig.specialized(x, y, TILES, mistake)) >= len(SEEDS) - 5


def test_missing_arrivals_are_reported(rig):
    x, y, _ = draw_tiles()
    with pytest.raises(RuntimeError, match=r"thread .* waits for the phase of a barrier .*pipeline.cuh:\d+"):
        rig.specialized(x.data_ptr(), y.data_ptr(), TILES, 3)


def run_named(rig, mistake):
    x, y = torch.randint(1, 1000, (128,), dtype=torch.int32), torch.full((128,), -1, dtype=torch.int32)
    rig.named(x.data_ptr(), y.data_ptr(), mistake)
    x, y = x.view(2, 2, 32), y.view(2, 2, 32)
    return torch.equal(y[:, 1], x[:, 0].flip(1))


def test_named_barriers(rig):
    for rig.seed in SEEDS:
        assert run_named(rig, 0)


def test_mistakes_of_named_barriers_are_found(rig):
    wrong = shared = 0
    for rig.seed in SEEDS:
        wrong += not run_named(rig, 1)
        try:
            run_named(rig, 2)  # right if one pair is much faster than the other
        except RuntimeError as error:
            assert "more threads than expected arrive at the named barrier 1" in str(error)
            shared += 1
        with pytest.raises(RuntimeError, match=r"waits at the named barrier .*pipeline.cuh:\d+"):
            run_named(rig, 3)
    assert wrong >= len(SEEDS) - 5 and shared >= len(SEEDS) // 2


@pytest.mark.parametrize("seed", range(5))
def test_matrices_from_shared_memory(rig, seed):
    """The layout is that of ldmatrix in the PTX manual: the product of both operands is right."""
    a, b = (torch.randint(-8, 8, (rows, 16)).half() for rows in (16, 8))
    y = torch.full((16, 8), float("nan"))
    rig.seed = seed
    rig.matrices(a.data_ptr(), b.data_ptr(), y.data_ptr())
    assert torch.equal(y, a.float() @ b.float().T)


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code_has_the_instructions(arch):
    instances = (
        "copy_ahead_kernel<float4>(const float4*, float4*, int, int, int)",
        "specialized_kernel<float4>(const float4*, float4*, int, int)",
        "named_kernel<int>(const int*, int*, int)",
        "matrices_kernel<Half>(const Half*, const Half*, float*)",
    )
    copies, specialized, named, matrices = compile_kernels(str(RIG / "pipeline.cuh"), instances, arch)
    assert copies.find("LDGSTS.E.BYPASS") and copies.find("LDGDEPBAR") and copies.find("DEPBAR")
    assert specialized.find("LDGSTS") and specialized.find("ARRIVES.LDGSTSBAR")
    assert specialized.find("SYNCS" if arch >= 90 else "ATOMS.ARRIVE")
    assert named.find("BAR.ARV") and named.find("BAR.SYNC")
    assert len(matrices.find("LDSM.16.M88.4")) == 2 and matrices.find("HMMA.16816.F32")
