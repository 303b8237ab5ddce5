# SPDX-License-Identifier: Apache-2.0
"""Costs of a network: parameters, multiply-adds of a forward pass, and memory of a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

_ADAM_TENSORS = 4  # tensors as large as the parameters: weights, gradients and Adam's two moments
COST_HEADS = "parameters, 1e6", "multiply-adds, 1e9", "memory of a training step, GB", "seconds of a step"


def format_cost(cost: Mapping[str, float], seconds: float | None, digits: int) -> tuple[str, str, str, str]:
    """Format the costs of a network as table cells, with the columns COST_HEADS.

    Args:
        cost: see measure_cost.
        seconds: seconds of a training step; None: not measured.
        digits: decimals of the multiply-adds.
    """
    numbers = f"{cost['parameters'] / 1e6:.2f}", f"{cost['multiply_adds']:.{digits}f}", f"{cost['memory'] / 1e9:.2f}"
    return *numbers, "-" if seconds is None else f"{seconds:.3g}"


def measure_cost(network: nn.Module, inputs: Callable[[int], tuple], batch: int) -> dict[str, float]:
    """Measure the costs of a network on a CPU.

    Args:
        network: network on a CPU.
        inputs: function from a batch size to the arguments of the forward pass, on a CPU.
        batch: samples of a training step.
    Returns:
        parameters: number of parameters. multiply_adds: 1e9 multiply-adds of convolutions and matrix products, for the
            forward pass of one sample. memory: bytes of the tensors saved for the backward pass of a batch, and of
            weights, gradients and Adam's moments.
    """
    from torch.utils.flop_counter import FlopCounterMode

    parameters = sum(p.numel() for p in network.parameters())
    memory = _measure_saved_bytes(network.train(), inputs(batch))
    memory += _ADAM_TENSORS * sum(p.numel() * p.element_size() for p in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*inputs(1))
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() / 2e9, "memory": memory}


def _measure_saved_bytes(network: nn.Module, arguments: tuple) -> int:
    """Return the bytes of the tensors that a forward pass saves for the backward pass, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved: dict[int, tuple[Tensor, int]] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = tensor, storage.nbytes()  # holds the tensor, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        made = network(*arguments)
    size = sum(count for _, count in saved.values())
    del made
    return size
