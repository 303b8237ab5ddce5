# SPDX-License-Identifier: Apache-2.0
"""Maps that are cheap to make and that the backward makes again instead of keeping them.

A forward pass (2 of 64x64, 16 channels) then holds 45 MiB for the backward in the place of 54 with DB-ConvLSTM, 94 in
the place of 119 with DB-PredRNN.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core.buffer_pool import make_out_argument
from fastds.ops.core.registry import has_active_transforms
from fastds.ops.impl.conv_cells.fused import is_recomputing_gates


class _Maker:
    """Makes a map again under the autocast it was made under. It holds the map as long as the block may ask for it, so
    that no other map gets its address."""

    def __init__(self, like: Tensor, function: Callable[..., Tensor], *sources):
        self.like, self.key = like.detach(), _key(like)
        self.function, self.sources = function, tuple(s.detach() if isinstance(s, Tensor) else s for s in sources)
        kind = like.device.type
        self.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def __call__(self) -> Tensor:
        with torch.no_grad(), torch.autocast(*self.autocast):
            return self.function(*self.sources)


def _key(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


@contextmanager
def _rematerialized(makers: list[_Maker]) -> Iterator[None]:
    by_key = {maker.key: maker for maker in makers}
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: by_key.get(_key(tensor), tensor),
        lambda packed: packed() if isinstance(packed, _Maker) else packed,
    )
    try:
        with hooks:
            yield
    finally:
        for maker in makers:
            maker.like = None  # the graph keeps makers, and is to keep no maps


def rematerialize(*maps: tuple) -> AbstractContextManager[None]:
    """A block in which operators save none of these maps for their backward: it makes them again.

    Only inside recomputed_gates; gradients, and theirs, are the same numbers. Blocks do not add up: of nested ones the
    innermost counts.

    Args:
        maps: (tensor, function, *sources) each, where function(*sources) gave the tensor and gives the same numbers
            whenever it is called.
    """
    if (
        not is_recomputing_gates()
        or not torch.is_grad_enabled()
        or has_active_transforms()
        or torch.compiler.is_compiling()
    ):
        return nullcontext()
    return _rematerialized([_Maker(*entry) for entry in maps])


def _of_pairs(x: Tensor) -> Tensor:
    """Of rows, then of columns: torch's pooling takes 2.6 times as long, and memory for places nobody asks for."""
    batch, channels, height, width = x.shape
    rows = torch.maximum(x[:, :, 0::2], x[:, :, 1::2], **make_out_argument((batch, channels, height // 2, width), x))
    return torch.maximum(
        rows[..., 0::2], rows[..., 1::2], **make_out_argument((batch, channels, height // 2, width // 2), x)
    )


class _HalvedMaximum(torch.autograd.Function):
    """Finds the places of the maxima again in the backward: kept, they are 8 bytes per pixel."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return _of_pairs(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(F.max_pool2d(x, 2), x, grad, create_graph=True)[0]
        _, places = F.max_pool2d(x, 2, return_indices=True)
        window = ([2, 2], [2, 2], [0, 0], [1, 1], False)
        return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *window, places)


def halved_maximum(x: Tensor) -> Tensor:
    """Maximum of 2x2 pixels, (B, C, H, W) -> (B, C, H/2, W/2), H and W even; its backward keeps x alone."""
    if has_active_transforms() or torch.compiler.is_exporting():
        return F.max_pool2d(x, 2)
    return _HalvedMaximum.apply(x) if x.requires_grad and torch.is_grad_enabled() else _of_pairs(x)
