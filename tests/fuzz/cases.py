# SPDX-License-Identifier: Apache-2.0
"""Describes one call of an op as data, so that its tensors can be made again, also in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastds.ops import GridSpec, PointSpec
from fastds.ops.impl.inr_query.points import Axis

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
LAYOUTS = ("channels_last", "contiguous", "slice", "strided", "transposed", "expanded", "odd", "negative")
POOLS = {
    "nan": (float("nan"),),
    "nonfinite": (float("nan"), float("inf"), -float("inf")),
    "huge": (1e30, -1e30, 3e38, 65504.0, 1e-40, -0.0, 0.0, 1e-7),
}


@dataclass(frozen=True)
class Spec:
    """Description of a tensor.

    `role` determines how autocast treats the tensor: "image", "wide", "parameter" or "uncast". `fill` determines its
    values.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "contiguous"
    role: str = "image"
    fill: str = "normal"  # or a name of POOLS, "unit" (0 to 1), "base" (pixels around the field), "mask"
    scale: float = 1.0
    grad: bool = False


@dataclass(frozen=True)
class Grid:
    """Arguments of GridSpec.numbers()."""

    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Points:
    base: Spec
    frac: Spec


@dataclass(frozen=True)
class Case:
    """One call op(**args), with tensors filled from `seed`.

    `way` is "plain", "vmap" (over copies of the first tensor) or "threads" (the same call in two Python threads).
    """

    op: str
    args: dict
    seed: int
    isa: str
    autocast: str | None = None
    threads: int = 1
    way: str = "plain"


def _values(spec: Spec, generator) -> Tensor:
    if spec.fill == "base":
        return torch.randint(-3, 12, spec.shape, generator=generator, dtype=torch.int32)
    if spec.fill == "mask":
        return torch.rand(spec.shape, generator=generator) < 0.7
    draw = torch.rand if spec.fill == "unit" else torch.randn
    values = draw(spec.shape, generator=generator, dtype=torch.float64).mul_(spec.scale)
    if spec.fill in POOLS and values.numel():
        pool = torch.tensor(POOLS[spec.fill], dtype=torch.float64)
        count = 1 + values.numel() // 50
        where = torch.randint(values.numel(), (count,), generator=generator)
        values.view(-1)[where] = pool[torch.randint(len(pool), (count,), generator=generator)]
    return values


def _laid_out(values: Tensor, layout: str) -> Tensor:
    """Return the same values with other strides; "expanded" repeats the first image."""
    if layout == "odd":
        return values.new_empty(values.numel() + 1)[1:].view(values.shape).copy_(values)
    if layout == "negative" and values.dtype in (torch.float32, torch.float64):
        return torch.complex(torch.zeros_like(values), -values).conj().imag
    if values.dim() != 4 or layout == "contiguous":
        return values
    if layout == "slice":
        wide = torch.cat([values, values[:, :1], values], 1).contiguous(memory_format=torch.channels_last)
        return wide[:, : values.shape[1]]
    if layout == "strided":
        return values.repeat_interleave(2, 3)[..., ::2]
    if layout == "transposed":
        return values.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded":
        return values[:1].expand(values.shape)
    return values.contiguous(memory_format=torch.channels_last)


def _tensor(spec: Spec, generator) -> Tensor:
    values = _values(spec, generator)
    if spec.fill not in ("base", "mask"):
        values = values.to(DTYPES[spec.dtype])
    return _laid_out(values, spec.layout).requires_grad_(spec.grad)


def build(case: Case) -> dict:
    """Make the keyword arguments of the call."""
    generator = torch.Generator().manual_seed(case.seed)

    def made(value):
        if isinstance(value, Spec):
            return _tensor(value, generator)
        if isinstance(value, Points):
            return PointSpec(_tensor(value.base, generator), _tensor(value.frac, generator))
        if isinstance(value, Grid):
            return GridSpec(Axis(*value.numbers[:4]), Axis(*value.numbers[4:]))
        return tuple(made(v) for v in value) if isinstance(value, tuple) else value

    return {name: made(value) for name, value in case.args.items()}


def exact(case: Case, arguments: dict, jitter: float = 0.0) -> dict:
    """Make the arguments in float64, as leaves of a separate graph, after rounding them as autocast does.

    Args:
        case: the call.
        arguments: its arguments.
        jitter: relative size of a random error that is added.
    """
    low = None if case.autocast is None else DTYPES[case.autocast]

    def rounded(role: str, tensor: Tensor) -> Tensor:
        if low is None or tensor.dtype == torch.float64 or role == "uncast":
            return tensor
        if role == "parameter":
            return tensor if tensor.dtype == torch.float32 else tensor.to(low)
        return tensor.float() if role == "wide" else tensor.to(low)

    def wide(role: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        grad, tensor = tensor.requires_grad, tensor.detach()
        tensor = tensor.to_dense() if tensor.is_sparse else tensor
        values = rounded(role, tensor).to(torch.float64, copy=True).contiguous()
        if jitter:
            values *= 1 + jitter * (2 * torch.rand_like(values) - 1)
        return values.requires_grad_(grad)

    def made(spec, value):
        if isinstance(value, Tensor):
            return wide(spec.role if isinstance(spec, Spec) else "uncast", value)
        if isinstance(value, PointSpec):
            return PointSpec(value.base, value.frac.double())
        if isinstance(value, tuple) and isinstance(spec, tuple) and len(spec) == len(value):
            return tuple(map(made, spec, value))
        return torch.float64 if isinstance(value, torch.dtype) else value

    return {name: made(case.args.get(name), value) for name, value in arguments.items()}


def tensors(value) -> list[Tensor]:
    """Return all tensors in arguments or results, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [t for part in parts for t in tensors(part)]
