# SPDX-License-Identifier: Apache-2.0
"""Plans that list functions: repeat calls of autograd functions and of torch without the Python code around them.

Calls with gradients have such plans, and calls that torch computes. The public function of an op checks its arguments,
selects a backend and calls an autograd.Function or a function of torch. The second call with the same key is recorded:
the functions that it calls, and which of their arguments are arguments of the call, views of leaves, results of an
earlier function, or constants. Later calls with the key call the same functions from csrc/core/function_plans.h. A call
has no plan if its result or an argument of a function is any other tensor.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class _Recorder(threading.local):
    """The functions that this thread has called since the recording of a call began.

    Attributes:
        calls: the calls, None if no call is recorded.
        depth: number of these functions that are running now. Functions that they call are not noted.
    """

    calls: list[tuple] | None = None
    depth = 0


_recorder = _Recorder()


def apply_function(function: Any, run: Callable, args: tuple, wrapped: tuple) -> Any:
    """Call an autograd function, and note the call if this thread records one.

    Args:
        function: the torch.autograd.Function, or an object with a function `apply`.
        run: first argument of `apply`.
        args: other arguments.
        wrapped: the same arguments with views in place of some leaves. The function gets these.
    """
    if torch.compiler.is_compiling() or _recorder.calls is None:
        return function.apply(run, *wrapped)
    return _note_call(function.apply, (run, *wrapped), (function, run, args, wrapped))


def call_function(function: Callable, *args: Any) -> Any:
    """Call a differentiable function of torch, and note the call if this thread records one.

    Args:
        function: function whose result depends only on its arguments. It may overwrite results of earlier functions.
        *args: its arguments.
    """
    if torch.compiler.is_compiling() or _recorder.calls is None:
        return function(*args)
    return _note_call(function, args, (function, None, args, args))


def _note_call(function: Callable, args: tuple, description: tuple) -> Any:
    """Return function(*args), and append the description and the result to the noted calls."""
    _recorder.depth += 1
    try:
        result = function(*args)
    finally:
        _recorder.depth -= 1
    if _recorder.depth == 0 and _recorder.calls is not None:
        _recorder.calls.append((*description, result))
    return result


def is_inside_noted_function() -> bool:
    """Return whether this thread runs a function that is noted."""
    return _recorder.depth > 0


def slice_channels(tensor: Tensor, begin: int, end: int | None = None) -> Tensor:
    """Return the view tensor[:, begin:end], and note the call if this thread records one."""
    return call_function(_slice_channels, tensor, begin, end)


def _slice_channels(tensor: Tensor, begin: int, end: int | None) -> Tensor:
    return tensor[:, begin:end]


@contextmanager
def observe_functions(module: Any) -> Iterator[list[tuple]]:
    """Collect the calls of autograd functions and of `call_function` that this thread makes inside the `with` block.

    Args:
        module: the native module. It runs no plans with gradients inside the block.
    """
    before, calls, depth = module.plans_recording_gradients(True), _recorder.calls, _recorder.depth
    _recorder.calls, _recorder.depth = [], 0
    try:
        yield _recorder.calls
    finally:
        _recorder.calls, _recorder.depth = calls, depth
        module.plans_recording_gradients(before)


def describe_calls(calls: list[tuple], inputs: list[Tensor], result: Any) -> dict[str, Any] | None:
    """Describe recorded calls for `plans_set` of the native module.

    Args:
        calls: from observe_functions.
        inputs: the tensors among the arguments of the call.
        result: result of the call.

    Returns:
        the description, or None if the calls do not determine the result.
    """
    nodes: dict[int, tuple] = {id(tensor): ("input", k, 0) for k, tensor in enumerate(inputs)}
    described = []
    for k, (function, run, args, wrapped, made) in enumerate(calls):
        arguments = [
            _describe_argument(a, nodes, viewed=w is not a) for a, w in zip(args, wrapped, strict=True)
        ]  # fmt: skip
        if None in arguments:
            return None
        described.append((function if run is None else _get_apply(function), run, arguments))
        values = made if isinstance(made, tuple) else (made,)
        nodes |= {id(value): ("output", k, j) for j, value in enumerate(values) if isinstance(value, Tensor)}
    values = (result,) if isinstance(result, Tensor) else result
    if not described or not isinstance(values, tuple | list):
        return None
    results = [_describe_argument(value, nodes) for value in values]
    if None in results:
        return None
    return {
        "functions": described,
        "results": results,
        "result": 0 if isinstance(result, Tensor) else 1 + isinstance(result, list),
    }


def _describe_argument(value: Any, nodes: dict[int, tuple], viewed: bool = False) -> tuple | None:
    """Describe an argument, or return None for a tensor that is neither in `nodes` nor a view of an input."""
    if isinstance(value, tuple | list) and not has_tensor(value):
        return "constant", value[:] if isinstance(value, list) else value  # the caller may change its list later
    if isinstance(value, tuple | list):
        items: list[Any] = [_describe_argument(item, nodes) for item in value]
        if None in items:
            return None
        kind: Any = [] if isinstance(value, list) else ()  # tensors and their graphs would stay alive with the plan
        return "sequence", kind, items
    if not isinstance(value, Tensor):
        return "constant", value
    node = nodes.get(id(value))
    return (*node[:2], 1) if viewed and node is not None and node[0] == "input" else None if viewed else node


def has_tensor(value: Any) -> bool:
    """Return whether a value is a tensor, or a tuple or list that contains one."""
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(has_tensor, value)))


def _get_apply(function: Any) -> Callable:
    """Return the `apply` of an autograd function without the checks of Function.apply.

    These checks concern functorch transforms, in which no plan runs, and functions with setup_context.
    """
    if isinstance(function, type) and issubclass(function, torch.autograd.Function):
        return super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return function.apply
