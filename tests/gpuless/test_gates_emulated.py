# SPDX-License-Identifier: Apache-2.0
"""Tests of the pointwise CUDA kernels of recurrent cells on the emulator."""

import pytest
import torch
from gpuless.emu import ptxas_report

import fastds
from fastds.ops import (
    conv_gru_cell,
    gru_reset,
    gru_update,
    lstm_gates,
    memory_gates,
    output_gate,
    st_lstm_gates,
    traj_gru_gates,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PASSES = {
    "lstm_gates": (lstm_gates, (4, 1), {}),
    "memory_gates": (memory_gates, (3, 1), {}),
    "st_lstm_gates": (st_lstm_gates, (4, 1), {}),
    "memory_gates_tanh": (memory_gates, (3, 1), {"state_activation": "tanh"}),
    "output_gate": (output_gate, (1, 1), {}),
    "output_gate_tanh": (output_gate, (1, 1), {"activation": "tanh"}),
    "gru_reset": (gru_reset, (1, 1, 1), {}),
    "gru_update": (gru_update, (1, 1, 1), {"keep": "1-z"}),
    "gru_update_leaky": (gru_update, (1, 1, 1), {"activation": "leaky_relu"}),
    "traj_gru_gates": (traj_gru_gates, (3, 3, 1), {}),
}
WIDE = {"lstm_gates", "st_lstm_gates", "memory_gates", "memory_gates_tanh", "output_gate", "output_gate_tanh"}


def inputs(name, dtype, layout, shape=(2, 5, 3, 7)):
    batch, channels, *size = shape
    tensors = []
    for k, gates in enumerate(PASSES[name][1]):
        tensor_dtype = torch.float32 if k == 1 and name in WIDE and dtype != torch.float64 else dtype
        t = torch.randn(batch, gates * channels, *size, dtype=torch.float64).to(tensor_dtype)
        tensors.append(t.contiguous(memory_format=layout).requires_grad_())
    return tensors


def gradients(name, tensors, second):
    """Return results, first gradients and, if `second`, the gradients of a penalty on the first gradients."""
    function, _, options = PASSES[name]
    y = function(*tensors, **options)
    y = [y] if isinstance(y, torch.Tensor) else list(y)
    first = torch.autograd.grad(y, tensors, [torch.ones_like(t) for t in y], create_graph=second)
    if not second:
        return [*y, *first]
    penalty = sum(g.square().sum() for g in first)
    return [*y, *first, *torch.autograd.grad(penalty, tensors)]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PASSES)
def test_gate_kernels_agree_with_the_reference(emulated, name, dtype, layout):
    emulator = emulated("gates")
    tensors = inputs(name, dtype, layout)
    second = name.startswith("gru")
    got = gradients(name, tensors, second)
    assert len(emulator.launches) >= 2 and all(launch.grid[0] == 1 for launch in emulator.launches)
    with fastds.use_backend("reference"):
        expected = gradients(name, tensors, second)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        bound = 16 * max(torch.finfo(a.dtype).eps, 2.0**-23 if dtype != torch.float64 else 0)
        assert (a.double() - b.double()).abs().max() <= bound * b.double().abs().max().clamp_min(1)


@pytest.mark.sanitized
@pytest.mark.parametrize("name", PASSES)
def test_slices_and_several_blocks(emulated, name):
    """Inputs are channel slices of one map, with more elements than a block of threads processes."""
    emulator = emulated("gates")
    tensors = inputs(name, torch.float32, torch.channels_last, (1, 9, 5, 11))
    packed = torch.cat([t.detach() for t in tensors], 1).contiguous(memory_format=torch.channels_last)
    function, _, options = PASSES[name]
    got = function(*packed.split([t.shape[1] for t in tensors], 1), **options)
    assert [launch.grid[0] for launch in emulator.launches] == [2]
    with fastds.use_backend("reference"):
        expected = function(*tensors, **options)
    for a, b in zip(*([t] if isinstance(t, torch.Tensor) else t for t in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


LEAKY = {"keep": "1-z", "activation": "leaky_relu"}  # rounding in 16 bits can change the sign of a pre-activation


@pytest.mark.parametrize("dtype, options", [(torch.float32, LEAKY), (torch.float32, {}), (torch.bfloat16, {})], ids=str)
def test_gru_step_kernels(emulated, dtype, options):
    emulator = emulated("gates")
    x, h = (torch.randn(2, c, 3, 7).to(dtype).contiguous(memory_format=torch.channels_last) for c in (3, 5))
    weights = [torch.randn(gates * 5, 8, 3, 3).to(dtype) / 8 for gates in (2, 1)]
    tensors = [t.requires_grad_() for t in (x, h, *weights)]

    def values(tensors):
        x, h, gates, candidate = tensors
        with fastds.use_conv_algorithm("direct"):
            y = conv_gru_cell(x, h, gates, None, candidate, None, **options)
        return [y, *torch.autograd.grad(y.sum(), tensors)]

    got = values(tensors)
    assert len(emulator.launches) == 4
    with fastds.use_backend("reference"):
        expected = values([t.detach().double().requires_grad_() for t in tensors])
    for a, b in zip(got, expected, strict=True):
        bound = 1e-5 if dtype == torch.float32 else 6 * torch.finfo(dtype).eps
        assert (a.double() - b).abs().max() <= bound * b.abs().max().clamp_min(1)


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PASSES)
def test_eight_channels_per_thread(emulated, name, dtype):
    """Compare results and gradients of the kernel in which a thread computes a run of eight channels."""
    emulator = emulated("gates", seed=5)
    tensors = inputs(name, dtype, torch.channels_last, (1, 24, 2, 5))
    second = name.startswith("gru")
    got = gradients(name, tensors, second)
    assert {launch.name for launch in emulator.launches} == {"gates_run_kernel"}
    assert all(launch.grid == (1, 1, 1) for launch in emulator.launches)
    with fastds.use_backend("reference"):
        expected = gradients(name, tensors, second)
    for a, b in zip(got, expected, strict=True):
        bound = 16 * max(torch.finfo(a.dtype).eps, 2.0**-23)
        assert (a.double() - b.double()).abs().max() <= bound * b.double().abs().max().clamp_min(1)


def test_vector_path_with_missing_tensors(emulated):
    """One result is not used, so its gradient is missing, and no gradient of the cell state is requested."""
    emulator = emulated("gates")
    pre, c = inputs("lstm_gates", torch.bfloat16, torch.channels_last, (1, 8, 2, 5))
    (got,) = torch.autograd.grad(lstm_gates(pre, c.detach())[0].sum(), pre)
    assert [launch.name for launch in emulator.launches] == 2 * ["gates_run_kernel"]
    with fastds.use_backend("reference"):
        (expected,) = torch.autograd.grad(lstm_gates(pre, c.detach())[0].sum(), pre)
    torch.testing.assert_close(got, expected, rtol=2**-7, atol=2**-9)


MOVED = {
    "aligned": ((1, 48, 5, 16), 8, "gates_run_kernel"),  # channels 8 to 40 of 48
    "start": ((1, 48, 5, 16), 4, "gates_kernel"),
    "rows": ((1, 44, 5, 16), 8, "gates_kernel"),
    "channels": ((1, 48, 5, 16), 0, "gates_kernel"),
}


@pytest.mark.parametrize("what", MOVED)
def test_vector_path_needs_alignment(emulated, what):
    emulator = emulated("gates")
    shape, first, kernel = MOVED[what]
    channels = 28 if what == "channels" else 32
    wide = torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)
    pre, c = wide[:, first : first + channels], torch.randn(1, channels // 4, 5, 16)
    got = lstm_gates(pre, c.contiguous(memory_format=torch.channels_last))
    assert [launch.name for launch in emulator.launches] == [kernel]
    with fastds.use_backend("reference"):
        expected = lstm_gates(pre, c)
    for a, b in zip(got, expected, strict=True):
        assert (a.double() - b.double()).abs().max() <= 16 * max(torch.finfo(a.dtype).eps, 2.0**-23)


def test_gate_kernels_do_not_spill():
    kernels = ptxas_report("gates", 90)
    assert kernels and all(kernel.spills == 0 for kernel in kernels)
