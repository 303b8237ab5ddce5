# SPDX-License-Identifier: Apache-2.0
"""Tests of graphs that are captured automatically when input shapes repeat."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import fastds
from fastds.models import create, graph, graph_cache
from fastds.models.graph_cache import CaptureRule, GraphCache, capturable, use_graphs
from tests.support.emulated_graphs import EmulatedForwardGraph, EmulatedGradientGraph, install


@pytest.fixture
def fast_rules(monkeypatch):
    """Capture in the second call of a shape, however long the calls take."""
    monkeypatch.setattr(graph_cache, "RULES", {"cpu": CaptureRule(2, None)})


@pytest.fixture
def emulated(monkeypatch):
    install(monkeypatch)


class Scaled(nn.Module):
    """Network of one weight, with a method that can be captured."""

    def __init__(self, change=lambda y: y):
        super().__init__()
        self.weight, self.change = nn.Parameter(torch.tensor(2.0)), change

    @capturable
    def forward(self, x):
        return self.change(self.weight * x)


def run(model, inputs, cache, grad=False):
    with torch.set_grad_enabled(grad), use_graphs(cache):
        return [model(x) for x in inputs]


def test_small_calls_on_a_cpu_are_captured_late(native):
    model, cache = Scaled().eval(), GraphCache()
    run(model, [torch.ones(3)] * 40, cache)
    assert (cache.calls, cache.replays) == (40, 40 - graph_cache.RULES["cpu"].calls)


def test_long_calls_on_a_cpu_are_never_captured(monkeypatch, native):
    monkeypatch.setattr(graph_cache, "RULES", {"cpu": CaptureRule(2, 0.0)})
    cache = GraphCache()
    run(Scaled().eval(), [torch.ones(3)] * 5, cache)
    assert cache.replays == 0 and cache.make_notes() == []


CALLS = {
    "fczsm-small": lambda model: model(torch.rand(1, 2, 1, 16, 24)),
    "ms-predrnn": lambda model: model.forecast(torch.rand(1, 3, 1, 16, 16), 3),
    "nowcast-small": lambda model: model.forecast(torch.rand(1, 4, 1, 32, 32), 3),
    "simvp": lambda model: model.forecast(torch.rand(1, 5, 1, 16, 16), 5),
    "unet-32": lambda model: model(torch.rand(1, 2, 1, 16, 16)),
    "wgan-gp-small": lambda model: model(torch.rand(1, 2, 1, 8, 8)),
    "inr-small": lambda model: model(torch.rand(1, model.in_channels, 12, 16), scale=2.5),
    "mlcast-convgru": lambda model: model.forecast(torch.rand(1, 2, 1, 16, 16), 2, members=2),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_outputs_of_networks_have_the_same_bits(name, dtype, fast_rules, native):
    model = create(name).eval()
    results, cache = [], GraphCache()
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for graphs in (None, cache):
            torch.manual_seed(4)
            with use_graphs(graphs):
                results.append([CALLS[name](model) for _ in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert cache.replays and not cache.failures


def test_missing_values_are_not_replayed(fast_rules, native):
    model, cache = create("inr-small").eval(), GraphCache()
    x = torch.rand(1, model.in_channels, 12, 12)
    holes = torch.where(torch.rand(12, 12) < 0.1, torch.nan, x)
    with torch.inference_mode():
        expected = [model(z, scale=2) for z in (x, x, x, holes)]
        with use_graphs(cache):
            got = [model(z, scale=2) for z in (x, x, x, holes)]
    assert all(torch.equal(a.nan_to_num(-9), b.nan_to_num(-9)) for a, b in zip(got, expected, strict=True))
    assert cache.replays == 1 and got[-1].isnan().any()


def test_setting_that_changes_the_forward_has_a_graph_of_its_own(fast_rules, native):
    model, cache = create("inr-small").eval(), GraphCache()
    x, results = torch.rand(1, model.in_channels, 12, 12), []
    with torch.inference_mode(), use_graphs(cache):
        for periodic in (False, True):
            model.set_periodic(periodic)
            results.append([model(x, scale=2) for _ in range(4)])
    assert all(torch.equal(y, ys[0]) for ys in results for y in ys) and not torch.equal(results[0][3], results[1][3])
    assert cache.replays == 4


def test_forced_kernels_are_not_replayed(fast_rules, native):
    model, cache, x = Scaled().eval(), GraphCache(), torch.ones(3)
    run(model, [x] * 3, cache)
    with fastds.use_backend("reference"):
        run(model, [x] * 3, cache)
    with fastds.use_conv_algorithm("winograd"):
        run(model, [x] * 3, cache)
    assert (cache.calls, cache.replays) == (3, 1)


def test_changed_weights_drop_the_graph(fast_rules, native):
    model, cache, x = Scaled().eval(), GraphCache(), torch.ones(3)
    run(model, [x] * 3, cache)
    cache.drop_outdated()
    run(model, [x], cache)
    assert cache.replays == 2
    model.weight.data.fill_(5)
    cache.drop_outdated()
    assert torch.equal(run(model, [x] * 4, cache)[-1], 5 * x)
    assert cache.replays == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y: y * 2 if y.sum() > 0 else y, "reads tensor values"),
        (lambda y: y + torch.rand(3), "draws random numbers"),
    ],
    ids=["reads", "noise"],
)
def test_forward_that_cannot_be_repeated_runs_without_a_graph(change, reason, fast_rules, native):
    model, cache, inputs = Scaled(change).eval(), GraphCache(), [torch.ones(3), -torch.ones(3)] * 3
    torch.manual_seed(1)
    expected = run(model, inputs, None)
    torch.manual_seed(1)
    got = run(model, inputs, cache)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert cache.replays == 0 and reason in cache.failures["Scaled"]
    assert cache.make_notes() == [f"no graph of Scaled: {cache.failures['Scaled']}"]


@pytest.mark.parametrize("kind", ["reads", "noise"])
def test_wrong_cuda_graph_is_dropped(kind, emulated, monkeypatch):
    """A CUDA graph repeats the branch that the captured run took, and may draw other noise."""
    taken = []

    def change(y):
        if kind == "noise":
            return y + torch.rand(3)
        if not graph.is_capturing():
            return y * 2 if y.sum() > 0 else y
        taken.append(y.sum() > 0)
        return y * 2 if taken[0] else y

    model, cache = Scaled(change).eval(), GraphCache()
    inputs = [torch.tensor([1.0, 2.0, -9.0]), torch.tensor([3.0, 4.0, 5.0])] * 3
    torch.manual_seed(1)
    expected = run(model, inputs, None)
    taken.clear()
    torch.manual_seed(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "flip", lambda z, _: -z)  # other inputs that take the other branch
        got = run(model, inputs, cache)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert cache.replays == 0 and "different outputs" in cache.failures["Scaled"]


def test_changing_shapes_are_not_captured(fast_rules, native):
    model, cache = Scaled().eval(), GraphCache()
    run(model, [torch.ones(n) for n in range(1, 40)], cache)
    assert (cache.calls, cache.replays) == (39, 0)


def test_number_of_graphs_is_bounded(fast_rules, native):
    model, cache = Scaled().eval(), GraphCache()
    run(model, [torch.ones(n) for n in range(1, 12) for _ in range(3)], cache)
    assert cache.replays == graph_cache.MAX_GRAPHS


def test_copies_capture_their_own_graphs(fast_rules, native):
    cache = GraphCache()
    run(Scaled().eval(), [torch.ones(3)] * 3, cache)
    for other in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)):
        assert other.calls == other.replays == 0 and not other.train


def test_threads_share_a_cache(fast_rules, native):
    model, cache, wrong = create("fczsm-small").eval(), GraphCache(), []
    inputs = [torch.rand(1, 2, 1, 16, 16) for _ in range(8)]
    with torch.inference_mode():
        expected = [model(x) for x in inputs]

    def work(order):
        with torch.inference_mode(), use_graphs(cache):
            wrong.extend(k for k in order if not torch.equal(model(inputs[k]), expected[k]))

    workers = [threading.Thread(target=work, args=(order,)) for order in (range(8), range(7, -1, -1))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_training_and_gradients_are_not_replayed_in_inference(fast_rules, native):
    model, cache = Scaled(), GraphCache()
    run(model, [torch.ones(3)] * 4, cache, grad=True)
    run(model.train(), [torch.ones(3)] * 4, cache)
    assert cache.calls == 0


def train(model, cache, steps=6):
    """Return the losses and the weights of a short training."""
    torch.manual_seed(7)
    optimiser, losses = torch.optim.AdamW(model.parameters(), 0.01), []
    for _ in range(steps):
        with use_graphs(cache):
            y = model(torch.rand(2, 3, 8, 8))
        loss = (y - 0.3).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, [p.detach().clone() for p in model.parameters()]


class Normalised(nn.Module):
    """Network whose batch normalisation counts its calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    @capturable
    def forward(self, x):
        return self.norm(self.conv(x))


def test_training_with_graphs_has_the_same_bits(emulated):
    plain, graphed, cache = Normalised(), Normalised(), GraphCache(train=True)
    expected, got = train(plain, None), train(graphed, cache)
    assert got[0] == expected[0] and all(map(torch.equal, got[1], expected[1]))
    assert all(map(torch.equal, plain.buffers(), graphed.buffers()))  # neither captures nor checks count as steps
    assert cache.replays == 3  # steps: count, capture, check with changed weights, then replays
    assert EmulatedGradientGraph.launches == 3 + 2  # and two checks


def test_wrong_gradients_drop_the_graph(emulated, monkeypatch):
    def capture(self, module, examples):
        return lambda *tensors: module(*tensors).detach() + 0 * module(*tensors)

    monkeypatch.setattr(EmulatedGradientGraph, "capture", capture)
    cache = GraphCache(train=True)
    got = train(Normalised(), cache)
    assert got[0] == train(Normalised(), None)[0]
    assert cache.replays == 0 and "different gradients" in cache.failures["Normalised"]


def test_graph_with_old_weights_is_dropped(emulated, monkeypatch):
    """A graph that holds a copy of the weights passes its first check and fails the second."""

    def capture(self, module, examples):
        old = copy.deepcopy(module)
        return lambda *tensors: old(*tensors) + 0 * module(*tensors)

    monkeypatch.setattr(EmulatedGradientGraph, "capture", capture)
    monkeypatch.setattr(graph_cache, "_is_close", lambda a, b, _: torch.allclose(a, b) or b.numel() < 200)
    cache = GraphCache(train=True)
    assert train(Normalised(), cache)[0] == train(Normalised(), None)[0]
    assert cache.replays == 0 and "different outputs" in cache.failures["Normalised"]


def test_replaced_weights_have_a_graph_of_their_own(emulated):
    model, cache = Normalised(), GraphCache(train=True)
    train(model, cache, steps=4)
    model.conv.weight.data = model.conv.weight.data.clone()
    train(model, cache, steps=1)
    assert cache.replays == 1


def test_commands_launch_one_graph_a_forward(emulated):
    """Downscaling launches one graph for each pair of frames after the first two pairs."""
    from fastds.data import synthetic_event

    known = synthetic_event(3, frames=7, shape=(32, 32))[["reflectivity"]]
    model = fastds.load("fczsm-small")
    plain = fastds.downscale(model, known, graph="never")
    assert EmulatedForwardGraph.launches == 0
    graphed = fastds.downscale(model, known)
    name = next(name for name in plain.data_vars if plain[name].ndim == 3)
    torch.testing.assert_close(*(torch.from_numpy(r[name].values) for r in (graphed, plain)), equal_nan=True)
    assert EmulatedForwardGraph.launches == 6 - 2 + 2  # two eager pairs, and two checks
