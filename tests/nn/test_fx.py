# SPDX-License-Identifier: Apache-2.0
"""Tests that torch.fx records each layer and op as one node and that the recorded graph is correct."""

import pytest
import torch
from torch import nn

from fastds import nn as layers
from fastds import ops
from fastds.nn.convolutions import MultiInputConv3x3, PaddedConv3x3, convolve


def maps(channels=8, size=12, seed=0):
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(seed))


class Called(nn.Module):
    """A network of one layer, with the options of its call."""

    def __init__(self, layer, **options):
        super().__init__()
        self.layer, self.options = layer, options

    def forward(self, *inputs):
        return self.layer(*inputs, **self.options)


def two(layer, **options):
    class OfTwo(Called):
        def forward(self, a, b):
            return self.layer(a, b, **self.options)

    return OfTwo(layer, **options)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = layers.ConvLSTMCell(8, 8)

    def forward(self, x):
        h, c = self.cell(x)
        return self.cell(x, (h, c))[0]


LAYERS = {
    "Conv3x3": (lambda: nn.Sequential(layers.Conv3x3(8, 8)), (8,), 1),
    "strided": (lambda: nn.Sequential(layers.Conv3x3(8, 8, stride=2)), (8,), 1),
    "Conv1x1": (lambda: nn.Sequential(layers.Conv1x1(8, 4), nn.ReLU()), (8,), 2),
    "Conv2d": (lambda: nn.Sequential(layers.Conv2d(8, 8, 5, padding=2, groups=2)), (8,), 1),
    "ResidualBlock": (lambda: nn.Sequential(layers.ResidualBlock(8)), (8,), 2),
    "PixelShuffleUpsample": (lambda: nn.Sequential(layers.PixelShuffleUpsample(8, 1, upscale_factor=4)), (8,), 2),
    "PaddedConv3x3": (lambda: nn.Sequential(PaddedConv3x3(8, 8, padding_mode="circular_x")), (8,), 1),
    "MultiInputConv3x3": (lambda: two(MultiInputConv3x3((8, 8), 4)), (8, 8), 1),
    "DeformConv2d": (lambda: two(layers.DeformConv2d(8, 8, 3, padding=1)), (8, 18), 1),
    "GuidedDeformConv2d": (
        lambda: two(layers.GuidedDeformConv2d(8, 8, offset_groups=2), activation="leaky_relu"),
        (8, 8),
        1,
    ),
    "ConvLSTMCell": (Cell, (8,), 2),
    "ConvGRUCell": (lambda: two(layers.ConvGRUCell(8, 8)), (8, 8), 1),
    "LocalEnsembleDecoder": (lambda: two_sizes(layers.LocalEnsembleDecoder(8, 1)), (8,), 1),
    "LocalAttentionDecoder": (lambda: two_sizes(layers.LocalAttentionDecoder(8, 1)), (8,), 1),
}


def two_sizes(layer):
    class Finer(Called):
        def forward(self, x):
            return self.layer(x, (17, 23))

    return Finer(layer)


@pytest.mark.parametrize("name", LAYERS)
def test_fx_layer_is_one_node(name):
    make, channels, count = LAYERS[name]
    torch.manual_seed(0)
    network, inputs = make().eval(), [maps(c, seed=k) for k, c in enumerate(channels)]
    graph = torch.fx.symbolic_trace(network)
    assert [node.op for node in graph.graph.nodes].count("call_module") == count, graph.graph
    with torch.no_grad():
        torch.testing.assert_close(graph(*inputs), network(*inputs), rtol=0, atol=0)
    graph(*inputs).square().mean().backward()
    assert all(p.grad is not None for p in graph.parameters())


def test_fx_covers_every_layer():
    assert set(layers.__all__) <= set(LAYERS)


def test_a_layer_that_is_itself_recorded_shows_its_op():
    graph = torch.fx.symbolic_trace(layers.Conv3x3(8, 8))
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [convolve]
    torch.testing.assert_close(graph(maps()), graph.forward(maps(), None, None, None, 0.1, 1))


def gates(count):
    return maps(8 * count), maps(8)


CALLS = {
    "conv1x1": (lambda x: ops.conv1x1(x, torch.ones(4, 8, 1, 1), activation="relu"), (maps(),)),
    "conv2d": (lambda x: ops.conv2d(x, torch.ones(8, 4, 5, 5), groups=2), (maps(),)),
    "conv3x3": (
        lambda x, y: ops.conv3x3(x, torch.ones(4, 16, 3, 3), second_input=y, upscale_factor=2),
        (maps(), maps()),
    ),
    "conv_lstm_cell": (lambda x, h: ops.conv_lstm_cell(x, h, h, torch.ones(32, 16, 3, 3))[0], (maps(), maps())),
    "conv_gru_cell": (
        lambda x, h: ops.conv_gru_cell(x, h, torch.ones(16, 16, 3, 3), None, torch.ones(8, 16, 3, 3), None),
        (maps(), maps()),
    ),
    "conv_st_lstm_gates": (lambda x, h: ops.conv_st_lstm_gates(x, h, h, torch.ones(32, 16, 3, 3))[1], (maps(), maps())),
    "conv_memory_gates": (lambda x, h: ops.conv_memory_gates(x, h, h, torch.ones(24, 16, 3, 3)), (maps(), maps())),
    "conv_output_gate": (lambda x, h: ops.conv_output_gate(x, h, h, torch.ones(8, 16, 3, 3)), (maps(), maps())),
    "deform_conv2d": (lambda x, o: ops.deform_conv2d(x, o, torch.ones(8, 8, 3, 3), padding=1), (maps(), maps(18))),
    "lstm_gates": (lambda pre, c: ops.lstm_gates(pre, c)[0], gates(4)),
    "st_lstm_gates": (lambda pre, c: ops.st_lstm_gates(pre, c)[0], gates(4)),
    "memory_gates": (lambda pre, c: ops.memory_gates(pre, c), gates(3)),
    "output_gate": (lambda pre, c: ops.output_gate(pre, c), gates(1)),
    "gru_reset": (lambda z, h: ops.gru_reset(z, z, h)[1], gates(1)),
    "gru_update": (lambda z, h: ops.gru_update(z, z, h), gates(1)),
    "traj_gru_gates": (lambda x, h: ops.traj_gru_gates(x, x, h), gates(3)),
    "inr_query": (
        lambda x: ops.inr_query(x, ops.GridSpec.cells((12, 12), (20, 20)), feature="affine", ensemble="late"), (maps(),)
    ),
    "null_op": (lambda x, y: ops.null_op(x, y, scale=0.5), (maps(), maps())),
    "pixel_shuffle": (lambda x: ops.pixel_shuffle(x, 2), (maps(),)),
    "pixel_unshuffle": (lambda x: ops.pixel_unshuffle(x, 2), (maps(),)),
    "window_attention2d": (lambda q, k: ops.window_attention2d(q, k, k, window=5), (maps(), maps())),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_fx_op_is_one_node(name):
    function, inputs = CALLS[name]

    class Network(nn.Module):
        """A network that calls the op in a method with named arguments, which torch.fx needs."""

        if len(inputs) == 1:

            def forward(self, a):
                return function(a)
        else:

            def forward(self, a, b):
                return function(a, b)

    graph = torch.fx.symbolic_trace(Network())
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert called.count(getattr(ops, name)) == 1
    torch.testing.assert_close(graph(*inputs), function(*inputs), rtol=0, atol=0)


def test_fx_covers_every_op():
    assert {name for name in ops.__all__ if name not in ("GridSpec", "PointSpec")} == set(CALLS)
