# SPDX-License-Identifier: Apache-2.0
"""Tests of recomputation in the backward pass: the same gradients with less saved memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastds.models.db_rnn import DBRNN, MSRNN
from fastds.models.db_rnn.activation_checkpointing import checkpoint_activations, max_pool_2x2
from fastds.ops.core import buffer_pool as _reuse
from fastds.ops.impl.conv3x3 import algorithm
from fastds.ops.impl.conv_rnn.fused import recompute_gates

pytestmark = pytest.mark.usefixtures("native")


class Allocations(TorchDispatchMode):
    """Records the storages of the results of operators."""

    def __init__(self):
        super().__init__()
        self.seen, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in () if func.is_view else tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.seen[StorageWeakRef(storage)] = storage.nbytes()
        self.peak = max(self.peak, self.alive())
        return result

    def alive(self) -> int:
        return sum(size for storage, size in self.seen.items() if not storage.expired())


def count_saved_bytes(function):
    """Return the memory that a call holds while its result exists."""
    with Allocations() as allocations:
        result = function()
    return allocations.alive(), result


@pytest.mark.parametrize("cell", ["predrnn", "mim", "preciplstm", "convlstm"])
@pytest.mark.parametrize("network", [MSRNN, DBRNN])
def test_recomputed_gradients_are_bitwise_equal(network, cell):
    """Gradients are compared with those of recompute=False, which saves all values and recomputes none."""
    options = {"cell_options": {"window": 4}} if cell == "preciplstm" else {}
    plain, light = (network(cell, 8, recompute=on, **options) for on in (False, True))
    light.load_state_dict(plain.state_dict())
    frames = torch.rand(2, 2, 1, 16, 24)
    results = []
    for model in (plain, light):
        y = model(frames, 2)
        grads = torch.autograd.grad(sum(part.square().sum() for part in y), list(model.parameters()))
        results.append([*y, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_recomputed_gates_are_bitwise_equal(monkeypatch):
    monkeypatch.setattr(algorithm, "select_fastest", lambda *case: "winograd" if case[2] or case[8] else "planes")
    test_recomputed_gradients_are_bitwise_equal(MSRNN, "convlstm")


def test_second_order_gradients_with_recomputation():
    results = []
    for recompute in (False, True):
        torch.manual_seed(1)
        model = MSRNN("predrnn", 4, recompute=recompute).double()
        frames = torch.rand(1, 2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(model(frames, 2)[0].square().sum(), frames, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), list(model.parameters())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_rematerialize_only_where_gates_are():
    made = []

    def double(x):
        made.append(x)
        return 2 * x

    x = torch.rand(3, requires_grad=True)
    for on in (False, True):
        y = double(x)
        with recompute_gates(on), checkpoint_activations((y, double, x)):
            loss = y.square().sum()
        torch.testing.assert_close(torch.autograd.grad(loss, x)[0], 8 * x.detach())
        assert len(made) == (3 if on else 1)
    with torch.no_grad(), recompute_gates(), checkpoint_activations((y, double, x)):
        y.square()


def test_rematerialize_under_the_autocast_of_the_forward():
    weight, x = torch.rand(4, 4, requires_grad=True), torch.rand(4, 4, requires_grad=True)
    with recompute_gates(), torch.autocast("cpu", torch.bfloat16):
        y = x @ weight
        with checkpoint_activations((y, torch.matmul, x, weight)):
            z = y.square()
    assert z.grad_fn._saved_self.dtype == y.dtype == torch.bfloat16
    assert torch.equal(z.grad_fn._saved_self, y)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_activation_memory_is_halved(layout):
    """Values and derivatives equal those of torch's pooling, also for ties; only x and y are saved."""
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64).round().contiguous(memory_format=layout).requires_grad_()
    saved, y = count_saved_bytes(lambda: max_pool_2x2(x))
    expected = F.max_pool2d(x, 2)
    assert torch.equal(y, expected) and saved == y.untyped_storage().nbytes()
    along = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, along)[0], torch.autograd.grad(expected, x, along)[0])
    distinct = torch.randperm(96, dtype=torch.float64).view(2, 3, 4, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: max_pool_2x2(t * t), distinct)
    assert torch.func.vmap(max_pool_2x2)(x.detach()[:, None]).shape == (2, 1, 3, 3, 4)


def test_saved_memory_of_a_training_step():
    """Check the memory saved by PredRNN after the forward pass, in feature maps per cell and step.

    With recomputation four maps are saved: the hidden state, two memories and q. Without it more than 14 are.
    """
    frames = torch.rand(1, 4, 1, 64, 64)
    plain, light = (
        count_saved_bytes(lambda on=on: MSRNN("predrnn", 8, recompute=on)(frames, 1))[0] for on in (False, True)
    )
    one_map = 4 * 2.625 * 8 * 64 * 64 * 4  # 4 steps, 6 layers, bytes
    assert light < 4.8 * one_map and plain > 14 * one_map


@pytest.mark.parametrize("network, cell, bound", [(MSRNN, "predrnn", 14), (DBRNN, "convlstm", 16)])
def test_peak_memory_of_a_forecast(network, cell, bound, monkeypatch):
    """Check the peak memory of a forecast without gradients.

    The peak has all states and, for one layer, its inputs, outputs and intermediate maps. Reuse of buffers is disabled;
    tests/ops/test_buffer_reuse.py tests it.
    """
    monkeypatch.setattr(_reuse, "_is_pooled", lambda *_: False)
    model, frames = network(cell, 8), torch.rand(1, 4, 1, 64, 64)
    with torch.no_grad(), Allocations() as allocations:
        model(frames, 2)
    assert allocations.peak < bound * 8 * 64 * 64 * 4
