# SPDX-License-Identifier: Apache-2.0
"""Tests that the pointwise ops of recurrent cells share; a test file gives the op, its inputs and reference."""

import functools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastds
from tests.support.thread_cases import assert_same_bits

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Pixels and channels around the vector length, the block of the kernel and the pair of 24-channel rows.
SHAPES = [(1, 1, 1, 1), (2, 24, 5, 7), (1, 3, 17, 1), (3, 8, 1, 2), (2, 401, 2, 2), (1, 16, 19, 23)]


def s(x):
    return 1 / (1 + torch.exp(-x))


class GateTests:
    """Tests of a pointwise op, to be configured by a subclass.

    Attributes:
        gates: numbers of maps packed in each input.
        names: names of the inputs.
        wide: positions of inputs that may be float32.
        options: further arguments of the op.
        second: True if kernels compute second derivatives.
        states: positions of inputs that are no pre-activations.
    """

    gates: tuple = ()
    names: tuple = ()
    wide: tuple = ()
    options: tuple = ()
    second = False
    states: tuple = ()  # positions of inputs that are no pre-activations
    far = (0.0, -0.0, 30.0, -30.0, 1e4, -1e4, 1e-30, -1e-6, float("inf"), -float("inf"))

    def inputs(self, shape=(2, 24, 5, 7), dtype=torch.float32, layout=torch.channels_last, scale=2.0, grad=False):
        batch, channels, height, width = shape
        tensors = []
        for k, gates in enumerate(self.gates):
            t = scale * torch.randn(batch, gates * channels, height, width, dtype=torch.float64)
            tensor_dtype = torch.float32 if k in self.wide and dtype != torch.float64 else dtype
            tensors.append(t.to(tensor_dtype).contiguous(memory_format=layout).requires_grad_(grad))
        return tensors

    def results(self, tensors, function=None):
        y = (function or self.function)(*tensors)
        return [y] if isinstance(y, torch.Tensor) else list(y)

    def compare(self, got, expected, dtype, factor=1.0):
        """Check errors in units of the rounding of the largest value; gates are computed in float32."""
        for a, b in zip(got, expected, strict=True):
            unit = torch.finfo(a.dtype).eps if dtype != torch.float64 else 2e-15
            unit = max(unit, torch.finfo(torch.float32).eps if dtype != torch.float64 else 0)
            error = (a.double() - b).abs().max().item()
            assert error <= factor * 6 * unit * max(1.0, b.abs().max().item()), (error, a.dtype)

    @pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_values_and_gradients(self, shape, dtype, layout, native):
        tensors = self.inputs(shape, dtype, layout, grad=True)
        doubles = [t.detach().double().requires_grad_() for t in tensors]
        got, expected = self.results(tensors), self.results(doubles, self.oracle)
        for a, t in zip(got, self.output_dtypes(tensors), strict=True):
            assert a.dtype == t and a.shape == shape
            assert a.is_contiguous(memory_format=layout)
        self.compare(got, expected, dtype)
        along = [torch.randn_like(y) for y in got]
        grads = torch.autograd.grad(got, tensors, along)
        exact = torch.autograd.grad(expected, doubles, [g.double() for g in along])
        assert [g.dtype for g in grads] == [t.dtype for t in tensors]
        self.compare(grads, exact, dtype, 4)

    def output_dtypes(self, tensors):
        raise NotImplementedError

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_instruction_set(self, dtype, isa):
        tensors = self.inputs(dtype=dtype, grad=True)
        doubles = [t.detach().double().requires_grad_() for t in tensors]
        expected = self.results(doubles, self.oracle)
        along = [torch.randn(y.shape).to(t) for y, t in zip(expected, self.output_dtypes(tensors), strict=True)]
        got = self.results(tensors)
        grads = torch.autograd.grad(got, tensors, along)
        self.compare(got, expected, dtype)
        self.compare(grads, torch.autograd.grad(expected, doubles, [g.double() for g in along]), dtype, 4)

    def test_threads_do_not_change_a_bit(self, native):
        tensors = self.inputs((3, 24, 19, 23), grad=True)

        def run():
            got = self.results(tensors)
            return *got, *torch.autograd.grad([y.sum() for y in got], tensors)

        assert_same_bits(run, (1, 2, 5))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_gradient_of_a_sum(self, dtype, native):
        """The gradient of a sum is a tensor expanded from one number."""
        tensors = self.inputs(dtype=dtype, grad=True)
        got = self.results(tensors)
        grads = torch.autograd.grad([y.sum() for y in got], tensors, retain_graph=True)
        expected = torch.autograd.grad(got, tensors, [torch.ones_like(y) for y in got])
        assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))

    def test_extreme_values(self, native):
        """Results for large pre-activations equal the reference, and NaN affects only its own element."""
        far = torch.tensor(self.far)
        tensors = [far[torch.randint(0, len(far), t.shape)] for t in self.inputs((2, 24, 5, 7))]
        for k in self.states:
            tensors[k] = torch.randn_like(tensors[k])
        got = self.results(tensors)
        expected = self.results([t.double() for t in tensors], self.oracle)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6, equal_nan=True)
        tensors = self.inputs((2, 24, 5, 7))
        tensors[0][1, 3, 2, 2] = float("nan")
        hit = torch.stack([y.isnan() for y in self.results(tensors)]).any(0)
        assert hit[1, 3, 2, 2] and hit.sum() == 1

    def test_numerical_derivatives(self, native):
        tensors = self.inputs((1, 2, 2, 1), torch.float64, grad=True)
        assert gradcheck(self.function, tensors)
        assert gradgradcheck(self.function, tensors)

    def test_second_derivatives(self, native):
        """Gradients of a penalty on first gradients, in float32, are compared with the reference."""
        tensors = self.inputs(grad=True, scale=1.0)
        doubles = [t.detach().double().requires_grad_() for t in tensors]
        along = [torch.randn(y.shape) for y in self.results(tensors)]

        def penalty(tensors, function, kind):
            y = self.results(tensors, function)
            grads = torch.autograd.grad(y, tensors, [g.to(kind) for g in along], create_graph=True)
            return sum(g.pow(3).sum() for g in grads), grads

        (ours, first), (exact, exact_first) = (
            penalty(tensors, self.function, torch.float32), penalty(doubles, self.oracle, torch.float64),
        )  # fmt: skip
        self.compare(first, exact_first, torch.float32, 4)
        second = torch.autograd.grad(ours, tensors, allow_unused=True, materialize_grads=True)
        exact = torch.autograd.grad(exact, doubles, allow_unused=True, materialize_grads=True)
        self.compare(second, exact, torch.float32, 32)

    def test_requires_grad_subsets(self, native):
        everything = self.inputs(grad=True)
        y = self.results(everything)
        along = [torch.randn_like(t) for t in y]
        expected = torch.autograd.grad(y, everything, along)
        for mask in range(1, 2 ** len(everything)):
            tensors = [t.detach().requires_grad_(bool(mask >> k & 1)) for k, t in enumerate(everything)]
            pairs = [(r, g) for r, g in zip(self.results(tensors), along, strict=True) if r.requires_grad]
            torch.autograd.backward([r for r, _ in pairs], [g for _, g in pairs])
            for t, g in zip(tensors, expected, strict=True):
                assert (t.grad is None) == (not t.requires_grad)
                assert t.grad is None or torch.equal(t.grad, g)

    def test_single_outputs(self, native):
        """Compare the gradients of each result alone with the reference."""
        tensors = self.inputs(grad=True)
        doubles = [t.detach().double().requires_grad_() for t in tensors]
        for k in range(len(self.results(tensors))):
            options = {"allow_unused": True, "materialize_grads": True}
            grads = torch.autograd.grad(self.results(tensors)[k].sum(), tensors, **options)
            exact = torch.autograd.grad(self.results(doubles, self.oracle)[k].sum(), doubles, **options)
            self.compare(grads, exact, torch.float32, 4)

    def test_strided_inputs(self, native):
        tensors = self.inputs((4, 24, 6, 5))
        expected = self.results(tensors)
        packed = torch.cat(tensors, 1).contiguous(memory_format=torch.channels_last)
        views = [
            list(packed.split([t.shape[1] for t in tensors], 1)),
            [t.permute(0, 1, 3, 2).contiguous(memory_format=torch.channels_last).permute(0, 1, 3, 2) for t in tensors],
            [torch.stack([t, t], 1)[:, 0] for t in tensors],
        ]
        for view in views:
            assert all(torch.equal(a, b) for a, b in zip(self.results(view), expected, strict=True))
        one = [t[:1].expand(t.shape) for t in tensors]
        assert all(torch.equal(a[3], b[0]) for a, b in zip(self.results(one), expected, strict=True))

    def test_contiguous_inputs_that_repeat_a_row(self, native):
        first, *others = self.inputs((2, 8, 6, 5), layout=torch.contiguous_format)
        repeated = [t[:, :, :1].expand(t.shape) for t in others]
        dense = [t.clone(memory_format=torch.contiguous_format) for t in repeated]
        pairs = zip(self.results([first, *repeated]), self.results([first, *dense]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    def test_empty_batch(self, native):
        tensors = self.inputs((0, 24, 5, 7), grad=True)
        y = self.results(tensors)
        assert all(t.shape == (0, 24, 5, 7) for t in y)
        grads = torch.autograd.grad([t.sum() for t in y], tensors)
        assert [g.shape for g in grads] == [t.shape for t in tensors]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_opcheck(self, dtype, native):
        """All checks of opcheck run in float32; only those that depend on the dtype run in bfloat16."""
        all_of_it = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        utils = all_of_it if dtype == torch.float32 else ("test_schema", "test_faketensor")
        check = functools.partial(torch.library.opcheck, test_utils=utils)
        tensors = self.inputs((2, 3, 4, 5), dtype, grad=True)
        check(self.op, (*tensors, *self.options))
        name = self.op.name().split("::")[1]
        needs_grad = [True] * len(tensors)
        grads = [torch.randn_like(t) for t in self.results(tensors)]
        backward = getattr(torch.ops.fastds, f"{name}_backward").default
        check(backward, (*grads, *tensors, *self.options, needs_grad))
        if self.second:
            along = [torch.randn_like(t) for t in tensors]
            double = getattr(torch.ops.fastds, f"{name}_double").default
            needs_grad = [True] * (len(grads) + len(tensors))
            check(double, (*along, *grads, *tensors, *self.options, needs_grad))

    def test_gradients_that_do_not_fit_are_refused(self, native):
        tensors = self.inputs((2, 3, 4, 5))
        grads, along = [torch.randn_like(t) for t in self.results(tensors)], [torch.randn_like(t) for t in tensors]
        name = self.op.name().split("::")[1]
        backward = getattr(torch.ops.fastds, f"{name}_backward")
        needs_grad = [True] * len(tensors)
        for bad, error in ((grads[0][..., 1:], ValueError), (grads[0].double(), TypeError)):
            with pytest.raises(error, match="grad_0"):
                backward(bad, *grads[1:], *tensors, *self.options, needs_grad)
        if not self.second:
            return
        double, needs_grad = getattr(torch.ops.fastds, f"{name}_double"), [True] * (len(grads) + len(tensors))
        for bad, error in ((along[0][..., 1:], ValueError), (along[0].double(), TypeError)):
            with pytest.raises(error, match="cotangent_"):
                double(bad, *along[1:], *grads, *tensors, *self.options, needs_grad)
        some = double(along[0], *[None] * (len(along) - 1), *grads, *tensors, *self.options, needs_grad)
        zeros = double(along[0], *map(torch.zeros_like, along[1:]), *grads, *tensors, *self.options, needs_grad)
        for a, b in zip(some, zeros, strict=True):
            torch.testing.assert_close(a, b)

    def test_compile_with_gradients(self, native):
        torch._dynamo.reset()
        tensors = self.inputs(grad=True)

        def loss(*tensors):
            return sum(y.square().sum() for y in self.results([2 * t for t in tensors]))

        grads = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*tensors), tensors)
        for a, b in zip(grads, torch.autograd.grad(loss(*tensors), tensors), strict=True):
            torch.testing.assert_close(a, b)

    def test_transforms(self, native):
        tensors = [t.detach() for t in self.inputs((1, 2, 3, 2), torch.float64)]
        tangents = [torch.randn_like(t) for t in tensors]
        _, got = torch.func.jvp(lambda *t: tuple(self.results(t)), tuple(tensors), tuple(tangents))
        _, exact = torch.func.jvp(lambda *t: tuple(self.results(t, self.oracle)), tuple(tensors), tuple(tangents))
        for a, b in zip(got, exact, strict=True):
            torch.testing.assert_close(a, b)

    def test_autocast(self, native):
        tensors = self.inputs()
        with torch.autocast("cpu", torch.bfloat16):
            got = self.results(tensors)
        rounded = [t if k in self.wide else t.bfloat16() for k, t in enumerate(tensors)]
        for a, b in zip(got, self.results(rounded), strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype

    def test_backends_agree(self, native):
        tensors = self.inputs()
        with fastds.use_backend("reference"):
            expected = self.results(tensors)
        with fastds.use_backend("native"):
            self.compare(self.results(tensors), [t.double() for t in expected], torch.float32)

    def test_error_messages(self, native):
        tensors, names = self.inputs(), self.names
        with pytest.raises(TypeError, match=f"{names[0]} is a list, expected a Tensor"):
            self.function([1.0], *tensors[1:])
        with pytest.raises(TypeError, match=f"{names[0]} has dtype torch.int64, expected torch.float32 or"):
            self.function(tensors[0].long(), *tensors[1:])
        with pytest.raises(TypeError, match=f"{names[1]} has dtype torch.float64, expected torch.float32"):
            self.function(tensors[0], tensors[1].double(), *tensors[2:])
        with pytest.raises(ValueError, match=f"{names[1]} has shape .*, expected 4 dimensions"):
            self.function(tensors[0], tensors[1][0], *tensors[2:])
        with pytest.raises(ValueError, match=f"{names[1]} has shape .*, expected \\(2, "):
            self.function(tensors[0], tensors[1][:, :, 1:], *tensors[2:])
        if self.gates[0] > 1:
            with pytest.raises(ValueError, match=f"{names[0]} has 25 channels, expected a multiple of {self.gates[0]}"):
                self.function(tensors[0][:, :25], *tensors[1:])
