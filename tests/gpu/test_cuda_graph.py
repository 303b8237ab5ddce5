# SPDX-License-Identifier: Apache-2.0
"""Tests of fastds.compile_graph on a GPU against eager execution."""

import pytest
import torch

import fastds
from fastds.models import create

CASES = {
    "nowcast-small": (lambda: torch.rand(1, 3, 1, 32, 32), (4,)),
    "ms-trajgru-small": (lambda: torch.rand(1, 3, 1, 32, 32), (4,)),
    "inr-small": (lambda: torch.rand(1, 4, 12, 16), ((20, 31),)),
    "liif": (lambda: torch.rand(1, 4, 12, 16), ((20, 31),)),
    "edsr-x2": (lambda: torch.rand(1, 4, 12, 16), ()),
    "srcnn": (lambda: torch.rand(1, 2, 1, 8, 8), ()),
}


def last(y):
    return y[-1] if isinstance(y, tuple) else y


@pytest.mark.parametrize("name", CASES)
def test_graph_replay_equals_eager(name, gpu):
    draw, options = CASES[name]
    model = create(name).to(gpu).eval()
    fast = fastds.compile_graph(model, draw().to(gpu), *options, dtype=torch.float32)
    for _ in range(2):
        x = draw().to(gpu)
        with torch.no_grad():
            torch.testing.assert_close(last(fast(x, *options)), last(model(x, *options)), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_graph_gradients_equal_eager(name, gpu):
    draw, options = CASES[name]
    model = create(name).to(gpu).train()
    x = draw().to(gpu)
    fast = fastds.compile_graph(model, x, *options, dtype=torch.float32, train=True)

    def gradients(function):
        loss = last(function(x, *options)).square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        return torch.cat([g.flatten().float() for g in grads if g is not None])

    ours, expected = gradients(fast), gradients(model)
    assert torch.nn.functional.cosine_similarity(ours, expected, 0) > 0.999
