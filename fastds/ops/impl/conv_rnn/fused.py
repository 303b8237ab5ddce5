# SPDX-License-Identifier: Apache-2.0
"""Ops that fuse a 3x3 convolution with the pointwise gates of a recurrent cell.

The native engine computes the gates as its epilogue, and so do kernels on a GPU. Where none of them can run or is
faster, the op runs conv3x3 and the pointwise op one after the other. The last result of each op is the output of the
convolution (the pre-activations), for the backward pass; it has no channels unless `keep_pre` is true. Inside
recompute_gates the pre-activations are not saved, and the backward pass computes them again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastds.ops.core import buffer_pool, native, triton_loader
from fastds.ops.core.arguments import DTYPES, check_choice, check_filters, check_shape, check_tensor
from fastds.ops.core.backends import Backend, forced_backend
from fastds.ops.core.function_plans import slice_channels
from fastds.ops.core.gpu_measurements import describe_source
from fastds.ops.core.layout import as_nhwc, empty_map, to_channels_last, to_contiguous
from fastds.ops.core.registry import compute_vjp, define, needs_weight_grad
from fastds.ops.core.settings import ProcessSetting
from fastds.ops.impl.conv3x3 import kernels, shared_weight_grad, winograd
from fastds.ops.impl.conv3x3.algorithm import ALGORITHMS, current_algorithm, select_algorithm
from fastds.ops.impl.conv3x3.costs import ENGINES
from fastds.ops.impl.conv3x3.op import CONV3X3, CONV3X3_BACKWARD, conv3x3
from fastds.ops.impl.conv3x3.op import unsupported_reason as convolution_refusal
from fastds.ops.impl.conv3x3.reference import conv3x3 as reference_convolution
from fastds.ops.impl.conv_rnn import cuda_window
from fastds.ops.impl.gates.pointwise import PointwiseOps

SMALL_MAP_ELEMENTS = 1 << 14  # see select_engine
_recompute = ProcessSetting(False, suspends_plans=False)


@contextmanager
def recompute_gates(on: bool = True) -> Iterator[None]:
    """Make cells called inside the block recompute their pre-activations in the backward pass instead of saving them.

    A ConvLSTM step then saves 3 feature maps instead of 7 and computes a third more convolutions. The gradients are the
    same, bit for bit. Steps of a ConvGRU are not affected, because they save the gates and the candidate.

    Args:
        on: bool, whether to recompute the pre-activations. False: save them.
    """
    with _recompute.set(on):
        yield


def is_recomputing_gates() -> bool:
    """Return True if cells recompute their pre-activations in the backward pass."""
    return _recompute.value


class Convolution(NamedTuple):
    """Arguments of the convolution of a cell, conv3x3([x; x2], weight) + bias + residual. Absent tensors are None."""

    x: Tensor
    x2: Tensor | None
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None

    def compute(self, algorithm: str, run) -> Tensor:
        """Compute the convolution by run, which takes the arguments of the op conv3x3."""
        settings = ("none", 0.0, "zeros", 1, self.x.dtype, algorithm)
        return run(self.x, self.weight, self.bias, self.x2, self.residual, *settings)

    def nhwc(self) -> "Convolution":
        """Return the same convolution with x, x2 and residual in a layout whose channel stride is 1."""
        x: Any
        x, x2, residual = (None if t is None else as_nhwc(t) for t in (self.x, self.x2, self.residual))
        return Convolution(x, x2, self.weight, self.bias, residual)


class CellCall(NamedTuple):
    """Arguments of a cell's op by name. `others` are the inputs of the pointwise op except the convolution's output."""

    convolution: Convolution
    others: tuple[Tensor, ...]
    options: tuple
    algorithm: str
    keep_pre: bool


class ArgumentNames(NamedTuple):
    """Names of the convolution's arguments in error messages."""

    x: str
    x2: str
    weight: str = "weight"
    bias: str = "bias"
    residual: str = "residual"


class ConvPointwiseOps:
    """The registered op that fuses a convolution and a pointwise op.

    The arguments of the op are x, x2 or None, weight, bias or None, residual or None, the other inputs of the pointwise
    op, its options, the algorithm and keep_pre. The backward pass calls the backward ops of the pointwise op and of the
    convolution.

    Args:
        name: str, name of the op.
        ops: the registered pointwise op.
        position: position of the pointwise input that the convolution computes.
        sources: names of x and x2 in the schema of the op, and in error messages, where x2 is named second_input.
        recurrent: bool, whether x2 is the previous state, which has as many channels as the result.
    """

    def __init__(
        self,
        name: str,
        ops: PointwiseOps,
        position: int = 0,
        sources: tuple[str, str] = ("x", "x2"),
        recurrent: bool = False,
    ):
        spec = ops.spec
        self.name, self.ops, self.spec, self.position = name, ops, spec, position
        self.names = ArgumentNames(sources[0], "second_input" if sources[1] == "x2" else sources[1])
        self.recurrent = recurrent
        self.gates = spec.inputs[position].gates
        self.others = [i for k, i in enumerate(spec.inputs) if k != position]
        self.tensors = 5 + len(self.others)  # number of tensor arguments, which come first
        others = "".join(f"Tensor {i.name}, " for i in self.others)
        options = f"{spec.options}, " if spec.options else ""
        results = ", ".join(["Tensor"] * (len(spec.outputs) + 1))
        backends = {
            "native": Backend(self._forward, convolution_refusal),
            "triton": Backend(
                self._forward_triton, lambda x, *_: triton_loader.unsupported_reason(x), self._prefers_triton
            ),
        }
        self.op = define(
            f"{name}(Tensor {sources[0]}, Tensor? {sources[1]}, Tensor weight, Tensor? bias, Tensor? residual, "
            f"{others}{options}str algorithm, bool keep_pre) -> ({results})",
            reference=self._reference,
            backends=backends,
            fake=lambda *args: self._empty(self._parse_arguments(args)),
            check=self._check,
            function=self._function(),
            describe=self._describe,
        )

    def _parse_arguments(self, args) -> CellCall:
        *options, algorithm, keep_pre = args[self.tensors :]
        return CellCall(Convolution(*args[:5]), args[5 : self.tensors], tuple(options), algorithm, keep_pre)

    def __call__(self, *args):
        """Compute the results of the cell for its tensors and options, without the pre-activations."""
        return self.op(*args, current_algorithm(), False)[:-1]

    def _get_formula_name(self, suffix: str) -> str:
        return (self.spec.formula or self.spec.name) + suffix

    def _inputs(self, pre, others):
        """Return the inputs of the pointwise op."""
        return *others[: self.position], pre, *others[self.position :]

    # ---- checks

    def _check(self, *args) -> None:
        *options, algorithm, _ = args[self.tensors :]
        self.check(*args[: self.tensors])
        self.spec.check_options(*options)
        check_choice("algorithm", algorithm, ALGORITHMS)

    def check(self, x, x2, weight, bias, residual, *others, names: "ArgumentNames | None" = None) -> None:
        """Check the tensor arguments.

        Args:
            x: (B, C1, H, W), first source.
            x2: (B, C2, H, W), second source, or None.
            weight: (gates * C, C1 + C2, 3, 3).
            bias: (gates * C,) or None.
            residual: (B, gates * C, H, W) or None.
            *others: other inputs of the pointwise op.
            names: names of the first five arguments in error messages. None: the names of the op's arguments.

        Raises:
            TypeError: an argument is not a Tensor or has a wrong dtype.
            ValueError: a shape or device is invalid.
        """
        names = names or self.names
        first, second = names.x, names.x2
        check_tensor(first, x, 4, DTYPES, None, first)
        exact, widest = (x.dtype,), torch.float64 if x.dtype == torch.float64 else torch.float32
        with_float32 = (x.dtype, widest)
        if x2 is not None:
            check_tensor(second, x2, 4, exact, x.device, first)
        check_tensor(names.weight, weight, 4, with_float32, x.device, first)
        if bias is not None:
            check_tensor(names.bias, bias, 1, with_float32, x.device, first)
        if residual is not None:
            check_tensor(names.residual, residual, 4, exact, x.device, first)
        for spec, tensor in zip(self.others, others, strict=True):
            check_tensor(spec.name, tensor, 4, with_float32 if spec.allows_float32 else exact, x.device, first)
        self._check_shapes(x, x2, weight, bias, residual, others, names)

    def _check_shapes(self, x, x2, weight, bias, residual, others, names) -> None:
        batch, inputs, height, width = x.shape
        inputs += 0 if x2 is None else x2.shape[1]
        outputs = weight.shape[0]
        if 0 in (inputs, outputs, height, width) or outputs % self.gates:
            raise ValueError(
                f"{names.x} has shape {tuple(x.shape)} and {names.weight} {tuple(weight.shape)}, expected at least one "
                f"of everything and a multiple of {self.gates} outputs"
            )
        for spec, tensor in zip(self.others, others, strict=True):
            check_shape(spec.name, tensor, (batch, outputs // self.gates, height, width))
        source = names.x if x2 is None else f"{names.x} and {names.x2}"
        check_filters(names.weight, weight, (outputs, inputs, 3, 3), source)
        if bias is not None:
            check_shape(names.bias, bias, (outputs,))
        if residual is not None:
            check_shape(names.residual, residual, (batch, outputs, height, width))
        if x2 is not None:
            channels = outputs // self.gates if self.recurrent else x2.shape[1]
            check_shape(names.x2, x2, (batch, channels, height, width))

    # ---- forward

    def _empty(self, call: CellCall):
        """Allocate the results."""
        x, outputs = call.convolution.x, call.convolution.weight.shape[0]
        batch, _, height, width = x.shape
        inputs = self._inputs(x, call.others)
        dtypes = [inputs[k].dtype for k in self.spec.outputs]
        results = buffer_pool.allocate_maps((batch, outputs // self.gates, height, width), dtypes, x)
        return *results, _allocate_pre(x, outputs if call.keep_pre else 0)

    def _forward(self, *args):
        call = self._parse_arguments(args)
        if call.algorithm == "window" and cuda_window.unsupported_reason(call.convolution.x) is None:
            if self._get_window_reason(call) is None:
                return self._forward_window(call)
            call = call._replace(algorithm="auto")
        if (algorithm := select_engine(call.convolution, call.others, call.algorithm)) is not None:
            return self._fused(call, algorithm)
        pre = call.convolution.compute(call.algorithm, kernels.forward)
        results = self.ops.forward.call_unchecked(*self._inputs(pre, call.others), *call.options)
        results = (results,) if isinstance(results, Tensor) else results
        return *results, pre if call.keep_pre else _allocate_pre(call.convolution.x, 0)

    def _fused(self, call: CellCall, algorithm: str):
        *results, pre = self._empty(call)
        suffix, option, slope = self.spec.variant(*call.options)
        formula, saved_pre = self._get_formula_name(suffix), pre if call.keep_pre else None
        run_engine(formula, option, slope, call.convolution, call.others, results, saved_pre, algorithm)
        return *results, pre

    def _get_window_reason(self, call: CellCall) -> str | None:
        """Return the reason why the kernel with a window cannot compute a call on a GPU, or None."""
        c = call.convolution
        return cuda_window.get_call_reason(c.x, c.x2, c.weight, c.residual, call.others, self.gates)

    def _forward_window(self, call: CellCall):
        *results, pre = self._empty(call)
        suffix, option, slope = self.spec.variant(*call.options)
        saved_pre = pre if call.keep_pre else None
        formula = self._get_formula_name(suffix)
        cuda_window.launch(formula, option, slope, call.convolution, call.others, results, saved_pre)
        return *results, pre

    def _describe(self, *args) -> dict[str, str]:
        """Return the entry "kernels" of fastds.explain for a request of the kernel with a window."""
        call = self._parse_arguments(args)
        is_other = call.algorithm != "window" or forced_backend() not in (None, "native")
        if is_other or cuda_window.unsupported_reason(call.convolution.x) is not None:
            return {}
        reason = self._get_window_reason(call)
        return {"kernels": f"window: {describe_source(False)}" if reason is None else f"as with 'auto': {reason}"}

    def _forward_triton(self, *args):
        call = self._parse_arguments(args)
        *results, pre = self._empty(call)
        c = call.convolution.nhwc()
        weight, bias = to_channels_last(c.weight.to(c.x.dtype)), None if c.bias is None else c.bias.contiguous()
        others = [as_nhwc(t) for t in call.others]
        suffix, option, slope = self.spec.variant(*call.options)
        arguments = ((c.x, c.x2, weight, bias, c.residual), others, results, pre if call.keep_pre else None)
        triton_loader.load_kernels("conv_rnn").launch(self._get_formula_name(suffix), option, slope, *arguments)
        return *results, pre

    def _prefers_triton(self, *args) -> bool:
        """Return True for 16-bit tensors on a GPU with enough channels to fill a tile of the tensor cores.

        The algorithm must be "auto", or "window" for a call that its kernel cannot compute.
        """
        x, weight, algorithm = args[0], args[2], args[-2]
        if not x.is_cuda or algorithm not in ("auto", "window"):
            return False
        if algorithm == "window" and (
            cuda_window.unsupported_reason(x) is not None
            or self._get_window_reason(self._parse_arguments(args)) is None
        ):
            return False
        return x.dtype in (torch.float16, torch.bfloat16) and weight.shape[0] >= 16 * self.gates

    def _reference(self, *args):
        call = self._parse_arguments(args)
        c = call.convolution
        pre = reference_convolution(c.x, c.weight, c.bias, c.x2, c.residual)
        results = self.spec.reference(*self._inputs(pre, call.others), *call.options)
        return *((results,) if isinstance(results, Tensor) else results), _allocate_pre(c.x, 0)

    # ---- gradients

    def _gradients(self, call: CellCall, pre, shared_inputs, grads, needs_grad):
        """Compute the gradients of the op's tensors, or None where not needed.

        The pointwise op is differentiated first, then the convolution. If a source is also an input of the pointwise
        op, the backward op of the convolution adds both gradients.

        Args:
            call: the arguments of the op.
            pre: pre-activations, or None to compute them again.
            shared_inputs: pairs (source, other) of positions where a source and another pointwise input are the same
                tensor.
            grads: gradients of the results, None for zero.
            needs_grad: bool for each tensor.
        """
        c = call.convolution
        if pre is None:
            # Select the algorithm of the forward pass, so that the bits are the same.
            algorithm = select_engine(c, call.others, call.algorithm) or call.algorithm
            pre = c.compute(algorithm, CONV3X3.call_unchecked)
        needs_x, needs_x2, needs_weight, needs_bias, needs_residual = needs_grad[:5]
        needs_pointwise = self._inputs(any(needs_grad[:5]), needs_grad[5:])
        inputs = self._inputs(pre, call.others)
        parts = iter(self.ops.backward.call_unchecked(*grads, *inputs, *call.options, list(needs_pointwise)))
        pointwise_grads: list[Any] = [next(parts) if needed else None for needed in needs_pointwise]
        grad_pre = pointwise_grads.pop(self.position)
        needs_weight = needs_weight and not shared_weight_grad.defer_to_shared_node(c.weight, grad_pre, c.x, c.x2)
        requested = [needs_x, needs_weight, needs_bias, needs_x2, False]
        added = [None, None]
        for source, other in shared_inputs:
            if (needs_x, needs_x2)[source] and added[source] is None:
                added[source], pointwise_grads[other] = pointwise_grads[other], None
        arguments = (grad_pre, c.x, c.weight, c.x2, None, 0.0, "zeros", 1, call.algorithm, requested, *added)
        parts = iter(CONV3X3_BACKWARD.call_unchecked(*arguments) if any(requested) else ())
        grad_x, grad_weight, grad_bias, grad_x2, _ = (next(parts) if needed else None for needed in requested)
        return grad_x, grad_x2, grad_weight, grad_bias, grad_pre if needs_residual else None, *pointwise_grads

    def _differentiable_gradients(self, call: CellCall, grads, needs_grad):
        """Compute the gradients of the op's tensors by operations that are differentiable to any order."""

        def composed(x, x2, weight, bias, residual, *others):
            pre = conv3x3(x, weight, bias, second_input=x2, residual=residual, algorithm=call.algorithm)
            return self.ops.forward.call_unchecked(*self._inputs(pre, others), *call.options)

        c = call.convolution
        tensors = (c.x, c.x2, c.weight, c.bias, c.residual, *call.others)
        found = iter(compute_vjp(composed, tensors, grads, needs_grad))
        return tuple(next(found) if needed else None for needed in needs_grad)

    def _function(self):
        ops = self

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, run, *args):
                *arguments, keep_pre = args
                call, recompute = ops._parse_arguments(args), is_recomputing_gates()
                *results, pre = run(*arguments, keep_pre or not recompute)
                tensors = args[: ops.tensors]
                ctx.save_for_backward(*tensors, None if recompute else pre)
                ctx.settings = args[ops.tensors :]
                pairs = ((source, other) for source in (0, 1) for other in range(len(call.others)))
                ctx.shared_inputs = [
                    (source, other) for source, other in pairs if tensors[source] is call.others[other]
                ]
                ctx.set_materialize_grads(False)
                saved_pre = pre if keep_pre else _allocate_pre(call.convolution.x, 0)
                ctx.mark_non_differentiable(saved_pre)
                return *results, saved_pre

            @staticmethod
            def backward(ctx, *grads):
                grads = grads[:-1]
                if all(g is None for g in grads):
                    return (None,) * len(ctx.needs_input_grad)
                *tensors, pre = ctx.saved_tensors
                call, needs_grad = (
                    ops._parse_arguments((*tensors, *ctx.settings)),
                    list(ctx.needs_input_grad[1 : 1 + ops.tensors]),
                )
                needs_grad[2:4] = needs_weight_grad(ctx, call.convolution.weight, call.convolution.x, 3, 4)
                if torch.is_grad_enabled():
                    results = ops._differentiable_gradients(call, grads, needs_grad)
                else:
                    results = ops._gradients(call, pre, ctx.shared_inputs, grads, needs_grad)
                return None, *results, *(None for _ in ctx.settings)

        Function.__name__ = Function.__qualname__ = ops.name
        return Function


def select_engine(convolution: Convolution, others, algorithm: str) -> str | None:
    """Return the algorithm of the engine that fuses a convolution and its gates, or None if they must run separately.

    With algorithm="auto", the convolution and the gates of a large feature map run separately if the number of channels
    is not a multiple of 4.

    Args:
        convolution: the convolution.
        others: other inputs of the pointwise op.
        algorithm: str, requested algorithm.
    """
    x, (outputs, inputs) = convolution.x, convolution.weight.shape[:2]
    if algorithm == "auto" and others[0].shape[1] % 4 and others[0].numel() > SMALL_MAP_ELEMENTS:
        return None
    selector_options: dict[str, Any] = {
        "joined": convolution.x2 is not None,
        "passes": int(convolution.residual is not None),
    }
    found = select_algorithm(algorithm, x, inputs, outputs, x.dtype, False, gated=True, **selector_options)
    has_float64 = any(t.dtype == torch.float64 for t in others)
    if (
        found not in ENGINES
        or has_float64
        or x.shape[0] == 0
        or not native.get_module().conv_gates_fits(inputs, outputs)
    ):
        return None
    return found


def run_engine(
    formula: str, option: float, slope: float, convolution: Convolution, others, results, pre: Tensor | None,
    algorithm: str,
) -> None:  # fmt: skip
    """Run a convolution with gates on the engine.

    Args:
        formula: str, name of the formula in csrc/gates.
        option: number for the formula.
        slope: slope of leaky_relu in the formula.
        convolution: the convolution.
        others: other inputs of the formula.
        results: outputs of the formula, channels_last.
        pre: output for the pre-activations, or None.
        algorithm: result of select_engine.
    """
    c, amx = convolution.nhwc(), algorithm == "amx"
    operands = [*(as_nhwc(t) for t in others), *results]
    bias = None if c.bias is None else to_contiguous(c.bias)
    filters = winograd.get_packed_filters(c.weight, False, 1, amx)
    batch, _, height, width = c.x.shape
    module = native.get_module()
    native.call_with_workspace(
        module.conv_gates, module.GATE_FORMULAS[formula], option, slope,
        (batch, height, width, height, width, 1, 1, 0, 0),
        [native.describe_map(c.x)] if c.x2 is None else [native.describe_map(c.x), native.describe_map(c.x2)],
        [] if c.residual is None else [native.describe_map(c.residual)], [native.describe_map(t) for t in operands],
        [] if pre is None else [native.describe_map(pre)], filters.data_ptr(), native.get_address(bias),
        0 if bias is None else native.DTYPE_CODES[bias.dtype], amx,
    )  # fmt: skip


def slice_first_source(weight, x, state=None):
    """Return the part of a weight that belongs to the first of two sources.

    Args:
        weight: (O, C1 + C2, 3, 3).
        x: (B, C1, H, W), first source.
        state: tensor with as many channels as the second source. None: C1 is the number of channels of x.

    Returns:
        view of the weight; the weight itself if a value is not a tensor of four dimensions, which a later check
        reports.
    """
    tensors = (weight, x) if state is None else (weight, x, state)
    if not all(isinstance(t, Tensor) and t.dim() == 4 for t in tensors) or weight.layout is not torch.strided:
        return weight
    return slice_channels(weight, 0, x.shape[1] if state is None else max(0, weight.shape[1] - state.shape[1]))


def _allocate_pre(x: Tensor, channels: int) -> Tensor:
    return empty_map((x.shape[0], channels, *x.shape[2:]), x.dtype, x)
