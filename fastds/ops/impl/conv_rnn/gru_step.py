# SPDX-License-Identifier: Apache-2.0
"""ConvGRU step that saves gates and candidate for its backward pass, and the op of the backward pass.

Two convolutions and two pointwise formulas read x and h; the kernels of the backward pass add the gradients of x and h
while they compute them. The backward pass reads the saved gates, so that it computes no exponentials. The saved tensors
are results of the op, so that a backward pass that is itself differentiated does not repeat a convolution of the
forward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from fastds.ops.impl.conv_rnn.fused import ArgumentNames, Convolution, ConvPointwiseOps, run_engine, select_engine
from fastds.ops.impl.gates.op import GRU_RESET_PACKED, GRU_UPDATE, check_update_options
from fastds.ops.impl.gates.pointwise import KERNELS, run_formula
from fastds.ops.impl.gates.reference import gru_update as reference_update

RESET = ConvPointwiseOps("conv_gru_reset", GRU_RESET_PACKED)
UPDATE = ConvPointwiseOps("conv_gru_update", GRU_UPDATE, position=1)
aten = torch.ops.aten


class Inputs(NamedTuple):
    """Tensor arguments of the op. `needs_grad` of the backward op has a bool for each of these names."""

    h: Tensor
    x: Tensor | None
    gates_weight: Tensor
    gates_bias: Tensor | None
    candidate_weight: Tensor
    candidate_bias: Tensor | None
    gates_share: Tensor | None
    candidate_share: Tensor | None

    def make_gates_convolution(self) -> Convolution:
        """Return the convolution that computes the gates."""
        return Convolution(*get_sources(self.x, self.h), self.gates_weight, self.gates_bias, self.gates_share)

    def make_candidate_convolution(self, reset: Tensor) -> Convolution:
        """Return the convolution that computes the candidate from the reset state."""
        first, second = get_sources(self.x, reset)
        return Convolution(first, second, self.candidate_weight, self.candidate_bias, self.candidate_share)


_make_inputs: Any = Inputs  # for values that are no tensors, such as bools


class Results(NamedTuple):
    """New state and saved tensors. The gradients of the results have the same names; None means a gradient of zero."""

    h: Tensor
    z: Tensor
    r: Tensor
    reset: Tensor
    n: Tensor


class SavedTensors(NamedTuple):
    """Tensors that the backward pass needs."""

    h: Tensor
    x: Tensor | None
    gates_weight: Tensor
    candidate_weight: Tensor
    z: Tensor
    r: Tensor
    reset: Tensor
    n: Tensor


class Options(NamedTuple):
    """Options of conv_gru_cell, and the algorithm of the convolutions."""

    keep: str
    act: str
    negative_slope: float
    algorithm: str

    def get_variant(self) -> tuple[str, float, float]:
        """Return the suffix of the formula's name, GatesParams.option and the slope, for the formulas of csrc/gates."""
        return GRU_UPDATE.spec.variant(self.keep, self.act, self.negative_slope)


_TENSORS, _SETTINGS = len(Inputs._fields), len(Options._fields)


def get_sources(x: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the two sources of a convolution: x and the state, or the state and None if x is None."""
    return (state, None) if x is None else (x, state)


def _unsupported_reason(*args):
    return native.unsupported_reason(KERNELS, args[0])


def _run_formula(formula: str, options: Options, like: Tensor, *operands) -> None:
    """Run a formula of csrc/gates.

    Args:
        formula: str, name of the formula, with {} for the suffix of the activation.
        options: options of the step.
        like: one of the tensors, (B, C, H, W), channels_last.
        *operands: tensors with C channels, or pairs (tensor, number of gates packed in it), or None.
    """
    suffix, option, slope = options.get_variant()
    if like.numel():
        pairs = [t if isinstance(t, tuple) else (t, 1) for t in operands]
        run_formula(formula.format(suffix), like, like.shape[1], pairs, option, slope)


# ---- forward


def _check(*args) -> None:
    inputs = Inputs(*args[:_TENSORS])
    gates, h = inputs.make_gates_convolution(), inputs.h
    both = ("h", "") if inputs.x is None else ("x", "h")
    names = ArgumentNames(*both, "gates_weight", "gates_bias", "shares[0]")
    RESET.check(gates.x, gates.x2, gates.weight, gates.bias, gates.residual, h, names=names)
    c = inputs.make_candidate_convolution(h)
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
    _convolve("gru_reset_kept", options, inputs.make_gates_convolution(), (), (h,), (z, r, reset))
    _convolve("gru_update{}_kept", options, inputs.make_candidate_convolution(reset), (z,), (h,), (new, n))
    return tuple(results)


def _convolve(formula, options: Options, convolution: Convolution, inputs_before, inputs_after, results):
    """Run a convolution and a formula on its output.

    Args:
        formula: str, name of the formula, with {} for the suffix of the activation.
        options: options of the step.
        convolution: the convolution.
        inputs_before: inputs of the formula before the convolution's output.
        inputs_after: inputs of the formula after the convolution's output.
        results: outputs of the formula.
    """
    if (algorithm := select_engine(convolution, inputs_before + inputs_after, options.algorithm)) is not None:
        suffix, option, slope = options.get_variant()
        return run_engine(
            formula.format(suffix), option, slope, convolution, inputs_before + inputs_after, results, None, algorithm
        )
    pre = convolution.compute(options.algorithm, kernels.forward)
    gates = convolution.weight.shape[0] // results[0].shape[1]
    return _run_formula(formula, options, results[0], *inputs_before, (pre, gates), *inputs_after, *results)


def _reference(*args):
    inputs, options = Inputs(*args[:_TENSORS]), Options(*args[_TENSORS:])
    c = inputs.make_gates_convolution()
    z, r = reference_convolution(c.x, c.weight, c.bias, c.x2, c.residual).sigmoid().chunk(2, 1)
    reset = r * inputs.h
    c = inputs.make_candidate_convolution(reset)
    pre = reference_convolution(c.x, c.weight, c.bias, c.x2, c.residual)
    n = pre.tanh() if options.act == "tanh" else F.leaky_relu(pre, options.negative_slope)
    return reference_update(z, pre, inputs.h, *options[:3]), z, r, reset, n


# ---- gradients, by kernels and by differentiable operations. A gradient of None is zero.


@dataclass(frozen=True)
class BackwardImplementation:
    """Functions that compute the parts of the backward pass.

    Attributes:
        candidate: candidate(grads, saved, options) returns the gradient of the candidate's pre-activation.
        gates: gates(grad_reset, grads, saved, options) returns the gradient of the gates' pre-activations, and the
            gradient of h without the contribution of the convolution of the gates.
        convolution: convolution(*arguments of conv3x3_backward) returns the gradients of x, weight, bias, x2 and
            residual; gradients that are not needed are None.
    """

    candidate: Callable
    gates: Callable
    convolution: Callable


def _backward_candidate(grads: Results, saved: SavedTensors, options: Options):
    """Compute `candidate` of BackwardImplementation by a native kernel."""
    result = empty_map(saved.z.shape, saved.z.dtype, saved.z)
    _run_formula("gru_candidate{}_gradient", options, result, grads.h, grads.n, saved.z, saved.n, result)
    return result


def _backward_gates(grad_reset, grads: Results, saved: SavedTensors, options: Options):
    """Compute `gates` of BackwardImplementation; the gradient of h overwrites grad_reset."""
    z = saved.z
    batch, channels, height, width = z.shape
    grad_pre = empty_map((batch, 2 * channels, height, width), z.dtype, z)
    given = (grad_reset, grads.h, grads.z, grads.r, z, saved.r, saved.n, saved.h)
    _run_formula("gru_gates_gradient", options, z, *given, (grad_pre, 2), grad_reset)
    return grad_pre, grad_reset


def _backward_convolution(*args):
    """Compute `convolution` of BackwardImplementation by kernels; the sums overwrite the addends."""
    needs_grad = args[9]
    backward: Any = kernels.backward
    parts = iter(backward(*args, in_place=True))
    return [next(parts) if needed else None for needed in needs_grad]


def _upcast(*tensors):
    return (None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


def _sum_of_products(like, *pairs):
    """Sum gradients times factors over pairs; a gradient of None is zero, a factor of None is one."""
    terms = [grad if factor is None else grad * factor for grad, factor in pairs if grad is not None]
    return sum(terms[1:], terms[0]) if terms else torch.zeros_like(like)


def _differentiable_candidate(grads: Results, saved: SavedTensors, options: Options):
    """Compute `candidate` of BackwardImplementation by differentiable operations."""
    dtype = saved.z.dtype
    grad, grad_n, z, n = _upcast(grads.h, grads.n, saved.z, saved.n)
    grad_n = _sum_of_products(z, (grad, 1 - z if options.keep == "z" else z), (grad_n, None))
    if options.act == "tanh":
        return aten.tanh_backward(grad_n, n).to(dtype)
    return aten.leaky_relu_backward(grad_n, n, options.negative_slope, True).to(dtype)


def _differentiable_gates(grad_reset, grads: Results, saved: SavedTensors, options: Options):
    """Compute `gates` of BackwardImplementation by differentiable operations."""
    dtype, keeps_z = saved.z.dtype, options.keep == "z"
    grad_reset, grad, grad_z, grad_r = _upcast(grad_reset, grads.h, grads.z, grads.r)
    z, r, n, h = _upcast(saved.z, saved.r, saved.n, saved.h)
    total_z = _sum_of_products(z, (grad, h - n if keeps_z else n - h), (grad_z, None))
    total_r = _sum_of_products(z, (grad_reset, h), (grad_r, None))
    grad_h = _sum_of_products(z, (grad_reset, r), (grad, z if keeps_z else 1 - z))
    grad_pre = torch.cat([aten.sigmoid_backward(total_z, z), aten.sigmoid_backward(total_r, r)], 1)
    return grad_pre.to(dtype), grad_h.to(dtype)


def _differentiable_convolution(*args):
    """Implement BackwardImplementation.convolution by differentiable operations."""
    *given, add_x, add_x2 = args
    found = list(compute_differentiable_gradients(*given))
    for k, addend in ((0, add_x), (3, add_x2)):
        found[k] = found[k] if addend is None else found[k] + addend
    return found


FUSED_KERNELS = BackwardImplementation(_backward_candidate, _backward_gates, _backward_convolution)
DIFFERENTIABLE_KERNELS = BackwardImplementation(
    _differentiable_candidate, _differentiable_gates, _differentiable_convolution
)


def _compute_gradients(
    implementation: BackwardImplementation, grads: Results, saved: SavedTensors, options: Options, needs_grad: Inputs
):
    """Compute the gradients of the op's tensors in the order of Inputs; gradients that are not needed are None.

    Args:
        implementation: functions for the parts.
        grads: gradients of the results.
        saved: saved tensors.
        options: options of the step.
        needs_grad: bool for each tensor.
    """
    grad_candidate = implementation.candidate(grads, saved, options)
    needs_reset = any(
        (needs_grad.h, needs_grad.x, needs_grad.gates_weight, needs_grad.gates_bias, needs_grad.gates_share)
    )
    requested: tuple = (needs_grad.x, needs_reset, needs_grad.candidate_weight, needs_grad.candidate_bias)
    settings = (implementation.convolution, options.algorithm)
    grad_x, grad_reset, grad_candidate_weight, grad_candidate_bias = _compute_convolution_gradients(
        *settings, grad_candidate, saved.x, saved.reset, saved.candidate_weight, requested
    )
    grad_gates = grad_h = grad_weight = grad_bias = None
    if needs_reset:
        grad_reset = grad_reset if grads.reset is None else grad_reset + grads.reset
        grad_gates, grad_h = implementation.gates(grad_reset, grads, saved, options)
        requested = (needs_grad.x, needs_grad.h, needs_grad.gates_weight, needs_grad.gates_bias)
        added = (grad_x, grad_h if needs_grad.h else None)
        arguments = (grad_gates, saved.x, saved.h, saved.gates_weight, requested)
        grad_x, grad_h, grad_weight, grad_bias = _compute_convolution_gradients(*settings, *arguments, *added)
    shares = (grad_gates if needs_grad.gates_share else None, grad_candidate if needs_grad.candidate_share else None)
    return grad_h, grad_x, grad_weight, grad_bias, grad_candidate_weight, grad_candidate_bias, *shares


def _compute_convolution_gradients(
    convolution, algorithm, grad, x, state, weight, requested, add_x=None, add_state=None
):
    """Compute the gradients of x, state, weight and bias, or None where not requested.

    Args:
        convolution: function of BackwardImplementation.
        algorithm: str, requested algorithm.
        grad: gradient of the convolution's output.
        x: first source or None.
        state: state that is convolved.
        weight: the filters.
        requested: four bools.
        add_x: tensor that is added to the gradient of x, which must then be requested, or None.
        add_state: tensor that is added to the gradient of the state, which must then be requested, or None.
    """
    needs_x, needs_state, needs_weight, needs_bias = requested
    if x is None:
        needs_grad, added = [needs_state, needs_weight, needs_bias, False, False], (add_state, None)
    else:
        needs_grad, added = [needs_x, needs_weight, needs_bias, needs_state, False], (add_x, add_state)
    if not any(needs_grad):
        return 4 * (None,)
    first, second = get_sources(x, state)
    settings = (None, 0.0, "zeros", 1, algorithm)
    grad_first, grad_weight, grad_bias, grad_second, _ = convolution(
        grad, first, weight, second, *settings, needs_grad, *added
    )
    return *((None, grad_first) if x is None else (grad_first, grad_second)), grad_weight, grad_bias


def _split_backward(args) -> tuple[Results, SavedTensors, Options, Inputs]:
    """Return the arguments of the backward op by name."""
    grad, *saved = args[: 1 + len(SavedTensors._fields)]
    options, needs_grad = args[-1 - _SETTINGS : -1], args[-1]
    nothing: Any = None
    return (
        Results(grad, nothing, nothing, nothing, nothing),
        SavedTensors(*saved),
        Options(*options),
        Inputs(*needs_grad),
    )


def _check_backward(*args) -> None:
    grads, saved, options, needs_grad = _split_backward(args)
    h = saved.h
    weights: dict[str, Any] = {"gates_weight": saved.gates_weight, "candidate_weight": saved.candidate_weight}
    nothing: dict[str, Any] = dict.fromkeys(Inputs._fields)
    _check(*Inputs(**(nothing | weights | {"h": h, "x": saved.x})), *options)
    if needs_grad.x and saved.x is None:
        raise ValueError("needs_grad requests the gradient of x, but x is None")
    for name, tensor in {"grad": grads.h, "z": saved.z, "r": saved.r, "reset": saved.reset, "n": saved.n}.items():
        check_tensor(name, tensor, 4, (h.dtype,), h.device, "h")
        check_shape(name, tensor, tuple(h.shape))


def _backward_fake(*args):
    _, saved, _, needs_grad = _split_backward(args)
    x: Any
    h, x, (batch, channels, height, width) = saved.h, saved.x, saved.h.shape

    def weight(like, dims):
        return torch.empty(like.shape[:dims], dtype=like.dtype, device=like.device)

    makers = _make_inputs(
        h=lambda: empty_map(h.shape, h.dtype, h),
        x=lambda: empty_map(x.shape, x.dtype, h),
        gates_weight=lambda: weight(saved.gates_weight, 4),
        gates_bias=lambda: weight(saved.gates_weight, 1),
        candidate_weight=lambda: weight(saved.candidate_weight, 4),
        candidate_bias=lambda: weight(saved.candidate_weight, 1),
        gates_share=lambda: empty_map((batch, 2 * channels, height, width), h.dtype, h),
        candidate_share=lambda: empty_map(h.shape, h.dtype, h),
    )
    return [make() for make, needed in zip(makers, needs_grad, strict=True) if needed]


def _make_backward(implementation: BackwardImplementation):
    """Return the backward op's function for an implementation."""

    def run_backward(*args):
        return [g for g in _compute_gradients(implementation, *_split_backward(args)) if g is not None]

    return run_backward


def _backward_shared_weights(grad, saved: SavedTensors, options, needs_grad: Any) -> Inputs:
    """Compute the gradients by the backward op.

    If several steps share the weights, the autograd nodes of the weights compute the gradients of the weights.
    """
    weights = saved.gates_weight, saved.candidate_weight
    if None in map(shared_weight_grad.get_shared_node, weights) or not (
        needs_grad.gates_weight and needs_grad.candidate_weight
    ):
        return _call_backward_op(grad, saved, options, needs_grad)
    requested = needs_grad._replace(gates_weight=False, candidate_weight=False, gates_share=True, candidate_share=True)
    found: Any = _call_backward_op(grad, saved, options, requested)
    shared_weight_grad.defer_to_shared_node(saved.gates_weight, found.gates_share, *get_sources(saved.x, saved.h))
    shared_weight_grad.defer_to_shared_node(
        saved.candidate_weight, found.candidate_share, *get_sources(saved.x, saved.reset)
    )
    return found._replace(
        gates_share=found.gates_share if needs_grad.gates_share else None,
        candidate_share=found.candidate_share if needs_grad.candidate_share else None,
    )


def _call_backward_op(grad, saved: SavedTensors, options, needs_grad: Inputs) -> Inputs:
    """Call the backward op and return the gradients in the order of Inputs; gradients that are not needed are None."""
    found = iter(STEP_BACKWARD.call_unchecked(grad, *saved, *options, list(needs_grad)))
    return _make_inputs(*(next(found) if needed else None for needed in needs_grad))


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *args):
        inputs, results = Inputs(*args[:_TENSORS]), run(*args)
        saved = (inputs.h, inputs.x, inputs.gates_weight, inputs.candidate_weight, *results[1:])
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        ctx.options = args[_TENSORS:]
        return results

    @staticmethod
    def backward(ctx, *grads):
        needs_grad, grads, saved = (
            Inputs(*ctx.needs_input_grad[1 : 1 + _TENSORS]),
            Results(*grads),
            SavedTensors(*ctx.saved_tensors),
        )
        needs_gates = needs_weight_grad(ctx, saved.gates_weight, saved.h, 3, 4)
        needs_candidate = needs_weight_grad(ctx, saved.candidate_weight, saved.h, 5, 6)
        needs_grad = _make_inputs(needs_grad.h, needs_grad.x, *needs_gates, *needs_candidate, *needs_grad[6:])
        unwanted = _SETTINGS * (None,)
        if torch.is_grad_enabled() or any(g is not None for g in grads[1:]):
            arguments = (grads, saved, Options(*ctx.options), needs_grad)
            return None, *_compute_gradients(DIFFERENTIABLE_KERNELS, *arguments), *unwanted
        if grads.h is None or not any(needs_grad):
            return (None,) * len(ctx.needs_input_grad)
        return None, *_backward_shared_weights(grads.h, saved, ctx.options, needs_grad), *unwanted


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
