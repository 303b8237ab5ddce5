# SPDX-License-Identifier: Apache-2.0
"""Compares one call with the float64 reference."""

import inspect
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from random import Random

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from fastds import ops
from fastds.ops.core import native
from fastds.ops.core.backends import use_backend

from . import invalid
from .cases import DTYPES, Case, build, exact, tensors
from .strategies import CONVOLUTIONS

ROUNDINGS = 64  # of the largest value: what a sum of some hundred terms may lose
JITTERS = 6
MAIN = {"deform_conv2d": "input", "inr_query": "maps", "conv_gru_cell": "h"}  # else the first argument
_pool = ThreadPoolExecutor(2)


def check_call(case: Case, kind: str) -> tuple[str, str] | None:
    """Run one call and compare it.

    The number of threads and the instruction set of the process are set to those of the case.

    Returns:
        None if the call is correct, or (outcome, message).
    """
    if torch.get_num_threads() != case.threads:
        torch.set_num_threads(case.threads)
    native.get_module().set_isa(case.isa)
    arguments = build(case)
    try:
        if kind == "invalid":
            return _refused(case, *invalid.changed(arguments, Random(case.seed)))
        return _computed(case, arguments, kind)
    finally:
        native.get_module().set_isa("auto")


# ---- calls


def _call(case: Case, arguments: dict):
    with torch.autocast("cpu", DTYPES[case.autocast]) if case.autocast else nullcontext():
        return getattr(ops, case.op)(**arguments)


def _in_its_way(case: Case, arguments: dict):
    """Run a call by vmap or in two threads and return the results of all copies."""
    if case.way == "threads":
        nodes = _get_nodes(_leaves(arguments))  # noqa: F841  held until the threads end
        return [f.result() for f in [_pool.submit(_call, case, arguments) for _ in range(2)]]
    main = MAIN.get(case.op, next(iter(arguments)))
    if case.way == "vmap":
        stacked = torch.stack([arguments[main]] * 2)
        both = torch.func.vmap(lambda t: _call(case, {**arguments, main: t}))(stacked)
        both = both if isinstance(both, tuple) else (both,)
        return [tuple(y[k] for y in both) for k in range(2)]
    return [_call(case, arguments)]


def _reference(case: Case, arguments: dict, jitter: float = 0.0):
    """Return the results of the float64 reference, and those of its inputs that require a gradient.

    Args:
        case: the call.
        arguments: its arguments.
        jitter: relative size of a random error of the inputs.
    """
    wide = exact(case, arguments, jitter)
    wide.pop("algorithm", None)
    with use_backend("reference"):
        return tensors(getattr(ops, case.op)(**wide)), _leaves(wide)


def _leaves(arguments: dict) -> list[Tensor]:
    return [t for t in tensors(arguments) if t.requires_grad]


def _get_nodes(leaves: list[Tensor]) -> list:
    """Return the nodes of leaves in autograd graphs.

    torch makes the node of a leaf when an operation first records it and while no other graph holds it, under a lock in
    which it waits for the GIL. Two threads, of which the other one holds the GIL, would wait for each other for ever.
    """
    with torch.inference_mode(False):
        return [get_gradient_edge(t) for t in leaves if t.layout is torch.strided and not t.is_nested]


def _gradients(results: list[Tensor], leaves: list[Tensor], seed: int) -> list[Tensor]:
    """Compute the gradients of a random sum of the results, with coefficients that every dtype represents exactly."""
    generator = torch.Generator().manual_seed(seed)
    along = [torch.randn(y.shape, generator=generator).bfloat16().to(y.dtype) for y in results]
    pairs = [pair for pair in zip(results, along, strict=True) if pair[0].requires_grad]
    if not pairs or not leaves:
        return []
    ys, along = zip(*pairs, strict=True)
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    return list(torch.autograd.grad(ys, leaves, along, **options))


# ---- comparison


def _computed(case: Case, arguments: dict, kind: str):
    leaves = _leaves(arguments)
    expected, wide = _reference(case, arguments)
    grads = _gradients(expected, wide, case.seed)
    for results in _in_its_way(case, arguments):
        results = tensors(results)
        ours = _gradients(results, leaves, case.seed)
        if kind == "special":
            fault = _specials(case, results, [expected]) and _specials(case, results, _moved(case, arguments, expected))
        else:
            fault = _compared(case, arguments, results + ours, expected + grads)
        if fault:
            return "wrong", fault
    return None


def _first(faults) -> str | None:
    return next((f"result {k}: {fault}" for k, fault in enumerate(faults) if fault), None)


def _compared(case: Case, arguments: dict, got: list[Tensor], expected: list[Tensor]) -> str | None:
    """Compare results and gradients.

    Differences may be as large as some roundings of the coarsest dtype, or as the effect of such roundings of the
    inputs.
    """
    shapes = [[tuple(t.shape) for t in side] for side in (got, expected)]
    if shapes[0] != shapes[1]:
        return f"shapes {shapes[0]}, expected {shapes[1]}"
    unit = _unit([*got, *tensors(arguments)], case)
    spread = None
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        rounded, a, b = b.detach().to(a.dtype).double(), a.detach().double(), b.detach()
        scale = max(1.0, b.abs().nan_to_num(0).max().item()) if b.numel() else 1.0
        error, same = (a - b).abs(), (a == rounded) | (a.isnan() & b.isnan())
        if (same | (error <= ROUNDINGS * unit * scale)).all():
            continue
        spread = spread or _spread(case, arguments, expected, unit)
        bad = ~(same | (error <= ROUNDINGS * unit * scale + 8 * spread[k]))
        if bad.any():
            return f"result {k} of {len(got)}: error {error[bad].max().item():.3g} where the largest is {scale:.3g}"
    return None


def _spread(case: Case, arguments: dict, expected: list[Tensor], unit: float) -> list[float]:
    """Estimate the change of results and gradients that rounding may cause, for each tensor.

    The estimate is the largest change for inputs changed by some roundings, and for the reference in the dtype of the
    call.
    """
    moved = [0.0] * len(expected)
    for k in range(JITTERS + 1):
        results, leaves = _reference(case, arguments, 8 * unit) if k else _coarse(case, arguments)
        moving = results + (_gradients(results, leaves, case.seed) if len(expected) > len(results) else [])
        for k, (a, b) in enumerate(zip(moving, expected, strict=True)):
            moved[k] = max(moved[k], (a - b).detach().abs().nan_to_num(0).max().item() if b.numel() else 0.0)
    return moved


def _coarse(case: Case, arguments: dict):
    with use_backend("reference"):
        return tensors(_call(case, arguments)), _leaves(arguments)


def _unit(found: list[Tensor], case: Case) -> float:
    """Return the rounding error of the coarsest dtype in the call."""
    dtypes = {t.dtype for t in found if t.is_floating_point()} | ({DTYPES[case.autocast]} if case.autocast else set())
    return max([1e-14, *(torch.finfo(d).eps for d in dtypes)])


def _moved(case: Case, arguments: dict, expected: list[Tensor]) -> list[list[Tensor]]:
    """Return the results, those for inputs changed by some roundings, and those in the dtype of the call."""
    unit = _unit(tensors(arguments), case)
    others = [_reference(case, arguments, 8 * unit)[0] for _ in range(JITTERS)]
    return [expected, *others, _coarse(case, arguments)[0]]


def _specials(case: Case, got: list[Tensor], expected: list[list[Tensor]]) -> str | None:
    return _first(_special(case, a.detach().double(), b) for a, *b in zip(got, *expected, strict=True))


def _special(case: Case, got: Tensor, expected: list[Tensor]) -> str | None:
    """Check that NaN and infinity do not become numbers, and numbers do not become NaN.

    Elements are checked where all expected results agree. Winograd convolutions spread non-finite values, so
    convolutions with such inputs are not checked.
    """
    written = repr(case.args)
    huge, infinite = "'huge'" in written, "'nonfinite'" in written
    if case.op in CONVOLUTIONS and (huge or infinite):
        return None
    finite = torch.stack([one.isfinite() for one in expected])
    lost = ~finite.any(0) & got.isfinite()
    if lost.any():
        return f"{int(lost.sum())} of {expected[0][lost][0].item()} became {got[lost][0].item():.3g}"
    made = finite.all(0) & ~got.isfinite()
    if made.any() and case.op not in CONVOLUTIONS and not huge:
        return f"{int(made.sum())} numbers became {got[made][0].item()}"
    return None


# ---- refusals


def _refused(case: Case, arguments: dict, change: str):
    try:
        results = tensors(_call(case, arguments))
    except (TypeError, ValueError) as error:
        return None if _names_an_argument(case, str(error)) else ("unclear", f"{change}: {_short(error)}")
    except Exception as error:
        if isinstance(error, RuntimeError) and "was requested, but" in str(error):
            return None  # an algorithm that is there, but not for these tensors or this machine
        return "unclear", f"{change}: {_short(error)}"
    if any(t.device.type == "meta" for t in results):
        return None
    try:
        expected, _ = _reference(case, arguments)
    except Exception as error:
        return "wrong", f"{change}: accepted, but {_short(error)}"
    fault = _compared(case, arguments, results, expected)
    return ("wrong", f"{change}: accepted, but {fault}") if fault else None


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _names_an_argument(case: Case, message: str) -> bool:
    names = inspect.signature(getattr(ops, case.op)).parameters
    return bool(set(re.findall(r"[A-Za-z_]\w*", message)) & {*names, "Axis", "base", "frac"})
