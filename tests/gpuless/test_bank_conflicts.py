# SPDX-License-Identifier: Apache-2.0
"""Conflicts of shared-memory banks in the CUDA kernels, counted by the emulator (csrc/emu/banks.h)."""

import re
from collections import Counter

import pytest
import torch
from gpuless import conv_rnn_window_cases
from gpuless.conv3x3_window_cases import Case
from gpuless.emu import CSRC, Emulator, build
from gpuless.test_emulator import RIG

from fastds.ops import deform_conv2d, pixel_shuffle
from fastds.ops.impl.deform_conv2d.selection import use_fused
from fastds.ops.impl.inr_query.points import GridSpec
from tests.support.deform_cases import Problem, run_with_gradients, views
from tests.support.inr_cases import query, random_case

BF16, F32 = torch.bfloat16, torch.float32


def run_pixel_shuffle(r, channels, dtype):
    x = torch.randn(1, channels * r * r, 3, 24).to(dtype).contiguous(memory_format=torch.channels_last)
    leaves = [x.requires_grad_(), torch.zeros(channels * r * r, requires_grad=True)]
    pixel_shuffle(x, r, leaves[1], "relu").sum().backward()


def run_deform_conv2d(problem, dtype, gradients=False, misaligned=False):
    x, offset, *rest = problem.tensors(dtype)
    tensors = [x, views("misaligned", offset) if misaligned else offset, *rest]
    if gradients:
        run_with_gradients(problem, tensors, torch.ones(problem.B, problem.O, *problem.out, dtype=dtype))
    else:
        problem.run(deform_conv2d, tensors)


def run_fused_deform_conv2d(problem):
    with use_fused():
        run_deform_conv2d(problem, BF16)


def run_conv3x3(outputs):
    case = Case(1, (24,), outputs, 5, 18, bias=BF16, residual=True)
    case.compute(case.make_tensors())


def run_cells():
    for formula, channels in (("lstm_gates", 8), ("memory_gates", 16)):
        case = conv_rnn_window_cases.Case(formula, 1, (16, 8), channels, 5, 18, residual=True, keep=True)
        case.compute(case.make_tensors())


def run_inr_query(dtype):
    maps, trunk, keywords = random_case("affine-early_attn", source=(4, 5), depth=40, dtype=dtype)
    query(maps.requires_grad_(), GridSpec.cells((4, 5), (6, 8)), trunk, **keywords).sum().backward()


SMALL = Problem("small", 1, 16, 32, 8, 8, G=2)
WIDE = Problem("wide", 1, 64, 64, 8, 16, G=8)
FEW_TAPS = Problem("few taps", 1, 64, 64, 8, 7, (1, 2), padding=(0, 1), G=8)
SAMPLES, WEIGHT = "deform_conv2d_backward_samples_kernel", "deform_conv2d_backward_weight_kernel"
# Calls, and for each kernel with shared memory the number of times that the banks are accessed, over the least
# number.
# The samples of the window are at random distances. A tile of pixel_shuffle is written in one order and read in
# another.
CASES = {
    "shuffle by 2": (
        "pixel_shuffle",
        lambda: run_pixel_shuffle(2, 64, BF16),
        {"pixel_unshuffle_kernel": 1.35, "pixel_shuffle_sum_kernel": 1.0},
    ),
    "shuffle by 2, float32": (
        "pixel_shuffle",
        lambda: run_pixel_shuffle(2, 64, F32),
        {"pixel_unshuffle_kernel": 1.35, "pixel_shuffle_sum_kernel": 1.0},
    ),
    "shuffle by 3, few channels": (
        "pixel_shuffle",
        lambda: run_pixel_shuffle(3, 6, BF16),
        {"pixel_shuffle_kernel": 1.1, "pixel_unshuffle_kernel": 1.6, "pixel_shuffle_sum_kernel": 1.0},
    ),
    "shuffle by 4": (
        "pixel_shuffle",
        lambda: run_pixel_shuffle(4, 64, BF16),
        {"pixel_unshuffle_kernel": 1.05, "pixel_shuffle_sum_kernel": 1.0},
    ),
    "deform_conv2d, float32": (
        "deform_conv2d",
        lambda: run_deform_conv2d(SMALL, F32, True),
        {"deform_conv2d_forward_kernel": 1.1, SAMPLES: 1.1, WEIGHT: 1.05},
    ),
    "deform_conv2d, tensor cores": (
        "deform_conv2d",
        lambda: run_deform_conv2d(WIDE, BF16, misaligned=True),
        {"deform_conv2d_tensor_cores_kernel": 1.05},
    ),
    "deform_conv2d, window": (
        "deform_conv2d",
        lambda: run_deform_conv2d(WIDE, BF16),
        {"deform_conv2d_window_kernel": 1.3},
    ),
    "deform_conv2d, fused": (
        "deform_conv2d",
        lambda: run_fused_deform_conv2d(FEW_TAPS),
        {"deform_conv2d_fused_kernel": 1.0},
    ),
    "conv3x3, window": ("conv3x3", lambda: run_conv3x3(64), {"conv3x3_window_kernel": 1.0}),
    "conv3x3, window, few outputs": ("conv3x3", lambda: run_conv3x3(16), {"conv3x3_window_kernel": 1.0}),
    "cells, window": ("conv_rnn", run_cells, {"conv_gates_window_kernel": 1.0}),
    "inr_query": (
        "inr_query",
        lambda: run_inr_query(F32),
        {"inr_features_kernel": 1.0, "inr_features_backward_kernel": 1.0},
    ),
}


def sum_conflicts(uses) -> dict[str, float]:
    """Return by kernel the number of times that the banks are accessed, over the number without conflicts."""
    times, least = Counter(), Counter()
    for use in uses:
        times[use.name] += use.wavefronts
        least[use.name] += use.least
    return {name: times[name] / least[name] for name in times}


@pytest.mark.parametrize("case", CASES)
def test_conflicts_of_banks(emulated, in_one_pass, case):
    op, run, bounds = CASES[case]
    emulator = emulated(op, banks=True)
    torch.manual_seed(0)
    run()
    found = sum_conflicts(emulator.bank_uses)
    assert found.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert bound - 0.25 <= found[name] <= bound, (name, found[name])


@pytest.fixture(scope="module")
def rig():
    return Emulator([build(RIG, banks=True)])


@pytest.mark.parametrize(
    "bytes_, stride, times, least",
    [
        (4, 1, 1, 1), (4, 2, 2, 1), (4, 0, 1, 1), (4, 32, 16, 1), (4, 31, 1, 1), (4, 16, 16, 1), (4, 4, 4, 1),
        (8, 1, 2, 2), (8, 16, 16, 2), (8, 3, 2, 2), (16, 1, 4, 4), (16, 2, 8, 4), (16, 8, 16, 4), (16, 0, 4, 4),
    ],
)  # fmt: skip
def test_counts_of_known_patterns(rig, bytes_, stride, times, least):
    """The 16 even lanes access shared memory, a vector of `bytes_` bytes each, `stride` vectors apart."""
    rig.clear()
    x, y = torch.arange(8.0 * bytes_).view(32, -1), torch.full((32, bytes_ // 4), -1.0)
    rig.banks(x.data_ptr(), y.data_ptr(), stride, bytes_)
    assert stride == 0 or torch.equal(y[::2], x[::2])
    uses = sorted(rig.bank_uses, key=lambda use: use.writes)
    assert [(u.writes, u.bytes, u.accesses, u.wavefronts, u.least) for u in uses] == [
        (writes, bytes_, 1, times, least) for writes in (False, True)
    ]


def test_all_kernels_with_shared_memory_are_listed():
    kernels = set()
    for path in CSRC.glob("*/*.cuh"):
        for text in path.read_text().split("__global__ void ")[1:]:
            if re.search(r"FASTDS_(DYNAMIC_)?SHARED\(", text):
                name = re.match(r"(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", text)
                kernels.add(name[1])
    assert len(kernels) >= 9 and kernels == {name for _, _, bounds in CASES.values() for name in bounds}
