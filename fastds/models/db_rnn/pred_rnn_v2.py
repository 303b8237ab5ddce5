# SPDX-License-Identifier: Apache-2.0
"""PredRNN-V2 in the frame of MS-RNN: PredRNN whose two memories are trained to take up different things."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.db_rnn.cell import zeros
from fastds.models.db_rnn.pred_rnn import PredRNN
from fastds.nn.convolutions import Conv1x1, convolve
from fastds.ops.core.settings import ProcessSetting
from fastds.ops.impl.conv_cells.fused import slice_first_source
from fastds.ops.impl.gates.op import memory_gates, output_gate, st_lstm_gates

_collectors: ContextVar[tuple[list[Tensor], ...]] = ContextVar("memory similarities", default=())
_last_of_process = ProcessSetting(None)  # for compiled functions: Dynamo reads no context variable


@contextmanager
def memory_similarities() -> Iterator[list[Tensor]]:
    """Gives a list to which every PredRNN-V2 cell that is called inside the block adds the |cosine| (B, C), channel by
    channel, between what it adds to its two memories; see decoupling_loss. Outside a block no cell computes it.

    Each thread, and each asynchronous task, has blocks of its own; of several open ones the last entered collects.
    """
    similarities: list[Tensor] = []
    _collectors.set((*_collectors.get(), similarities))
    try:
        with _last_of_process.set(similarities):
            yield similarities
    finally:
        _collectors.set(tuple(other for other in _collectors.get() if other is not similarities))


def _collector() -> list[Tensor] | None:
    if torch.compiler.is_compiling():
        return _last_of_process.value
    return next(reversed(_collectors.get()), None)


def decoupling_loss(similarities: list[Tensor], steps: int) -> Tensor | float:
    """Mean over samples and time steps of the sum over cells and channels of |cosine|; 0.0 of an empty list.

    Args:
        similarities: of all cells and time steps, see memory_similarities.
        steps: number of time steps, m + n - 1.

    Source: Wang et al. 2023, PredRNN: A Recurrent Neural Network for Spatiotemporal Predictive Learning, memory
    decoupling.
    """
    return sum(cosine.sum(1).mean() for cosine in similarities) / steps if similarities else 0.0


class PredRNNV2(PredRNN):
    """PredRNN's cell, with its equations, and a measure of how alike the increments of its memories are.

        d = s(i) tanh(g), d' = s(i') tanh(g');  |cos| = |<A d, A d'>| / (|A d| |A d'|), per channel, over the pixels

    A is a 1x1 convolution that all cells of a module share. While the measure is taken pre-activations are kept for
    the backward, whatever `recompute` says.

    Source: Wang et al. 2023, PredRNN: A Recurrent Neural Network for Spatiotemporal Predictive Learning, memory
    decoupling.
    """

    @classmethod
    def shared(cls, channels):
        return Conv1x1(channels, channels)

    def forward(self, x, state, m, previous, folded=None, shared=None):
        similarities = _collector()
        if similarities is None:
            return super().forward(x, state, m, previous, folded)
        h, c = (None, zeros(x, self.channels, memory=True)) if state is None else state
        weight, memory_weight = (self.gates.weight, self.spatial.memory.weight) if folded is None else folded

        pre = _convolve(x, h, weight, self.gates.sum_biases())
        i, _, g, _ = pre.chunk(4, 1)
        c, q = st_lstm_gates(pre, c)
        added = shared(output_gate(i, g))

        pre = _convolve(x, m, memory_weight, self.spatial.memory.sum_biases())
        i, _, g = pre.chunk(3, 1)
        m = memory_gates(pre, zeros(x, self.channels, memory=True) if m is None else m)
        similarities.append(F.cosine_similarity(added.flatten(2), shared(output_gate(i, g)).flatten(2), dim=2).abs())

        h = self.spatial.emit(q, c, m)
        return h, (h, c), m


def _convolve(x: Tensor, x2: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution of [x; x2], x2 None for zeros."""
    weight = slice_first_source(weight, x) if x2 is None else weight
    return convolve(x, weight, bias, x2=x2 if x2 is None else x2.to(x.dtype))
