# SPDX-License-Identifier: Apache-2.0
"""Explanation of the backend selection: the backend that an op runs for given arguments, and why others cannot run."""

import inspect
from collections.abc import Callable

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastds import ops
from fastds.ops.core import plans, triton_loader
from fastds.ops.core.backends import forced_backend, rank_backends
from fastds.ops.core.gpu_measurements import describe_kernels
from fastds.ops.core.registry import OPS, Op, has_active_transforms


def explain(op_name: str, *args: object, **kwargs: object) -> dict[str, str]:
    """Report for each backend of an op whether it can run on these inputs, without computing anything.

    Args:
        op_name: str, name of a function of fastds.ops, such as "deform_conv2d", or of a registered op
            torch.ops.fastds.<op_name>.
        *args: positional arguments of the function or of the registered op. If the function calls several registered
            ops, the first of them is explained.
        **kwargs: keyword arguments of the function or of the registered op.

    Returns:
        dict from the name of each backend to "chosen", "usable" or "refused: <reason>". It has the entry
        {"plan": "used"} if this call would repeat the recorded native calls of an earlier call of this thread. On a GPU
        the entry "kernels" states whether the speed of the kernels was "measured on" a GPU or is "estimated"; for
        deform_conv2d it has the times by which the kernel is selected, the selected one first. The entry "launch plans"
        is "none: <reason>" if Triton kernels cannot be launched by plans.

    Raises:
        ValueError: the op is unknown.
        TypeError: the arguments fit neither the function nor the schema of the registered op.
        RuntimeError: a functorch transform is active, or the function calls no registered op for these arguments.
    """
    public = {name: f for name in ops.__all__ if inspect.isfunction(f := getattr(ops, name))}
    if op_name not in OPS and op_name not in public:
        raise ValueError(f"op_name: expected one of {', '.join(sorted({*OPS, *public}))}, got {op_name!r}")
    if op_name in public and (op_name not in OPS or _can_bind(public[op_name], args, kwargs)):
        planned = plans.has_plan(*plans.find_planned_call(public[op_name], args, kwargs))
        return _describe_backends(*_find_first_op_call(public[op_name], args, kwargs), planned)
    try:
        bound = OPS[op_name].bind(args, kwargs)
        return _describe_backends(OPS[op_name], bound, plans.has_plan(OPS[op_name], bound, {}))
    except TypeError as error:
        shown = f"; of the function: {op_name}{inspect.signature(public[op_name])}" if op_name in public else ""
        raise TypeError(f"{error}{shown}") from None


def _describe_backends(op: Op, args: tuple, planned: bool) -> dict[str, str]:
    reasons = {name: op.backends[name].unsupported_reason(*args) for name in rank_backends(op.backends, args)} | {
        "reference": None
    }
    usable = [name for name, reason in reasons.items() if reason is None]
    forced = forced_backend()
    chosen = forced if forced is not None and forced in usable else usable[0]
    described = {
        name: "chosen" if name == chosen else "usable" if reason is None else f"refused: {reason}"
        for name, reason in reasons.items()
    }
    further = {} if op.describe is None else op.describe(*args)
    on_cuda = chosen != "reference" and any(isinstance(a, Tensor) and a.is_cuda for a in args)
    if not further and on_cuda:
        further = {"kernels": describe_kernels(op.name, chosen)}
    if on_cuda and (reason := triton_loader.find_reason_without_launch_plans()) is not None:
        further = {**further, "launch plans": f"none: {reason}"}
    return described | further | ({"plan": "used"} if planned else {})


def _can_bind(function: Callable, args: tuple, kwargs: dict) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


class _OpCallError(Exception):
    """Exception that carries the first registered op called by a function, and its arguments, out of that function."""

    def __init__(self, op: Op, args: tuple):
        super().__init__(op.name)
        self.op, self.args_of_op = op, args


class _ForceDispatch(TorchDispatchMode):
    """Dispatch mode without effect on results, because ops are called through the dispatcher while a mode is active."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class _StopAtOp(TorchFunctionMode):
    """Function mode that raises _OpCallError at the first call of a registered op."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "namespace", None) == "fastds":
            op = OPS[function._opname]
            raise _OpCallError(op, op.bind(args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def _find_first_op_call(function: Callable, args: tuple, kwargs: dict) -> tuple[Op, tuple]:
    """Return the first registered op that a public function calls, and the arguments after defaults and autocast."""
    if has_active_transforms():
        raise RuntimeError("explain: inside a functorch transform the reference runs, whatever the arguments")
    try:
        with _ForceDispatch(), _StopAtOp():
            function(*args, **kwargs)
    except _OpCallError as called:
        return called.op, called.args_of_op
    raise RuntimeError(f"explain: {function.__name__} calls no registered op for these arguments")
