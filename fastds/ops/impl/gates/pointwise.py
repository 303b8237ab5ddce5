# SPDX-License-Identifier: Apache-2.0
"""Checks, native calls and gradients that all pointwise ops of recurrent cells share.

A pointwise op maps tensors of C channels to tensors of C channels. Gate pre-activations may be packed along the channel
axis of one tensor. csrc/gates/math.h has the formula of the op, the formula of its gradients and, for some ops, the
formula of the gradients' gradients. This module registers an op for each formula. The kernels read and write tensors of
one memory format, which the first input selects; tensors of another format are copied.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import DTYPES, check_shape, check_tensor
from fastds.ops.core.backends import Backend
from fastds.ops.core.layout import CHANNELS_LAST, empty_map, get_output_format, to_memory_format
from fastds.ops.core.registry import compute_vjp, define

KERNELS = {"cpu": "gates_cpu", "cuda": "gates_cuda"}


@dataclass(frozen=True)
class Input:
    """One input tensor (B, gates * C, H, W).

    If allows_float32 is true, the tensor may be float32 if the first input is 16-bit.
    """

    name: str
    gates: int = 1
    allows_float32: bool = False


@dataclass(frozen=True)
class PointwiseOp:
    """Definition of a pointwise op.

    Attributes:
        name: name of the op.
        inputs: its tensors. The first gives dtype, device and memory format.
        outputs: for each result (B, C, H, W) the position of the input that has the same dtype.
        reference: the formula in PyTorch, reference(*tensors, *options).
        options: schema of the options, "" for none.
        check_options: check_options(*options) raises an error for invalid options.
        variant: variant(*options) returns the suffix of the formula's name, GatesParams.option, and the slope.
        double: True if csrc has the gradients of the gradients.
        formula: name of the formula in csrc/gates, "" for the name of the op.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[int, ...]
    reference: Callable
    options: str = ""
    check_options: Callable = lambda: None
    variant: Callable = lambda: ("", 0.0, 0.0)
    double: bool = False
    formula: str = ""

    def channels(self, tensors) -> int:
        return tensors[0].shape[1] // self.inputs[0].gates

    def check(self, tensors) -> None:
        """Check the input tensors."""
        first, main = tensors[0], self.inputs[0]
        check_tensor(main.name, first, 4, DTYPES, None, main.name)
        exact, with_float32 = (first.dtype,), (first.dtype, torch.float32)
        for spec, tensor in zip(self.inputs[1:], tensors[1:], strict=True):
            allowed = with_float32 if spec.allows_float32 and first.dtype != torch.float64 else exact
            check_tensor(spec.name, tensor, 4, allowed, first.device, main.name)
        batch, packed, height, width = first.shape
        if packed % main.gates or packed == 0:
            raise ValueError(f"{main.name} has {packed} channels, expected a multiple of {main.gates}")
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            check_shape(spec.name, tensor, (batch, spec.gates * (packed // main.gates), height, width))

    def check_gradients(self, grads, tensors) -> None:
        """Check the gradients of the results, None for zero, against checked input tensors."""
        for k, grad in enumerate(grads):
            if grad is not None:
                shape = (tensors[0].shape[0], self.channels(tensors), *tensors[0].shape[2:])
                self._check_like(f"grad_{k}", grad, tensors[self.outputs[k]].dtype, shape, tensors)

    def check_cotangents(self, cotangents, tensors) -> None:
        """Check the gradients of the input gradients, None for zero, against checked input tensors."""
        for spec, cotangent, tensor in zip(self.inputs, cotangents, tensors, strict=True):
            if cotangent is not None:
                self._check_like(f"cotangent_{spec.name}", cotangent, tensor.dtype, tuple(tensor.shape), tensors)

    def _check_like(self, name, tensor, dtype, shape, tensors) -> None:
        check_tensor(name, tensor, 4, (dtype,), tensors[0].device, self.inputs[0].name)
        check_shape(name, tensor, shape)


def _allocate(like: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Allocate a map of `channels` channels with the size and memory format of `like`."""
    batch, _, height, width = like.shape
    return empty_map((batch, channels, height, width), dtype, like, get_output_format(like))


def _to_even_rows(tensor: Tensor, layout: torch.memory_format) -> tuple[Tensor, int, int]:
    """Return a tensor with evenly spaced rows (see csrc/gates/params.h), and its row and channel strides.

    The tensor is copied to the memory format `layout` if its rows are not evenly spaced.
    """
    tensor = tensor.resolve_neg()
    (_, channels, height, width), (b, c, h, w) = tensor.shape, tensor.stride()
    if layout == CHANNELS_LAST and c == 1 and h == width * w and b == height * h:
        return tensor, w, 1
    if layout != CHANNELS_LAST and w == 1 and h == width and c == height * width:
        return tensor, b, c
    tensor = to_memory_format(tensor, layout)
    return tensor, channels if layout == CHANNELS_LAST else channels * height * width, tensor.stride(1)


def run_formula(formula: str, like: Tensor, channels: int, operands, option: float, slope: float) -> None:
    """Run a formula of csrc/gates.

    Args:
        formula: str, name of the formula.
        like: tensor that gives sizes, dtype, device and memory format.
        channels: C.
        operands: pairs (tensor or None, number of gates packed in it). Outputs are dense in the memory format of
            `like`.
        option: GatesParams.option.
        slope: slope of leaky_relu.
    """
    layout = get_output_format(like)
    batch, _, height, width = like.shape
    rows, length = (batch * height * width, channels) if layout == CHANNELS_LAST else (batch, channels * height * width)
    addresses, alive = [], []
    for tensor, count in operands:
        if tensor is None:
            addresses += [(0, 0, native.DTYPE_CODES[like.dtype])] * count
            continue
        if tensor.is_contiguous(memory_format=layout) and not tensor.is_neg():
            row, gate = count * length, length
        else:
            tensor, row, channel = _to_even_rows(tensor, layout)
            gate = channels * channel
            alive.append(tensor)  # keeps the address valid until the call returns
        address, step, dtype = tensor.data_ptr(), gate * tensor.dtype.itemsize, native.DTYPE_CODES[tensor.dtype]
        addresses += [(address + j * step, row, dtype) for j in range(count)]
    module = native.get_module()
    arguments = (module.GATE_FORMULAS[formula], rows, length, addresses, option, slope)
    if native.runs_on_cuda(like):
        module.gates_cuda(*arguments, *native.get_cuda_launch_arguments(like))
    else:
        module.gates_cpu(*arguments, native.get_threads())


class PointwiseOps:
    """The registered ops of a pointwise op: forward, backward and, if `double`, the gradient of backward."""

    def __init__(self, spec: PointwiseOp):
        self.spec = spec
        self.count = len(spec.inputs)
        tensors = ", ".join(f"Tensor {i.name}" for i in spec.inputs)
        options = f", {spec.options}" if spec.options else ""
        grads = "".join(f"Tensor? grad_{k}, " for k in range(len(spec.outputs)))
        cotangents = "".join(f"Tensor? cotangent_{i.name}, " for i in spec.inputs)
        result = "Tensor" if len(spec.outputs) == 1 else f"({', '.join(['Tensor'] * len(spec.outputs))})"
        every = len(spec.outputs) + self.count
        self.forward = define(
            f"{spec.name}({tensors}{options}) -> {result}",
            reference=spec.reference,
            backends={"native": Backend(self._forward, lambda *args: native.unsupported_reason(KERNELS, args[0]))},
            fake=self._fake,
            check=self._check,
            function=self._function(),
        )
        self.backward = define(
            f"{spec.name}_backward({grads}{tensors}{options}, bool[{self.count}] needs_grad) -> Tensor[]",
            reference=self._backward_reference,
            backends={"native": Backend(self._backward, self._make_unsupported_reason(len(spec.outputs)))},
            fake=self._backward_fake,
            check=self._check_backward,
            function=self._backward_function() if spec.double else None,
        )
        if spec.double:
            self.double = define(
                f"{spec.name}_double({cotangents}{grads}{tensors}{options}, bool[{every}] needs_grad) -> Tensor[]",
                reference=self._double_reference,
                backends={"native": Backend(self._double, self._make_unsupported_reason(every))},
                fake=self._double_fake,
                check=self._check_double,
            )

    # ---- checks

    def _check(self, *args):
        self.spec.check(args[: self.count])
        self.spec.check_options(*args[self.count :])

    def _check_backward(self, *args):
        grads, tensors, options, _ = self._split(args)
        self._check(*tensors, *options)
        self.spec.check_gradients(grads, tensors)

    def _check_double(self, *args):
        cotangents, grads, tensors, options, _ = self._split_double(args)
        self._check(*tensors, *options)
        self.spec.check_gradients(grads, tensors)
        self.spec.check_cotangents(cotangents, tensors)

    @staticmethod
    def _make_unsupported_reason(first):
        return lambda *args: native.unsupported_reason(KERNELS, args[first])

    def _pair_with_gates(self, tensors):
        return [(t, i.gates) for t, i in zip(tensors, self.spec.inputs, strict=True)]

    def _run(self, suffix, tensors, operands, option, slope):
        """Run the formula with a suffix on operands: see run_formula."""
        run_formula(
            (self.spec.formula or self.spec.name) + suffix,
            tensors[0],
            self.spec.channels(tensors),
            operands,
            option,
            slope,
        )

    # ---- forward

    def _fake(self, *args):
        tensors = args[: self.count]
        channels = self.spec.channels(tensors)
        results = tuple(_allocate(tensors[0], channels, tensors[k].dtype) for k in self.spec.outputs)
        return results[0] if len(results) == 1 else results

    def _forward(self, *args):
        tensors, options = args[: self.count], args[self.count :]
        results = self._fake(*args)
        suffix, option, slope = self.spec.variant(*options)
        if tensors[0].numel():
            outputs = [(t, 1) for t in ([results] if isinstance(results, Tensor) else results)]
            self._run(suffix, tensors, [*self._pair_with_gates(tensors), *outputs], option, slope)
        return results

    # ---- gradients

    def _split(self, args):
        """Return (grads, tensors, options, needs_grad) of the backward op."""
        n = len(self.spec.outputs)
        return args[:n], args[n : n + self.count], args[n + self.count : -1], args[-1]

    def _backward_fake(self, *args):
        _, tensors, _, needs_grad = self._split(args)
        like = tensors[0]
        return [_allocate(like, t.shape[1], t.dtype) for t, needed in zip(tensors, needs_grad, strict=True) if needed]

    def _backward(self, *args):
        grads, tensors, options, needs_grad = self._split(args)
        results = self._backward_fake(*args)
        if tensors[0].numel():
            suffix, option, slope = self.spec.variant(*options)
            given = iter(results)
            outputs = [(next(given) if w else None, i.gates) for w, i in zip(needs_grad, self.spec.inputs, strict=True)]
            operands = [*((g, 1) for g in grads), *self._pair_with_gates(tensors), *outputs]
            self._run(f"{suffix}_backward", tensors, operands, option, slope)
        return results

    def _backward_reference(self, *args):
        grads, tensors, options, needs_grad = self._split(args)
        return compute_vjp(lambda *t: self.spec.reference(*t, *options), tensors, grads, needs_grad)

    # ---- gradients of the gradients

    def _split_double(self, args):
        """Return (cotangents, grads, tensors, options, needs_grad) of the double op."""
        return args[: self.count], *self._split(args[self.count :])

    def _double_fake(self, *args):
        _, _, tensors, _, needs_grad = self._split_double(args)
        like, channels = tensors[0], self.spec.channels(tensors)
        shapes = [(channels, tensors[k].dtype) for k in self.spec.outputs]
        shapes += [(t.shape[1], t.dtype) for t in tensors]
        return [_allocate(like, *shape) for shape, needed in zip(shapes, needs_grad, strict=True) if needed]

    def _double(self, *args):
        cotangents, grads, tensors, options, needs_grad = self._split_double(args)
        results = self._double_fake(*args)
        if tensors[0].numel():
            suffix, option, slope = self.spec.variant(*options)
            given = iter(results)
            gates = [1] * len(grads) + [i.gates for i in self.spec.inputs]
            outputs = [(next(given) if w else None, n) for w, n in zip(needs_grad, gates, strict=True)]
            operands = [
                *self._pair_with_gates(cotangents),
                *((g, 1) for g in grads),
                *self._pair_with_gates(tensors),
                *outputs,
            ]
            self._run(f"{suffix}_double", tensors, operands, option, slope)
        return results

    def _double_reference(self, *args):
        cotangents, grads, tensors, options, needs_grad = self._split_double(args)
        everything = [True] * self.count

        def first_order(*both):
            n = len(grads)
            return self._backward_reference(*both[:n], *both[n:], *options, everything)

        return compute_vjp(first_order, (*grads, *tensors), cotangents, needs_grad)

    # ---- autograd

    def _function(self):
        ops = self

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, run, *args):
                ctx.set_materialize_grads(False)
                ctx.save_for_backward(*args[: ops.count])
                ctx.options = args[ops.count :]
                return run(*args)

            @staticmethod
            def backward(ctx, *grads):
                needs_grad = list(ctx.needs_input_grad[1 : 1 + ops.count])
                if all(g is None for g in grads):
                    return (None,) * len(ctx.needs_input_grad)
                results = iter(ops.backward.call_unchecked(*grads, *ctx.saved_tensors, *ctx.options, needs_grad))
                return None, *(next(results) if w else None for w in needs_grad), *(None for _ in ctx.options)

        Function.__name__ = Function.__qualname__ = ops.spec.name
        return Function

    def _backward_function(self):
        ops = self

        class Backward(torch.autograd.Function):
            @staticmethod
            def forward(ctx, run, *args):
                ctx.set_materialize_grads(False)
                grads, tensors, ctx.options, ctx.needs_grad = ops._split(args)
                ctx.save_for_backward(*grads, *tensors)
                return tuple(run(*args))

            @staticmethod
            def backward(ctx, *given):
                if all(g is None for g in given):
                    return (None,) * len(ctx.needs_input_grad)
                present = iter(given)
                cotangents = [next(present) if w else None for w in ctx.needs_grad]
                saved = ctx.saved_tensors
                needs_grad = list(ctx.needs_input_grad[1 : 1 + len(saved)])
                results = iter(ops.double.call_unchecked(*cotangents, *saved, *ctx.options, needs_grad))
                return None, *(next(results) if w else None for w in needs_grad), *(None for _ in ctx.options), None

        class Listed:
            """Adapter that returns a list as the op's schema does; an autograd.Function returns a tuple."""

            @staticmethod
            def apply(*args):
                return list(Backward.apply(*args))

        Backward.__name__ = Backward.__qualname__ = f"{ops.spec.name}_backward"
        return Listed
