# SPDX-License-Identifier: Apache-2.0
"""Compares recurrent cells with the float64 reference."""

import copy

import torch
from torch.utils._pytree import tree_leaves

from fastds.models.db_rnn.cells import build_cell
from tests.references import db_rnn as reference

SMALL = {"preciplstm": {"window": 4}, "trajgru": {"links": 3}}


def compare(got, expected, bound):
    for a, b in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.double() - b).abs().max() <= bound * b.abs().max().clamp_min(1)


def three_steps_of_a_cell(name, dtype, layer, channels=16, size=(6, 10)):
    """Compare values, states and gradients of three steps of a cell with float64, for two samples.

    Args:
        name: name of the cell.
        dtype: dtype of the cell.
        layer: number of the layer of the network.
        channels: number of channels.
        size: height and width.
    """
    shape = (2, channels, *size)
    cell = build_cell(name, channels, layer, 6, **SMALL.get(name, {})).to(dtype)
    twin = copy.deepcopy(cell).double()
    xs = [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(3)]
    befores = [torch.randn(shape, dtype=dtype) if t and cell.difference else None for t in range(3)]
    ms = [torch.randn(shape, dtype=dtype) if cell.zigzag and t != 1 else None for t in range(3)]
    exact_xs = [x.detach().double().requires_grad_() for x in xs]

    def run(step, xs, kind):
        state, every, m = None, [], None
        for x, before, given_memory in zip(xs, befores, ms, strict=True):
            m = m if given_memory is None else given_memory.to(kind)
            h, state, m = step(x, state, m, before if before is None else before.to(kind))
            every.append((h, m))
        return every, state

    got = run(cell, xs, dtype)
    expected = run(lambda *a: reference.STEPS[name](twin, *a), exact_xs, torch.float64)
    bound = 1e-10 if dtype == torch.float64 else 3e-5
    compare([h for h, _ in got[0]], [h for h, _ in expected[0]], bound)
    compare([m for _, m in got[0]], [m for _, m in expected[0]], bound)
    along = [torch.randn(shape) for _ in xs]

    def loss(result):
        parts = zip(result[0], along, strict=True)
        return sum((h * a.to(h.dtype)).sum() + (0 if m is None else m.square().sum()) for (h, m), a in parts)

    options = {"allow_unused": True, "materialize_grads": True}
    grads = torch.autograd.grad(loss(got), [*xs, *cell.parameters()], **options)
    exact = torch.autograd.grad(loss(expected), [*exact_xs, *twin.parameters()], **options)
    for a, b in zip(grads, exact, strict=True):
        assert (a.double() - b).abs().max() <= 10 * bound * b.abs().max().clamp_min(1)
    unused = [n for (n, _), g in zip(cell.named_parameters(), exact[len(xs) :], strict=True) if g.abs().max() == 0]
    assert unused == []
