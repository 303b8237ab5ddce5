# SPDX-License-Identifier: Apache-2.0
"""Registration of the ops torch.ops.fastds.*; fastds/ops/null_op.py shows its use.

A call passes: the public function (validation, autocast) -> call(): the reference where a functorch transform or
forward-mode AD is active, because a native kernel would give a silent zero there -> the op's Autograd kernel: the op's
autograd.Function where a gradient is wanted -> the op's CPU or CUDA kernel: the chosen implementation.
Gradients are attached to the op itself, so torch.ops.fastds.X called directly and exported programs keep them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.autograd import forward_ad

from fastds.ops.core.backends import choose

LIBRARY = torch.library.Library("fastds", "DEF")
OPS: dict[str, "Op"] = {}
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # no subclasses that want to see what happens to them
_USUAL = frozenset((*_PLAIN, type(None), bool, int, float, str, list, tuple, torch.dtype))  # types of arguments


@dataclass(frozen=True)
class Backend:
    """One implementation: run(*args) computes; refusal(*args) computes nothing and gives None or why it cannot run.

    preferred(*args): whether it goes before those listed ahead of it; None: never.
    """

    run: Callable
    refusal: Callable
    preferred: Callable | None = None


@dataclass
class Op:
    name: str
    overload: Callable
    reference: Callable
    backends: dict[str, Backend]
    function: type[torch.autograd.Function] | None = field(default=None)
    short: bool = False

    def __post_init__(self):
        self.arguments = [argument.name for argument in self.overload._schema.arguments]
        self.defaults = tuple(a.default_value for a in self.overload._schema.arguments)

    def ranked(self, args):
        """Names of the implementations in the order in which they are tried for these arguments."""
        if len(self.backends) == 1:
            return list(self.backends)
        first = [n for n, b in self.backends.items() if b.preferred is not None and b.preferred(*args)]
        return [*first, *(n for n in self.backends if n not in first)] if first else list(self.backends)

    def run(self, *args):
        """Computes by the chosen implementation: what stands behind the dispatcher."""
        args = self.filled(args)
        chosen = choose(self, args)
        return self.reference(*args) if chosen == "reference" else self.backends[chosen].run(*args)

    def filled(self, args):
        """args with the defaults that the dispatcher leaves off at the end."""
        return args if len(args) == len(self.defaults) else args + self.defaults[len(args) :]

    def bind(self, args, kwargs):
        """Positional arguments in the order of the schema, as explain() needs them."""
        given = dict(zip(self.arguments, args, strict=False)) | kwargs
        required = [a.name for a in self.overload._schema.arguments if not a.has_default_value()]
        if len(args) + len(kwargs) != len(given) or set(given) - set(self.arguments) or set(required) - set(given):
            raise TypeError(f"{self.name}: arguments do not fit {self.overload._schema}")
        return tuple(given.get(name, default) for name, default in zip(self.arguments, self.defaults, strict=True))


def define(schema, *, reference, backends, fake, function=None, short=False):
    """Registers one op.

    Args:
        schema: "name(Tensor x, ...) -> Tensor".
        reference: the same computation in plain PyTorch, differentiable to any order.
        backends: {"native": Backend(...), "triton": Backend(...)}, the preferred one first.
        fake: gives outputs of the right shape, dtype, device and memory format without computing.
        function: autograd.Function (old style, forward(ctx, ...)) whose forward calls the op and whose backward calls
            another op of this registry; None: the reference is differentiated, right for backward ops.
        short: calls are so short that they pass the dispatcher by where nobody watches it; the implementations must
            then take arguments and give results of the schema's own types.

    Returns:
        the Op, to be called with call(op, *args).
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    op = Op(name, getattr(torch.ops.fastds, name).default, reference, backends, function, short)

    def autograd_kernel(*args):
        args = op.filled(args)
        wants_gradient = torch.is_grad_enabled() and any(map(_requires_grad, args))
        if transforms_active() or (wants_gradient and function is None) or choose(op, args) == "reference":
            return reference(*args)
        if wants_gradient:
            return function.apply(*args)
        return without_gradients(op, *args)

    LIBRARY.impl(name, op.run, "CPU")
    LIBRARY.impl(name, op.run, "CUDA")
    LIBRARY.impl(name, autograd_kernel, "Autograd")
    torch.library.register_fake(f"fastds::{name}", fake, lib=LIBRARY)
    OPS[name] = op
    return op


def _requires_grad(value):
    """Of a tensor, or of any in a list of tensors."""
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    return isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) and v.requires_grad for v in value)


def transforms_active():
    """True inside functorch transforms (grad, vmap, jvp, ...) and open forward-mode AD levels."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def watched(args):
    """Whether somebody else may want to see an op called: a compiler, tracer, profiler, mode or subclass of Tensor."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or torch.autograd.profiler._is_profiler_enabled
        or not args[0].is_cpu
        or (
            not _USUAL.issuperset(map(type, args))  # asked first: the generator costs more than all the rest
            and any(isinstance(a, torch.Tensor) and type(a) not in _PLAIN for a in args)
        )
    )


def without_gradients(op, *args):
    """Runs a registered op below autograd; what the forward of its autograd.Function calls."""
    if op.short and not watched(args):
        return op.run(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op.overload(*args)


def call(op, *args):
    """Runs a registered op; the last step of every public op function."""
    if transforms_active():
        return op.reference(*args)
    if op.short and not torch.is_grad_enabled() and not watched(args):
        return op.run(*args)  # not below autograd: the reference of a backward op differentiates
    return op.overload(*args)


def reference_gradients(function, inputs, grad_outputs):
    """Gradients of function(*inputs) by autograd, themselves differentiable: the reference of a backward op.

    Args:
        function: differentiable, in plain PyTorch.
        inputs: its arguments; entries that are not tensors get None.
        grad_outputs: gradient of its output.

    Returns:
        list of gradients or None, one per input; zeros where the output does not depend on an input.
    """
    with torch.enable_grad():
        tracked = [
            x if not isinstance(x, torch.Tensor) or x.requires_grad else x.detach().requires_grad_() for x in inputs
        ]
        wanted = [x for x in tracked if isinstance(x, torch.Tensor)]
        gradients = iter(
            torch.autograd.grad(
                function(*tracked), wanted, grad_outputs, create_graph=True, allow_unused=True, materialize_grads=True
            )
        )
        return [next(gradients) if isinstance(x, torch.Tensor) else None for x in tracked]


def vector_jacobian(function, tensors, cotangents, wanted):
    """Gradients of sum(cotangents * function(*tensors)) for the wanted tensors, differentiable to any order.

    Entries of tensors that are not wanted and entries of cotangents may be None, for zero. Works on views: a tensor
    given twice gets the gradient of each apart.
    """
    with torch.enable_grad():
        tracked = [
            (t.view_as(t) if t.requires_grad else t.detach().requires_grad_()) if want else t
            for t, want in zip(tensors, wanted, strict=True)
        ]
        results = function(*tracked)
        results = (results,) if isinstance(results, torch.Tensor) else results
        pairs = [(y, g) for y, g in zip(results, cotangents, strict=True) if g is not None and y.requires_grad]
        leaves = [t for t, want in zip(tracked, wanted, strict=True) if want]
        if not pairs:
            return [torch.zeros_like(t) for t in leaves]
        ys, gs = zip(*pairs, strict=True)
        options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        return list(torch.autograd.grad(ys, leaves, gs, **options))
