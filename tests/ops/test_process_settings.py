# SPDX-License-Identifier: Apache-2.0
"""Tests of context managers for settings that overlap in threads or generators."""

import threading

import pytest
import torch

import fastds
from fastds.models.db_rnn.cells import PredRNNV2, memory_similarities
from fastds.ops.core.backends import forced_backend
from fastds.ops.core.settings import ProcessSetting
from fastds.ops.impl.conv3x3.algorithm import current_algorithm
from fastds.ops.impl.conv_rnn.fused import is_recomputing_gates, recompute_gates

SECONDS = 30

SWITCHES = {  # block, what it asks for, what is in force, outside any block
    "backend": (lambda: fastds.use_backend("reference"), "reference", forced_backend, None),
    "convolution": (lambda: fastds.use_conv_algorithm("direct"), "direct", current_algorithm, "auto"),
    "recomputed_gates": (recompute_gates, True, is_recomputing_gates, False),
}
every_switch = pytest.mark.parametrize("name", SWITCHES)


def opened(block):
    """Generator that holds the block between its two values."""
    with block():
        yield "entered"
        yield "inside"


def overlapping_threads(block, value):
    """Return the setting after each step of two threads with overlapping blocks.

    The steps are: A enters, B enters, A leaves, B leaves.

    Args:
        block: function that returns the context manager.
        value: function that returns the setting in force.
    """
    seen, entered, leave, left = [], *([threading.Event(), threading.Event()] for _ in range(3))

    def run(k):
        with block():
            entered[k].set()
            assert leave[k].wait(SECONDS)
        left[k].set()

    threads = [threading.Thread(target=run, args=(k,)) for k in (0, 1)]
    for k, thread in enumerate(threads):
        thread.start()
        assert entered[k].wait(SECONDS)
        seen.append(value())
    for k in (0, 1):
        leave[k].set()
        assert left[k].wait(SECONDS)
        seen.append(value())
    for thread in threads:
        thread.join()
    return seen


@every_switch
def test_settings_in_two_threads(name):
    block, inner, value, default = SWITCHES[name]
    assert overlapping_threads(block, value) == [inner, inner, inner, default]


@every_switch
def test_settings_in_two_generators(name):
    block, inner, value, default = SWITCHES[name]
    first, second = opened(block), opened(block)
    next(first), next(second)
    first.close()
    assert value() == inner
    second.close()
    assert value() == default


@every_switch
def test_nested_settings_and_errors(name):
    block, inner, value, default = SWITCHES[name]
    with block():
        with pytest.raises(KeyError), block():
            raise KeyError
        assert value() == inner
    assert value() == default


def test_last_entered_setting_is_active():
    switch = ProcessSetting(0)
    blocks = [opened(lambda n=n: switch.set(n)) for n in (1, 2, 3)]
    for block in blocks:
        next(block)
    for leaving, left in ((1, 3), (2, 1), (0, 0)):
        blocks[leaving].close()
        assert switch.value == left


def test_setting_is_visible_in_other_threads():
    """Autograd may run the backward pass in another thread."""
    seen = []
    with recompute_gates():
        thread = threading.Thread(target=lambda: seen.append(is_recomputing_gates()))
        thread.start()
        thread.join()
    assert seen == [True]


@pytest.fixture
def cell():
    return PredRNNV2(4, 1, 6), PredRNNV2.shared(4), torch.rand(1, 4, 5, 6)


def step(cell):
    module, shared, x = cell
    with torch.no_grad():
        module(x, None, None, None, shared=shared)


def test_similarities_in_two_generators(cell):
    first, second = memory_similarities(), memory_similarities()
    mine, other = first.__enter__(), second.__enter__()
    step(cell)
    assert (len(mine), len(other)) == (0, 1)
    first.__exit__(None, None, None)
    step(cell)
    assert (len(mine), len(other)) == (0, 2)
    second.__exit__(None, None, None)
    step(cell)
    assert (len(mine), len(other)) == (0, 2)


def test_similarities_of_two_threads_are_independent(cell):
    counts, barrier = {}, threading.Barrier(2, timeout=SECONDS)

    def run(name, steps):
        with memory_similarities() as similarities:
            barrier.wait()
            for _ in range(steps):
                step(cell)
            barrier.wait()
        step(cell)
        counts[name] = len(similarities)

    threads = [threading.Thread(target=run, args=item) for item in (("a", 1), ("b", 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {"a": 1, "b": 3}


def test_similarities_distinguish_equal_lists():
    """Two lists without a term are equal, and not the same."""
    first, second = memory_similarities(), memory_similarities()
    first.__enter__()
    found = second.__enter__()
    first.__exit__(None, None, None)
    with memory_similarities():
        pass
    assert found == []
    second.__exit__(None, None, None)


@pytest.mark.parametrize("name", ["convolution", "recomputed_gates"])
def test_settings_inside_a_compiled_function(name):
    """Networks enter such blocks in their forward pass."""
    block, inner, value, default = SWITCHES[name]

    def function(x):
        with block():
            inside = value() == inner
        return x + 1 if inside and value() == default else x

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))
    assert value() == default


def test_similarities_of_a_compiled_cell(cell):
    module, shared, x = cell
    arguments = (x, (x, x), x, None)  # no zeros to make: Dynamo follows no torch.empty that a test has replaced
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = module(*arguments, shared=shared)[0]
        assert torch.equal(compiled(*arguments, shared=shared)[0], expected)
        with memory_similarities() as similarities:
            compiled(*arguments, shared=shared)
    assert len(similarities) == 1
