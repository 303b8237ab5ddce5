# SPDX-License-Identifier: Apache-2.0
"""Invalid calls: one argument of a valid call is changed."""

import torch
from torch import Tensor

from fastds.ops import PointSpec

from .registered import resized

NUMBERS = (-1, 0, 3, 1 << 31, 1 << 62, 0.5, -0.5, float("nan"), float("inf"))
VALUES = (*NUMBERS, None, True, "nonsense", (1,), (1, 2, 3), [])
DTYPES = (torch.int64, torch.bool, torch.complex64, torch.float64, torch.float32, torch.float16, torch.int32)


def _size(tensor, choose):
    if not tensor.dim():
        return tensor[None]
    dim = choose.randrange(tensor.dim())
    size = tensor.shape[dim]
    return resized(tensor, dim, choose.choice(sorted({0, 1, abs(size - 1), size + 1, 2 * size})))


CHANGES = {  # of a tensor
    "size": _size,
    "dimensions": lambda t, choose: t[None] if choose.random() < 0.5 or not t.numel() else t.flatten(),
    "dtype": lambda t, choose: t.to(choose.choice(DTYPES)),
    "sparse": lambda t, choose: t.detach().to_sparse(),
    "device": lambda t, choose: t.detach().to("meta"),
    "numpy": lambda t, choose: t.detach().resolve_neg().float().numpy(),
    "value": lambda t, choose: choose.choice(VALUES),
}


def _tensor(tensor: Tensor, choose):
    what = choose.choice(("size", "size", "size", *CHANGES))
    return CHANGES[what](tensor, choose), what


def changed(arguments: dict, choose) -> tuple[dict, str]:
    """Change one argument; return the arguments, and a description of the change."""
    name = choose.choice(sorted(arguments))
    value = arguments[name]
    if isinstance(value, Tensor):
        new, what = _tensor(value, choose)
    elif isinstance(value, PointSpec) and choose.random() < 0.7:
        dim, size = choose.choice((0, 1)), choose.choice((0, 2, 3, 5))
        new, what = PointSpec(resized(value.base, dim, size), resized(value.frac, dim, size)), "points"
    elif isinstance(value, tuple) and value and choose.random() < 0.7:
        return _part(arguments, name, choose)
    else:
        new, what = choose.choice(VALUES), "value"
    shown = f"{tuple(new.shape)} {new.dtype}" if hasattr(new, "shape") else repr(new)[:80]
    return {**arguments, name: new}, f"{name}: {what} {shown}"


def _part(arguments: dict, name: str, choose) -> tuple[dict, str]:
    """Change one element of a tuple, or of a pair in it."""
    value = arguments[name]
    k = choose.randrange(len(value))
    inner, what = changed({f"{name}[{k}]": value[k]}, choose)
    return {**arguments, name: (*value[:k], inner[f"{name}[{k}]"], *value[k + 1 :])}, what


__all__ = ["changed"]
