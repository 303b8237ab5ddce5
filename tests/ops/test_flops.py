# SPDX-License-Identifier: Apache-2.0
"""Tests of the formulas for torch's FlopCounterMode."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastds
from fastds import nn as layers
from fastds import ops
from fastds.ops.core.registry import OPS
from fastds.ops.flops import FORMULAS

# Prefixes of ops without products with weights. torch does not count such operations either.
UNCOUNTED_PREFIXES = (
    "lstm_gates", "st_lstm", "memory_gates", "output_gate", "gru_", "traj_gru", "pixel_",
    "null_op",
)  # fmt: skip
UNCOUNTED = {name for name in OPS if name.startswith(UNCOUNTED_PREFIXES)}


def counted(function, *inputs, backward=True):
    """Return the FLOPs of a call and of its gradients."""
    with FlopCounterMode(display=False) as counter:
        out = function(*inputs)
        forward = counter.get_total_flops()
        if backward:
            (out[0] if isinstance(out, tuple) else out).sum().backward()
    return forward, counter.get_total_flops() - forward


def maps(channels, size=16, requires_grad=True):
    return torch.rand(2, channels, size, size).requires_grad_(requires_grad)


def test_the_number_of_a_small_convolution():
    assert counted(layers.Conv3x3(8, 8), torch.rand(1, 8, 16, 16), backward=False)[0] == 294912


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs", "channels"),
    [
        (layers.Conv3x3(8, 12), nn.Conv2d(8, 12, 3, padding=1), 8),
        (layers.Conv3x3(8, 12, stride=2), nn.Conv2d(8, 12, 3, 2, padding=1), 8),
        (layers.Conv1x1(40, 24), nn.Conv2d(40, 24, 1), 40),
        (layers.Conv2d(8, 12, 5, padding=2), nn.Conv2d(8, 12, 5, padding=2), 8),
        (layers.Conv3x3(32, 64), nn.Conv2d(32, 64, 3, padding=1), 32),
    ],
    ids=["3x3", "stride", "1x1", "5x5", "large"],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_convolutions_count_as_those_of_torch(ours, theirs, channels, requires_grad, backend, native):
    with fastds.use_backend(backend):
        assert counted(ours, maps(channels, requires_grad=requires_grad)) == counted(
            theirs, maps(channels, requires_grad=requires_grad)
        )


def test_flops_of_grouped_convolution(native):
    with fastds.use_backend("native"):
        forward, gradients = counted(layers.Conv2d(8, 12, 5, padding=2, groups=4), maps(8))
    assert forward == counted(nn.Conv2d(8, 12, 5, padding=2), maps(8))[0] // 4 and gradients == 2 * forward


def test_flops_of_multi_input_convolution(native):
    theirs = counted(nn.Conv2d(20, 12, 3, padding=1), maps(20))
    layer = layers.Conv3x3(20, 12)
    with fastds.use_backend("native"):
        assert counted(layer, maps(8), maps(12)) == theirs
        forward, gradients = counted(layer, maps(8), maps(12, requires_grad=False))
    assert forward == theirs[0] and gradients == forward + forward * 8 // 20


def test_deformable_convolution_counts_as_a_plain_one(native):
    theirs = counted(nn.Conv2d(8, 12, 3, padding=1), maps(8))
    with fastds.use_backend("native"):
        assert counted(layers.DeformConv2d(8, 12, 3, padding=1), maps(8), maps(18)) == theirs


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_cells_count_their_convolutions(backend, native):
    x, h = maps(8), maps(16)
    with fastds.use_backend(backend):
        cell = layers.ConvLSTMCell(8, 16)
        assert counted(cell, x, (h, maps(16))) == counted(nn.Conv2d(24, 64, 3, padding=1), maps(24))
        cell = layers.ConvGRUCell(8, 16)
        forward, gradients = counted(cell, x, h)
    whole = counted(nn.Conv2d(24, 48, 3, padding=1), maps(24))
    assert forward == whole[0] and gradients == whole[1]


def test_queries_count_their_trunk(native):
    maps_, trunk = torch.rand(2, 8, 12, 12), [(torch.rand(6, 8), torch.rand(6)), (torch.rand(3, 6), torch.rand(3))]
    where = ops.PointSpec(torch.zeros(1, 50, 2, dtype=torch.int32), torch.rand(1, 50, 2))
    with fastds.use_backend("native"):
        late = counted(lambda x: ops.inr_query(x, where, trunk, ensemble="late"), maps_, backward=False)
        none = counted(lambda x: ops.inr_query(x, where, trunk, ensemble="none"), maps_, backward=False)
    assert none[0] == 2 * 100 * (6 * 8 + 3 * 6) and late[0] == 4 * none[0]


def test_attention_counts_two_products(native):
    q, k, v = maps(8), maps(8), maps(8)
    with fastds.use_backend("native"):
        forward, gradients = counted(lambda *a: ops.window_attention2d(*a, window=5), q, k, v)
    assert forward == 2 * 2 * 8 * 25 * 2 * 256 and gradients == 5 * forward // 2


def test_every_op_of_products_is_counted():
    assert set(FORMULAS) == OPS.keys() - UNCOUNTED, "a new op needs a formula in fastds/ops/flops.py"


@pytest.mark.parametrize("first", ["fastds.ops", "torch.utils.flop_counter"])
def test_flop_counter_import_order(first):
    second = "torch.utils.flop_counter" if first == "fastds.ops" else "fastds.ops"
    code = (
        f"import sys, torch\nimport {first}\n"
        f"assert ('torch.utils.flop_counter' in sys.modules) == {first != 'fastds.ops'}\n"
        f"import {second}\nfrom torch.utils.flop_counter import flop_registry\n"
        "print(torch.ops.fastds.conv3x3 in flop_registry)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done
