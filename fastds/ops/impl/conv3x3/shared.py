# SPDX-License-Identifier: Apache-2.0
"""A weight that the steps of a sequence share: its gradient is calculated for several steps at once.

The gradient of a weight of 1024 x 2048 channels is 75 MB. On 8 x 8 pixels writing it, and adding it to that of the step
before, takes longer than what there is to multiply.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastds.ops.core.registry import observed
from fastds.ops.impl.conv3x3 import kernels
from fastds.ops.impl.conv3x3.direct import bias_gradient

_PIXELS = 4096  # of all maps whose gradients are calculated at once; more of them are no cheaper


@dataclass
class Pending:
    """What the convolutions of one backward pass have left to do, and the sums of what is done."""

    steps: list[tuple[Tensor, ...]] = field(default_factory=list)  # (gradient of the result, x, x2 where there is one)
    pixels: int = 0
    weight: Tensor | None = None
    bias: Tensor | None = None


class _Shared(torch.autograd.Function):
    """weight and bias as they are; `pending` of the node is what each backward pass, by its number, has left to do."""

    @staticmethod
    def forward(ctx, weight, bias, algorithm):
        ctx.set_materialize_grads(False)
        ctx.pending, ctx.algorithm, ctx.dtype = {}, algorithm, weight.dtype
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    def backward(ctx, of_weight, of_bias):
        pending = ctx.pending.pop(torch._C._current_graph_task_id(), None)
        if pending is not None:
            _settle(ctx, pending)
            of_weight, of_bias = _sum(of_weight, pending.weight), _sum(of_bias, pending.bias)
        return of_weight, of_bias if ctx.needs_input_grad[1] else None, None


def share(weight: Tensor, bias: Tensor | None, maps: Tensor, algorithm: str) -> tuple[Tensor, Tensor | None]:
    """weight and bias for several convolutions of maps like `maps` (B, C, H, W), of which some have their gradients
    calculated at once, where that pays: measured on a CPU."""
    pixels = maps.shape[0] * maps.shape[2] * maps.shape[3]
    trains = torch.is_grad_enabled() and weight.requires_grad
    if not trains or not maps.is_cpu or not 0 < 8 * pixels <= _PIXELS or observed(weight, maps):
        return weight, bias
    return _Shared.apply(weight, bias, algorithm)


def node_of(weight: Tensor):
    """The node of a weight that `share` gave, or None; to be kept by the node of a convolution with that weight."""
    node = weight.grad_fn
    return node if isinstance(node, _Shared._backward_cls) else None


def defer(node, grad: Tensor, x: Tensor, x2: Tensor | None) -> None:
    """Leaves the gradients of weight and bias to the node of the weight; grad: of conv3x3([x; x2], weight) + bias.

    To be called in a backward pass. Nothing is done if that pass does not reach the weight.
    """
    if not torch._C._will_engine_execute_node(node):
        return
    pending = node.pending.setdefault(torch._C._current_graph_task_id(), Pending())
    pending.steps.append((grad, x) if x2 is None else (grad, x, x2))
    pending.pixels += grad.shape[0] * grad.shape[2] * grad.shape[3]
    if pending.pixels >= _PIXELS:
        _settle(node, pending)


def _settle(node, pending: Pending) -> None:
    """Calculates what is left to do."""
    if not pending.steps:
        return
    grad, x, *x2 = (torch.cat(maps) for maps in zip(*pending.steps, strict=True))
    of_weight = kernels.grad_weight(grad, x, x2[0] if x2 else None, "zeros", node.dtype, node.algorithm)
    pending.weight = _sum(pending.weight, of_weight)
    if node.needs_input_grad[1]:
        pending.bias = _sum(pending.bias, bias_gradient(grad, node.dtype))
    pending.steps, pending.pixels = [], 0


def _sum(total: Tensor | None, addend: Tensor | None) -> Tensor | None:
    return addend if total is None else total if addend is None else total.add_(addend)
