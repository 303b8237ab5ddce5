# SPDX-License-Identifier: Apache-2.0
"""Tests of ConvLSTMCell and ConvGRUCell against float64 formulas, for three steps with gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastds.nn import ConvGRUCell, ConvLSTMCell

pytestmark = pytest.mark.usefixtures("native")


def conv(x, layer):
    return F.conv2d(x, layer.weight, layer.bias, padding=1)


def lstm_oracle(cell, frames, state=None):
    n = cell.hidden_channels
    h, c = state or (frames.new_zeros(len(frames), n, *frames.shape[3:]),) * 2
    every = []
    for x in frames.unbind(1):
        pre = conv(torch.cat([x, h], 1), cell.gates)
        c = pre[:, n : 2 * n].sigmoid() * c + pre[:, :n].sigmoid() * pre[:, 2 * n : 3 * n].tanh()
        h = pre[:, 3 * n :].sigmoid() * c.tanh()
        every.append(h)
    return torch.stack(every, 1), (h, c)


def gru_oracle(cell, frames, h=None):
    n, options = cell.hidden_channels, cell.options
    h = frames.new_zeros(len(frames), n, *frames.shape[3:]) if h is None else h
    every = []
    for x in frames.unbind(1):
        z, r = conv(torch.cat([x, h], 1), cell.gates).sigmoid().split(n, 1)
        new = conv(torch.cat([x, r * h], 1), cell.candidate)
        new = new.tanh() if options["activation"] == "tanh" else F.leaky_relu(new, options["negative_slope"])
        h = z * h + (1 - z) * new if options["keep"] == "z" else (1 - z) * h + z * new
        every.append(h)
    return torch.stack(every, 1), h


CELLS = {
    "lstm": (ConvLSTMCell, {}, lstm_oracle), "gru": (ConvGRUCell, {}, gru_oracle),
    "gru-1-z": (ConvGRUCell, {"keep": "1-z"}, gru_oracle),
    "gru-leaky": (ConvGRUCell, {"activation": "leaky_relu", "negative_slope": 0.1}, gru_oracle),
}  # fmt: skip


def flat(result):
    return [t for part in result for t in (part if isinstance(part, tuple) else [part])]


@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("how", ["steps", "sequence"])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_three_steps(name, how, with_state, dtype):
    kind, options, oracle = CELLS[name]
    cell = kind(5, 16, **options).to(dtype)
    frames = torch.randn(2, 3, 5, 9, 7, dtype=dtype, requires_grad=True)
    state = torch.randn(2, 16, 9, 7, dtype=dtype)
    state = (state, torch.randn_like(state)) if name == "lstm" else state
    state = state if with_state else None
    if how == "sequence":
        got = cell.sequence(frames, state)
    else:
        every, current = [], state
        for x in frames.unbind(1):
            current = cell(x, current)
            every.append(current[0] if name == "lstm" else current)
        got = torch.stack(every, 1), current
    exact_cell = copy.deepcopy(cell).double()
    exact_frames = frames.detach().double().requires_grad_()
    exact_state = state if state is None else tuple(t.double() for t in flat([state]))
    expected = oracle(exact_cell, exact_frames, exact_state if name == "lstm" or state is None else exact_state[0])
    bound = 1e-10 if dtype == torch.float64 else 2e-5
    leaves, exact_leaves = [frames, *cell.parameters()], [exact_frames, *exact_cell.parameters()]
    along = torch.randn_like(got[0])
    grads = torch.autograd.grad(got[0], leaves, along)
    exact = torch.autograd.grad(expected[0], exact_leaves, along.double())
    for a, b in zip((*flat(got), *grads), (*flat(expected), *exact), strict=True):
        assert (a - b).abs().max() <= bound * b.abs().max().clamp_min(1)


@pytest.mark.parametrize("name", ["gru", "gru-1-z"])
def test_gradient_penalty(name):
    kind, options, oracle = CELLS[name]
    cell = kind(3, 16, **options)
    frames = torch.randn(2, 3, 3, 8, 8)

    def penalty(run, cell, frames):
        frames = frames.requires_grad_()
        (grad,) = torch.autograd.grad(run(cell, frames)[0].sum(), frames, create_graph=True)
        return torch.autograd.grad((grad.flatten(1).norm(dim=1) - 1).square().sum(), list(cell.parameters()))

    got = penalty(lambda cell, frames: cell.sequence(frames), cell, frames.clone())
    expected = penalty(oracle, copy.deepcopy(cell).double(), frames.double())
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_cell_state_stays_float32():
    cell = ConvLSTMCell(3, 16).bfloat16()
    h, c = cell(torch.randn(1, 3, 8, 8, dtype=torch.bfloat16))
    h, c = cell(torch.randn(1, 3, 8, 8, dtype=torch.bfloat16), (h, c))
    assert h.dtype == torch.bfloat16 and c.dtype == torch.float32


@pytest.mark.parametrize("kind", [ConvLSTMCell, ConvGRUCell])
def test_autocast(kind):
    cell = kind(3, 16)
    frames = torch.randn(2, 3, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = cell.sequence(frames)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), cell.sequence(frames)[0], rtol=0.05, atol=0.03)
    got.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in cell.parameters())


def test_wrong_options():
    for options in ({"keep": "h"}, {"activation": "relu"}):
        with pytest.raises(ValueError, match="must be .* or .*, got"):
            ConvGRUCell(1, 1, **options)
    with pytest.raises(ValueError, match=r"expected a sequence \(B, T, C, H, W\)"):
        ConvLSTMCell(1, 1).sequence(torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize("cell", [ConvLSTMCell, ConvGRUCell])
def test_sequences_of_no_sample_and_of_no_time(cell):
    every, _ = cell(3, 2).sequence(torch.ones(0, 4, 3, 5, 6))
    assert every.shape == (0, 4, 2, 5, 6)
    with pytest.raises(ValueError, match="with T >= 1"):
        cell(3, 2).sequence(torch.ones(2, 0, 3, 5, 6))


@pytest.mark.parametrize("cell", [ConvLSTMCell, ConvGRUCell])
def test_shapes_on_the_meta_device(cell):
    every, _ = cell(3, 2).to("meta").sequence(torch.ones(2, 4, 3, 5, 6, device="meta"))
    assert every.shape == (2, 4, 2, 5, 6)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("cell", [ConvLSTMCell, ConvGRUCell])
def test_an_input_of_other_channels_is_refused(cell, channels):
    cell, x = cell(3, 5), torch.ones(1, channels, 4, 6)
    state = torch.ones(1, 8 - channels, 4, 6)  # together as many channels as the weights have
    states = None, (state, torch.ones(1, 5, 4, 6)) if isinstance(cell, ConvLSTMCell) else state
    for state in states:
        for run in (lambda s: cell(x, s), lambda s: cell.sequence(x[:, None].repeat(1, 2, 1, 1, 1), s)):
            with pytest.raises(ValueError, match="has shape .* expected"):
                run(state)
