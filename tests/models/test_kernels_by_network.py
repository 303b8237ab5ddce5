# SPDX-License-Identifier: Apache-2.0
"""Tests of bench/results/kernels_by_network.md, which `python -m bench.kernels_by_network` writes."""

import sys
from pathlib import Path

import pytest
import torch

import fastds.nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
try:
    from bench import kernels_by_network
finally:
    sys.path.remove(str(ROOT))


def rows(text):
    """Return the rows of the table by network."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines[1:]}


TABLE = kernels_by_network.OUT.read_text()


def test_the_table_has_every_network():
    assert list(rows(TABLE)) == list(kernels_by_network.NETWORKS)
    assert TABLE.startswith(kernels_by_network.TEXT)


@pytest.mark.parametrize("name", kernels_by_network.NETWORKS)
def test_a_network_calls_the_ops_of_the_table(name):
    torch.manual_seed(0)
    calls = {name: kernels_by_network.count_calls(kernels_by_network.NETWORKS[name]())}
    assert rows(kernels_by_network.format_page(calls))[name] == rows(TABLE)[name]


def test_table_detects_an_unused_op():
    layers = {"Conv2d": torch.nn.Conv2d(1, 4, 3, padding=1), "Conv3x3": fastds.nn.Conv3x3(1, 4)}
    calls = {
        name: kernels_by_network.count_calls(kernels_by_network.make_single_input(n, 1, 1, 8, 8))
        for name, n in layers.items()
    }
    assert calls == {
        "Conv2d": ({"torch": 1}, {"torch": 1}),
        "Conv3x3": ({"conv3x3": 1}, {"conv3x3_backward": 1}),
    }
