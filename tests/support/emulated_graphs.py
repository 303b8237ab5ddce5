# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs emulated on the CPU: a replay runs the captured function again and overwrites its first output."""

import torch
from torch.utils._pytree import tree_leaves

from fastds.models import graph, graph_cache
from fastds.models.graph_cache import CaptureRule


class EmulatedForwardGraph(graph.ForwardGraph):
    """CUDA graph of a forward whose launches are counted."""

    launches = 0

    def capture(self):
        return self, self.forward()

    def replay(self):
        type(self).launches += 1
        for held, new in zip(tree_leaves(self.output), tree_leaves(self.forward()), strict=True):
            if isinstance(held, torch.Tensor):
                held.copy_(new)


class EmulatedGradientGraph(graph.GradientGraph):
    """CUDA graphs of a forward and a backward whose launches are counted."""

    launches = 0

    def capture(self, module, examples):
        def run(*tensors):
            type(self).launches += 1
            return module(*tensors)

        return run


def install(monkeypatch):
    """Capture an emulated CUDA graph in the second call of each shape on the CPU, with and without gradients."""

    def capture(model, arguments, dtype, function, train=False):
        return (EmulatedGradientGraph if train else EmulatedForwardGraph)(model, arguments, dtype, function)

    EmulatedForwardGraph.launches = EmulatedGradientGraph.launches = 0
    monkeypatch.setattr(graph, "capture", capture)
    monkeypatch.setattr(graph_cache, "RULES", {"cpu": CaptureRule(2, None)})
    monkeypatch.setattr(graph_cache, "TRAIN_DEVICES", ("cpu",))
