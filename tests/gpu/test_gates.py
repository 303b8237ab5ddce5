# SPDX-License-Identifier: Apache-2.0
"""Tests of the pointwise kernels of recurrent cells on a GPU, against float64 on the CPU."""

import pytest
import torch
from gpu import checks

import fastds
from fastds.ops import gru_reset, gru_update, lstm_gates, memory_gates, output_gate, traj_gru_gates

PASSES = {  # function, channels of each input in units of C
    "lstm_gates": (lstm_gates, (4, 1)),
    "memory_gates": (memory_gates, (3, 1)),
    "output_gate": (output_gate, (1, 1)),
    "gru_reset": (gru_reset, (1, 1, 1)),
    "gru_update": (gru_update, (1, 1, 1)),
    "traj_gru_gates": (traj_gru_gates, (3, 3, 1)),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(autouse=True)
def native(device, forced):
    with forced("lstm_gates", "native", *(torch.ones(1, n, 1, 1, device=device) for n in (4, 1))):
        yield


def case(name, dtype=torch.float32, size=(17, 23)):
    """Return a pointwise op as a function with one output, and its inputs in channels_last."""
    function, parts = PASSES[name]
    tensors = [torch.randn(2, 5 * n, *size).to(dtype).to(memory_format=torch.channels_last) for n in parts]

    def joined(*tensors):
        y = function(*tensors)
        return y if isinstance(y, torch.Tensor) else torch.cat(y, 1)

    return joined, tensors


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PASSES)
def test_agrees_with_reference(name, dtype, device):
    function, tensors = case(name, dtype, (3, 7))
    with fastds.use_backend("reference"):
        exact = checks.value_and_gradients(function, [t.double() for t in tensors])
    ours = checks.value_and_gradients(function, checks.moved(tensors, device))
    eps = max(torch.finfo(dtype).eps, 2**-23 if dtype != torch.float64 else 0)
    for got, wish in zip(ours, exact, strict=True):
        assert (got.double().cpu() - wish).abs().max() <= 16 * eps * wish.abs().max().clamp_min(1)


@pytest.mark.parametrize("name", PASSES)
def test_streams_graphs_compile_and_layouts(name, device):
    function, tensors = case(name)
    tensors = checks.moved(tensors, device)
    checks.check_deterministic(function, tensors)
    checks.check_stream(function, tensors)
    checks.check_graph(function, tensors)
    checks.check_compile(function, tensors)
    checks.check_misaligned(function, tensors)


def test_other_device(device):
    function, tensors = case("lstm_gates")
    checks.check_other_device(function, checks.moved(tensors, device))
