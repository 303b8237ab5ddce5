# SPDX-License-Identifier: Apache-2.0
"""Whether the backward passes of conv3x3 calculate gradients of weights."""

from contextlib import contextmanager

_wanted = True


def weight_gradients_wanted() -> bool:
    """False inside input_gradients_only."""
    return _wanted


@contextmanager
def input_gradients_only():
    """No gradients of weights and biases from the backward passes of conv3x3 inside the block.

    For torch.autograd.grad(..., inputs) with inputs before the convolutions: autograd does not tell a convolution that
    its weight's gradient will be thrown away. Graphs made in the block keep their derivatives in the weights.
    """
    global _wanted
    before, _wanted = _wanted, False
    try:
        yield
    finally:
        _wanted = before
