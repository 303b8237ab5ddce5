# SPDX-License-Identifier: Apache-2.0
"""Registration of the ops torch.ops.fastds.*; fastds/ops/impl/null_op/op.py is an example.

A public function sets default options, casts under autocast and calls its Op. The Op checks the arguments, selects a
backend and runs it. The call goes through torch's dispatcher only where that is necessary, for example under
torch.compile (see Op._needs_dispatcher). The kernels registered with the dispatcher check, select and run in the same
way, also for direct calls of torch.ops.fastds.X.

Inside functorch transforms and forward-mode AD the reference runs, because the gradient of a native kernel would
silently be zero. The reference also runs for the tensors of autograd.grad(..., is_grads_batched=True), which a kernel
cannot read. Gradients are defined for the registered op itself, so that exported programs contain them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad

from fastds.ops.core import plans
from fastds.ops.core.arguments import check_dense
from fastds.ops.core.backends import Backend, forced_backend, select_backend
from fastds.ops.core.function_plans import apply_function

LIBRARY = torch.library.Library("fastds", "DEF")
OPS: dict[str, "Op"] = {}
_EXACT_TYPES = (torch.Tensor, torch.nn.Parameter)  # other subclasses may override operations
_OPTIONAL_TENSOR_TYPES = frozenset((*_EXACT_TYPES, type(None)))
_EXPENSIVE_PRODUCTS = 5 * 10**8  # multiplications of a weight's gradient, see needs_weight_grad
_EXACT_ARGUMENT_TYPES = frozenset(
    (*_EXACT_TYPES, type(None), bool, int, float, str, tuple, torch.dtype)
)  # neither subclasses of Tensor nor lists of them


def _accept_all(*args) -> None:
    """Accept all arguments. This is the default check of an op."""


@dataclass
class Op:
    """A registered op. The public functions call it after defaults and casts.

    Calls bypass the dispatcher where possible, because it takes a large part of the time of a small call. The
    dispatcher would convert types. Without it, backends must take arguments and return results of exactly the types in
    the schema.

    Attributes:
        name: name of the op.
        overload: torch.ops.fastds.<name>.default.
        reference: differentiable implementation in PyTorch.
        backends: the other backends by name.
        check: check(*args) raises TypeError or ValueError for invalid arguments.
        function: autograd.Function of the op, or None if the reference is differentiated.
        describe: describe(*args) returns further entries of fastds.explain, or None.
    """

    name: str
    overload: Any
    reference: Callable
    backends: dict[str, Backend]
    check: Callable
    function: Any  # type[torch.autograd.Function] | None
    describe: Callable | None = None

    def __post_init__(self):
        arguments = self.overload._schema.arguments
        self.arguments = [argument.name for argument in arguments]
        self.defaults = tuple(argument.default_value for argument in arguments)
        types = [str(argument.type) for argument in arguments]
        self.main = types.index("Tensor")  # position of the argument that gives the device
        flags = [k for k, kind in enumerate(types) if kind == "List[bool]"]
        self.lengths = [(k, arguments[k].N) for k in flags]  # the op's check covers other lists
        self.exact_types = _EXACT_ARGUMENT_TYPES if "List[Tensor]" in types else _EXACT_ARGUMENT_TYPES | {list}
        self.weights = [k for k, name in enumerate(self.arguments) if name.endswith("weight")]

    def __call__(self, *args):
        """Check the arguments and compute the result."""
        if has_active_transforms() or not self._needs_dispatcher(args):
            self.check(*self._fill_defaults(args))
            return self._run_backend(args)
        if torch.compiler.is_compiling():
            self.check(*self._fill_defaults(args))  # while tracing, so that its own message is raised
            return self.overload(*args)
        if not isinstance(args[self.main], torch.Tensor):
            self.check(*self._fill_defaults(args))  # the schema would convert a number to a tensor
        try:
            return self.overload(*args)  # the registered kernel checks
        except RuntimeError:
            self.check(*self._fill_defaults(args))  # raises a clearer message than the schema's
            raise

    def call_unchecked(self, *args):
        """Compute the result without checks, for arguments known to be valid, such as saved tensors."""
        if not torch.compiler.is_compiling():
            found = plans.find_plan(self, *args)
            if found is True:
                return plans.record(self._call_unplanned, self, args, {})
            if found is not None:
                return found
        return self._call_unplanned(*args)

    def _call_unplanned(self, *args):
        if has_active_transforms() or not self._needs_dispatcher(args):
            return self._run_backend(args)
        return self.overload(*args)

    def bind(self, args: tuple, kwargs: dict) -> tuple:
        """Return all arguments of a call in the order of the schema, with defaults.

        Args:
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.

        Raises:
            TypeError: the arguments do not fit the schema.
        """
        given = dict(zip(self.arguments, args, strict=False)) | kwargs
        required = [a.name for a in self.overload._schema.arguments if not a.has_default_value()]
        if len(args) + len(kwargs) != len(given) or set(given) - set(self.arguments) or set(required) - set(given):
            raise TypeError(f"{self.name}: arguments do not fit {self.overload._schema}")
        return tuple(given.get(name, default) for name, default in zip(self.arguments, self.defaults, strict=True))

    def _fill_defaults(self, args: tuple) -> tuple:
        """Return args with the defaults of the last arguments, which the dispatcher omits if they have them."""
        return args if len(args) == len(self.defaults) else args + self.defaults[len(args) :]

    def check_dispatched(self, args: tuple) -> None:
        """Check the arguments of a call through the dispatcher, which allows lists of bool of any length."""
        for k, length in self.lengths:
            if len(args[k]) != length:
                raise ValueError(f"{self.arguments[k]} has {len(args[k])} values, expected {length}")
        self.check(*args)

    def _needs_dispatcher(self, args: tuple) -> bool:
        """Return True if the call must go through the dispatcher.

        Calls under torch.compile, a tracer, a dispatch mode or the profiler must do so. The same holds for calls with
        subclasses of Tensor other than Parameter, and for calls whose main argument is not a tensor on a CPU or CUDA
        device.
        """
        main = args[self.main]
        return (
            torch.compiler.is_compiling()
            or type(main) not in _EXACT_TYPES
            or not (main.is_cpu or main.is_cuda)
            or torch.autograd.profiler._is_profiler_enabled
            or _is_dispatch_intercepted(args, self.exact_types)
        )

    def _run_backend(self, args: tuple, visible: bool = False):
        """Select a backend and run it, with autograd if an argument requires a gradient.

        Args:
            args: arguments of the op.
            visible: bool, whether to run through the dispatcher below autograd, so that tracers, modes and subclasses
                observe the call.
        """
        args = self._fill_defaults(args)
        if not visible and plans.lack_memory(*args):
            args = self._materialize(args)
        tracked = torch.is_grad_enabled() and any(map(_requires_grad, args))
        try:
            if has_active_transforms() or (tracked and self.function is None):
                return self.reference(*args)
            selected = select_backend(self, args)
            if selected == "reference":
                return self.reference(*args)
            backend = self.backends[selected]
            run = self._call_below_autograd if visible else backend.run
            if not tracked:
                return run(*args)
            if not visible and not torch.compiler.is_compiling():
                run = partial(_run_planned, backend)
            return apply_function(self.function, run, args, args if visible else self._wrap_leaf_weights(args))
        except RuntimeError:
            if any(map(is_batched, args)):
                return self.reference(*args)
            check_dense(self.arguments, args)  # only after a failure, because the check costs 1 % of a small call
            raise

    def _wrap_leaf_weights(self, args: tuple) -> tuple:
        """Return the arguments with a view in place of each leaf weight whose gradient is expensive.

        In the backward pass needs_weight_grad queries whether such a gradient is needed. For a leaf that is an input of
        autograd.grad the query raises an exception, which costs 60 us.
        """
        for k in self.weights:
            weight = args[k]
            if weight.requires_grad and _is_weight_grad_expensive(weight, args[self.main]) and weight.is_leaf:
                args = *args[:k], weight.view_as(weight), *args[k + 1 :]
        return args

    def _materialize(self, args: tuple) -> tuple:
        """Return the arguments with zeros in memory in place of torch's zero tensors, which have no memory.

        Raises:
            ValueError: the storage of an argument was freed.
        """

        def materialize(name: str, value):
            if isinstance(value, list | tuple):
                return type(value)(materialize(name, item) for item in value)
            if type(value) not in _EXACT_TYPES or not plans.lack_memory(value):
                return value
            if not value._is_zerotensor():
                raise ValueError(f"{name} has no memory: its storage was freed")
            return value.clone()

        return tuple(map(materialize, self.arguments, args))

    def _call_below_autograd(self, *args):
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*args)

    # ---- kernels registered with the dispatcher

    def run_autograd_kernel(self, *args):
        """Run the op for the dispatch key Autograd."""
        self.check_dispatched(self._fill_defaults(args))
        main = args[self.main]
        visible = (
            torch.compiler.is_compiling()
            or not (main.is_cpu or main.is_cuda)
            or _is_dispatch_intercepted(args, self.exact_types)
        )
        return self._run_backend(args, visible)

    def run_kernel(self, *args):
        """Run the op for the dispatch keys CPU and CUDA."""
        args = self._fill_defaults(args)
        self.check_dispatched(args)
        if plans.lack_memory(*args):
            args = self._materialize(args)
        selected = select_backend(self, args)
        return self.reference(*args) if selected == "reference" else self.backends[selected].run(*args)


def define(
    schema: str,
    *,
    reference: Callable,
    backends: dict[str, Backend],
    fake: Callable,
    check: Callable = _accept_all,
    function: type[torch.autograd.Function] | None = None,
    describe: Callable | None = None,
) -> Op:
    """Register an op.

    Args:
        schema: str, "name(Tensor x, ...) -> Tensor".
        reference: the computation in PyTorch, differentiable to any order.
        backends: dict such as {"native": Backend(...), "triton": Backend(...)}, in order of preference. Backends
            receive checked arguments.
        fake: function that returns results of the right shape, dtype, device and memory format without values. It
            receives checked arguments.
        check: function that raises TypeError or ValueError for arguments that the op cannot take.
        function: autograd.Function without setup_context. Its forward(ctx, run, *args) computes the result by
            run(*args), and its backward calls another registered op. None: the reference is differentiated, as is usual
            for backward ops.
        describe: function that returns further entries of fastds.explain for checked arguments, as a dict of str.

    Returns:
        the Op.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    op = Op(name, getattr(torch.ops.fastds, name).default, reference, backends, check, function, describe)

    def fake_kernel(*args):
        args = op._fill_defaults(args)
        op.check_dispatched(args)
        return fake(*args)

    LIBRARY.impl(name, op.run_kernel, "CPU")
    LIBRARY.impl(name, op.run_kernel, "CUDA")
    LIBRARY.impl(name, op.run_autograd_kernel, "Autograd")
    torch.library.register_fake(f"fastds::{name}", fake_kernel, lib=LIBRARY)
    OPS[name] = op
    return op


def _run_planned(backend: Backend, *args):
    """Run a backend, by the plan of the call if there is one."""
    found = plans.find_plan(backend, *args)
    if found is None:
        return backend.run(*args)
    return plans.record(backend.run, backend, args, {}) if found is True else found


def _requires_grad(value) -> bool:
    """Return True if the value is a tensor, or a list or tuple with a tensor, that requires a gradient."""
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    return isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) and v.requires_grad for v in value)


def has_active_transforms() -> bool:
    """Return True inside functorch transforms (grad, vmap, jvp, ...) and inside forward-mode AD."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _is_dispatch_intercepted(args: tuple, exact_types: frozenset) -> bool:
    """Return True if a dispatch mode, a tracer or a tensor subclass observes calls with these arguments.

    Args:
        args: arguments of the call.
        exact_types: argument types that contain no subclass of Tensor.
    """
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or (
            not exact_types.issuperset(map(type, args))  # first, because it is cheaper than the generator
            and any(map(_is_subclass, args))
        )
    )


def is_intercepted(*tensors: torch.Tensor) -> bool:
    """Return True if functorch, a dispatch mode, a tracer or a tensor subclass observes operations on the tensors."""
    return has_active_transforms() or _is_dispatch_intercepted(tensors, _EXACT_ARGUMENT_TYPES)


def can_bypass_dispatcher(*tensors: torch.Tensor) -> bool:
    """Return True if no backend is forced and no compiler, tracer, mode or subclass observes operations on the tensors.

    The call of an op may then be replaced by a call of torch.
    """
    return forced_backend() is None and not (torch.compiler.is_compiling() or is_intercepted(*tensors))


def _is_subclass(value) -> bool:
    if isinstance(value, list):
        return any(map(_is_subclass, value))
    return isinstance(value, torch.Tensor) and type(value) not in _EXACT_TYPES


def are_exact_tensors(*values) -> bool:
    """Return True if all values are None, Tensor or Parameter and no other subclass of Tensor."""
    return _OPTIONAL_TENSOR_TYPES.issuperset(map(type, values))


def is_batched(value) -> bool:
    """Return True for a batched tensor of autograd.grad(..., is_grads_batched=True).

    That function uses an older vmap of torch than functorch.
    """
    return isinstance(value, torch.Tensor) and torch._C._functorch.is_legacy_batchedtensor(value)


def needs_weight_grad(ctx, weight: torch.Tensor, result: torch.Tensor, *at: int) -> list[bool]:
    """Return whether autograd needs the gradients of a weight and its bias, in the backward pass of a node.

    ctx.needs_input_grad is also True for weights whose gradients autograd.grad(y, x) does not compute. Therefore this
    function queries autograd. It does not do so for cheap gradients, nor for the bias if the gradient of the weight is
    needed; then it returns the values of ctx.needs_input_grad.

    Args:
        ctx: context of the autograd.Function.
        weight: (O, C, ...), the weight.
        result: (B, ., H, W), any tensor with as many pixels as the result.
        *at: positions of weight and bias among the arguments of `forward` after ctx.

    Returns:
        list of bool, one for each position.
    """
    needs_grad: list[bool] = []
    expensive = _is_weight_grad_expensive(weight, result)
    for k in at:
        known = not expensive or any(needs_grad)
        needs_grad.append(ctx.needs_input_grad[k] and (known or _is_grad_requested(ctx, k)))
    return needs_grad


def _is_weight_grad_expensive(weight: torch.Tensor, maps: torch.Tensor) -> bool:
    return weight.numel() * (maps.numel() // max(maps.shape[1], 1)) >= _EXPENSIVE_PRODUCTS


def _is_grad_requested(ctx, k: int) -> bool:
    # next_functions has entries without a node for tensors that require no gradient.
    nodes = [node for node, _ in ctx.next_functions if node is not None]
    try:
        return torch._C._will_engine_execute_node(nodes[sum(ctx.needs_input_grad[:k])])
    except RuntimeError:  # for a leaf that is an input of autograd.grad: a bias, or a weight of a call without Op
        return True


def compute_vjp(function: Callable, tensors, cotangents, needs_grad) -> list[torch.Tensor]:
    """Compute the gradients of sum(cotangents * function(*tensors)), differentiable to any order.

    A tensor that is given twice gets one gradient for each occurrence.

    Args:
        function: function of the tensors that returns a tensor or a tuple of tensors.
        tensors: its arguments. An argument may be None if its gradient is not requested.
        cotangents: gradients of the results, None for zero.
        needs_grad: for each tensor, whether its gradient is requested.

    Returns:
        list of the requested gradients.
    """
    with torch.enable_grad():
        tracked = [
            (t.view_as(t) if t.requires_grad else t.detach().requires_grad_()) if needed else t
            for t, needed in zip(tensors, needs_grad, strict=True)
        ]
        results = function(*tracked)
        results = (results,) if isinstance(results, torch.Tensor) else results
        pairs = [(y, g) for y, g in zip(results, cotangents, strict=True) if g is not None and y.requires_grad]
        leaves = [t for t, needed in zip(tracked, needs_grad, strict=True) if needed]
        if not pairs:
            return [torch.zeros_like(t) for t in leaves]
        ys, gs = zip(*pairs, strict=True)
        options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        return list(torch.autograd.grad(ys, leaves, gs, **options))
