# SPDX-License-Identifier: Apache-2.0
"""Tests of null_op, which are a template for the tests of other ops."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastds
from fastds.ops import null_op
from fastds.ops.impl.null_op import reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(), (0,), (1,), (7,), (2, 3, 5, 7), (2, 0, 3)]


def special_values(dtype):
    """Return normal, denormal, infinite and NaN values."""
    finfo = torch.finfo(dtype)
    values = [0.0, -0.0, 1.0, -1.5, finfo.max, finfo.min, finfo.tiny, finfo.tiny / 4]
    values += [float("inf"), float("-inf"), float("nan")]
    return torch.tensor(values, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, dtype, native):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    y = null_op(x)
    assert y.dtype == dtype and y.shape == x.shape and (y.numel() == 0 or y.data_ptr() != x.data_ptr())
    assert torch.equal(y, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_with_a_second_tensor_and_an_option(shape, dtype, native):
    x, other = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    expected = reference.null_op(x.double(), other.double(), 0.7)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(null_op(x, other, 0.7), expected.to(dtype), rtol=eps, atol=2 * eps)
    assert torch.equal(null_op(x, scale=2), 2 * x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(dtype, isa, native):
    x = special_values(dtype)
    assert native.isa() == isa
    torch.testing.assert_close(null_op(x), x, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(null_op(x, scale=-1.0), -x, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads, native):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(1001)
        assert torch.equal(null_op(x), x)
    finally:
        torch.set_num_threads(before)


def test_strided_inputs():
    x = torch.randn(4, 6, 5, 3)
    for view in (x[:, ::2], x.transpose(1, 3), x.to(memory_format=torch.channels_last), x[:1].expand(4, 6, 5, 3)):
        assert torch.equal(null_op(view), view) and null_op(view).is_contiguous()
        other = torch.randn(view.shape[::-1]).permute(*range(view.dim() - 1, -1, -1))
        assert torch.equal(null_op(view, other, 2.0), 2 * view + other), "the copies must not share memory"


def test_gradients():
    x, other = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for inputs in ((x,), (x, other, 0.7), (x.detach(), other, 0.7), (x, None, -2.0)):
        assert torch.autograd.gradcheck(null_op, inputs) and torch.autograd.gradgradcheck(null_op, inputs)
    assert not null_op(x.detach()).requires_grad
    with torch.no_grad():
        assert not null_op(x).requires_grad


def test_gradient_penalty_reaches_the_input():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(null_op(x).pow(3).sum(), x, create_graph=True)
    grad.sum().backward()
    torch.testing.assert_close(x.grad, 6 * x.detach())


def test_op_called_directly_keeps_gradients():
    x = torch.randn(5, requires_grad=True)
    torch.ops.fastds.null_op(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(5))


@pytest.mark.parametrize("function", [null_op, torch.ops.fastds.null_op], ids=["public", "direct"])
def test_transforms(function):
    x, tangent = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(torch.func.jvp(function, (x,), (tangent,))[1], tangent)
    assert torch.equal(torch.func.grad(lambda x: function(x).sum())(x), torch.ones(2, 3))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(function(dual)).tangent, tangent)


def test_vmap():
    x = torch.randn(2, 3)
    assert torch.equal(torch.vmap(null_op)(x), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, native):
    x = torch.randn(2, 3, dtype=torch.float64).to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.fastds.null_op, (x,))
    torch.library.opcheck(torch.ops.fastds.null_op, (x, x.detach(), 0.5))
    arguments = torch.ones(2, 3, dtype=dtype), x.detach(), x.detach(), 0.5
    torch.library.opcheck(torch.ops.fastds.null_op_backward, (*arguments, [True, True]))


def test_compile_with_gradients():
    x = torch.randn(5, requires_grad=True)
    torch.compile(lambda x: null_op(2 * x), fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert torch.equal(x.grad, torch.full((5,), 2.0))


class Doubled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return null_op(self.scale * x)


def test_exported_program_keeps_gradients():
    module = torch.export.export(Doubled(), (torch.ones(3),)).module()
    module(torch.ones(3)).sum().backward()
    assert next(module.parameters()).grad == 3


def test_inference_mode(native):
    with torch.inference_mode():
        x = torch.randn(4)
        assert torch.equal(null_op(x), x)


def test_backends_agree(native):
    x = torch.randn(4, 5)
    for arguments in ((x,), (x, x.t().reshape(4, 5), 0.5)):
        with fastds.use_backend("reference"):
            expected = null_op(*arguments)
        with fastds.use_backend("native"):
            assert torch.equal(null_op(*arguments), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    x = torch.randn(4, 5, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = null_op(x)
        assert null_op(x.double()).dtype == torch.float64
    assert torch.equal(y, x.to(dtype))
    y.sum().backward()
    assert x.grad.dtype == torch.float32 and torch.equal(x.grad, torch.ones(4, 5))


def test_triton_kernel():
    """The subprocess is needed because Triton enables its interpreter only when it is imported."""
    pytest.importorskip("triton")
    code = """
import torch, fastds
from fastds.ops import null_op
for x in (torch.randn(3, 700), torch.randn(5, 4).half().t(), torch.empty(0)):
    x.requires_grad_()
    with fastds.use_backend("triton"):
        y, z = null_op(x), null_op(x, x.detach(), 0.5)
        (grad,) = torch.autograd.grad(y.sum() + z.sum(), x)
    assert y.is_contiguous() and torch.equal(y, x) and torch.equal(grad, torch.full_like(x, 1.5))
    torch.testing.assert_close(z, (1.5 * x.double()).to(x.dtype))
"""
    path = os.pathsep.join([str(Path(fastds.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_error_messages():
    with pytest.raises(TypeError, match="x is a list, expected a Tensor"):
        null_op([1.0])
    with pytest.raises(TypeError, match="x has dtype torch.int64, expected torch.float32 or"):
        null_op(torch.ones(2, dtype=torch.int64))
    x = torch.ones(2)
    with pytest.raises(TypeError, match="x has dtype torch.int64"):
        torch.ops.fastds.null_op(x.long())
    with pytest.raises(ValueError, match=r"grad_y has shape \(1,\), expected \(2,\)"):
        torch.ops.fastds.null_op_backward(x[:1], x, None, 1.0, [True, False])
    with pytest.raises(ValueError, match=r"other has shape \(1,\), expected \(2,\)"):
        null_op(x, x[:1])
    with pytest.raises(TypeError, match="other has dtype torch.float64, expected torch.float32"):
        null_op(x, x.double())
    with pytest.raises(TypeError, match="scale is a str, expected a number"):
        null_op(x, scale="2")
    with pytest.raises(ValueError, match="scale must be a finite number, got nan"):
        null_op(x, scale=float("nan"))
