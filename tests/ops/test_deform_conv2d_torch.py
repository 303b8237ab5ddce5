# SPDX-License-Identifier: Apache-2.0
"""Tests of deform_conv2d with torch: derivatives, opcheck, torch.compile, export, autocast and torch.func."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import fastds
from fastds.ops import deform_conv2d
from fastds.ops.core import plans
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from tests.support.deform_cases import NAMES, Problem, gradients, small

pytestmark = pytest.mark.usefixtures("native")

VARIANTS = [
    small(),
    small(id="groups", C=4, O=4, groups=2, G=1),
    small(id="points", kernel=(1, 3), padding=(0, 0), dilation=(0, 0), G=1),
    small(id="stride", H=5, W=5, stride=(2, 3), dilation=(2, 1)),
    small(id="bare", bias=False, mask=False),
]


def leaves(problem, dtype=torch.float64):
    return [t if t is None else t.detach().requires_grad_() for t in problem.tensors(dtype)]


def packed(problem):
    """Return a function for gradcheck and its arguments.

    The arguments are the tensors of the problem that are not None.
    """
    tensors = leaves(problem)
    present = [t for t in tensors if t is not None]

    def function(*values):
        values = iter(values)
        return problem.run(deform_conv2d, [t if t is None else next(values) for t in tensors])

    return function, present


@pytest.mark.parametrize("problem", VARIANTS, ids=[p.id for p in VARIANTS])
def test_gradcheck(problem):
    assert gradcheck(*packed(problem))


@pytest.mark.parametrize("problem", VARIANTS, ids=[p.id for p in VARIANTS])
def test_gradgradcheck(problem):
    assert gradgradcheck(*packed(problem), fast_mode=True)


def test_penalty_on_gradients_equals_reference():
    problem = Problem("penalty", 2, 8, 6, 6, 5, G=2)
    values = problem.tensors()

    def second(function):
        tensors = [t.detach().requires_grad_() for t in values]
        first = torch.autograd.grad(problem.run(function, tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    for name, a, b in zip(NAMES, second(deform_conv2d), second(reference), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_one_tensor_for_two_arguments():
    x, offset, weight = (
        torch.randn(1, 4, 5, 4).double(),
        torch.rand(1, 8, 5, 4).double(),
        torch.randn(3, 4, 1, 1).double(),
    )

    def second(function):
        leaf = x.clone().requires_grad_()
        y = function(leaf, offset, weight, None, 1, 0, 1, leaf).square().sum()
        (first,) = torch.autograd.grad(y, leaf, create_graph=True)
        return first.detach(), *torch.autograd.grad(first.square().sum(), leaf)

    for a, b in zip(second(deform_conv2d), second(reference), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("subset", range(1, 32))
def test_subsets_of_gradients(subset, native, monkeypatch):
    """Requesting a subset of the gradients computes only these gradients, with the same values."""
    problem = Problem("subset", 1, 8, 4, 4, 5, G=2)
    values, grad_y = problem.tensors(torch.float32), torch.randn(1, 4, 4, 5)
    full = gradients(lambda t: problem.run(deform_conv2d, t), values, grad_y)[1:]
    given, backward = [], native.deform_conv2d_backward

    def spy(*args):
        given.extend(address != 0 for address in args[5:10])
        backward(*args)

    monkeypatch.setattr(native, "deform_conv2d_backward", spy)
    chosen = [bool(subset >> i & 1) for i in range(5)]
    tensors = [v.detach().requires_grad_(c) for v, c in zip(values, chosen, strict=True)]
    with plans.suspended():  # recording would call the kernel more than once
        problem.run(deform_conv2d, tensors).backward(grad_y)
    for tensor, want, expected in zip(tensors, chosen, full, strict=True):
        assert torch.equal(tensor.grad, expected) if want else tensor.grad is None
    order = [0, 1, 4, 2, 3]  # the kernel takes grad_x, grad_offset, grad_mask, grad_weight, grad_bias
    assert given == [chosen[i] for i in order]


def test_no_grad_keeps_no_graph():
    problem = Problem("no_grad")
    with torch.no_grad():
        assert not problem.run(deform_conv2d, leaves(problem)).requires_grad
    with torch.inference_mode():
        assert problem.run(deform_conv2d, problem.tensors()).is_inference()


def test_backward_frees_its_inputs_unless_the_graph_is_retained():
    problem = Problem("twice")
    tensors = leaves(problem)
    y = problem.run(deform_conv2d, tensors).sum()
    y.backward(retain_graph=True)
    once = [t.grad.clone() for t in tensors]
    y.backward()
    assert all(torch.equal(t.grad, 2 * g) for t, g in zip(tensors, once, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_saved_input_changed_in_place_is_noticed():
    problem = Problem("in_place")
    tensors = leaves(problem)
    x = tensors[0].clone()
    y = problem.run(deform_conv2d, [x, *tensors[1:]])
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("requires_grad", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("variant", ["full", "bare"])
def test_opcheck_forward(requires_grad, layout, variant):
    problem = Problem("opcheck", 2, 8, 4, 5, 6, G=2, bias=variant == "full", mask=variant == "full")
    x, offset, weight, bias, mask = (
        t if t is None else t.detach().requires_grad_(requires_grad)
        for t in problem.tensors(torch.float32, layout=layout)
    )
    args = (x, offset, weight, bias, [1, 1], [1, 1], [1, 1], mask)
    torch.library.opcheck(torch.ops.fastds.deform_conv2d.default, args, test_utils=OPCHECKS)


@pytest.mark.parametrize("needs_grad", [[True] * 5, [True, False, True, False, False]], ids=["all", "some"])
def test_opcheck_backward(needs_grad):
    problem = Problem("opcheck", 2, 8, 4, 5, 6, G=2)
    x, offset, weight, _, mask = problem.tensors(torch.float32)
    args = (torch.randn(2, 4, 5, 6), x, offset, weight, [1, 1], [1, 1], [1, 1], mask, needs_grad)
    torch.library.opcheck(torch.ops.fastds.deform_conv2d_backward.default, args, test_utils=OPCHECKS)


@pytest.mark.parametrize("call", [deform_conv2d, torch.ops.fastds.deform_conv2d], ids=["function", "op"])
@pytest.mark.parametrize("compiler,dynamic", [("aot_eager", False), ("aot_eager", True), ("inductor", False)])
def test_compile_fullgraph_with_gradients(call, compiler, dynamic):
    if call is not deform_conv2d and compiler == "inductor":
        pytest.skip("the op is the same node in both; the function's graph is compiled by inductor")
    torch.compiler.reset()
    problem = Problem("compile", 2, 8, 4, 5, 6, G=2)

    def function(x, offset, weight, bias, mask):
        return call(x * 1.5, offset + 0.0625, weight, bias, [1, 1], [1, 1], [1, 1], mask.sigmoid()).relu()

    compiled = torch.compile(function, fullgraph=True, backend=compiler, dynamic=dynamic)
    values, grad_y = problem.tensors(torch.float32), torch.randn(2, 4, 5, 6)
    got = gradients(lambda t: compiled(*t), values, grad_y)
    expected = gradients(lambda t: function(*t), values, grad_y)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_graph_holds_the_kernels():
    """The forward graph and the backward graph contain the fused ops."""
    torch.compiler.reset()
    targets = []

    def record(graph, _):
        targets.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(
        deform_conv2d, fullgraph=True, backend=aot_autograd(fw_compiler=record, bw_compiler=record)
    )
    x, offset, weight, bias, mask = leaves(Problem("graph"), torch.float32)
    compiled(x, offset, weight, bias, 1, 1, 1, mask).sum().backward()
    forward, backward = targets
    assert "fastds.deform_conv2d.default" in forward
    assert "fastds.deform_conv2d_backward.default" in backward
    assert not any("index_select" in target for target in forward + backward)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = fastds.nn.GuidedDeformConv2d(8, 4, offset_groups=2)
        torch.nn.init.normal_(self.layer.conv_offset_mask.weight, std=0.1)

    def forward(self, x):
        return self.layer(x, x)


def test_export_and_train_on_the_exported_program():
    model, x = Net(), torch.randn(1, 8, 6, 5)
    program = torch.export.export(model, (x,))
    assert any("fastds.deform_conv2d" in str(node.target) for node in program.graph.nodes)
    exported = program.module()
    torch.testing.assert_close(exported(x), model(x))
    exported(x).square().sum().backward()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(exported.get_parameter(name).grad, parameter.grad)


def test_gradient_of_the_registered_op_called_directly():
    problem = Problem("direct")
    tensors = leaves(problem)
    x, offset, weight, bias, mask = tensors
    y = torch.ops.fastds.deform_conv2d(x, offset, weight, bias, [1, 1], [1, 1], [1, 1], mask)
    got = torch.autograd.grad(y.sum(), tensors)
    expected = torch.autograd.grad(problem.run(reference, tensors).sum(), tensors)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    problem = Problem("autocast", 2, 8, 4, 5, 6, G=2)
    values, grad_y = problem.tensors(torch.float32), torch.randn(2, 4, 5, 6)
    values[1] = values[1] + 2.0**-12  # lost if the offset were cast

    def manual(t):
        x, offset, weight, bias, mask = t
        return problem.run(deform_conv2d, [x.to(dtype), offset, weight.to(dtype), bias.to(dtype), mask.to(dtype)])

    def automatic(t):
        with torch.autocast("cpu", dtype):
            y = problem.run(deform_conv2d, t)
        assert y.dtype == dtype
        return y

    for a, b in zip(gradients(automatic, values, grad_y), gradients(manual, values, grad_y), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_autocast_accepts_mixed_dtypes_and_leaves_float64():
    x, offset, weight, bias, mask = Problem("mixed").tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = deform_conv2d(x, offset.half(), weight.bfloat16(), bias, 1, 1, 1, mask.half())
        assert y.dtype == torch.bfloat16
        doubles = [t.double() for t in (x, offset, weight, bias, mask)]
        assert Problem("mixed").run(deform_conv2d, doubles).dtype == torch.float64
        with pytest.raises(TypeError, match="weight has dtype torch.bfloat16, expected torch.float64"):
            deform_conv2d(doubles[0], doubles[1], weight, None, 1, 1, 1)


def test_autocast_does_not_reach_the_reference():
    problem = Problem("oracle")
    tensors = problem.tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = problem.run(reference, tensors)
    assert torch.equal(y, problem.run(reference, tensors))


def test_forward_mode_is_right():
    problem = small()
    tensors = problem.tensors()
    tangents = [torch.randn_like(t) for t in tensors]

    def function(*t):
        return problem.run(deform_conv2d, t)

    h = 1e-6
    up, down = ([t + s * h * d for t, d in zip(tensors, tangents, strict=True)] for s in (1, -1))
    expected = (function(*up) - function(*down)) / (2 * h)
    value, tangent = torch.func.jvp(function, tuple(tensors), tuple(tangents))
    torch.testing.assert_close(value, function(*tensors))
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(tensors, tangents, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(function(*duals)).tangent, expected, rtol=1e-6, atol=1e-7)
        x, offset, weight, bias, mask = duals
        direct = torch.ops.fastds.deform_conv2d(x, offset, weight, bias, *problem.geometry, mask)
        torch.testing.assert_close(forward_ad.unpack_dual(direct).tangent, expected, rtol=1e-6, atol=1e-7)


def test_functorch_grad_and_vmap():
    problem = Problem("functorch", 2, 4, 3, 4, 5, G=2)
    x, offset, weight, bias, mask = problem.tensors()

    def loss(weight, x):
        return problem.run(deform_conv2d, [x, offset, weight, bias, mask]).square().sum()

    grad = torch.func.grad(loss)(weight, x)
    leaf = weight.clone().requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(loss(leaf, x), leaf)[0])
    stack = torch.stack([x, 2 * x, -x])
    each = torch.func.vmap(lambda x: problem.run(deform_conv2d, [x, offset, weight, bias, mask]))(stack)
    expected = torch.stack([problem.run(deform_conv2d, [x, offset, weight, bias, mask]) for x in stack])
    torch.testing.assert_close(each, expected)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, stack)
    torch.testing.assert_close(per_sample[1], torch.func.grad(loss)(weight, 2 * x))


def test_meta_tensors_give_shapes():
    problem = Problem("meta", 2, 8, 4, 9, 7, stride=(2, 1))
    tensors = [t.to("meta") for t in problem.tensors(torch.bfloat16)]
    y = problem.run(deform_conv2d, tensors)
    assert (y.device.type, y.dtype, tuple(y.shape)) == ("meta", torch.bfloat16, (2, 4, *problem.out))


def test_backends_agree():
    problem = Problem("backends", 2, 8, 6, 6, 5, G=2)
    values, grad_y = problem.tensors(torch.float32), torch.randn(2, 6, 6, 5)
    results = []
    for name in ("native", "reference"):
        with fastds.use_backend(name):
            results.append(gradients(lambda t: problem.run(deform_conv2d, t), values, grad_y))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_threads_calling_at_once():
    from concurrent.futures import ThreadPoolExecutor

    problem = Problem("threads", 2, 16, 16, 20, 21, G=2)
    tensors = problem.tensors(torch.float32)
    expected = problem.run(deform_conv2d, tensors)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: problem.run(deform_conv2d, tensors), range(16)))
    assert all(torch.equal(y, expected) for y in results)


def test_output_size_for_strides_paddings_and_dilations():
    x = torch.randn(1, 2, 7, 6)
    for s, p, d in itertools.product((1, 2, 3), (0, 1, 4), (1, 2)):
        weight = torch.randn(3, 2, 3, 2)
        expected = torch.nn.functional.conv2d(x, weight, None, s, p, d)
        y = deform_conv2d(x, torch.zeros(1, 12, *expected.shape[2:]), weight, None, s, p, d)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
