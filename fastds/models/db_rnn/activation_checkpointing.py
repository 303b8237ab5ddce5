# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing: the backward recomputes cheap feature maps, so that they need not be saved."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core.buffer_pool import make_out_argument
from fastds.ops.core.registry import has_active_transforms
from fastds.ops.impl.conv_rnn.fused import is_recomputing_gates


class _Recompute:
    """Recomputes a tensor under the autocast state of its first computation.

    The object holds the tensor until `_replace_saved_tensors` ends, so that no other tensor gets the same address.

    Args:
        like: the tensor.
        function: function that computes the tensor.
        sources: arguments of the function.
    """

    def __init__(self, like: Tensor, function: Callable[..., Tensor], *sources):
        self.like: Tensor | None = like.detach()
        self.key = _get_key(like)
        self.function, self.sources = function, tuple(s.detach() if isinstance(s, Tensor) else s for s in sources)
        kind = like.device.type
        self.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def __call__(self) -> Tensor:
        with torch.no_grad(), torch.autocast(*self.autocast):
            return self.function(*self.sources)


def _get_key(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


@contextmanager
def _replace_saved_tensors(recomputations: list[_Recompute]) -> Iterator[None]:
    by_key = {recomputation.key: recomputation for recomputation in recomputations}
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: by_key.get(_get_key(tensor), tensor),
        lambda packed: packed() if isinstance(packed, _Recompute) else packed,
    )
    try:
        with hooks:
            yield
    finally:
        for recomputation in recomputations:
            recomputation.like = None  # the graph holds the recomputations, which must not hold the tensors


def checkpoint_activations(*maps: tuple) -> AbstractContextManager[None]:
    """Return a context manager in which operators do not save these tensors for the backward, which recomputes them.

    The context has an effect only inside `recompute_gates` with gradients enabled, and not under functional transforms
    or compilation. Gradients do not change. If contexts with an effect are nested, only the innermost counts.

    Args:
        maps: tuples (tensor, function, *sources). function(*sources) must return the tensor with bitwise equal values
            at every call.
    """
    if (
        not is_recomputing_gates()
        or not torch.is_grad_enabled()
        or has_active_transforms()
        or torch.compiler.is_compiling()
    ):
        return nullcontext()
    return _replace_saved_tensors([_Recompute(*entry) for entry in maps])


def _max_of_pairs(x: Tensor) -> Tensor:
    """Compute the maximum of pairs of rows, then of pairs of columns.

    This is faster than PyTorch's pooling, which also returns the indices of the maxima.
    """
    batch, channels, height, width = x.shape
    rows = torch.maximum(x[:, :, 0::2], x[:, :, 1::2], **make_out_argument((batch, channels, height // 2, width), x))
    return torch.maximum(
        rows[..., 0::2], rows[..., 1::2], **make_out_argument((batch, channels, height // 2, width // 2), x)
    )


class _MaxPool2x2(torch.autograd.Function):
    """Max pooling that saves only its input for the backward.

    The backward recomputes the indices of the maxima, which would take 8 bytes per output pixel.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return _max_of_pairs(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(F.max_pool2d(x, 2), x, grad, create_graph=True)[0]
        _, places = F.max_pool2d(x, 2, return_indices=True)
        window = ([2, 2], [2, 2], [0, 0], [1, 1], False)
        return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *window, places)


def max_pool_2x2(x: Tensor) -> Tensor:
    """Compute the maximum of blocks of 2x2 pixels, (B, C, H, W) -> (B, C, H/2, W/2), for even H and W.

    Only x is saved for the backward, except under functional transforms and exports.
    """
    if has_active_transforms() or torch.compiler.is_exporting():
        return F.max_pool2d(x, 2)
    return _MaxPool2x2.apply(x) if x.requires_grad and torch.is_grad_enabled() else _max_of_pairs(x)
