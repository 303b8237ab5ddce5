# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an op runs: "native" (C++/CUDA), "triton" or "reference" (plain PyTorch)."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastds.ops.core.settings import ProcessSetting

BACKEND_NAMES = ("native", "triton", "reference")


@dataclass(frozen=True)
class Backend:
    """One implementation: run(*args) computes; refusal(*args) computes nothing and gives None or why it cannot run.

    preferred(*args): whether it goes before those listed ahead of it; None: never.
    """

    run: Callable
    unsupported_reason: Callable
    is_preferred: Callable | None = None


def _check_name(name: str, where: str) -> str:
    if name not in BACKEND_NAMES:
        raise ValueError(f"{where}: expected one of {', '.join(BACKEND_NAMES)}, got {name!r}")
    return name


_requested = os.environ.get("FASTDS_BACKEND")
_forced = ProcessSetting(_check_name(_requested, "FASTDS_BACKEND") if _requested else None)
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
    with _forced.set(_check_name(name, "backend")):
        yield


def forced_backend() -> str | None:
    """The implementation that backend() or FASTDS_BACKEND asks for, or None."""
    return _forced.value


def rank_backends(backends: dict[str, Backend], args: tuple) -> list[str]:
    """Names of the implementations in the order in which they are tried for these arguments."""
    if len(backends) == 1:
        return list(backends)
    first = [n for n, b in backends.items() if b.is_preferred is not None and b.is_preferred(*args)]
    return [*first, *(n for n in backends if n not in first)] if first else list(backends)


def select_backend(op, args: tuple) -> str:
    """Name of the implementation that an op (its `name` and `backends` count) runs for `args`."""
    requested = _forced.value
    if requested == "reference":
        return "reference"
    if requested in op.backends:
        reason = op.backends[requested].unsupported_reason(*args)
        if reason is not None:
            raise RuntimeError(f"backend {requested!r} was requested, but fastds.{op.name} cannot use it: {reason}")
        return requested
    reasons = []
    for name in rank_backends(op.backends, args):
        reason = op.backends[name].unsupported_reason(*args)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    message = f"fastds.{op.name} runs on its slow PyTorch reference: {'; '.join(reasons)}"
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return "reference"
