# SPDX-License-Identifier: Apache-2.0
"""Plans of calls on a GPU without gradients: repeat launches of Triton kernels without the Python code of the op.

Such a plan lists functions (function_plans.py): the functions of torch by which the call allocates, casts and views
tensors, and the launchers of fastds.kernels, which have plans of their own (kernels/launch_plans.py). A call has no
plan if it runs anything else that computes: native functions, other functions of torch, or kernels outside of
launchers. Nothing is decided in a plan; its key has all that the Python code depends on.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastds.ops.core import function_plans, native, triton_loader

# Functions of torch that a plan repeats, by name. Their results depend on nothing but their arguments.
_REPEATED = frozenset(
    ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "zeros", "clone", "contiguous", "float")
    + ("to", "resolve_neg", "reshape", "flatten", "narrow", "permute", "t", "transpose", "view", "view_as", "detach")
    + ("__getitem__", "chunk", "split", "unbind")
)
# Functions of torch whose results depend on what the key contains.
_QUERIES = frozenset(
    ("dim", "element_size", "is_conj", "is_contiguous", "is_floating_point", "is_neg", "numel", "promote_types", "size")
    + ("stride", "get_device", "is_complex")
)
_PROPERTIES = frozenset(
    ("device", "dtype", "is_cpu", "is_cuda", "is_meta", "is_nested", "itemsize", "layout", "nbytes", "ndim")
    + ("requires_grad", "shape")
)


class _Tracer(TorchFunctionMode):
    """Note the functions of torch and the launchers that are called inside the `with` block.

    Attributes:
        calls: the calls, as function_plans.describe_calls takes them.
        is_complete: whether a plan of these calls would do all that the block did.
    """

    def __init__(self, inputs: list[Tensor]):
        super().__init__()
        self.calls: list[tuple] = []
        self.is_complete = True
        self._known = {id(t) for t in inputs}  # of tensors that stay alive
        self._launching = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._launching:
            return result
        name = getattr(func, "__name__", "")
        values = result if isinstance(result, tuple) else (result,)
        if any(isinstance(v, Tensor) for v in values):
            by_tensor = name == "__getitem__" and function_plans.has_tensor(args[1:])  # reads values of a mask
            if name not in _REPEATED or by_tensor or not all(isinstance(v, Tensor) for v in values):
                self.is_complete = False
            elif not all(id(v) in self._known for v in values):  # a tensor itself, if nothing had to be done
                self._note(func, args, kwargs, result)
                self._known |= {id(v) for v in values}
        elif name == "__get__":
            self.is_complete &= getattr(getattr(func, "__self__", None), "__name__", "") in _PROPERTIES
        else:
            self.is_complete &= name in _QUERIES  # data_ptr is none: kernels outside of launchers read addresses
        return result

    def launch(self, launcher: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        """Call a launcher and note the call."""
        self._launching = True
        try:
            launcher(*args, **kwargs)
        finally:
            self._launching = False
        self._note(launcher, args, kwargs, None)

    def _note(self, function: Callable, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        """Append a call with positional arguments only."""
        if any(isinstance(value, Tensor) for value in kwargs.values()):
            function = partial(_call_with_names, function, tuple(kwargs))
            args = (*args, *kwargs.values())
        elif kwargs:
            function = partial(function, **kwargs)
        self.calls.append((function, None, args, args, result))


def _call_with_names(function: Callable, names: tuple[str, ...], *args: Any) -> Any:
    """Call a function with the last arguments as keyword arguments."""
    count = len(args) - len(names)
    return function(*args[:count], **dict(zip(names, args[count:], strict=True)))


def record(function: Callable[[], Any], tensors: list[Tensor]) -> tuple[Any, dict[str, Any] | None]:
    """Run a call without gradients on a GPU.

    Args:
        function: makes the call.
        tensors: the tensors among the arguments of the call. None of them is given twice.

    Returns:
        the result, and the description of the plan for plans_set of the native module. It is None if the call has none.
    """
    if triton_loader.find_reason_without_launch_plans() is not None:
        return function(), None
    tracer = _Tracer(tensors)
    native_calls: list[tuple] = []
    observe_launchers = triton_loader.load_kernels("launch_plans").observe_launchers
    with native.record_calls(native_calls), observe_launchers(tracer.launch), tracer:
        result = function()
    if native_calls or not tracer.is_complete:
        return result, None
    return result, function_plans.describe_calls(tracer.calls, tensors, result)
