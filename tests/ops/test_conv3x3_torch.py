# SPDX-License-Identifier: Apache-2.0
"""Tests of conv3x3 with torch: derivatives, opcheck, torch.compile, export, autocast and torch.func."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastds
from fastds.ops import conv3x3
from fastds.ops.impl.conv3x3.reference import conv3x3 as reference
from fastds.ops.impl.conv3x3.reference import conv3x3_grad_weight
from tests.support.conv3x3_cases import Problem, gradients, leaves

pytestmark = pytest.mark.usefixtures("native")

ALGORITHMS = ["winograd", "planes", "product", "direct"]
SMALL = [
    Problem(B=1, C1=2, C2=1, O=4, H=5, W=3, act=None),
    Problem(B=1, C1=2, C2=0, O=4, H=3, W=4, act="leaky_relu", shuffle=2),
    Problem(B=2, C1=2, C2=1, O=2, H=2, W=1, act="relu", padding_mode="replicate"),
    Problem(B=1, C1=1, C2=2, O=2, H=1, W=2, padding_mode="circular_x", residual=False),
]


@pytest.mark.parametrize("problem", SMALL, ids=str)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=["first", "second"])
def test_numerical_derivatives(problem, check):
    tensors = leaves(problem, torch.float64)

    def function(*present):
        values = iter(present)
        return problem.run([t if t is None else next(values) for t in tensors], "auto")

    assert check(function, [t for t in tensors if t is not None])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("act", [None, "relu", "leaky_relu"], ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular_x"])
@pytest.mark.parametrize("shuffle", [1, 2], ids=["plain", "shuffled"])
def test_double_backward(algorithm, act, padding_mode, shuffle):
    problem = Problem(act=act, padding_mode=padding_mode, shuffle=shuffle)
    tensors = leaves(problem)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    y = problem.run(tensors, algorithm)
    expected = problem.expected(doubles)
    grad_y = torch.randn_like(y)
    fused = gradients(y, tensors, grad_y, retain_graph=True)
    first = gradients(y, tensors, grad_y, create_graph=True)
    exact = gradients(expected, doubles, grad_y.double(), create_graph=True)
    bent = [0, 1, 3]  # x, weight, x2: the result is linear in the others, as their gradients know
    along = [torch.randn_like(first[i]) for i in bent]
    second = torch.autograd.grad([first[i] for i in bent], [tensors[i] for i in bent], along)
    along = [a.double() for a in along]
    exact_second = torch.autograd.grad([exact[i] for i in bent], [doubles[i] for i in bent], along)
    for got, want in zip((*fused, *first, *second), (*exact, *exact, *exact_second), strict=True):
        assert (got - want).abs().max() <= 2e-5 * want.abs().max()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradient_penalty(algorithm):
    """The penalty is that of WGAN-GP, through three convolutions."""
    torch.manual_seed(1)
    weights = [torch.randn(o, c, 3, 3) / (9 * c) ** 0.5 for c, o in ((17, 24), (24, 20), (20, 1))]
    x = torch.randn(2, 17, 11, 10)

    def penalty(function, x, weights, third=False):
        x = x.detach().requires_grad_()
        weights = [w.detach().requires_grad_() for w in weights]
        h = x
        for w in weights:
            h = function(h, w)
        (grad,) = torch.autograd.grad(h.square().sum(), x, create_graph=True)
        second = torch.autograd.grad((grad.norm() - 1).square(), weights, create_graph=third)
        return torch.autograd.grad(sum(g.square().sum() for g in second), weights) if third else second

    for third in (False, True):
        got = penalty(lambda h, w: conv3x3(h, w, activation="leaky_relu", algorithm=algorithm), x, weights, third)
        doubles = [w.double() for w in weights]
        want = penalty(lambda h, w: reference(h, w, act="leaky_relu"), x.double(), doubles, third)
        for a, b in zip(got, want, strict=True):
            assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize("subset", range(1, 32))
def test_requires_grad_subsets(subset):
    problem = Problem(act="leaky_relu", shuffle=2)
    everything = leaves(problem)
    y = problem.run(everything)
    grad_y = torch.randn_like(y)
    expected = gradients(y, everything, grad_y)
    tensors = [t.detach().requires_grad_(bool(subset >> i & 1)) for i, t in enumerate(everything)]
    problem.run(tensors).backward(grad_y)
    for tensor, grad in zip(tensors, expected, strict=True):
        assert (tensor.grad is None) == (not tensor.requires_grad)
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad, grad, rtol=0, atol=2e-4)


def test_no_graph_without_requires_grad():
    problem = Problem()
    assert not problem.run(problem.tensors()).requires_grad
    with torch.no_grad():
        assert not problem.run(leaves(problem)).requires_grad
    with torch.inference_mode():
        inside = problem.run(problem.tensors())
    assert torch.equal(problem.run(problem.tensors()), inside)


def test_input_modified_before_backward_raises():
    problem = Problem(act="relu")
    tensors = leaves(problem)
    y = problem.run(tensors)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- dispatcher, compiler, autocast


class Log(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Wrapper(torch.Tensor):
    names = []

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        cls.names.append(str(function))
        return function(*(a.inner if isinstance(a, cls) else a for a in args), **(kwargs or {}))


def step(x, weight):
    with torch.no_grad():
        conv3x3(x, weight)
    conv3x3(x, weight).sum().backward()


def test_dispatch_modes_observe_small_calls():
    """Small calls bypass the dispatcher only if no dispatch mode, profiler or tensor subclass is active."""
    x, weight = torch.randn(2, 16, 9, 9), torch.randn(16, 16, 3, 3, requires_grad=True)
    with Log() as mode:
        step(x, weight)
    assert mode.names.count("fastds.conv3x3.default") == 2
    assert mode.names.count("fastds.conv3x3_backward.default") == 1
    with torch.profiler.profile() as profile:
        step(x, weight)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["fastds::conv3x3"] >= 2 and counts["fastds::conv3x3_backward"] >= 1
    with torch.no_grad():
        torch.testing.assert_close(conv3x3(Wrapper(x), weight), conv3x3(x, weight))
        traced = torch.jit.trace(conv3x3, (x, weight), check_trace=False)
    assert "fastds.conv3x3.default" in Wrapper.names
    assert "fastds::conv3x3" in str(traced.graph)


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def op_arguments(problem, tensors, algorithm):
    act = problem.act or "none"
    out_dtype = problem.out_dtype or problem.dtype
    return (*tensors, act, 0.1, problem.padding_mode, problem.shuffle, out_dtype, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("full", [True, False], ids=["full", "bare"])
def test_opcheck_forward(algorithm, requires_grad, full):
    shuffle, act = (2, "leaky_relu") if full else (1, None)
    problem = Problem(H=5, W=6, bias=full, residual=full, shuffle=shuffle, act=act, C2=5 if full else 0)
    tensors = [t if t is None else t.detach().requires_grad_(requires_grad) for t in problem.tensors()]
    arguments = op_arguments(problem, tensors, algorithm)
    torch.library.opcheck(torch.ops.fastds.conv3x3.default, arguments, test_utils=OPCHECKS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_opcheck_gradients(algorithm):
    problem = Problem(H=5, W=6)
    x, weight, _, x2, _ = leaves(problem)
    grad = torch.randn(2, 24, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    ops = torch.ops.fastds
    arguments = (grad, weight, "replicate", torch.float32, algorithm)
    torch.library.opcheck(ops.conv3x3_grad_x.default, arguments, test_utils=OPCHECKS)
    arguments = (grad, x, x2, "circular_x", torch.float32, algorithm)
    torch.library.opcheck(ops.conv3x3_grad_weight.default, arguments, test_utils=OPCHECKS)
    values = [t.detach() for t in (grad, x, weight, x2, grad)]
    for needs_grad in ([True] * 5, [True, False, True, False, False]):
        arguments = (*values, 0.1, "zeros", 1, algorithm, needs_grad, values[1])
        torch.library.opcheck(ops.conv3x3_backward.default, arguments, test_utils=OPCHECKS)


@pytest.mark.parametrize("compiler,dynamic", [("aot_eager", False), ("aot_eager", True), ("inductor", False)])
def test_compile_fullgraph_with_gradients(compiler, dynamic):
    torch.compiler.reset()
    problem = Problem(act="leaky_relu", shuffle=2)

    def function(*tensors):
        with fastds.use_conv_algorithm("winograd"):
            return problem.run([tensors[0] * 1.5, *tensors[1:]], None).sin()

    compiled = torch.compile(function, fullgraph=False, backend=compiler, dynamic=dynamic)
    tensors = leaves(problem)
    y = compiled(*tensors)
    grad_y = torch.randn_like(y)
    got = gradients(y, tensors, grad_y)
    for a, b in zip(got, gradients(function(*tensors), tensors, grad_y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_compiled_graph_holds_the_fused_ops():
    from torch._dynamo.backends.common import aot_autograd

    torch.compiler.reset()
    targets = []

    def record(graph, _):
        targets.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    backend = aot_autograd(fw_compiler=record, bw_compiler=record)
    tensors = leaves(Problem(act="relu"))
    problem = Problem(act="relu")
    torch.compile(lambda *t: problem.run(t), fullgraph=True, backend=backend)(*tensors).sum().backward()
    forward, backward = targets
    assert "fastds.conv3x3.default" in forward and "fastds.conv3x3_backward.default" in backward
    assert not any("convolution" in target for target in forward + backward)


def test_export_and_train_on_the_exported_program():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(32, 16, 3, 3) / 12)
            self.bias = torch.nn.Parameter(torch.randn(32))

        def forward(self, x):
            return conv3x3(x, self.weight, self.bias, activation="relu", upscale_factor=2)

    model, x = Net(), torch.randn(1, 16, 9, 8)
    program = torch.export.export(model, (x,))
    assert any("fastds.conv3x3" in str(node.target) for node in program.graph.nodes)
    exported = program.module()
    torch.testing.assert_close(exported(x), model(x))
    exported(x).square().sum().backward()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(exported.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, algorithm):
    """Under autocast, the result has the dtype of autocast unless out_dtype is float32."""
    problem = Problem(act="leaky_relu")
    tensors = leaves(problem)
    with torch.autocast("cpu", dtype):
        y = problem.run(tensors, algorithm)
        x, weight, bias, x2, _ = tensors
        wide = conv3x3(x, weight, bias, second_input=x2, out_dtype=torch.float32, algorithm=algorithm)
    assert y.dtype == dtype and wide.dtype == torch.float32
    rounded = [t.detach().to(dtype) if t.dim() == 4 and t is not weight else t.detach() for t in tensors]
    torch.testing.assert_close(y.double(), problem.expected(rounded), rtol=3e-2, atol=3e-2)
    exact = reference(rounded[0].double(), weight.double(), bias.double(), rounded[3].double())
    assert (wide - exact).abs().max() < 2e-5
    y.float().square().sum().backward()
    assert weight.grad.dtype == bias.grad.dtype == tensors[0].grad.dtype == torch.float32


def test_backends_agree():
    problem = Problem(act="relu", shuffle=2)
    values = []
    for name in ("native", "reference"):
        with fastds.use_backend(name):
            tensors = leaves(problem)
            y = problem.run(tensors)
            values.append([y.detach(), *gradients(y, tensors, torch.ones_like(y))])
    for native, plain in zip(*values, strict=True):
        assert (native - plain).abs().max() <= 3e-5 * plain.abs().max()


def test_functorch_and_forward_mode_run_on_the_reference():
    problem = Problem(act="leaky_relu", C2=0, residual=False)
    x, weight, bias, _, _ = problem.tensors()
    tangent = torch.randn_like(x)
    primal = torch.func.jvp(lambda x: conv3x3(x, weight, bias, algorithm="winograd"), (x,), (tangent,))[1]
    torch.testing.assert_close(primal, conv3x3(tangent, weight, algorithm="winograd"), rtol=1e-4, atol=1e-4)
    batched = torch.vmap(lambda x: conv3x3(x[None], weight, bias)[0])(x)
    torch.testing.assert_close(batched, conv3x3(x, weight, bias), rtol=1e-4, atol=1e-4)


def test_gradient_of_the_registered_op_called_directly():
    problem = Problem(act="relu")
    tensors = leaves(problem)
    y = torch.ops.fastds.conv3x3(*op_arguments(problem, tensors, "winograd"))
    got = gradients(y.sum(), tensors, None)
    expected = gradients(problem.run(tensors).sum(), tensors, None)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_explain_names_the_algorithm():
    arguments = op_arguments(Problem(), Problem().tensors(), "auto")
    assert fastds.explain("conv3x3", *arguments)["native"] == "chosen"


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular_x"])
@pytest.mark.parametrize("second", [False, True], ids=["", "x2"])
def test_reference_of_the_weights_gradient(second, padding_mode):
    x, x2 = (torch.randn(2, channels, 5, 6, dtype=torch.float64) for channels in (3, 2))
    weight = torch.randn(4, 5 if second else 3, 3, 3, dtype=torch.float64, requires_grad=True)
    y = conv3x3(x, weight, None, second_input=x2 if second else None, padding_mode=padding_mode)
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, weight, grad)
    found = conv3x3_grad_weight(grad, x, x2 if second else None, padding_mode, torch.float32)
    assert found.dtype == torch.float32 and found.is_contiguous()
    torch.testing.assert_close(found, expected.float())
