# SPDX-License-Identifier: Apache-2.0
"""A weight that several convolutions of a graph share, the steps of a sequence: one gradient for several of them.

Their backward passes leave what that gradient is made of to the node through which all got the weight, which autograd
runs last. The gradient of a weight of 1024 x 2048 channels is 75 MB: on 8 x 8 pixels writing it, and adding it to that
of the step before, takes longer than what there is to multiply. In every backward pass the sums are the same, so
derivatives of any order are exact.
"""

import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastds.ops.core.registry import is_intercepted
from fastds.ops.impl.conv3x3.algorithm import current_algorithm

_BATCH_PIXELS = 4096  # of all maps whose gradients are calculated at once; more of them are no cheaper


@dataclass
class PendingGradients:
    """What the convolutions of one backward pass have left to do, and the sum of what is done."""

    steps: list[tuple[Tensor, ...]] = field(default_factory=list)  # (gradient of the result, x, x2 where there is one)
    pixels: int = 0
    total: Tensor | None = None


class _SharedWeight(torch.autograd.Function):
    """The weight as it is; `pending` of the node is what each backward pass, by its number, has left to do."""

    @staticmethod
    def forward(ctx, weight):
        ctx.set_materialize_grads(False)
        ctx.pending, ctx.algorithm, ctx.dtype = {}, current_algorithm(), weight.dtype
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):
        pending = ctx.pending.pop(torch._C._current_graph_task_id(), None)
        if pending is None:
            return grad
        _flush_pending(ctx, pending)
        return _add_optional(grad, pending.total)


def share_weight(weight: Tensor) -> Tensor:
    """The weight, for several convolutions."""
    return _SharedWeight.apply(weight)


def maybe_share_weight(weight: Tensor, maps: Tensor) -> Tensor:
    """The same where it takes less time, measured on a CPU, for convolutions of maps like `maps` (B, C, H, W)."""
    pixels = maps.shape[0] * maps.shape[2] * maps.shape[3]
    trains = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling()
    pays = trains and maps.is_cpu and 0 < 8 * pixels <= _BATCH_PIXELS and not is_intercepted(weight, maps)
    return share_weight(weight) if pays else weight


def get_shared_node(weight: Tensor):
    """In a backward pass the node of a weight that is shared, to which its gradient can be left, or None."""
    node = weight.grad_fn
    if not isinstance(node, _SharedWeight._backward_cls):
        return None
    compiled = sys.modules.get("torch._dynamo.compiled_autograd")
    # Where backward passes are compiled every node has to give what it promised.
    return None if getattr(compiled, "in_compiled_autograd_region", False) else node


def defer_to_shared_node(weight: Tensor, grad: Tensor, x: Tensor, x2: Tensor | None = None) -> bool:
    """Leaves to the node of a shared weight its gradient from y = conv3x3([x; x2], weight), of which grad is the
    gradient; False where there is no such node. Nothing is kept if the backward pass does not reach the weight."""
    node = get_shared_node(weight)
    if node is None or not torch._C._will_engine_execute_node(node):
        return node is not None
    pending = node.pending.setdefault(torch._C._current_graph_task_id(), PendingGradients())
    pending.steps.append((grad, x) if x2 is None else (grad, x, x2))
    pending.pixels += grad.shape[0] * grad.shape[2] * grad.shape[3]
    if pending.pixels >= _BATCH_PIXELS:
        _flush_pending(node, pending)
    return True


def _flush_pending(node, pending: PendingGradients) -> None:
    """Calculates what is left to do."""
    if not pending.steps:
        return
    grad, x, *x2 = (torch.cat(maps) for maps in zip(*pending.steps, strict=True))
    settings = ("zeros", node.dtype, node.algorithm)
    found = torch.ops.fastds.conv3x3_grad_weight(grad, x, x2[0] if x2 else None, *settings)
    pending.steps, pending.pixels, pending.total = [], 0, _add_optional(pending.total, found)


def _add_optional(total: Tensor | None, addend: Tensor | None) -> Tensor | None:
    return addend if total is None else total if addend is None else total + addend
