# SPDX-License-Identifier: Apache-2.0
"""Registration of the ops torch.ops.fastds.*; fastds/ops/impl/null_op/op.py shows its use.

A public function settles options and autocast and calls its Op. That checks the arguments, chooses the implementation
and runs it, each once: directly where nobody watches, else through the dispatcher, whose kernels do the same for
whoever calls torch.ops.fastds.X. Where a functorch transform or forward-mode AD is active the reference runs, because a
native kernel would give a silent zero there; so it does for the tensors of autograd.grad(..., is_grads_batched=True),
which a kernel cannot read. Gradients are attached to the op itself, so that exported programs keep
them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import forward_ad

from fastds.ops.core.arguments import check_dense
from fastds.ops.core.backends import Backend, forced_backend, select_backend

LIBRARY = torch.library.Library("fastds", "DEF")
OPS: dict[str, "Op"] = {}
_EXACT_TYPES = (torch.Tensor, torch.nn.Parameter)  # no subclasses that want to see what happens to them
_OPTIONAL_TENSOR_TYPES = frozenset((*_EXACT_TYPES, type(None)))
_EXPENSIVE_PRODUCTS = 5 * 10**8  # products of a weight's gradient, see reached
_EXACT_ARGUMENT_TYPES = frozenset(
    (*_EXACT_TYPES, type(None), bool, int, float, str, tuple, torch.dtype)
)  # types that hide no subclass


def _accept_all(*args) -> None:
    """The check of an op that can take all its schema allows."""


@dataclass
class Op:
    """A registered op; calling it is the last step of every public function.

    Its implementations take arguments and give results of the schema's own types, because calls bypass the dispatcher,
    which would convert them and take a sixth of the time of a small convolution.
    """

    name: str
    overload: Callable
    reference: Callable
    backends: dict[str, Backend]
    check: Callable
    function: type[torch.autograd.Function] | None

    def __post_init__(self):
        arguments = self.overload._schema.arguments
        self.arguments = [argument.name for argument in arguments]
        self.defaults = tuple(argument.default_value for argument in arguments)
        types = [str(argument.type) for argument in arguments]
        self.main = types.index("Tensor")  # gives the device
        flags = [k for k, kind in enumerate(types) if kind == "List[bool]"]
        self.lengths = [(k, arguments[k].N) for k in flags]  # other lists are left to the op's own check
        self.exact_types = _EXACT_ARGUMENT_TYPES if "List[Tensor]" in types else _EXACT_ARGUMENT_TYPES | {list}
        self.weights = [k for k, name in enumerate(self.arguments) if name.endswith("weight")]

    def __call__(self, *args):
        """Checks the arguments and computes."""
        if has_active_transforms() or not self._needs_dispatcher(args):
            self.check(*self._fill_defaults(args))
            return self._run_backend(args)
        if torch.compiler.is_compiling():
            self.check(*self._fill_defaults(args))  # in its words, while it is traced
            return self.overload(*args)
        if not isinstance(args[self.main], torch.Tensor):
            self.check(*self._fill_defaults(args))  # the schema would make a tensor of a number
        try:
            return self.overload(*args)  # the kernel behind it checks
        except RuntimeError:
            self.check(*self._fill_defaults(args))  # says better what the schema refused
            raise

    def call_unchecked(self, *args):
        """The same for arguments that fit already: those that autograd kept, results of another op."""
        if has_active_transforms() or not self._needs_dispatcher(args):
            return self._run_backend(args)
        return self.overload(*args)

    def bind(self, args: tuple, kwargs: dict) -> tuple:
        """Positional arguments in the order of the schema, as explain() needs them."""
        given = dict(zip(self.arguments, args, strict=False)) | kwargs
        required = [a.name for a in self.overload._schema.arguments if not a.has_default_value()]
        if len(args) + len(kwargs) != len(given) or set(given) - set(self.arguments) or set(required) - set(given):
            raise TypeError(f"{self.name}: arguments do not fit {self.overload._schema}")
        return tuple(given.get(name, default) for name, default in zip(self.arguments, self.defaults, strict=True))

    def _fill_defaults(self, args: tuple) -> tuple:
        """args with the defaults that the dispatcher leaves off at the end."""
        return args if len(args) == len(self.defaults) else args + self.defaults[len(args) :]

    def check_dispatched(self, args: tuple) -> None:
        """The check for whoever calls torch.ops.fastds.X, whose schema takes lists of any length."""
        for k, length in self.lengths:
            if len(args[k]) != length:
                raise ValueError(f"{self.arguments[k]} has {len(args[k])} values, expected {length}")
        self.check(*args)

    def _needs_dispatcher(self, args: tuple) -> bool:
        """Whether the dispatcher is asked: somebody may want to see the op called, or it is on no CPU or GPU."""
        main = args[self.main]
        return (
            torch.compiler.is_compiling()
            or type(main) not in _EXACT_TYPES
            or not (main.is_cpu or main.is_cuda)
            or torch.autograd.profiler._is_profiler_enabled
            or _is_dispatch_intercepted(args, self.exact_types)
        )

    def _run_backend(self, args: tuple, visible: bool = False):
        """Chooses the implementation and runs it, under autograd; visible: it is run below autograd in the dispatcher,
        where tracers, modes and subclasses see it."""
        args = self._fill_defaults(args)
        tracked = torch.is_grad_enabled() and any(map(_requires_grad, args))
        try:
            if has_active_transforms() or (tracked and self.function is None):
                return self.reference(*args)
            chosen = select_backend(self, args)
            if chosen == "reference":
                return self.reference(*args)
            run = self._call_below_autograd if visible else self.backends[chosen].run
            if not tracked:
                return run(*args)
            return self.function.apply(run, *(args if visible else self._wrap_leaf_weights(args)))
        except RuntimeError:
            if any(map(is_batched, args)):
                return self.reference(*args)
            check_dense(self.arguments, args)  # asked when it is too late, because asking costs 1 % of a small call
            raise

    def _wrap_leaf_weights(self, args: tuple) -> tuple:
        """The arguments, each weight that reached() will ask about through a node of its own: of a leaf that
        autograd.grad was asked for torch answers by an exception, which takes 60 us between two convolutions."""
        for k in self.weights:
            weight = args[k]
            if weight.requires_grad and weight.is_leaf and _is_weight_grad_expensive(weight, args[self.main]):
                args = *args[:k], weight.view_as(weight), *args[k + 1 :]
        return args

    def _call_below_autograd(self, *args):
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*args)

    # ---- the kernels behind the dispatcher

    def run_autograd_kernel(self, *args):
        self.check_dispatched(self._fill_defaults(args))
        main = args[self.main]
        visible = (
            torch.compiler.is_compiling()
            or not (main.is_cpu or main.is_cuda)
            or _is_dispatch_intercepted(args, self.exact_types)
        )
        return self._run_backend(args, visible)

    def kernel(self, *args):
        args = self._fill_defaults(args)
        self.check_dispatched(args)
        chosen = select_backend(self, args)
        return self.reference(*args) if chosen == "reference" else self.backends[chosen].run(*args)


def define(
    schema: str,
    *,
    reference: Callable,
    backends: dict[str, Backend],
    fake: Callable,
    check: Callable = _accept_all,
    function: type[torch.autograd.Function] | None = None,
) -> Op:
    """Registers one op.

    Args:
        schema: "name(Tensor x, ...) -> Tensor".
        reference: the same computation in plain PyTorch, differentiable to any order.
        backends: {"native": Backend(...), "triton": Backend(...)}, the preferred one first; of checked arguments.
        fake: gives outputs of the right shape, dtype, device and memory format without computing, of checked arguments.
        check: raises TypeError or ValueError for arguments that the op cannot take.
        function: autograd.Function (old style) whose forward(ctx, run, *args) computes by run(*args)
            and whose backward calls another op of this registry; None: the reference is differentiated, right for
            backward ops.

    Returns:
        the Op.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    op = Op(name, getattr(torch.ops.fastds, name).default, reference, backends, check, function)

    def fake_kernel(*args):
        args = op._fill_defaults(args)
        op.check_dispatched(args)
        return fake(*args)

    LIBRARY.impl(name, op.kernel, "CPU")
    LIBRARY.impl(name, op.kernel, "CUDA")
    LIBRARY.impl(name, op.run_autograd_kernel, "Autograd")
    torch.library.register_fake(f"fastds::{name}", fake_kernel, lib=LIBRARY)
    OPS[name] = op
    return op


def _requires_grad(value) -> bool:
    """Of a tensor, or of any in a list of tensors."""
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    return isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) and v.requires_grad for v in value)


def has_active_transforms() -> bool:
    """True inside functorch transforms (grad, vmap, jvp, ...) and open forward-mode AD levels."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _is_dispatch_intercepted(args: tuple, usual: frozenset) -> bool:
    """Whether a tracer, a dispatch mode or a subclass of Tensor wants to see what is called with these arguments."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or (
            not usual.issuperset(map(type, args))  # asked first: the generator costs more than all the rest
            and any(map(_is_subclass, args))
        )
    )


def is_intercepted(*tensors: torch.Tensor) -> bool:
    """Whether functorch, a tracer, a dispatch mode or a subclass of Tensor wants to see what is done to the tensors."""
    return has_active_transforms() or _is_dispatch_intercepted(tensors, _EXACT_ARGUMENT_TYPES)


def can_bypass_dispatcher(*tensors: torch.Tensor) -> bool:
    """Whether nobody asks for an op of these tensors: for one of its implementations, or to see it called."""
    return forced_backend() is None and not (torch.compiler.is_compiling() or is_intercepted(*tensors))


def _is_subclass(value) -> bool:
    if isinstance(value, list):
        return any(map(_is_subclass, value))
    return isinstance(value, torch.Tensor) and type(value) not in _EXACT_TYPES


def are_exact_tensors(*values) -> bool:
    """Whether all are tensors of no subclass, or None."""
    return _OPTIONAL_TENSOR_TYPES.issuperset(map(type, values))


def is_batched(value) -> bool:
    """Of a tensor inside autograd.grad(..., is_grads_batched=True), whose vmap is another than functorch's."""
    return isinstance(value, torch.Tensor) and torch._C._functorch.is_legacy_batchedtensor(value)


def needs_weight_grad(ctx, weight: torch.Tensor, result: torch.Tensor, *at: int) -> list[bool]:
    """Which gradients of a weight and its bias the backward pass of a node has to calculate; result: a map of as many
    pixels as the result; at: the places of weight and bias among the arguments of its forward.

    torch.autograd.grad(y, x) does not reach the weights between, and ctx.needs_input_grad does not tell. Where the
    weight is reached the bias is taken to be, too. Nobody asks where the gradient takes little time.
    """
    needs_grad, worth = [], _is_weight_grad_expensive(weight, result)
    for k in at:
        known = not worth or any(needs_grad)
        needs_grad.append(ctx.needs_input_grad[k] and (known or _is_grad_requested(ctx, k)))
    return needs_grad


def _is_weight_grad_expensive(weight: torch.Tensor, maps: torch.Tensor) -> bool:
    return weight.numel() * (maps.numel() // max(maps.shape[1], 1)) >= _EXPENSIVE_PRODUCTS


def _is_grad_requested(ctx, k: int) -> bool:
    nodes = [node for node, _ in ctx.next_functions if node is not None]  # of the arguments that require a gradient
    try:
        return torch._C._will_engine_execute_node(nodes[sum(ctx.needs_input_grad[:k])])
    except RuntimeError:  # of a leaf that was asked for: a bias, a weight of whoever calls without Op
        return True


def compute_vjp(function: Callable, tensors, cotangents, needs_grad) -> list[torch.Tensor]:
    """Gradients of sum(cotangents * function(*tensors)) for the wanted tensors, differentiable to any order.

    Entries of tensors that are not wanted and entries of cotangents may be None, for zero. Works on views: a tensor
    given twice gets the gradient of each apart.
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
