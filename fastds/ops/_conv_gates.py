# SPDX-License-Identifier: Apache-2.0
"""Cells: a 3x3 convolution and a pointwise pass as one op, the pass in the output stage of the Winograd engine.

Where the engine does not run or does not pay, the op runs conv3x3 and the pass one after the other. Its last result,
for the backward and empty unless `keep_pre`, are the pre-activations: what the convolution gives. With `recompute` they
are not kept and the backward computes them again.
"""

from contextlib import contextmanager

import torch
from torch import Tensor

from fastds import _native
from fastds._registry import Backend, call, define, vector_jacobian, without_gradients
from fastds.convolution import current
from fastds.ops import _reuse, _triton, _winograd
from fastds.ops._gates import DTYPES, PassOps
from fastds.ops.conv3x3 import CONV3X3, CONV3X3_BACKWARD, _use_winograd, conv3x3
from fastds.ops.conv3x3 import _refusal as convolution_refusal
from fastds.reference.conv3x3 import conv3x3 as reference_convolution

_recompute = False


@contextmanager
def recomputed_gates(on: bool = True):
    """Whether the cells called inside the block keep no pre-activations for their backward but compute them again.

    A ConvLSTM step keeps 3 maps in the place of 7 and takes a third more convolutions; the gradients are the same bits.
    """
    global _recompute
    before, _recompute = _recompute, on
    try:
        yield
    finally:
        _recompute = before


def recomputes() -> bool:
    """Whether the cells called now compute their gates again."""
    return _recompute


class ConvPassOps:
    """The registered op of a convolution and a pass; its gradients are those of the two.

    op(x, x2 or None, weight, bias or None, residual or None, *other inputs of the pass, *options, algorithm, keep_pre,
       recompute=False)

    Args:
        name: of the op.
        ops: of the pass.
        at: position of the pass's input that the convolution gives.
        sources: names of x and x2 in messages.
    """

    def __init__(self, name: str, ops: PassOps, at: int = 0, sources: tuple[str, str] = ("x", "x2")):
        spec = ops.spec
        self.name, self.ops, self.spec, self.at, self.sources = name, ops, spec, at, sources
        self.gates = spec.inputs[at].gates
        self.others = [i for k, i in enumerate(spec.inputs) if k != at]
        others = "".join(f"Tensor {i.name}, " for i in self.others)
        options = f"{spec.options}, " if spec.options else ""
        results = ", ".join(["Tensor"] * (len(spec.outputs) + 1))
        backends = {
            "native": Backend(self._forward, convolution_refusal),
            "triton": Backend(self._forward_triton, lambda x, *_: _triton.refusal(x), self._prefers_triton),
        }
        self.op = define(
            f"{name}(Tensor x, Tensor? x2, Tensor weight, Tensor? bias, Tensor? residual, {others}{options}"
            f"str algorithm, bool keep_pre, bool recompute=False) -> ({results})",
            reference=self._reference,
            backends=backends,
            fake=lambda *args: self._fake(*self.op.filled(args)),
            function=self._function(),
        )

    def _split(self, args):
        """(x, x2, weight, bias, residual), other inputs, options, algorithm, keep_pre."""
        end = 5 + len(self.others)
        return args[:5], args[5:end], args[end:-3], args[-3], args[-2]

    def __call__(self, *args):
        """The results of the op for its tensors and options."""
        return call(self.op, *args, current(), False, _recompute)[:-1]

    def _formula(self, suffix: str) -> str:
        return (self.spec.formula or self.spec.name) + suffix

    def _inputs(self, pre, others):
        """The inputs of the pass."""
        return *others[: self.at], pre, *others[self.at :]

    # ---- checks

    def check(self, x, x2, weight, bias, residual, *others) -> None:
        """Refuses what the op cannot take."""
        named = dict(zip((*self.sources, "weight", "bias", "residual"), (x, x2, weight, bias, residual), strict=True))
        named |= {spec.name: tensor for spec, tensor in zip(self.others, others, strict=True)}
        first = self.sources[0]
        optional = {self.sources[1], "bias", "residual"}
        named = {name: tensor for name, tensor in named.items() if tensor is not None or name not in optional}
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} is a {type(tensor).__name__}, expected a Tensor")
        if x.dtype not in DTYPES:
            raise TypeError(f"{first} has dtype {x.dtype}, expected a float type")
        wide = {"weight", "bias"} | {spec.name for spec in self.others if spec.wide}
        widest = torch.float64 if x.dtype == torch.float64 else torch.float32
        for name, tensor in named.items():
            allowed = {x.dtype, widest} if name in wide else {x.dtype}
            if tensor.dtype not in allowed:
                raise TypeError(f"{name} has dtype {tensor.dtype}, expected {' or '.join(sorted(map(str, allowed)))}")
            if tensor.device != x.device:
                raise ValueError(f"{name} is on device {tensor.device}, expected {x.device} as {first}")
            dims = 1 if name == "bias" else 4
            if tensor.dim() != dims:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {dims} dimension{'s' * (dims > 1)}")
        self._check_shapes(x, x2, weight, named)

    def _check_shapes(self, x, x2, weight, named) -> None:
        batch, inputs, height, width = x.shape
        inputs += 0 if x2 is None else x2.shape[1]
        outputs = weight.shape[0]
        if min(inputs, outputs, height, width) < 1 or outputs % self.gates:
            raise ValueError(
                f"{self.sources[0]} has shape {tuple(x.shape)} and weight {tuple(weight.shape)}, expected at least one "
                f"of everything and a multiple of {self.gates} outputs"
            )
        state = (batch, outputs // self.gates, height, width)
        expected = dict.fromkeys((spec.name for spec in self.others), state)
        expected |= {"weight": (outputs, inputs, 3, 3), "bias": (outputs,), "residual": (batch, outputs, height, width)}
        if x2 is not None:
            expected[self.sources[1]] = (batch, x2.shape[1], height, width)
        for name, shape in expected.items():
            if name in named and tuple(named[name].shape) != shape:
                raise ValueError(f"{name} has shape {tuple(named[name].shape)}, expected {shape}")

    # ---- forward

    def _fake(self, *args):
        convolution, others, _, _, keep_pre = self._split(args)
        self.check(*convolution, *others)
        x, _, weight, *_ = convolution
        shape = (x.shape[0], weight.shape[0] // self.gates, *x.shape[2:])
        dtypes = [t.dtype for t in self._inputs(x, others)]
        pre = _pre(x, weight.shape[0] if keep_pre else 0)
        return *(_reuse.empty(shape, dtypes[k], x) for k in self.spec.outputs), pre

    def _forward(self, *args):
        (x, x2, weight, bias, residual), others, options, algorithm, keep_pre = self._split(args)
        if engine_runs(x, weight, others, algorithm):
            return self._fused(*args)
        self.check(x, x2, weight, bias, residual, *others)
        pre = without_gradients(
            CONV3X3, x, weight, bias, x2, residual, "none", 0.0, "zeros", 1, x.dtype, algorithm
        )  # fmt: skip
        results = without_gradients(self.ops.forward, *self._inputs(pre, others), *options)
        results = (results,) if isinstance(results, Tensor) else results
        return *results, pre if keep_pre else _pre(x, 0)

    def _fused(self, *args):
        *results, pre = self._fake(*args)
        (x, x2, weight, bias, residual), others, options, _, keep_pre = self._split(args)
        suffix, option, slope = self.spec.variant(*options)
        convolution = (x, x2, weight, bias, residual)
        run_engine(self._formula(suffix), option, slope, convolution, others, results, pre if keep_pre else None)
        return *results, pre

    def _forward_triton(self, *args):
        *results, pre = self._fake(*args)
        (x, x2, weight, bias, residual), others, options, _, keep_pre = self._split(args)
        weight = weight.to(x.dtype).contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.contiguous()
        x, x2, residual, *others = (None if t is None else _winograd.nhwc(t) for t in (x, x2, residual, *others))
        suffix, option, slope = self.spec.variant(*options)
        arguments = ((x, x2, weight, bias, residual), others, results, pre if keep_pre else None)
        _triton.kernels("conv_cells").launch(self._formula(suffix), option, slope, *arguments)
        return *results, pre

    def _prefers_triton(self, *args) -> bool:
        """16-bit tensors on a GPU with enough channels to fill a tensor core's tile; no GPU has measured it yet."""
        (x, _, weight, *_), _, _, algorithm, _ = self._split(args)
        fits = x.dtype in (torch.float16, torch.bfloat16) and weight.shape[0] >= 16 * self.gates
        return x.device.type == "cuda" and fits and algorithm == "auto"

    def _reference(self, *args):
        (x, x2, weight, bias, residual), others, options, _, _ = self._split(args)
        pre = reference_convolution(x, weight, bias, x2, residual)
        results = self.spec.reference(*self._inputs(pre, others), *options)
        return *((results,) if isinstance(results, Tensor) else results), _pre(x, 0)

    # ---- gradients

    def _gradients(self, saved, options, algorithm, same, grads, wanted):
        """Those of the tensors of the op, None where not wanted: the pass's, then the convolution's.

        A source that is an input of the pass, too, has the gradient of both in its own: they are added where the
        convolution's is made.
        """
        (x, x2, weight, bias, residual), others, pre = saved[:5], saved[5:-1], saved[-1]
        if pre is None:
            pre = call(CONV3X3, x, weight, bias, x2, residual, "none", 0.0, "zeros", 1, x.dtype, algorithm)
        want_x, want_x2, want_weight, want_bias, want_residual = wanted[:5]
        want_pass = self._inputs(any(wanted[:5]), wanted[5:])
        parts = iter(call(self.ops.backward, *grads, *self._inputs(pre, others), *options, list(want_pass)))
        of_pass = [next(parts) if want else None for want in want_pass]
        grad_pre = of_pass.pop(self.at)
        asked = [want_x, want_weight, want_bias, want_x2, False]
        added = [None, None]
        for source, other in same:
            if (want_x, want_x2)[source] and added[source] is None:
                added[source], of_pass[other] = of_pass[other], None
        settings = (0.0, "zeros", 1, algorithm)
        arguments = (grad_pre, x, weight, x2, None, *settings, asked, *added)
        parts = iter(call(CONV3X3_BACKWARD, *arguments) if any(asked) else ())
        grad_x, grad_weight, grad_bias, grad_x2, _ = (next(parts) if want else None for want in asked)
        return grad_x, grad_x2, grad_weight, grad_bias, grad_pre if want_residual else None, *of_pass

    def _differentiable_gradients(self, saved, options, algorithm, _, grads, wanted):
        """The same, from the inputs of the op and not from what it kept: right to any order."""

        def composed(x, x2, weight, bias, residual, *others):
            pre = conv3x3(x, weight, bias, x2=x2, residual=residual, algorithm=algorithm)
            return call(self.ops.forward, *self._inputs(pre, others), *options)

        found = iter(vector_jacobian(composed, saved[:-1], grads, wanted))
        return tuple(next(found) if want else None for want in wanted)

    def _function(ops):
        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *args):
                convolution, others, ctx.options, ctx.algorithm, keep_pre = ops._split(args)
                recompute = args[-1]
                *results, pre = without_gradients(ops.op, *args[:-2], keep_pre or not recompute, False)
                ctx.save_for_backward(*convolution, *others, None if recompute else pre)
                pairs = ((source, other) for source in (0, 1) for other in range(len(others)))
                ctx.same = [(source, other) for source, other in pairs if convolution[source] is others[other]]
                ctx.set_materialize_grads(False)
                kept = pre if keep_pre else _pre(convolution[0], 0)
                ctx.mark_non_differentiable(kept)
                return *results, kept

            @staticmethod
            def backward(ctx, *grads):
                grads = grads[:-1]
                if all(g is None for g in grads):
                    return (None,) * len(ctx.needs_input_grad)
                wanted = ctx.needs_input_grad[: 5 + len(ops.others)]
                gradients = ops._differentiable_gradients if torch.is_grad_enabled() else ops._gradients
                results = gradients(ctx.saved_tensors, ctx.options, ctx.algorithm, ctx.same, grads, wanted)
                return *results, *(None for _ in ctx.options), None, None, None

        Function.__name__ = Function.__qualname__ = ops.name
        return Function


def engine_runs(x, weight, others, algorithm: str) -> bool:
    """Whether the engine takes the convolution with its pass in the output stage; others: that pass's other inputs."""
    outputs, inputs = weight.shape[:2]
    winograd = _use_winograd(algorithm, x, inputs, outputs, x.dtype, False)
    wide = any(t.dtype == torch.float64 for t in others)
    return winograd and not wide and x.shape[0] > 0 and _native.native().conv_gates_fits(inputs, outputs)


def run_engine(formula: str, option, slope, convolution, others, results, pre: Tensor | None) -> None:
    """A formula of csrc/conv_cells behind convolution = (x, x2, weight, bias, residual), into results and pre."""
    x, x2, weight, bias, residual = convolution
    sources = [_winograd.nhwc(t) for t in (x, x2) if t is not None]
    operands = [*(_winograd.nhwc(t) for t in others), *results]
    residual = None if residual is None else _winograd.nhwc(residual)
    bias = None if bias is None else bias.contiguous()
    filters = _winograd.packed(weight, False, 1)
    batch, _, height, width = x.shape
    module, tensor = _native.native(), _winograd._tensor
    cell = module.ConvGates(
        formula=module.GATE_FORMULAS[formula], option=option, slope=slope,
        geometry=(batch, height, width, height, width, 1, 1, 0, 0), sources=[tensor(t) for t in sources],
        packed=filters.data_ptr(), bias=0 if bias is None else bias.data_ptr(),
        bias_dtype=0 if bias is None else _native.DTYPES[bias.dtype],
        residual=[] if residual is None else [tensor(residual)], operands=[tensor(t) for t in operands],
        pre=None if pre is None else tensor(pre), threads=torch.get_num_threads(),
    )  # fmt: skip
    cell.run(_winograd._workspace(cell.bytes).data_ptr())


def of_first(weight, x):
    """The part of a weight for the first of two sources; whatever is no tensor is left to the checks."""
    both = isinstance(weight, Tensor) and isinstance(x, Tensor) and weight.dim() == 4 and x.dim() == 4
    return weight[:, : x.shape[1]] if both else weight


def _pre(x: Tensor, channels: int) -> Tensor:
    return _winograd.empty((x.shape[0], channels, *x.shape[2:]), x.dtype, x)
