# SPDX-License-Identifier: Apache-2.0
"""A ConvGRU step that keeps its gates and its candidate for the backward, and that backward.

Gradients of x and h, which two convolutions and two passes read, are added where they are made, and from kept gates no
exponential is calculated again. What is kept are results of the op: where the backward is differentiated, its graph
goes on from them, and no convolution of the forward runs again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import DTYPES, check_choice, check_shape, check_tensor
from fastds.ops.core.backends import Backend
from fastds.ops.core.layout import empty_map
from fastds.ops.core.registry import define, needs_weight_grad
from fastds.ops.impl.conv3x3 import kernels, shared_weight_grad
from fastds.ops.impl.conv3x3.algorithm import ALGORITHMS
from fastds.ops.impl.conv3x3.op import compute_differentiable_gradients
from fastds.ops.impl.conv3x3.reference import conv3x3 as reference_convolution
from fastds.ops.impl.conv_cells.fused import ArgumentNames, Convolution, ConvPointwiseOps, run_engine, select_engine
from fastds.ops.impl.gates.op import GRU_RESET_PACKED, GRU_UPDATE, check_update_options
from fastds.ops.impl.gates.pointwise import KERNELS, run_formula
from fastds.ops.impl.gates.reference import gru_update as reference_update

RESET = ConvPointwiseOps("conv_gru_reset", GRU_RESET_PACKED)
UPDATE = ConvPointwiseOps("conv_gru_update", GRU_UPDATE, at=1)
aten = torch.ops.aten


class Inputs(NamedTuple):
    """The tensors of the op; `wanted` of its backward has the same names."""

    h: Tensor
    x: Tensor | None
    gates_weight: Tensor
    gates_bias: Tensor | None
    candidate_weight: Tensor
    candidate_bias: Tensor | None
    gates_share: Tensor | None
    candidate_share: Tensor | None

    def gates(self) -> Convolution:
        """The convolution that gives the gates."""
        return Convolution(*get_sources(self.x, self.h), self.gates_weight, self.gates_bias, self.gates_share)

    def candidate(self, reset: Tensor) -> Convolution:
        """The convolution that gives the candidate, of the reset state."""
        first, second = get_sources(self.x, reset)
        return Convolution(first, second, self.candidate_weight, self.candidate_bias, self.candidate_share)


class Results(NamedTuple):
    """The new state h', and what is kept; `grads` has the same names, None for zero."""

    h: Tensor
    z: Tensor
    r: Tensor
    reset: Tensor
    n: Tensor


class SavedTensors(NamedTuple):
    """What the backward needs."""

    h: Tensor
    x: Tensor | None
    gates_weight: Tensor
    candidate_weight: Tensor
    z: Tensor
    r: Tensor
    reset: Tensor
    n: Tensor


class Options(NamedTuple):
    """As conv_gru_cell has them, and the convolutions' algorithm."""

    keep: str
    act: str
    negative_slope: float
    algorithm: str

    def variant(self) -> tuple[str, float, float]:
        """Of the formulas of csrc/gates: suffix, option and slope."""
        return GRU_UPDATE.spec.variant(self.keep, self.act, self.negative_slope)


_TENSORS, _SETTINGS = len(Inputs._fields), len(Options._fields)


def get_sources(x: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor | None]:
    """The two of a convolution, or the one where x was convolved before."""
    return (state, None) if x is None else (x, state)


def _unsupported_reason(*args):
    return native.unsupported_reason(KERNELS, args[0])


def _run_formula(formula: str, options: Options, like: Tensor, *operands) -> None:
    """operands: maps of C channels, or (map, gates in it); like: one of the maps, channels_last."""
    suffix, option, slope = options.variant()
    if like.numel():
        pairs = [t if isinstance(t, tuple) else (t, 1) for t in operands]
        run_formula(formula.format(suffix), like, like.shape[1], pairs, option, slope)


# ---- forward


def _check(*args) -> None:
    inputs = Inputs(*args[:_TENSORS])
    gates, h = inputs.gates(), inputs.h
    both = ("h", "") if inputs.x is None else ("x", "h")
    names = ArgumentNames(*both, "gates_weight", "gates_bias", "shares[0]")
    RESET.check(gates.x, gates.x2, gates.weight, gates.bias, gates.residual, h, names=names)
    c = inputs.candidate(h)
    weight = inputs.candidate_weight
    check_tensor("candidate_weight", weight, 4, DTYPES, h.device, both[0])
    check_shape("candidate_weight", weight, (h.shape[1], *inputs.gates_weight.shape[1:]))
    names = ArgumentNames(*both, "candidate_weight", "candidate_bias", "shares[1]")
    UPDATE.check(c.x, c.x2, c.weight, c.bias, c.residual, h, h, names=names)
    *update, algorithm = args[_TENSORS:]
    check_update_options(*update)
    check_choice("algorithm", algorithm, ALGORITHMS)


def _fake(h, *_):
    return Results(*(empty_map(h.shape, h.dtype, h) for _ in Results._fields))


def _forward(*args):
    inputs, options = Inputs(*args[:_TENSORS]), Options(*args[_TENSORS:])
    results = _fake(*args)
    h, (new, z, r, reset, n) = inputs.h, results
    _convolve("gru_reset_kept", options, inputs.gates(), (), (h,), (z, r, reset))
    _convolve("gru_update{}_kept", options, inputs.candidate(reset), (z,), (h,), (new, n))
    return tuple(results)


def _convolve(formula, options: Options, convolution: Convolution, before, behind, results):
    """A convolution, and the formula of `before`, what the convolution gives, and `behind`."""
    if (algorithm := select_engine(convolution, before + behind, options.algorithm)) is not None:
        suffix, option, slope = options.variant()
        return run_engine(formula.format(suffix), option, slope, convolution, before + behind, results, None, algorithm)
    pre = convolution.compute(options.algorithm, kernels.forward)
    gates = convolution.weight.shape[0] // results[0].shape[1]
    return _run_formula(formula, options, results[0], *before, (pre, gates), *behind, *results)


def _reference(*args):
    inputs, options = Inputs(*args[:_TENSORS]), Options(*args[_TENSORS:])
    c = inputs.gates()
    z, r = reference_convolution(c.x, c.weight, c.bias, c.x2, c.residual).sigmoid().chunk(2, 1)
    reset = r * inputs.h
    c = inputs.candidate(reset)
    pre = reference_convolution(c.x, c.weight, c.bias, c.x2, c.residual)
    n = pre.tanh() if options.act == "tanh" else F.leaky_relu(pre, options.negative_slope)
    return reference_update(z, pre, inputs.h, *options[:3]), z, r, reset, n


# ---- gradients: as kernels, and with graphs of their own. A gradient of a result that is None is zero.


@dataclass(frozen=True)
class BackwardKernels:
    """How the parts of the backward are computed.

    candidate(grads, kept, options): gradient of the candidate's pre-activation.
    gates(of_reset, grads, kept, options): of the gates' pre-activations, and of h as far as the passes go.
    convolution(*arguments of conv3x3_backward): of x, weight, bias, x2 and residual, None where not wanted.
    """

    candidate: Callable
    gates: Callable
    convolution: Callable


def _backward_candidate(grads: Results, kept: SavedTensors, options: Options):
    result = empty_map(kept.z.shape, kept.z.dtype, kept.z)
    _run_formula("gru_candidate{}_gradient", options, result, grads.h, grads.n, kept.z, kept.n, result)
    return result


def _backward_gates(of_reset, grads: Results, kept: SavedTensors, options: Options):
    """That of h takes the place of of_reset."""
    z = kept.z
    batch, channels, height, width = z.shape
    of_pre = empty_map((batch, 2 * channels, height, width), z.dtype, z)
    given = (of_reset, grads.h, grads.z, grads.r, z, kept.r, kept.n, kept.h)
    _run_formula("gru_gates_gradient", options, z, *given, (of_pre, 2), of_reset)
    return of_pre, of_reset


def _backward_convolution(*args):
    needs_grad = args[9]
    parts = iter(kernels.backward(*args, in_place=True))
    return [next(parts) if needed else None for needed in needs_grad]


def _upcast(*tensors):
    return (None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


def _sum_of_products(like, *pairs):
    """Of gradients, None for zero, and their factors, None for one."""
    terms = [grad if factor is None else grad * factor for grad, factor in pairs if grad is not None]
    return sum(terms[1:], terms[0]) if terms else torch.zeros_like(like)


def _differentiable_candidate(grads: Results, kept: SavedTensors, options: Options):
    dtype = kept.z.dtype
    grad, grad_n, z, n = _upcast(grads.h, grads.n, kept.z, kept.n)
    grad_n = _sum_of_products(z, (grad, 1 - z if options.keep == "z" else z), (grad_n, None))
    if options.act == "tanh":
        return aten.tanh_backward(grad_n, n).to(dtype)
    return aten.leaky_relu_backward(grad_n, n, options.negative_slope, True).to(dtype)


def _differentiable_gates(of_reset, grads: Results, kept: SavedTensors, options: Options):
    dtype, keeps_z = kept.z.dtype, options.keep == "z"
    of_reset, grad, grad_z, grad_r = _upcast(of_reset, grads.h, grads.z, grads.r)
    z, r, n, h = _upcast(kept.z, kept.r, kept.n, kept.h)
    of_z = _sum_of_products(z, (grad, h - n if keeps_z else n - h), (grad_z, None))
    of_r = _sum_of_products(z, (of_reset, h), (grad_r, None))
    of_h = _sum_of_products(z, (of_reset, r), (grad, z if keeps_z else 1 - z))
    of_pre = torch.cat([aten.sigmoid_backward(of_z, z), aten.sigmoid_backward(of_r, r)], 1)
    return of_pre.to(dtype), of_h.to(dtype)


def _differentiable_convolution(*args):
    *args, add_x, add_x2 = args
    found = list(compute_differentiable_gradients(*args))
    for k, addend in ((0, add_x), (3, add_x2)):
        found[k] = found[k] if addend is None else found[k] + addend
    return found


FUSED_KERNELS = BackwardKernels(_backward_candidate, _backward_gates, _backward_convolution)
DIFFERENTIABLE_KERNELS = BackwardKernels(_differentiable_candidate, _differentiable_gates, _differentiable_convolution)


def _compute_gradients(ways: BackwardKernels, grads: Results, kept: SavedTensors, options: Options, needs_grad: Inputs):
    """Those of the op's tensors in the order of Inputs, None where not wanted."""
    of_candidate = ways.candidate(grads, kept, options)
    needs_reset = any(
        (needs_grad.h, needs_grad.x, needs_grad.gates_weight, needs_grad.gates_bias, needs_grad.gates_share)
    )
    requested = (needs_grad.x, needs_reset, needs_grad.candidate_weight, needs_grad.candidate_bias)
    settings = (ways.convolution, options.algorithm)
    of_x, of_reset, of_candidate_weight, of_candidate_bias = _compute_convolution_gradients(
        *settings, of_candidate, kept.x, kept.reset, kept.candidate_weight, requested
    )
    of_gates = of_h = of_weight = of_bias = None
    if needs_reset:
        of_reset = of_reset if grads.reset is None else of_reset + grads.reset
        of_gates, of_h = ways.gates(of_reset, grads, kept, options)
        requested = (needs_grad.x, needs_grad.h, needs_grad.gates_weight, needs_grad.gates_bias)
        added = (of_x, of_h if needs_grad.h else None)
        arguments = (of_gates, kept.x, kept.h, kept.gates_weight, requested)
        of_x, of_h, of_weight, of_bias = _compute_convolution_gradients(*settings, *arguments, *added)
    shares = (of_gates if needs_grad.gates_share else None, of_candidate if needs_grad.candidate_share else None)
    return of_h, of_x, of_weight, of_bias, of_candidate_weight, of_candidate_bias, *shares


def _compute_convolution_gradients(
    convolution, algorithm, grad, x, state, weight, requested, add_x=None, add_state=None
):
    """Gradients of x, state, weight and bias, as far as asked; what is given to be added is asked for."""
    needs_x, needs_state, needs_weight, needs_bias = requested
    if x is None:
        needs_grad, added = [needs_state, needs_weight, needs_bias, False, False], (add_state, None)
    else:
        needs_grad, added = [needs_x, needs_weight, needs_bias, needs_state, False], (add_x, add_state)
    if not any(needs_grad):
        return 4 * (None,)
    first, second = get_sources(x, state)
    settings = (None, 0.0, "zeros", 1, algorithm)
    of_first, of_weight, of_bias, of_second, _ = convolution(grad, first, weight, second, *settings, needs_grad, *added)
    return *((None, of_first) if x is None else (of_first, of_second)), of_weight, of_bias


def _split_backward(args) -> tuple[Results, SavedTensors, Options, Inputs]:
    """The arguments of the backward op by name."""
    grad, *kept = args[: 1 + len(SavedTensors._fields)]
    options, needs_grad = args[-1 - _SETTINGS : -1], args[-1]
    return Results(grad, None, None, None, None), SavedTensors(*kept), Options(*options), Inputs(*needs_grad)


def _check_backward(*args) -> None:
    grads, kept, options, needs_grad = _split_backward(args)
    h = kept.h
    weights = {"gates_weight": kept.gates_weight, "candidate_weight": kept.candidate_weight}
    nothing = dict.fromkeys(Inputs._fields)
    _check(*Inputs(**(nothing | weights | {"h": h, "x": kept.x})), *options)
    if needs_grad.x and kept.x is None:
        raise ValueError("needs_grad requests the gradient of x, but x is None")
    for name, tensor in {"grad": grads.h, "z": kept.z, "r": kept.r, "reset": kept.reset, "n": kept.n}.items():
        check_tensor(name, tensor, 4, (h.dtype,), h.device, "h")
        check_shape(name, tensor, tuple(h.shape))


def _backward_fake(*args):
    _, kept, _, needs_grad = _split_backward(args)
    h, x, (batch, channels, height, width) = kept.h, kept.x, kept.h.shape

    def weight(like, dims):
        return torch.empty(like.shape[:dims], dtype=like.dtype, device=like.device)

    makers = Inputs(
        h=lambda: empty_map(h.shape, h.dtype, h),
        x=lambda: empty_map(x.shape, x.dtype, h),
        gates_weight=lambda: weight(kept.gates_weight, 4),
        gates_bias=lambda: weight(kept.gates_weight, 1),
        candidate_weight=lambda: weight(kept.candidate_weight, 4),
        candidate_bias=lambda: weight(kept.candidate_weight, 1),
        gates_share=lambda: empty_map((batch, 2 * channels, height, width), h.dtype, h),
        candidate_share=lambda: empty_map(h.shape, h.dtype, h),
    )
    return [make() for make, needed in zip(makers, needs_grad, strict=True) if needed]


def _make_backward(ways: BackwardKernels):
    def run_backward(*args):
        return [g for g in _compute_gradients(ways, *_split_backward(args)) if g is not None]

    return run_backward


def _backward_shared_weights(grad, kept: SavedTensors, options, needs_grad: Inputs) -> Inputs:
    """Gradients by kernels; those of weights that the steps of a sequence share are left to the weights' own nodes."""
    weights = kept.gates_weight, kept.candidate_weight
    if None in map(shared_weight_grad.get_shared_node, weights) or not (
        needs_grad.gates_weight and needs_grad.candidate_weight
    ):
        return _call_backward_op(grad, kept, options, needs_grad)
    requested = needs_grad._replace(gates_weight=False, candidate_weight=False, gates_share=True, candidate_share=True)
    found = _call_backward_op(grad, kept, options, requested)
    shared_weight_grad.defer_to_shared_node(kept.gates_weight, found.gates_share, *get_sources(kept.x, kept.h))
    shared_weight_grad.defer_to_shared_node(
        kept.candidate_weight, found.candidate_share, *get_sources(kept.x, kept.reset)
    )
    return found._replace(
        gates_share=found.gates_share if needs_grad.gates_share else None,
        candidate_share=found.candidate_share if needs_grad.candidate_share else None,
    )


def _call_backward_op(grad, kept: SavedTensors, options, needs_grad: Inputs) -> Inputs:
    found = iter(STEP_BACKWARD.call_unchecked(grad, *kept, *options, list(needs_grad)))
    return Inputs(*(next(found) if needed else None for needed in needs_grad))


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *args):
        inputs, results = Inputs(*args[:_TENSORS]), run(*args)
        kept = (inputs.h, inputs.x, inputs.gates_weight, inputs.candidate_weight, *results[1:])
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        ctx.options = args[_TENSORS:]
        return results

    @staticmethod
    def backward(ctx, *grads):
        needs_grad, grads, kept = (
            Inputs(*ctx.needs_input_grad[1 : 1 + _TENSORS]),
            Results(*grads),
            SavedTensors(*ctx.saved_tensors),
        )
        of_gates = needs_weight_grad(ctx, kept.gates_weight, kept.h, 3, 4)
        of_candidate = needs_weight_grad(ctx, kept.candidate_weight, kept.h, 5, 6)
        needs_grad = Inputs(needs_grad.h, needs_grad.x, *of_gates, *of_candidate, *needs_grad[6:])
        unwanted = _SETTINGS * (None,)
        if torch.is_grad_enabled() or any(g is not None for g in grads[1:]):
            arguments = (grads, kept, Options(*ctx.options), needs_grad)
            return None, *_compute_gradients(DIFFERENTIABLE_KERNELS, *arguments), *unwanted
        if grads.h is None or not any(needs_grad):
            return (None,) * len(ctx.needs_input_grad)
        return None, *_backward_shared_weights(grads.h, kept, ctx.options, needs_grad), *unwanted


# ---- registration

_OPTIONS = "str keep, str act, float negative_slope, str algorithm"

STEP = define(
    "conv_gru_step(Tensor h, Tensor? x, Tensor gates_weight, Tensor? gates_bias, Tensor candidate_weight, "
    f"Tensor? candidate_bias, Tensor? gates_share, Tensor? candidate_share, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=_reference,
    backends={"native": Backend(_forward, _unsupported_reason)},
    fake=lambda *args: tuple(_fake(*args)),
    check=_check,
    function=_Step,
)
STEP_BACKWARD = define(
    "conv_gru_step_backward(Tensor grad, Tensor h, Tensor? x, Tensor gates_weight, Tensor candidate_weight, Tensor z, "
    f"Tensor r, Tensor reset, Tensor n, {_OPTIONS}, bool[8] needs_grad) -> Tensor[]",
    reference=_make_backward(DIFFERENTIABLE_KERNELS),
    backends={"native": Backend(_make_backward(FUSED_KERNELS), _unsupported_reason)},
    fake=_backward_fake,
    check=_check_backward,
)
