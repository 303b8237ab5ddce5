# SPDX-License-Identifier: Apache-2.0
"""Combined weight gradients for a weight that several convolutions of a graph share, such as the steps of a sequence.

The backward pass of each convolution passes its gradient and inputs to the autograd node of the shared weight, which
autograd runs after all convolutions. The node computes the weight gradient of several steps at once, because for many
channels and few pixels writing and adding a weight gradient takes longer than the matrix product. The order of the sums
is the same in every backward pass. Derivatives of any order are supported.
"""

import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastds.ops.core.function_plans import call_function
from fastds.ops.core.registry import is_intercepted
from fastds.ops.impl.conv3x3.algorithm import current_algorithm

_BATCH_PIXELS = 4096  # pixels of all steps computed at once; larger batches are not faster


@dataclass
class PendingGradients:
    """Steps of a backward pass whose weight gradient is not yet computed, and the sum of the computed gradients."""

    steps: list[tuple[Tensor, ...]] = field(
        default_factory=list
    )  # (gradient of the result, x) or (gradient of the result, x, x2)
    pixels: int = 0
    total: Tensor | None = None


class _SharedWeight(torch.autograd.Function):
    """Return a weight unchanged, and collect its gradients in the backward pass.

    ctx.pending maps the number of a backward pass to its PendingGradients.
    """

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
    """Return the weight with a node that collects gradients, for use in several convolutions."""
    return _SharedWeight.apply(weight)


def maybe_share_weight(weight: Tensor, maps: Tensor) -> Tensor:
    """Return share_weight(weight) if that is faster for convolutions of tensors like `maps`, otherwise the weight.

    Sharing is faster only in training on a CPU, and if the maps of eight convolutions together have at most 4096
    pixels. All images of a batch are counted.

    Args:
        weight: the weight.
        maps: (B, C, H, W), an input of the convolutions.
    """
    pixels = maps.shape[0] * maps.shape[2] * maps.shape[3]
    trains = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling()
    pays = trains and maps.is_cpu and 0 < 8 * pixels <= _BATCH_PIXELS and not is_intercepted(weight, maps)
    return call_function(share_weight, weight) if pays else weight


def get_shared_node(weight: Tensor):
    """Return the node of a shared weight that can take gradients in the current backward pass, or None."""
    node = weight.grad_fn
    if not isinstance(node, _SharedWeight._backward_cls):
        return None
    compiled = sys.modules.get("torch._dynamo.compiled_autograd")
    # In compiled autograd each node has to return the gradients that it declared.
    return None if getattr(compiled, "in_compiled_autograd_region", False) else node


def defer_to_shared_node(weight: Tensor, grad: Tensor, x: Tensor, x2: Tensor | None = None) -> bool:
    """Pass the gradient and inputs of y = conv3x3([x; x2], weight) to the autograd node of a shared weight.

    Nothing is stored if the backward pass does not need the gradient of the weight.

    Args:
        weight: the weight.
        grad: gradient of y.
        x: first source.
        x2: second source or None.

    Returns:
        bool, False if the weight has no such node or if autograd is compiled. The caller must then compute the
            gradient of the weight.
    """
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
    """Compute the weight gradient of the pending steps and add it to the sum."""
    if not pending.steps:
        return
    grad, x, *x2 = (torch.cat(maps) for maps in zip(*pending.steps, strict=True))
    settings = ("zeros", node.dtype, node.algorithm)
    found = torch.ops.fastds.conv3x3_grad_weight(grad, x, x2[0] if x2 else None, *settings)
    pending.steps, pending.pixels, pending.total = [], 0, _add_optional(pending.total, found)


def _add_optional(total: Tensor | None, addend: Tensor | None) -> Tensor | None:
    return addend if total is None else total if addend is None else total + addend
