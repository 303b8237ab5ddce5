# SPDX-License-Identifier: Apache-2.0
"""How 3x3 convolutions are computed: by the Winograd engine, directly by the library, or by what measures faster."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import check_choice
from fastds.ops.core.switches import Switch

ALGORITHMS = ("auto", "winograd", "direct")
_algorithm = Switch("auto")
_weight_gradients = Switch(True)


def current() -> str:
    """The algorithm of the calls that name none."""
    return _algorithm.value


@contextmanager
def convolution(algorithm: str) -> Iterator[None]:
    """Chooses how every fastds.ops.conv3x3 inside the block is computed, in all threads of the process.

    Graphs compiled or exported before keep what they were traced with. Of overlapping blocks the one entered last
    counts.

    Args:
        algorithm: "auto", what measures faster for each shape; "winograd", the engine of fastds for every tensor on a
            CPU; "direct", torch's own convolution, whose numbers parity checks want.

    Raises:
        ValueError: another name.
    """
    check_choice("algorithm", algorithm, ALGORITHMS)
    with _algorithm.set(algorithm):
        yield


def weight_gradients_wanted() -> bool:
    """False inside input_gradients_only."""
    return _weight_gradients.value


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """No gradients of weights and biases from the backward passes of conv3x3 inside the block, in all threads.

    For torch.autograd.grad(..., inputs) with inputs before the convolutions: autograd does not tell a convolution that
    its weight's gradient will be thrown away. Graphs made in the block keep their derivatives in the weights.
    """
    with _weight_gradients.set(False):
        yield


def winograd_refusal(x: Tensor) -> str | None:
    """Why the engine cannot take tensors like x, or None."""
    if x.device.type != "cpu":
        return f"the engine runs on the CPU, x is on {x.device}"
    if x.dtype == torch.float64:
        return "the engine calculates in float32"
    if native.missing() is None and not native.module().conv3x3_available():
        return "this build has no engine for the instruction set baseline"
    return native.missing()


def winograd_pays(x: Tensor, channels: int, outputs: int, out_dtype: torch.dtype, backward: bool) -> bool:
    """The measured rule of "auto", on two AVX-512 cores against oneDNN.

    A field of few tiles does not pay for reading 36 matrices of channels x outputs. Beyond that the engine wins from 8
    input channels in float32 and from 16 on both sides in the 16-bit types, whose library kernels have twice the rate;
    in the backward pass everywhere in float32 and from 8 on both sides in the 16-bit types.
    """
    if native.module().isa() == "baseline":
        return False
    batch, _, height, width = x.shape
    tiles = batch * -(-height // 4) * -(-width // 4)
    if 8192 * tiles < channels * outputs:
        return False
    if torch.float32 in (x.dtype, out_dtype):
        return backward or channels >= 8
    return min(channels, outputs) >= (8 if backward else 16)


def use_winograd(
    algorithm: str, x: Tensor, channels: int, outputs: int, out_dtype: torch.dtype, backward: bool
) -> bool:
    """Whether the engine computes a convolution of tensors like x.

    Raises:
        RuntimeError: "winograd" is asked for, but cannot run.
    """
    if algorithm == "direct":
        return False
    reason = winograd_refusal(x)
    if algorithm == "winograd":
        if reason is not None:
            raise RuntimeError(f"conv3x3: algorithm 'winograd' was asked for, but {reason}")
        return True
    return reason is None and winograd_pays(x, channels, outputs, out_dtype, backward)
