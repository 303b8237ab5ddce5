# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel of conv_lstm_cell in the interpreter, through the op itself, against the float64 reference."""

import pytest
import torch
from fastds.kernels import conv_lstm_cell as kernels
from gpuless.triton_rig import guard, untouched

import fastds
from fastds.ops import conv_lstm_cell
from fastds.ops.conv_lstm_cell import CELL
from fastds.reference.conv_lstm_cell import conv_lstm_cell as reference

pytestmark = pytest.mark.interpreted

# B, C1, C, H, W: several tiles and slabs on every axis, widths that fill neither, a single row, one channel.
SHAPES = [(2, 24, 20, 3, 7), (1, 3, 24, 2, 5), (1, 17, 16, 4, 4), (2, 5, 1, 1, 3)]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "tiles_of", lambda *_: kernels.Tiles(16, 16, 16, 4, 1))


def inputs(shape, dtype=torch.float32):
    batch, inputs, channels, height, width = shape
    x, h = (torch.randn(batch, n, height, width).to(dtype) for n in (inputs, channels))
    weight = torch.randn(4 * channels, inputs + channels, 3, 3) / (9 * (inputs + channels)) ** 0.5
    return [x, h, torch.randn(batch, channels, height, width), weight, torch.randn(4 * channels)]


def close(got, expected, dtype=torch.float32):
    for a, b in zip(got, expected, strict=True):
        assert (a.double() - b).abs().max() <= TOLERANCES[dtype] * b.abs().max().clamp_min(1)


@pytest.mark.parametrize("shape, dtype", [*((s, torch.float32) for s in SHAPES), (SHAPES[0], torch.float16)], ids=str)
def test_agrees_with_reference(shape, dtype):
    """Values, and gradients from the pre-activations that the kernel keeps."""
    tensors = [t.requires_grad_() for t in inputs(shape, dtype)]
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    with fastds.backend("triton"):
        got = conv_lstm_cell(*tensors)
    expected = reference(*doubles)
    assert [t.dtype for t in got] == [dtype, torch.float32]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in got)
    along = [torch.randn_like(t) for t in got]
    close(got, expected, dtype)
    close(torch.autograd.grad(got, tensors, along),
          torch.autograd.grad(expected, doubles, [g.double() for g in along]), dtype)  # fmt: skip


def test_one_source_and_a_residual():
    """The part of the input comes ready as a residual, as sequences have it; no bias."""
    x, h, c, weight, _ = inputs(SHAPES[0])
    ready = torch.nn.functional.conv2d(x, weight[:, :24], padding=1)
    with fastds.backend("triton"):
        got = CELL.op.overload(h, None, weight[:, 24:], None, ready, c, "auto", False)[:2]
    close(got, reference(*(t.double() for t in (x, h, c, weight))))


def test_64_bit_addresses_give_the_same_bits(monkeypatch):
    tensors = inputs(SHAPES[2])
    with fastds.backend("triton"):
        narrow = conv_lstm_cell(*tensors)
        monkeypatch.setattr(kernels, "is_wide", lambda *_: True)
        assert all(torch.equal(a, b) for a, b in zip(narrow, conv_lstm_cell(*tensors), strict=True))


def test_reads_and_writes_nothing_else():
    """x, h and c are slices of wider maps, everything lies between NaN, and the kernel sees none of it."""
    x, h, c, weight, bias = inputs(SHAPES[1])
    expected = reference(*(t.double() for t in (x, h, c, weight, bias)))
    wide = [torch.full((1, t.shape[1] + 16, *t.shape[2:]), torch.nan) for t in (x, h, c)]
    wide = [t.contiguous(memory_format=torch.channels_last)[:, 8:-8] for t in wide]
    x, h, c = (s.copy_(t) for s, t in zip(wide, (x, h, c), strict=True))
    empty = [torch.zeros(1, n, 2, 5).contiguous(memory_format=torch.channels_last) for n in (24, 24, 96)]
    new_h, new_c, pre = (guard(t) for t in empty)
    weight = guard(weight.contiguous(memory_format=torch.channels_last))
    kernels.launch(x, h, weight, guard(bias), None, c, new_h, new_c, pre)
    close((new_h, new_c), expected)
    assert all(untouched(t) for t in (new_h, new_c, pre))


def test_registration_and_empty_batch():
    tensors = inputs(SHAPES[3])
    with fastds.backend("triton"):
        new_h, new_c = conv_lstm_cell(*(t[:0] for t in tensors[:3]), *tensors[3:])
        utils = ("test_schema", "test_faketensor")
        x, h, c, weight, bias = tensors
        torch.library.opcheck(CELL.op.overload, (x, h, weight, bias, None, c, "auto", True), test_utils=utils)
    assert new_h.shape == new_c.shape == (0, 1, 1, 3)
