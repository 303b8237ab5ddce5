# SPDX-License-Identifier: Apache-2.0
"""What a network costs: its parameters, multiply-adds of a forward and memory of a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

_OF_ADAM = 4  # tensors as large as the parameters: weights, gradients and Adam's two moments
COST_HEADS = "parameters, 1e6", "multiply-adds, 1e9", "memory of a training step, GB", "seconds of a step"


def format_cost(cost: Mapping[str, float], seconds: float | None, digits: int) -> tuple[str, str, str, str]:
    """Format what a network costs as cells of a table below COST_HEADS.

    Args:
        cost: see cost_of.
        seconds: of a training step; None: not measured.
        digits: of the multiply-adds.
    """
    numbers = f"{cost['parameters'] / 1e6:.2f}", f"{cost['multiply_adds']:.{digits}f}", f"{cost['memory'] / 1e9:.2f}"
    return *numbers, "-" if seconds is None else f"{seconds:.3g}"


def measure_cost(network: nn.Module, inputs: Callable[[int], tuple], batch: int) -> dict[str, float]:
    """The costs of a network on a CPU.

    Args:
        network: on a CPU.
        inputs: batch -> the arguments of its forward, with tensors on a CPU.
        batch: samples of a training step.

    Returns: parameters; multiply_adds of the forward of one sample, 1e9, of convolutions and products; memory in bytes:
        what a forward of a batch keeps for the gradients, and weights, gradients and Adam's moments.
    """
    from torch.utils.flop_counter import FlopCounterMode

    parameters = sum(p.numel() for p in network.parameters())
    memory = _measure_saved_bytes(network.train(), inputs(batch))
    memory += _OF_ADAM * sum(p.numel() * p.element_size() for p in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*inputs(1))
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() / 2e9, "memory": memory}


def _measure_saved_bytes(network: nn.Module, arguments: tuple) -> int:
    """Bytes of the tensors that a forward keeps for the backward, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor, storage.nbytes()  # the tensor, so that no other gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = network(*arguments)
    size = sum(count for _, count in kept.values())
    del made
    return size
