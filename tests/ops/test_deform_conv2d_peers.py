# SPDX-License-Identifier: Apache-2.0
"""Tests of deform_conv2d against ONNX DeformConv (reference evaluator, onnxruntime) and torchvision."""

import numpy
import pytest
import torch

from fastds.ops import deform_conv2d
from tests.support.deform_cases import Problem, gradients


def random_problem(seed: int) -> Problem:
    pick = numpy.random.default_rng(seed)

    def pair(low, high):
        return tuple(int(v) for v in pick.integers(low, high + 1, 2))

    groups, G = int(pick.integers(1, 4)), int(pick.integers(1, 4))
    kernel, dilation, padding = pair(1, 3), pair(1, 2), pair(0, 2)
    reach = [max(2, d * (k - 1) + 1) for d, k in zip(dilation, kernel, strict=True)]  # onnx divides by size - 1
    height, width = (int(pick.integers(r, r + 6)) for r in reach)
    return Problem(
        f"seed{seed}", int(pick.integers(1, 4)), 6 * int(pick.integers(1, 3)), groups * int(pick.integers(1, 4)),
        height, width, kernel, pair(1, 2), padding, dilation, groups, G, bool(pick.integers(2)), bool(pick.integers(2)),
    )  # fmt: skip


def onnx_model(problem, opset=19):
    from onnx import TensorProto, helper

    names = ["x", "w", "offset", "b" if problem.bias else "", "mask" if problem.mask else ""]
    node = helper.make_node(
        "DeformConv", names, ["y"], kernel_shape=problem.kernel, pads=[*problem.padding] * 2,
        dilations=problem.dilation, strides=problem.stride, group=problem.groups, offset_group=problem.G,
    )  # fmt: skip
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names if n]
    graph = helper.make_graph([node], "g", info, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def feed(tensors):
    x, offset, weight, bias, mask = tensors
    named = {"x": x, "w": weight, "offset": offset, "b": bias, "mask": mask}
    return {name: t.contiguous().numpy() for name, t in named.items() if t is not None}


def check(problem, tensors, y):
    # ONNX sums the four corners in another order; float32.
    torch.testing.assert_close(problem.run(deform_conv2d, tensors), torch.as_tensor(y), rtol=1e-4, atol=1e-4)


def spread(tensors, seed):
    """Replace the offset by a larger one and round a fifth of its values to integers.

    Many samples then lie outside the field.
    """
    generator = torch.Generator().manual_seed(seed)
    offset = 4 * torch.randn(tensors[1].shape, generator=generator)
    whole = torch.rand(offset.shape, generator=generator) < 0.2
    tensors[1] = torch.where(whole, offset.round(), offset)
    return tensors


@pytest.mark.parametrize("seed", range(12))
def test_onnx_reference(seed):
    onnx_reference = pytest.importorskip("onnx.reference", reason="onnx is not installed")
    problem = random_problem(seed)
    tensors = spread(problem.tensors(torch.float32), seed)
    check(problem, tensors, onnx_reference.ReferenceEvaluator(onnx_model(problem)).run(None, feed(tensors))[0])


@pytest.mark.parametrize("seed", range(40))
def test_onnxruntime(seed):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    problem = random_problem(1000 + seed)
    tensors = spread(problem.tensors(torch.float32), seed)
    model = onnx_model(problem).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    check(problem, tensors, session.run(None, feed(tensors))[0])


@pytest.mark.parametrize("seed", range(20))
def test_torchvision(seed):
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed (optional peer)")
    problem = random_problem(2000 + seed)
    tensors = problem.tensors()
    grad_y = torch.randn(problem.B, problem.O, *problem.out, dtype=torch.float64)
    ours, theirs = (
        gradients(lambda t, f=f: problem.run(f, t), tensors, grad_y) for f in (deform_conv2d, ops.deform_conv2d)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
