# SPDX-License-Identifier: Apache-2.0
"""Tests of null_op on a GPU, a template for the GPU tests of other ops."""

import pytest
import torch
from gpu import checks

from fastds.ops import null_op


@pytest.fixture(autouse=True)
def native(device, forced):
    with forced("null_op", "native", torch.ones(1, device=device)):
        yield


@pytest.mark.sanitize
def test_null_op_copies(device):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = torch.randn(1001, device=device).to(dtype)
        assert torch.equal(null_op(x), x)
        assert torch.equal(null_op(x, x, 0.5), (1.5 * x.double()).to(dtype))


def test_streams_graphs_and_compile(device):
    x = torch.randn(3, 1001, device=device)
    checks.check_stream(null_op, [x])
    checks.check_graph(null_op, [x])
    checks.check_compile(null_op, [x])
    checks.check_deterministic(null_op, [x])
    checks.check_misaligned(null_op, [x])
