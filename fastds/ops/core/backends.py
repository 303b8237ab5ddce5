# SPDX-License-Identifier: Apache-2.0
"""Selection of the backend of an op: "native" (C++/CUDA), "triton" or "reference" (PyTorch)."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastds.ops.core.settings import ProcessSetting

BACKEND_NAMES = ("native", "triton", "reference")


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        run: run(*args) computes the result.
        unsupported_reason: unsupported_reason(*args) returns the reason why `run` cannot take the arguments, or None.
            It does not compute the result.
        is_preferred: is_preferred(*args) returns True if this backend is tried before the other backends of the op.
            None: never.
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
_warned: set[str] = set()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops inside the block on one backend, in all threads of the process.

    An op that does not have this backend selects one as it does outside of the block. An op that has it but cannot run
    it on the given inputs raises RuntimeError with the reason. Graphs that torch.compile compiled before the block keep
    the backend that was chosen then. If blocks overlap, the one entered last determines the backend.

    torch.onnx.export(..., dynamo=True) supports only torch's own operators. Inside use_backend("reference") it can
    export networks that contain ops of fastds.

    Args:
        name: "native", "triton" or "reference".

    Raises:
        ValueError: the name is unknown.
    """
    with _forced.set(_check_name(name, "use_backend")):
        yield


def forced_backend() -> str | None:
    """Return the backend requested by use_backend() or by the environment variable FASTDS_BACKEND, or None."""
    return _forced.value


def rank_backends(backends: dict[str, Backend], args: tuple) -> list[str]:
    """Return the names of the backends in the order in which they are tried for these arguments."""
    if len(backends) == 1:
        return list(backends)
    first = [n for n, b in backends.items() if b.is_preferred is not None and b.is_preferred(*args)]
    return [*first, *(n for n in backends if n not in first)] if first else list(backends)


def select_backend(op, args: tuple) -> str:
    """Select the backend that an op runs for these arguments.

    If no other backend can run, select the reference, with one warning for each combination of op and reasons.

    Args:
        op: the Op.
        args: its checked arguments.

    Returns:
        name of the backend.

    Raises:
        RuntimeError: the requested backend cannot run on these arguments.
    """
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
