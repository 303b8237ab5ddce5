# SPDX-License-Identifier: Apache-2.0
"""Tests that CUDA tensors give the error messages of CPU tensors, with fake tensors."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map

from fastds.ops import conv_lstm_cell, deform_conv2d, null_op, window_attention2d
from fastds.ops.core import native as _native
from tests.support.deform_cases import MESSAGES, Problem

PROBLEM = Problem("bad")


@pytest.fixture(autouse=True)
def cuda_build(monkeypatch):
    """Report every native kernel as available; the tests run none of them."""
    monkeypatch.setattr(_native, "unsupported_reason", lambda functions, tensor: None)


@pytest.fixture
def fake():
    """Yield a function that converts tensors to fake CUDA tensors, but returns meta tensors unchanged."""
    with FakeTensorMode(allow_non_fake_inputs=True):

        def move(tensor, device="cuda:0"):
            if not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta":
                return tensor
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

        yield move


def arguments(fake, **changes):
    x, offset, weight, bias, mask = PROBLEM.tensors(torch.float32)
    args = {"input": x, "offset": offset, "weight": weight, "bias": bias, "padding": 1, "mask": mask} | changes
    return {name: tree_map(fake, value) for name, value in args.items()}


@pytest.mark.parametrize("changes,kind,text", [m[1:] for m in MESSAGES], ids=[m[0] for m in MESSAGES])
def test_error_messages_equal_those_of_the_cpu(fake, changes, kind, text):
    with pytest.raises(kind, match=text.replace("expected cpu", "expected cuda:0")):
        deform_conv2d(**arguments(fake, **changes))


@pytest.mark.parametrize("name", ["offset", "weight", "bias", "mask"])
@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_tensors_on_different_devices(fake, name, device):
    args = arguments(fake)
    args[name] = fake(args[name], device)
    with pytest.raises(ValueError, match=f"{name} is on device {device}, expected cuda:0, the device of input"):
        deform_conv2d(**args)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_gradient_on_another_device(fake, device):
    x, offset, weight, _, mask = (fake(t) for t in PROBLEM.tensors(torch.float32))
    grad_y = fake(torch.empty(2, 6, 7, 9), device)
    with pytest.raises(ValueError, match=f"grad_y is on device {device}, expected cuda:0, the device of input"):
        torch.ops.fastds.deform_conv2d_backward(
            grad_y, x, offset, weight, [1, 1], [1, 1], [1, 1], mask, [True, True, True, True, True]
        )


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_fake_results_have_the_computed_layout(emulated, batch, layout):
    """Compare sizes, strides and dtypes of the value and of all gradients."""
    tensors = [
        t if i in (2, 3) else t[:batch] for i, t in enumerate(PROBLEM.tensors(torch.bfloat16, torch.float32, layout))
    ]

    def results(values):
        x, offset, weight, bias, mask = values
        y = PROBLEM.run(deform_conv2d, values)
        needs_grad = [True, True, True, True, True]
        grads = torch.ops.fastds.deform_conv2d_backward(
            y, x, offset, weight, *map(list, PROBLEM.geometry), mask, needs_grad
        )
        return [(t.shape, t.stride(), t.dtype, t.device.type) for t in (y, *grads)]

    emulated("deform_conv2d")
    computed = results(tensors)
    with FakeTensorMode():
        on_gpu = results([torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in tensors])
    assert on_gpu == [(*rest, "cuda") for *rest, _ in computed]


def test_null_op(fake):
    with pytest.raises(TypeError, match="x has dtype torch.int32, expected torch.float32"):
        null_op(fake(torch.ones(3, dtype=torch.int32)))
    assert null_op(fake(torch.ones(3))).device == torch.device("cuda:0")


def test_window_attention2d(fake):
    q, k, v = (torch.ones(1, 8, 5, 6) for _ in range(3))
    assert window_attention2d(fake(q), fake(k), fake(v), window=3).device == torch.device("cuda:0")
    with pytest.raises(ValueError, match="v is on device cuda:1, expected cuda:0, the device of q"):
        window_attention2d(fake(q), fake(k), fake(v, "cuda:1"), window=3)
    with pytest.raises(TypeError, match="k has dtype torch.float16, expected torch.float32"):
        window_attention2d(fake(q), fake(k.half()), fake(v), window=3)


def test_conv_lstm_cell(fake):
    x, h, c = (torch.ones(1, n, 5, 6) for n in (3, 4, 4))
    weight = torch.ones(16, 7, 3, 3)
    assert conv_lstm_cell(*map(fake, (x, h, c, weight)))[0].device == torch.device("cuda:0")
    with pytest.raises(ValueError, match="c is on device cpu, expected cuda:0, the device of x"):
        conv_lstm_cell(fake(x), fake(h), fake(c, "cpu"), fake(weight))
    with pytest.raises(TypeError, match="h has dtype torch.float64, expected torch.float32"):
        conv_lstm_cell(fake(x), fake(h.double()), fake(c), fake(weight))
