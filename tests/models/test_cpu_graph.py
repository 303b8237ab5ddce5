# SPDX-License-Identifier: Apache-2.0
"""Tests of compile_graph on a CPU: results are bitwise equal to those of the network."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastds
from fastds.models import create
from fastds.models.cpu_graph import CPUForwardGraph
from fastds.models.export.signatures import build_signature
from fastds.models.graph import Arguments, freeze_model
from fastds.nn import Conv2d
from fastds.ops import conv1x1, conv3x3, conv_lstm_cell, deform_conv2d
from fastds.ops.core import buffer_pool, onednn, packed_weight_cache
from fastds.ops.core import native as loader
from fastds.ops.impl.conv2d import costs, op

CPU = torch.device("cpu")
NETWORKS = {
    "fczsm-small": {}, "nowcast-small": {}, "ms-convlstm": {}, "ms-predrnn": {}, "ms-mim": {}, "simvp": {},
    "wgan-gp-small": {}, "inr-small": {}, "mlcast-convgru": {"num_blocks": 2}, "edsr-x2": {},
}  # fmt: skip
CASES = [(name, torch.float32) for name in NETWORKS] + [
    (name, torch.bfloat16) for name in ("ms-predrnn", "fczsm-small", "simvp", "wgan-gp-small")
]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(*map(torch.utils._pytree.tree_leaves, (a, b)), strict=True))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_graph_equals_eager_networks(name, dtype, native):
    torch.manual_seed(3)
    model = create(name, **NETWORKS[name]).eval()
    steps = {"steps": 3} if hasattr(model, "forecast") else {}
    given = build_signature(model, **steps)
    size = {"batch": 1, "height": 32, "width": 32, "points": 500}
    module, inputs = given.module, given.draw(size, seed=1)
    fast = fastds.compile_graph(module, *inputs, dtype=dtype)
    for seed in (2, 3):
        others = given.draw(size, seed=seed)
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            expected = module(*others)
        assert equal(fast(*others), expected)


@pytest.mark.parametrize(("name", "fields"), [("nowcast-small", 3), ("fczsm-small", 2)])
def test_graph_computes_flow_per_call(name, fields, native):
    model = create(name).eval()
    given = [torch.rand(1, fields, 1, 32, 32) for _ in range(3)]
    fast = fastds.compile_graph(model, given[0])
    for x in given[1:]:
        with torch.no_grad():
            expected = model(x)
        assert equal(fast(x), expected)


@pytest.mark.parametrize("name", ["ms-predrnn-small", "ms-mim-small", "ms-convgru-small", "ms-predrnn++-small"])
def test_a_frozen_copy_gives_the_same(name, native):
    torch.manual_seed(4)
    model, x = create(name).eval(), torch.rand(1, 3, 1, 32, 32)
    with torch.no_grad():
        assert equal(freeze_model(model, torch.float32)(x, 2), model(x, 2))


class Everything(nn.Module):
    """Contains all kinds of operators: views, copies, in-place operators, multiple results and indexing."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 8)
        self.weight = nn.Parameter(torch.randn(12, 14, 3, 3) / 10)
        self.one = nn.Parameter(torch.randn(6, 12, 1, 1))

    def forward(self, x, h):
        x = torch.cat([x, x.flip(1)[:, :1].expand(-1, 2, -1, -1)], 1)
        y = conv3x3(x, self.weight, activation="relu", second_input=h)
        y[:, ::2] *= 2
        y = conv1x1(y, self.one)
        rows = self.linear(self.norm(y.permute(0, 2, 3, 1).reshape(-1, 6)))
        best, where = rows.max(0)
        top = rows[torch.tensor([2, 0, 1])].softmax(-1)
        out = torch.zeros_like(top).index_add_(0, torch.tensor([1, 1, 0]), top + best)
        offset = torch.zeros(1, 18, *y.shape[2:])
        z = deform_conv2d(y, offset + 0.3, self.weight[:6, :6], padding=1)
        return {"out": out, "where": where, "many": torch.stack(z.chunk(2, 1)).sum((0, -1)), "number": 3}


def test_operators_of_all_kinds(native):
    model, examples = Everything(), (torch.randn(1, 4, 7, 9), torch.randn(1, 8, 7, 9))
    fast = fastds.compile_graph(model, *examples)
    for _ in range(3):
        others = [torch.randn_like(x) for x in examples]
        with torch.no_grad():
            expected = model(*others)
        got = fast(*others)
        assert got["number"] == 3 and all(torch.equal(got[k], expected[k]) for k in ("out", "where", "many"))


class Steps(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4 * channels, 2 * channels, 3, 3) / 12)

    def forward(self, x):
        h = c = torch.zeros_like(x)
        for _ in range(20):
            h, c = conv_lstm_cell(x, h, c, self.weight)
        return h


def test_graph_reuses_memory(native):
    model, x = Steps(), torch.randn(1, 8, 16, 16)
    graph = CPUForwardGraph(model, Arguments((x,), {}, CPU), torch.float32)
    taken = sum(block.nbytes for blocks in graph.pool._free.values() for block in blocks)
    assert taken <= 8 * x.nbytes + 3 * model.weight.nbytes  # forty states pass through it
    with torch.no_grad():
        expected = model(x)
        for _ in range(4):  # what others keep in this thread grows and goes
            conv3x3(torch.randn(1, 64, 40, 40), torch.randn(64, 64, 3, 3), algorithm="winograd")
        packed_weight_cache.clear_cache()
        model.weight.fill_(0)  # a copy was taken
    assert torch.equal(graph(x), expected)
    first = graph(x)
    graph(2 * x)
    assert torch.equal(first, expected)


def test_recording_excludes_other_threads(native):
    stop, failures = threading.Event(), []

    def work():
        x, weight = torch.randn(1, 8, 12, 12), torch.randn(8, 8, 3, 3)
        expected = conv3x3(x, weight)
        while not stop.is_set():
            if not torch.equal(conv3x3(x, weight), expected):
                failures.append("another result")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        model, x = Steps(), torch.randn(1, 8, 16, 16)
        lengths = {len(CPUForwardGraph(model, Arguments((x,), {}, CPU), torch.float32).calls) for _ in range(3)}
    finally:
        stop.set()
        thread.join()
    assert not failures and len(lengths) == 1
    assert loader.get_module() is native and loader._thread.all is None
    assert getattr(buffer_pool._current, "pool", None) is None


class Weighs(nn.Module):
    """Applies `scaled` to the sum of its two parameters and multiplies its input by the result."""

    def __init__(self, scaled):
        super().__init__()
        self.one, self.other = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))
        self.scaled = scaled

    def forward(self, x):
        return x * self.scaled(self.one + self.other, x)


@pytest.mark.parametrize(
    ("scaled", "calls"),
    [
        (lambda w, x: 2 * w, 1),
        (lambda w, x: 2 * w.view(1, 5), 1),
        (lambda w, x: 2 * (w + x[0]), 3),
        (lambda w, x: w.mul_(2), 3),
        (lambda w, x: w.add_(x[0]), 3),
        (lambda w, x: torch.add(w, x[0], out=w), 3),
    ],
    ids=["constant", "view of a constant", "input", "in place", "in place by the input", "into a constant"],
)
def test_graph_folds_constant_computations(scaled, calls, native):
    model, x = Weighs(scaled), torch.randn(2, 5)
    graph = CPUForwardGraph(model, Arguments((x,), {}, CPU), torch.float32)
    assert len(graph.calls) == calls
    for other in (torch.randn(2, 5), torch.randn(2, 5)):
        with torch.no_grad():
            assert torch.equal(graph(other), model(other))


class Convolves(nn.Module):
    def __init__(self, convolve):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(24, 4, 3, 3)), nn.Parameter(torch.randn(24))
        self.convolve = convolve

    def forward(self, x):
        return self.convolve(x, self.weight, self.bias)


def check_replay(model, x, dtype=torch.float32):
    graph = CPUForwardGraph(model, Arguments((x,), {}, CPU), dtype)
    for other in (torch.randn_like(x), torch.randn_like(x)):
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            assert torch.equal(graph(other), model(other))


def prepares_itself(x, weight, bias):
    geometry = [1, 1], [1, 1], [1, 1], 3
    return onednn.convolve(x, onednn.prepare_filters(weight, x, *geometry), bias, *geometry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("convolve", "filters"),
    [
        (lambda x, w, b: F.conv2d(x, w, b, 1, 1, 1, 3), 1),
        (lambda x, w, b: F.conv2d(x.contiguous(memory_format=torch.channels_last), w, None, 2, 0, 2, 3), 1),
        (lambda x, w, b: torch.convolution(x, w, b, [1, 2], [0, 1], [1, 1], False, [0, 0], 3), 1),
        (lambda x, w, b: F.conv2d(x, w, groups=3) + F.conv2d(x, w.flip(2), groups=3), 2),
        (lambda x, w, b: F.conv2d(x, w + x[0, 0, :3, :3], b, groups=3), 0),
        (lambda x, w, b: F.conv_transpose2d(x, w[:12]), 0),
        (lambda x, w, b: F.conv1d(x[:, :, 0], w[:, :, 0], b, groups=3), 0),
        (lambda x, w, b: F.conv2d(x[:0], w, b, groups=3), 0),
    ],
    ids=["groups", "stride", "by name", "two", "filters of the input", "transposed", "of rows", "empty"],
)
def test_graph_packs_weights_once(convolve, filters, dtype, native, monkeypatch):
    calls, prepared = [], onednn.prepare_filters
    monkeypatch.setattr(onednn, "prepare_filters", lambda *args: calls.append(1) or prepared(*args))
    model, x = Convolves(convolve), torch.randn(2, 12, 9, 8)
    check_replay(model, x, dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        computed = model(x).dtype  # float32 for torch.convolution, which autocast leaves as it is
    assert len(calls) == (filters if onednn.can_prepare_filters(computed) else 0)


def test_weights_packed_by_the_forward(native):
    check_replay(Convolves(prepares_itself), torch.randn(2, 12, 9, 8))


def test_weights_are_not_packed_if_results_would_change(native, monkeypatch):
    monkeypatch.setattr(onednn, "convolve", lambda x, filters, bias, *_: torch.zeros(2, 24, 7, 6))
    check_replay(Convolves(lambda x, w, b: F.conv2d(x, w, b, groups=3)), torch.randn(2, 12, 9, 8))


class Asks(nn.Module):
    def __init__(self, ask):
        super().__init__()
        self.scale, self.call_inr_query = nn.Parameter(torch.ones(1)), ask

    def forward(self, x):
        return self.call_inr_query(self.scale * x)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 0],
        lambda x: x * float(x.max()),
        lambda x: x + torch.randn_like(x),
        lambda x: nn.functional.dropout(x, 0.5, True),
        lambda x: torch.from_numpy(x.numpy() * 2),
    ],
    ids=["branch", "mask", "number", "random", "dropout", "numpy"],
)
def test_unrepeatable_forwards_are_rejected(ask, native):
    with pytest.raises(RuntimeError, match="the forward cannot be repeated"):
        fastds.compile_graph(Asks(ask), torch.randn(2, 5))
    assert loader.get_module() is native


def test_convolution_fast_only_without_call_overhead(native, monkeypatch):
    monkeypatch.setattr(costs, "_estimate_seconds", lambda *_: [0.99 * costs.MARGIN * 1e-4, 1e-4])
    for rule in ("is_engine_faster", "is_op_faster"):  # past what they remember
        monkeypatch.setattr(costs, rule, getattr(costs, rule).__wrapped__)
    monkeypatch.setattr(op, "_library_cache", {})
    model, x = Conv2d(8, 8, 5, padding=2), torch.randn(2, 8, 12, 12)
    fast = fastds.compile_graph(model, x)
    with torch.no_grad():
        assert equal(fast(x), model(x))


def test_missing_values_spread_and_other_threads_fill_theirs(native):
    from fastds.models.graph import capture_mode, is_capturing

    x = torch.randn(1, 8, 6, 6)
    x[0, 0, 2, 3] = float("nan")
    model = Steps()
    y = fastds.compile_graph(model, x)(x)
    assert y.isnan().any() and torch.equal(y.isnan(), model(x).isnan())
    seen = []
    with capture_mode(torch.float32):
        thread = threading.Thread(target=lambda: seen.append(is_capturing()))
        thread.start()
        thread.join()
        assert is_capturing()
    assert seen == [False] and not is_capturing()


def test_graph_error_messages(native):
    model, x = Steps(), torch.randn(1, 8, 6, 6)
    with pytest.raises(ValueError, match="train: a step is captured on a CUDA device alone, the model is on cpu"):
        fastds.compile_graph(model, x, train=True)
    with pytest.raises(ValueError, match="dtype must be None, torch.bfloat16, .* got torch.float64"):
        fastds.compile_graph(model, x, dtype=torch.float64)
    fast = fastds.compile_graph(model, x)
    with pytest.raises(ValueError, match=r"input 0 is a torch.float32 tensor of shape \(1, 8, 6, 7\), the graph was"):
        fast(torch.randn(1, 8, 6, 7))
