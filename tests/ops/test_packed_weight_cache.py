# SPDX-License-Identifier: Apache-2.0
"""Tests of the cache of packed weights: it must notice each change of a weight."""

import copy
import itertools
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastds
from fastds.nn.convolutions import convolve
from fastds.ops import conv2d, conv3x3
from fastds.ops.core import onednn, packed_weight_cache
from fastds.ops.impl.conv3x3 import library, winograd
from tests.support.conv3x3_cases import Problem

pytestmark = pytest.mark.usefixtures("native")

LAST = torch.channels_last
WAYS = {  # of convolving x with a weight; "library": by oneDNN
    "engine": lambda x, weight: conv3x3(x, weight, algorithm="winograd"),
    "library": lambda x, weight: conv3x3(x, weight, algorithm="direct"),
}
all_ways = pytest.mark.parametrize("run", WAYS.values(), ids=WAYS)
here = pytest.mark.skipif(not onednn.can_prepare_filters(torch.float32), reason="this build of torch has no oneDNN")
in_bfloat16 = pytest.mark.skipif(
    not onednn.can_prepare_filters(torch.bfloat16), reason="no oneDNN for bfloat16 on this processor"
)


def expected(x, weight):
    return F.conv2d(x, weight, padding=1)


def check(y, x, weight):
    torch.testing.assert_close(y, expected(x, weight), rtol=1e-4, atol=1e-3)


def fused_optimiser(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1, fused=True).step()


def data_write(weight):
    weight.data[3, 2, 1, 1] += 1


def data_swap(weight):
    weight.data = weight.data + 1


def numpy_write(weight):
    weight.detach().numpy()[0, 0, 0, 0] = 7


CHANGES = [fused_optimiser, data_write, data_swap, numpy_write]


# ---- changes


@all_ways
@pytest.mark.parametrize("change", CHANGES, ids=[c.__name__ for c in CHANGES])
def test_cache_detects_changed_weights(run, change):
    x, weight = torch.randn(2, 16, 9, 9), torch.nn.Parameter(torch.randn(16, 16, 3, 3))
    with torch.no_grad():
        before = run(x, weight)
        assert torch.equal(run(x, weight), before)
    change(weight)
    with torch.no_grad():
        after = run(x, weight)
    assert not torch.equal(after, before)
    check(after, x, weight)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(run(x, weight).sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(expected(x, weight).sum(), x)[0], rtol=1e-4, atol=1e-3)


@all_ways
def test_load_state_dict_and_deepcopy(run):
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(16, 16, 3, 3))

        @torch.no_grad()
        def forward(self, x):
            return run(x, self.weight)

    x, layer, other = torch.randn(2, 16, 9, 9), Layer(), Layer()
    layer(x), other(x)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x)) and not torch.equal(twin(x), layer(x))


@all_ways
def test_cache_detects_reused_addresses(run):
    x = torch.randn(2, 16, 9, 9)
    for _ in range(20):
        weight = torch.randn(16, 16, 3, 3)
        check(run(x, weight), x, weight)
        del weight


# ---- processes and threads


def _in_child(run, x, weight, before, queue):
    torch.set_num_threads(1)
    same = torch.equal(run(x, weight), before)
    weight.data.add_(1)
    queue.put((same, torch.allclose(run(x, weight), expected(x, weight), rtol=1e-4, atol=1e-3)))


@all_ways
def test_cache_after_fork(run):
    threads = torch.get_num_threads()
    x, weight = torch.randn(2, 16, 9, 9), torch.randn(16, 16, 3, 3)
    torch.set_num_threads(1)  # a forked child of a process with running OpenMP threads may not start more
    try:
        before = run(x, weight)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_in_child, args=(run, x, weight, before, queue))
        child.start()
        assert queue.get(timeout=60) == (True, True)
        child.join()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("algorithm", ["winograd", "direct"])
def test_cache_is_per_python_thread(algorithm):
    problems = [Problem(seed=i, C1=16 + i, C2=0) for i in range(8)]
    tensors = [p.tensors() for p in problems]
    alone = [p.run(t, algorithm) for p, t in zip(problems, tensors, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda i: problems[i].run(tensors[i], algorithm), range(8))
            assert all(map(torch.equal, found, alone))


# ---- size of the cache


def test_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(packed_weight_cache, "MAX_CACHE_BYTES", 1 << 20)
    weights = [torch.randn(16, 16, 3, 3) for _ in range(40)]
    x = torch.randn(2, 16, 5, 5)
    for weight, run in zip(weights, itertools.cycle(WAYS.values())):
        run(x, weight)
        weight.neg_()
        check(run(x, weight), x, weight)
    held = sum(t.nbytes for entry in packed_weight_cache._cache.entries.values() for t in entry)
    assert held == packed_weight_cache._cache.bytes <= 1 << 20


def test_cache_keeps_the_most_recent_entry(monkeypatch):
    """If three entries exceed the limit, the least recently used one is evicted."""
    x, weights = torch.randn(2, 16, 5, 5), [torch.randn(16, 16, 3, 3) for _ in range(3)]
    with packed_weight_cache.private_cache() as entries:
        for weight in weights:
            WAYS["library"](x, weight)
        first, second, third = entries
        monkeypatch.setattr(packed_weight_cache._cache, "bytes", packed_weight_cache.MAX_CACHE_BYTES)
        WAYS["library"](x, weights[0])
        WAYS["library"](x, torch.randn(16, 16, 3, 3))
        assert second not in entries and {first, third} < set(entries)


def test_cache_evicts_among_the_oldest_entries(monkeypatch):
    seen = []

    class Watched(packed_weight_cache.OrderedDict):
        def items(self):
            for item in super().items():
                seen.append(item[0])
                yield item

    def bytes_of(n):
        return torch.empty(n, dtype=torch.uint8), torch.empty(n)

    with packed_weight_cache.private_cache():
        entries = Watched({n: bytes_of(n) for n in range(1, 1000)})
        monkeypatch.setattr(packed_weight_cache._cache, "entries", entries)
        monkeypatch.setattr(packed_weight_cache._cache, "bytes", packed_weight_cache.MAX_CACHE_BYTES)
        assert winograd._allocate_entry(3, 3)[0] is not None and 3 not in entries and seen == [1, 2, 3]
        assert packed_weight_cache._cache.bytes == packed_weight_cache.MAX_CACHE_BYTES - 15
        seen.clear()
        assert (
            winograd._allocate_entry(999, 999)[1].numel() == 999
            and len(seen) <= packed_weight_cache.MAX_EVICTION_CANDIDATES
            and 999 in entries
        )


# ---- the library's


@pytest.fixture
def prepared_weights(monkeypatch):
    """Yield the list of weights whose filters oneDNN prepares during the test."""
    weights, prepared = [], onednn.prepare_filters
    monkeypatch.setattr(
        onednn, "prepare_filters", lambda weight, *args: weights.append(weight) or prepared(weight, *args)
    )
    with packed_weight_cache.private_cache():
        yield weights


CONVOLUTIONS = {
    "3 x 3": (lambda x, w, b: conv3x3(x, w, b, algorithm="direct"), 3, {"padding": 1}, 1),
    "replicated": (lambda x, w, b: conv3x3(x, w, b, padding_mode="replicate", algorithm="direct"), 3, None, 1),
    "groups": (lambda x, w, b: conv2d(x, w, b, groups=2), 5, {"padding": 2, "groups": 2}, 2),
    "stride": (lambda x, w, b: convolve(x, w, b, stride=2), 3, {"padding": 1, "stride": 2}, 1),
}


@here
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=in_bfloat16)])
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("kind", ["channels_last", "contiguous", "part"])
@pytest.mark.parametrize(("run", "size", "options", "groups"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_weights_are_packed_once(prepared_weights, run, size, options, groups, dtype, layout, kind):
    """Calls with maps of two sizes prepare the weight once and give the bits of F.conv2d."""
    bias, whole = torch.randn(12), torch.randn(12, 9, size, size)
    weight = whole[:, 1 : 1 + 8 // groups]
    if kind != "part":
        weight = weight.contiguous(memory_format=LAST if kind == "channels_last" else torch.contiguous_format)
    with fastds.use_conv_algorithm("direct"):
        for shape in ((2, 8, 9, 7), (3, 8, 20, 6)):
            x = torch.randn(shape, dtype=dtype).contiguous(memory_format=layout)
            given = F.pad(x, (1, 1, 1, 1), mode="replicate") if options is None else x
            exact = F.conv2d(given.contiguous(memory_format=LAST), weight.to(dtype), bias.to(dtype), **(options or {}))
            for _ in range(2):
                assert torch.equal(run(x, weight, bias), exact)
    assert len(prepared_weights) == 1


@here
@in_bfloat16
def test_one_weight_for_several_convolutions(prepared_weights):
    weight = torch.randn(12, 4, 3, 3)
    for _ in range(2):
        for dtype, groups in ((torch.float32, 1), (torch.bfloat16, 1), (torch.float32, 3)):
            x = torch.randn(2, 4 * groups, 9, 7).to(dtype).contiguous(memory_format=LAST)
            exact = F.conv2d(x, weight.to(dtype), padding=1, groups=groups)
            assert torch.equal(library.conv2d(x, weight, None, groups), exact)
    assert len(prepared_weights) == 3


@here
def test_cache_is_bypassed_for_trained_or_traced_weights(prepared_weights):
    x, weight, bias = torch.randn(2, 8, 9, 7), torch.randn(6, 8, 5, 5), torch.randn(6)
    for trained in (x, weight, bias):
        trained.requires_grad_()
        (grad,) = torch.autograd.grad(library.conv2d(x, weight, bias, 1).sum(), trained)
        assert grad.shape == trained.shape
        trained.requires_grad_(False)
    torch.vmap(lambda x: conv2d(x, weight, bias))(x[None])
    with FlopCounterMode(display=False) as counter:
        library.conv2d(x, weight, bias, 1)
    assert counter.get_total_flops() == 2 * x[:, 0].numel() * weight.numel()
    with torch.no_grad():
        x.requires_grad_(), weight.requires_grad_()
        library.conv2d(x, weight, bias, 1)  # as inside an autograd function
    with torch.backends.mkldnn.flags(enabled=False):
        library.conv2d(x.detach(), weight.detach(), bias, 1)
    library.conv2d(torch.randn(1, 8, 9, 7), weight.detach(), bias, 1)  # one map, which torch convolves without oneDNN
    assert not prepared_weights
    with torch.no_grad():
        library.conv2d(x.detach(), weight, bias, 1)
    assert len(prepared_weights) == 1


@here
def test_conv2d_decision_cache(prepared_weights):
    x, weight = torch.randn(2, 8, 9, 7).contiguous(memory_format=LAST), torch.randn(2, 8, 5, 5)
    with fastds.use_conv_algorithm("direct"):
        expected = conv2d(x, weight)
        assert len(prepared_weights) == 1 and torch.equal(expected, F.conv2d(x, weight, padding=2))
        for source, filters in ((x, torch._neg_view(-weight)), (torch._neg_view(-x), weight)):
            assert torch.equal(conv2d(source, filters), expected)
        with torch.backends.mkldnn.flags(enabled=False):
            torch.testing.assert_close(conv2d(x, weight + 1), F.conv2d(x, weight + 1, padding=2))
        torch.testing.assert_close(torch.vmap(lambda x: conv2d(x, weight))(x[None])[0], expected)
        with FlopCounterMode(display=False):
            assert torch.equal(conv2d(x, weight), expected)
        assert len(prepared_weights) == 1
        with torch.autocast("cpu", torch.bfloat16):
            assert conv2d(x, weight).dtype == torch.bfloat16


@here
def test_cache_is_bypassed_for_large_weights(prepared_weights, monkeypatch):
    x, weight = torch.randn(2, 8, 9, 7), torch.randn(6, 8, 5, 5)
    monkeypatch.setattr(onednn, "MAX_CACHED_BYTES", 2 * weight.nbytes - 1)
    library.conv2d(x, weight, None, 1)
    assert not prepared_weights
    monkeypatch.setattr(onednn, "MAX_CACHED_BYTES", 2 * weight.nbytes)
    library.conv2d(x, weight, None, 1)
    assert len(prepared_weights) == 1


@here
def test_cache_entries_of_inference_mode_are_usable_outside(prepared_weights):
    x, weight = torch.randn(2, 8, 9, 7), torch.randn(6, 8, 5, 5)
    with torch.inference_mode():
        first = library.conv2d(x, weight, None, 1)
    assert torch.equal(library.conv2d(x, weight, None, 1), first) and len(prepared_weights) == 1
    weight += 1
    assert torch.equal(
        library.conv2d(x, weight, None, 1), F.conv2d(x.contiguous(memory_format=LAST), weight, padding=2)
    )
    assert len(prepared_weights) == 2
