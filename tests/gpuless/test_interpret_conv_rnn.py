# SPDX-License-Identifier: Apache-2.0
"""Tests of the interpreted Triton kernel of the fused cells, against float64."""

import pytest
import torch
from fastds.kernels import conv_rnn as kernels
from gpuless.triton_rig import guard, untouched

import fastds
from fastds.ops import conv_gru_cell, conv_lstm_cell, conv_memory_gates, conv_output_gate, conv_st_lstm_gates
from fastds.ops.impl.conv_rnn import reference as stages
from fastds.ops.impl.conv_rnn.op import LSTM as CELL
from fastds.ops.impl.conv_rnn.op import MEMORY, OUTPUT
from fastds.ops.impl.conv_rnn.reference import conv_gru_cell as gru_reference
from fastds.ops.impl.conv_rnn.reference import conv_lstm_cell as reference
from fastds.ops.impl.gates.reference import memory_gates, output_gate

pytestmark = pytest.mark.interpreted

# B, C1, C, H, W: several tiles and slabs on every axis, widths that fill neither, a single row, one channel.
SHAPES = [(2, 24, 20, 3, 7), (1, 3, 24, 2, 5), (1, 17, 16, 4, 4), (2, 5, 1, 1, 3)]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "select_tiles", lambda *_: kernels.Tiles(16, 16, 16, 4, 1))


def inputs(shape, dtype=torch.float32, gates=4):
    batch, inputs, channels, height, width = shape
    x, h = (torch.randn(batch, n, height, width).to(dtype) for n in (inputs, channels))
    weight = torch.randn(gates * channels, inputs + channels, 3, 3) / (9 * (inputs + channels)) ** 0.5
    return [x, h, torch.randn(batch, channels, height, width), weight, torch.randn(gates * channels)]


def close(got, expected, dtype=torch.float32):
    for a, b in zip(got, expected, strict=True):
        assert (a.double() - b).abs().max() <= TOLERANCES[dtype] * b.abs().max().clamp_min(1)


@pytest.mark.parametrize("shape, dtype", [*((s, torch.float32) for s in SHAPES), (SHAPES[0], torch.float16)], ids=str)
def test_agrees_with_reference(shape, dtype):
    tensors = [t.requires_grad_() for t in inputs(shape, dtype)]
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    with fastds.use_backend("triton"):
        got = conv_lstm_cell(*tensors)
    expected = reference(*doubles)
    assert [t.dtype for t in got] == [dtype, torch.float32]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in got)
    along = [torch.randn_like(t) for t in got]
    close(got, expected, dtype)
    close(torch.autograd.grad(got, tensors, along),
          torch.autograd.grad(expected, doubles, [g.double() for g in along]), dtype)  # fmt: skip


def test_one_source_and_a_residual():
    x, h, c, weight, _ = inputs(SHAPES[0])
    ready = torch.nn.functional.conv2d(x, weight[:, :24], padding=1)
    with fastds.use_backend("triton"):
        got = CELL.op.overload(h, None, weight[:, 24:], None, ready, c, "auto", False)[:2]
    close(got, reference(*(t.double() for t in (x, h, c, weight))))


FEWER = [(SHAPES[2], torch.float32), (SHAPES[3], torch.float32), (SHAPES[1], torch.float16)]
STAGES = {
    conv_st_lstm_gates: (stages.conv_st_lstm_gates, 4), conv_memory_gates: (stages.conv_memory_gates, 3),
    conv_output_gate: (stages.conv_output_gate, 1),
}  # fmt: skip


@pytest.mark.parametrize("shape, dtype", FEWER, ids=str)
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_conv_st_lstm_stages(stage, shape, dtype):
    exact, gates = STAGES[stage]
    tensors = inputs(shape, dtype, gates)
    if stage is conv_output_gate:
        tensors.append(torch.randn(shape[0], shape[2], *shape[3:]).to(dtype))
    tensors = [t.requires_grad_() for t in tensors]
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    with fastds.use_backend("triton"):
        got = stage(*tensors)
    expected = exact(*doubles)
    got, expected = ([t] if isinstance(t, torch.Tensor) else list(t) for t in (got, expected))
    along = [torch.randn_like(t) for t in got]
    close(got, expected, dtype)
    close(torch.autograd.grad(got, tensors, along),
          torch.autograd.grad(expected, doubles, [g.double() for g in along]), dtype)  # fmt: skip


@pytest.mark.parametrize("ops, formula, gates", [(MEMORY, memory_gates, 3), (OUTPUT, output_gate, 1)])
def test_formulas_with_tanh(ops, formula, gates):
    x, h, c, weight, bias = inputs(SHAPES[1], gates=gates)
    with fastds.use_backend("triton"):
        got = ops.op.overload(x, h, weight, bias, None, c, "tanh", "auto", False)[0]
    pre = torch.nn.functional.conv2d(torch.cat([x, h], 1).double(), weight.double(), bias.double(), padding=1)
    close([got], [formula(pre, c.double(), "tanh")])


@pytest.mark.parametrize("shape, dtype", FEWER, ids=str)
@pytest.mark.parametrize("keep, act", [("z", "tanh"), ("1-z", "leaky_relu")])
def test_conv_gru_cell(shape, dtype, keep, act):
    """The cell is called with x, and with shares of the gates that were computed from x before."""
    x, h, _, gates, bias = inputs(shape, dtype, 2)
    candidate, candidate_bias = gates[: shape[2]].flip(1), bias[: shape[2]]
    tensors, options = (x, h, gates, bias, candidate, candidate_bias), {"keep": keep, "activation": act}
    expected = gru_reference(*(t.double() for t in tensors), keep=keep, act=act)
    with fastds.use_backend("triton"):
        close([conv_gru_cell(*tensors, **options)], [expected], dtype)
    n = x.shape[1]
    parts = (torch.nn.functional.conv2d(x.double(), w[:, :n].double(), padding=1) for w in (gates, candidate))
    shares, rest = [t.to(dtype) for t in parts], (gates[:, n:], bias, candidate[:, n:], candidate_bias)
    with fastds.use_backend("triton"):
        close([conv_gru_cell(None, h, *rest, **options, shares=shares)], [expected], dtype)


def test_results_equal_with_64_bit_addresses(monkeypatch):
    tensors = inputs(SHAPES[2])
    with fastds.use_backend("triton"):
        narrow = conv_lstm_cell(*tensors)
        monkeypatch.setattr(kernels, "needs_int64", lambda *_: True)
        assert all(torch.equal(a, b) for a, b in zip(narrow, conv_lstm_cell(*tensors), strict=True))


def test_no_out_of_bounds_access():
    """All memory around the tensors is NaN; x, h and c are slices of larger tensors."""
    x, h, c, weight, bias = inputs(SHAPES[1])
    expected = reference(*(t.double() for t in (x, h, c, weight, bias)))
    wide = [torch.full((1, t.shape[1] + 16, *t.shape[2:]), torch.nan) for t in (x, h, c)]
    wide = [t.contiguous(memory_format=torch.channels_last)[:, 8:-8] for t in wide]
    x, h, c = (s.copy_(t) for s, t in zip(wide, (x, h, c), strict=True))
    empty = [torch.zeros(1, n, 2, 5).contiguous(memory_format=torch.channels_last) for n in (24, 24, 96)]
    new_h, new_c, pre = (guard(t) for t in empty)
    weight = guard(weight.contiguous(memory_format=torch.channels_last))
    kernels.launch("lstm_gates", 0.0, 0.0, (x, h, weight, guard(bias), None), [c], [new_h, new_c], pre)
    close((new_h, new_c), expected)
    assert all(untouched(t) for t in (new_h, new_c, pre))


def test_registration_and_empty_batch():
    tensors = inputs(SHAPES[3])
    with fastds.use_backend("triton"):
        new_h, new_c = conv_lstm_cell(*(t[:0] for t in tensors[:3]), *tensors[3:])
        utils = ("test_schema", "test_faketensor")
        x, h, c, weight, bias = tensors
        torch.library.opcheck(CELL.op.overload, (x, h, weight, bias, None, c, "auto", True), test_utils=utils)
    assert new_h.shape == new_c.shape == (0, 1, 1, 3)
