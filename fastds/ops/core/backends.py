# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an op runs: "native" (C++/CUDA), "triton" or "reference" (plain PyTorch)."""

import os
import warnings
from contextlib import contextmanager

NAMES = ("native", "triton", "reference")


def _checked(name, where):
    if name not in NAMES:
        raise ValueError(f"{where}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


_forced = _checked(os.environ["FASTDS_BACKEND"], "FASTDS_BACKEND") if os.environ.get("FASTDS_BACKEND") else None
_warned = set()


@contextmanager
def backend(name):
    """Makes every op inside the block run on one implementation, in all threads of the process.

    An op that has no such implementation at all keeps its own default; one that has it but cannot run it on the given
    inputs raises RuntimeError with the reason. Graphs compiled before keep what they were traced with.

    Args:
        name: "native", "triton" or "reference".

    Raises:
        ValueError: another name.
    """
    global _forced
    before, _forced = _forced, _checked(name, "backend")
    try:
        yield
    finally:
        _forced = before


def forced():
    """The implementation that backend() or FASTDS_BACKEND asks for, or None."""
    return _forced


def choose(op, args):
    """Name of the implementation that `op` (a fastds.ops.core.registry.Op) runs for `args`."""
    if _forced == "reference":
        return "reference"
    if _forced in op.backends:
        reason = op.backends[_forced].refusal(*args)
        if reason is not None:
            raise RuntimeError(f"backend {_forced!r} was asked for, but fastds.{op.name} cannot use it: {reason}")
        return _forced
    reasons = []
    for name in op.ranked(args):
        reason = op.backends[name].refusal(*args)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    message = f"fastds.{op.name} runs on its slow PyTorch reference: {'; '.join(reasons)}"
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return "reference"


def explain(op_name, *args, **kwargs):
    """Says for each implementation of an op whether it runs on these inputs, and why not.

    Args:
        op_name: name of the op, such as "deform_conv2d".
        *args, **kwargs: the op's arguments by its schema torch.ops.fastds.<op_name>.

    Returns:
        dict of implementation name to "chosen", "usable" or "refused: <reason>".

    Raises:
        ValueError: unknown op.
    """
    from fastds.ops.core.registry import OPS

    if op_name not in OPS:
        raise ValueError(f"op_name: expected one of {', '.join(sorted(OPS))}, got {op_name!r}")
    op = OPS[op_name]
    args = op.bind(args, kwargs)
    reasons = {name: op.backends[name].refusal(*args) for name in op.ranked(args)} | {"reference": None}
    usable = [name for name, reason in reasons.items() if reason is None]
    chosen = _forced if _forced in usable else usable[0]
    return {
        name: "chosen" if name == chosen else "usable" if reason is None else f"refused: {reason}"
        for name, reason in reasons.items()
    }
