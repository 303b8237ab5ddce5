# SPDX-License-Identifier: Apache-2.0
"""Records calls of torch.ops.fastds.* during calls of public functions, and changes one property of each."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastds.ops.core.registry import OPS, Op


@contextmanager
def recorded() -> Iterator[list[tuple[str, tuple]]]:
    """Record (name, arguments) of each op that runs in the context, also in backward passes."""
    calls: list[tuple[str, tuple]] = []
    originals = {name: getattr(Op, name) for name in ("__call__", "call_unchecked")}

    def watched(original):
        def run(self, *args):
            calls.append((self.name, self._fill_defaults(args)))
            return original(self, *args)

        return run

    for name, original in originals.items():
        setattr(Op, name, watched(original))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(Op, name, original)


def detached(args) -> tuple:
    return tuple(
        a.detach() if isinstance(a, Tensor) else list(detached(a)) if isinstance(a, list | tuple) else a for a in args
    )


def tensors(args: tuple) -> Iterator[tuple[tuple, Tensor]]:
    """Yield the tensors in arguments with their positions, (position,) or (position, index in a list)."""
    for k, value in enumerate(args):
        if isinstance(value, Tensor):
            yield (k,), value
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            yield from (((k, i), v) for i, v in enumerate(value))


def replaced(args: tuple, place: tuple, value) -> tuple:
    """Return the arguments with another value at a position."""
    k, *rest = place
    if rest:
        old = args[k]
        value = [*old[: rest[0]], value, *old[rest[0] + 1 :]]
    return (*args[:k], value, *args[k + 1 :])


def resized(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Truncate or repeat a tensor along a dimension to another size."""
    index = torch.arange(size) % max(1, tensor.shape[dim])
    return tensor.index_select(dim, index) if tensor.shape[dim] else tensor


def changes(op: Op, args: tuple) -> Iterator[tuple[str, tuple]]:
    """Yield (description, arguments) with one change.

    The change is a dimension, the number of dimensions, the dtype or the layout of one tensor, the length of one list,
    or one option.
    """
    for place, tensor in tensors(args):
        name = op.arguments[place[0]] + "".join(f"[{i}]" for i in place[1:])
        for dim, size in enumerate(tensor.shape):
            for new in {0, 1, size - 1, size + 1, 2 * size} - {size, -1}:
                yield f"{name}: {size} -> {new} in dimension {dim}", replaced(args, place, resized(tensor, dim, new))
        yield f"{name}: one more dimension", replaced(args, place, tensor[None])
        if tensor.dim() > 1:
            yield f"{name}: flat", replaced(args, place, tensor.flatten())
        for dtype in (torch.float16, torch.float64, torch.int64, torch.complex64):
            if dtype != tensor.dtype:
                yield f"{name}: {dtype}", replaced(args, place, tensor.to(dtype))
        yield f"{name}: sparse", replaced(args, place, tensor.to_sparse())
    for k, value in enumerate(args):
        if isinstance(value, list) and value and not isinstance(value[0], Tensor):
            yield f"{op.arguments[k]}: shorter", replaced(args, (k,), value[:-1])
            yield f"{op.arguments[k]}: longer", replaced(args, (k,), [*value, value[0]])
        elif isinstance(value, str):
            yield f"{op.arguments[k]}: another word", replaced(args, (k,), "nonsense")
        elif type(value) is float:
            yield f"{op.arguments[k]}: nan", replaced(args, (k,), float("nan"))


def call(op: Op, args: tuple):
    return getattr(torch.ops.fastds, op.name).default(*args)


def agrees(op: Op, args: tuple, got) -> bool:
    """Return True if the reference can compute the call in float64 and agrees with the result."""
    wide = tuple(_wide(a) for a in args)
    try:
        expected = op.reference(*wide)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    got, expected = ([r] if isinstance(r, Tensor) else list(r) for r in (got, expected))
    unit = max([1e-6, *(torch.finfo(t.dtype).eps for _, t in tensors(args) if t.is_floating_point())])
    return len(got) == len(expected) and all(_close(*pair, unit) for pair in zip(got, expected, strict=True))


def _wide(value):
    if isinstance(value, list):
        return [_wide(v) for v in value]
    if isinstance(value, torch.dtype):
        return torch.float64
    return value.to_dense().double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _close(got: Tensor, expected: Tensor, unit: float) -> bool:
    if got.shape != expected.shape:
        return got.numel() == 0 and got.dim() == 4 and got.shape[1] == 0  # pre-activations that nobody keeps
    scale = expected.nan_to_num(0).abs().max().item() if expected.numel() else 0.0
    same = (got.double() - expected).abs() <= 64 * unit * max(1.0, scale)
    return bool((same | (got.isnan() & expected.isnan())).all())


__all__ = ["OPS", "agrees", "call", "changes", "detached", "recorded"]
