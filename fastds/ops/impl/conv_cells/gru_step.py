# SPDX-License-Identifier: Apache-2.0
"""A ConvGRU step that keeps its gates and its candidate for the backward, and that backward.

Gradients of x and h, which two convolutions and two passes read, are added where they are made, and from kept gates no
exponential is calculated again. What is kept are results of the op: where the backward is differentiated, its graph
goes on from them, and no convolution of the forward runs again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core import native as _native
from fastds.ops.core.registry import Backend, call, define, without_gradients
from fastds.ops.impl.conv3x3 import winograd as _winograd
from fastds.ops.impl.conv3x3.op import CONV3X3, backward, differentiable_gradients
from fastds.ops.impl.conv3x3.reference import conv3x3 as reference_convolution
from fastds.ops.impl.conv3x3.weight_gradients import weight_gradients_wanted
from fastds.ops.impl.conv_cells.fused import ConvPassOps, engine_runs, run_engine
from fastds.ops.impl.gates.gru_reset import PACKED as RESET_PASS
from fastds.ops.impl.gates.gru_update import OPS as UPDATE_PASS
from fastds.ops.impl.gates.gru_update_reference import gru_update as reference_update
from fastds.ops.impl.gates.passes import KERNELS, run

RESET = ConvPassOps("conv_gru_reset", RESET_PASS)
UPDATE = ConvPassOps("conv_gru_update", UPDATE_PASS, at=1)
aten = torch.ops.aten
_OPTIONS = "str keep, str act, float negative_slope, str algorithm"


def sources(x: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor | None]:
    """The two of a convolution, or the one where x was convolved before."""
    return (state, None) if x is None else (x, state)


def _refusal(*args):
    return _native.refusal(KERNELS, args[0])


def _run(formula: str, keep, act, negative_slope, like, *operands) -> None:
    """operands: maps of C channels, or (map, gates in it); like: one of the maps, channels_last."""
    suffix, option, slope = UPDATE_PASS.spec.variant(keep, act, negative_slope)
    if like.numel():
        pairs = [t if isinstance(t, tuple) else (t, 1) for t in operands]
        run(formula.format(suffix), like, like.shape[1], pairs, option, slope)


# ---- forward


def check(h, x, gates_weight, gates_bias, candidate_weight, candidate_bias, gates_share, candidate_share) -> None:
    """Refuses what the step cannot take."""
    RESET.check(*sources(x, h), gates_weight, gates_bias, gates_share, h)
    UPDATE.check(*sources(x, h), candidate_weight, candidate_bias, candidate_share, h, h)


def _fake(*args):
    check(*args[:8])
    h = args[0]
    return tuple(_winograd.empty(h.shape, h.dtype, h) for _ in range(5))


def _forward(h, x, gates_weight, gates_bias, candidate_weight, candidate_bias, gates_share, candidate_share, *options):
    tensors = (h, x, gates_weight, gates_bias, candidate_weight, candidate_bias, gates_share, candidate_share)
    new, z, r, reset, n = _fake(*tensors)
    gates = (*sources(x, h), gates_weight, gates_bias, gates_share)
    _convolve("gru_reset_kept", options, gates, (), (h,), (z, r, reset))
    candidate = (*sources(x, reset), candidate_weight, candidate_bias, candidate_share)
    _convolve("gru_update{}_kept", options, candidate, (z,), (h,), (new, n))
    return new, z, r, reset, n


def _convolve(formula, options, convolution, before, behind, results):
    """A convolution, and the formula of `before`, what the convolution gives, and `behind`."""
    *options, algorithm = options
    x, x2, weight, bias, residual = convolution
    if engine_runs(x, weight, before + behind, algorithm):
        suffix, option, slope = UPDATE_PASS.spec.variant(*options)
        return run_engine(formula.format(suffix), option, slope, convolution, before + behind, results, None)
    settings = ("none", 0.0, "zeros", 1, x.dtype, algorithm)
    pre = without_gradients(CONV3X3, x, weight, bias, x2, residual, *settings)
    gates = weight.shape[0] // results[0].shape[1]
    _run(formula, *options, results[0], *before, (pre, gates), *behind, *results)


def _reference(
    h, x, gates_weight, gates_bias, candidate_weight, candidate_bias, gates_share, candidate_share, *options
):
    keep, act, slope, _ = options
    first, second = sources(x, h)
    z, r = reference_convolution(first, gates_weight, gates_bias, second, gates_share).sigmoid().chunk(2, 1)
    reset = r * h
    first, second = sources(x, reset)
    pre = reference_convolution(first, candidate_weight, candidate_bias, second, candidate_share)
    n = pre.tanh() if act == "tanh" else F.leaky_relu(pre, slope)
    return reference_update(z, pre, h, keep, act, slope), z, r, reset, n


# ---- gradients: as kernels, and with graphs of their own. A gradient of a result that is None is zero.


def _candidate(grad, grad_n, z, n, *options):
    """Of the candidate's pre-activation."""
    result = _winograd.empty(z.shape, z.dtype, z)
    _run("gru_candidate{}_gradient", *options, result, grad, grad_n, z, n, result)
    return result


def _gates(grad_reset, grad, grad_z, grad_r, z, r, n, h, *options):
    """Of the gates' pre-activations, and of h as far as the passes go: that takes the place of grad_reset."""
    batch, channels, height, width = z.shape
    of_pre = _winograd.empty((batch, 2 * channels, height, width), z.dtype, z)
    _run("gru_gates_gradient", *options, z, grad_reset, grad, grad_z, grad_r, z, r, n, h, (of_pre, 2), grad_reset)
    return of_pre, grad_reset


def _wide(*tensors):
    return (None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


def _sum_of_products(like, *pairs):
    """Of gradients, None for zero, and their factors, None for one."""
    terms = [grad if factor is None else grad * factor for grad, factor in pairs if grad is not None]
    return sum(terms[1:], terms[0]) if terms else torch.zeros_like(like)


def _differentiable_candidate(grad, grad_n, z, n, keep, act, negative_slope):
    dtype = z.dtype
    grad, grad_n, z, n = _wide(grad, grad_n, z, n)
    grad_n = _sum_of_products(z, (grad, 1 - z if keep == "z" else z), (grad_n, None))
    if act == "tanh":
        return aten.tanh_backward(grad_n, n).to(dtype)
    return aten.leaky_relu_backward(grad_n, n, negative_slope, True).to(dtype)


def _differentiable_gates(grad_reset, grad, grad_z, grad_r, z, r, n, h, keep, act, negative_slope):
    dtype = z.dtype
    grad_reset, grad, grad_z, grad_r, z, r, n, h = _wide(grad_reset, grad, grad_z, grad_r, z, r, n, h)
    of_z = _sum_of_products(z, (grad, h - n if keep == "z" else n - h), (grad_z, None))
    of_r = _sum_of_products(z, (grad_reset, h), (grad_r, None))
    of_h = _sum_of_products(z, (grad_reset, r), (grad, z if keep == "z" else 1 - z))
    of_pre = torch.cat([aten.sigmoid_backward(of_z, z), aten.sigmoid_backward(of_r, r)], 1)
    return of_pre.to(dtype), of_h.to(dtype)


def _differentiable_convolution(*args):
    *args, add_x, add_x2 = args
    found = list(differentiable_gradients(*args))
    for k, addend in ((0, add_x), (3, add_x2)):
        found[k] = found[k] if addend is None else found[k] + addend
    return found


def _convolution(*args):
    wanted = args[9]
    parts = iter(backward(*args, in_place=True))
    return [next(parts) if want else None for want in wanted]


KERNELS_OF_STEP = (_candidate, _gates, _convolution)
GRAPHS_OF_STEP = (_differentiable_candidate, _differentiable_gates, _differentiable_convolution)


def _gradients(ways, grads, saved, options, wanted):
    """Those of the op's tensors, None where not wanted."""
    candidate, gates, convolution = ways
    (h, x, gates_weight, candidate_weight, z, r, reset, n), (grad, grad_z, grad_r, grad_reset, grad_n) = saved, grads
    want_h, want_x, want_weight, want_bias, want_candidate, want_candidate_bias, want_share, want_candidate_share = (
        wanted
    )
    *options, algorithm = options
    of_candidate = candidate(grad, grad_n, z, n, *options)
    want_reset = any((want_h, want_x, want_weight, want_bias, want_share))
    asked = (want_x, want_reset, want_candidate, want_candidate_bias)
    settings = (convolution, algorithm)
    of_x, of_reset, of_candidate_weight, of_candidate_bias = _of_convolution(
        *settings, of_candidate, x, reset, candidate_weight, asked
    )
    of_gates = of_h = of_weight = of_bias = None
    if want_reset:
        of_reset = of_reset if grad_reset is None else of_reset + grad_reset
        of_gates, of_h = gates(of_reset, grad, grad_z, grad_r, z, r, n, h, *options)
        asked = (want_x, want_h, want_weight, want_bias)
        added = (of_x, of_h if want_h else None)
        of_x, of_h, of_weight, of_bias = _of_convolution(*settings, of_gates, x, h, gates_weight, asked, *added)
    shares = (of_gates if want_share else None, of_candidate if want_candidate_share else None)
    return of_h, of_x, of_weight, of_bias, of_candidate_weight, of_candidate_bias, *shares


def _of_convolution(convolution, algorithm, grad, x, state, weight, asked, add_x=None, add_state=None):
    """Gradients of x, state, weight and bias, as far as asked; what is given to be added is asked for."""
    want_x, want_state, want_weight, want_bias = asked
    if x is None:
        wanted, added = [want_state, want_weight, want_bias, False, False], (add_state, None)
    else:
        wanted, added = [want_x, want_weight, want_bias, want_state, False], (add_x, add_state)
    if not any(wanted):
        return 4 * (None,)
    first, second = sources(x, state)
    settings = (None, 0.0, "zeros", 1, algorithm)
    of_first, of_weight, of_bias, of_second, _ = convolution(grad, first, weight, second, *settings, wanted, *added)
    return *((None, of_first) if x is None else (of_first, of_second)), of_weight, of_bias


def _backward_fake(grad, h, x, gates_weight, candidate_weight, z, *args):
    wanted = args[-1]
    batch, channels, height, width = h.shape

    def weight(like, dims):
        return torch.empty(like.shape[:dims], dtype=like.dtype, device=like.device)

    makers = (
        lambda: _winograd.empty(h.shape, h.dtype, h),
        lambda: _winograd.empty(x.shape, x.dtype, h),
        lambda: weight(gates_weight, 4),
        lambda: weight(gates_weight, 1),
        lambda: weight(candidate_weight, 4),
        lambda: weight(candidate_weight, 1),
        lambda: _winograd.empty((batch, 2 * channels, height, width), h.dtype, h),
        lambda: _winograd.empty(h.shape, h.dtype, h),
    )
    return [make() for make, want in zip(makers, wanted, strict=True) if want]


def _backward_by(ways):
    def run_backward(grad, *args):
        saved, options, wanted = args[:8], args[8:-1], args[-1]
        return [g for g in _gradients(ways, (grad, None, None, None, None), saved, options, wanted) if g is not None]

    return run_backward


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        h, x, gates_weight, _, candidate_weight, *_ = args
        results = without_gradients(STEP, *args)
        ctx.save_for_backward(h, x, gates_weight, candidate_weight, *results[1:])
        ctx.set_materialize_grads(False)
        ctx.options = args[8:]
        return results

    @staticmethod
    def backward(ctx, grad, *of_kept):
        wanted = list(ctx.needs_input_grad[:8])
        if not weight_gradients_wanted():
            wanted[2:6] = 4 * [False]
        options = ctx.options
        if torch.is_grad_enabled() or any(g is not None for g in of_kept):
            return *_gradients(GRAPHS_OF_STEP, (grad, *of_kept), ctx.saved_tensors, options, wanted), *4 * (None,)
        if grad is None or not any(wanted):
            return 12 * (None,)
        found = iter(call(STEP_BACKWARD, grad, *ctx.saved_tensors, *options, wanted))
        return *(next(found) if want else None for want in wanted), *4 * (None,)


# ---- registration

STEP = define(
    "conv_gru_step(Tensor h, Tensor? x, Tensor gates_weight, Tensor? gates_bias, Tensor candidate_weight, "
    f"Tensor? candidate_bias, Tensor? gates_share, Tensor? candidate_share, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=_reference,
    backends={"native": Backend(_forward, _refusal)},
    fake=_fake,
    function=_Step,
)
STEP_BACKWARD = define(
    "conv_gru_step_backward(Tensor grad, Tensor h, Tensor? x, Tensor gates_weight, Tensor candidate_weight, Tensor z, "
    f"Tensor r, Tensor reset, Tensor n, {_OPTIONS}, bool[8] wanted) -> Tensor[]",
    reference=_backward_by(GRAPHS_OF_STEP),
    backends={"native": Backend(_backward_by(KERNELS_OF_STEP), _refusal)},
    fake=_backward_fake,
)
