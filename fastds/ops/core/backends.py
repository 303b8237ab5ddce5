# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an op runs: "native" (C++/CUDA), "triton" or "reference" (plain PyTorch)."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastds.ops.core.switches import Switch

NAMES = ("native", "triton", "reference")


@dataclass(frozen=True)
class Backend:
    """One implementation: run(*args) computes; refusal(*args) computes nothing and gives None or why it cannot run.

    preferred(*args): whether it goes before those listed ahead of it; None: never.
    """

    run: Callable
    refusal: Callable
    preferred: Callable | None = None


def _checked(name: str, where: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{where}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


_wanted = os.environ.get("FASTDS_BACKEND")
_forced = Switch(_checked(_wanted, "FASTDS_BACKEND") if _wanted else None)
_warned = set()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Makes every op inside the block run on one implementation, in all threads of the process.

    An op that has no such implementation at all keeps its own default; one that has it but cannot run it on the given
    inputs raises RuntimeError with the reason. Graphs compiled before keep what they were traced with. Of overlapping
    blocks the one entered last counts.

    torch.onnx.export(..., dynamo=True) knows the operators of torch alone: inside backend("reference") it writes a
    network with ops of fastds in these.

    Args:
        name: "native", "triton" or "reference".

    Raises:
        ValueError: another name.
    """
    with _forced.set(_checked(name, "backend")):
        yield


def forced() -> str | None:
    """The implementation that backend() or FASTDS_BACKEND asks for, or None."""
    return _forced.value


def ranked(backends: dict[str, Backend], args: tuple) -> list[str]:
    """Names of the implementations in the order in which they are tried for these arguments."""
    if len(backends) == 1:
        return list(backends)
    first = [n for n, b in backends.items() if b.preferred is not None and b.preferred(*args)]
    return [*first, *(n for n in backends if n not in first)] if first else list(backends)


def choose(op, args: tuple) -> str:
    """Name of the implementation that an op (its `name` and `backends` count) runs for `args`."""
    wanted = _forced.value
    if wanted == "reference":
        return "reference"
    if wanted in op.backends:
        reason = op.backends[wanted].refusal(*args)
        if reason is not None:
            raise RuntimeError(f"backend {wanted!r} was asked for, but fastds.{op.name} cannot use it: {reason}")
        return wanted
    reasons = []
    for name in ranked(op.backends, args):
        reason = op.backends[name].refusal(*args)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    message = f"fastds.{op.name} runs on its slow PyTorch reference: {'; '.join(reasons)}"
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return "reference"
