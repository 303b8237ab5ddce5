# SPDX-License-Identifier: Apache-2.0
"""Other implementations of deform_conv2d, each as `peer(case, mode) -> callable`, on inputs in its own best layout."""

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.compiled import library


@dataclass(frozen=True)
class Case:
    """One deform_conv2d problem with stride 1 and mask; output size equals input size."""

    name: str
    title: str
    batch: int
    channels: int
    out_channels: int
    height: int
    width: int
    offset_groups: int
    kernel: tuple[int, int]
    padding: tuple[int, int]
    dilation: int

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def flops(self, mode: str) -> float:
        """Multiply-adds of the product alone, counted as two; the backward pass has two such products."""
        forward = 2 * self.batch * self.height * self.width * self.channels * self.taps * self.out_channels
        return forward * (2 if mode == "backward" else 1)

    def bytes(self, mode: str, itemsize: int) -> float:
        """Least traffic: every tensor read or written once, offsets in float32."""
        points = self.batch * self.height * self.width
        maps = self.offset_groups * self.taps
        forward = points * ((self.channels + self.out_channels + maps) * itemsize + 2 * maps * 4)
        return forward * (2 if mode == "backward" else 1)

    def args(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """float32 contiguous input, offset (standard deviation 2 px), mask, weight, bias.

        Offsets are odd multiples of 1/32 px: exact in float32 and never on a kink, where gradients jump.
        """
        generator = torch.Generator().manual_seed(7)
        maps = self.offset_groups * self.taps

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        field = (self.batch, self.channels, self.height, self.width)
        x, offset = normal(*field), 2 * normal(self.batch, 2 * maps, self.height, self.width)
        offset = ((16 * offset).floor() + 0.5) / 16
        mask = torch.sigmoid(normal(self.batch, maps, self.height, self.width))
        weight = normal(self.out_channels, self.channels, *self.kernel) / (self.channels * self.taps) ** 0.5
        return x, offset, mask, weight, normal(self.out_channels)

    def grad_y(self) -> Tensor:
        generator = torch.Generator().manual_seed(8)
        return torch.randn(self.batch, self.out_channels, self.height, self.width, generator=generator)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def forward_or_backward(function, args, grad_y, mode):
    """The timed callable of a torch function: its value, or the gradients of all args with the graph kept."""
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return function(*args)

        return forward
    args = [a.detach().requires_grad_() for a in args]
    y = function(*args)
    return lambda: torch.autograd.grad(y, args, grad_y, retain_graph=True)


def fastds(case: Case, mode: str, dtype: torch.dtype):
    """Ours: channels_last, offsets in float32."""
    from fastds.ops.impl.deform_conv2d.op import deform_conv2d

    x, offset, mask, weight, bias = (channels_last(t) for t in case.args())
    x, mask, weight, bias = (t.to(dtype) for t in (x, mask, weight, bias))

    def function(x, offset, mask, weight, bias):
        return deform_conv2d(x, offset, weight, bias, 1, case.padding, case.dilation, mask)

    return forward_or_backward(function, (x, offset, mask, weight, bias), channels_last(case.grad_y()).to(dtype), mode)


def conv2d(case: Case, mode: str, dtype: torch.dtype):
    """Yardstick: torch's convolution of the same shape in channels_last (no offsets, no mask)."""
    x, _, _, weight, bias = (channels_last(t).to(dtype) for t in case.args())

    def function(x, weight, bias):
        return F.conv2d(x, weight, bias, padding=case.padding)

    return forward_or_backward(function, (x, weight, bias), channels_last(case.grad_y()).to(dtype), mode)


def grid_sample_composition(x, offset, mask, weight, bias, padding, dilation):
    """deform_conv2d from F.grid_sample and one matrix product, the usual fallback in plain torch."""
    batch, channels, height, width = x.shape
    taps = weight.shape[2] * weight.shape[3]
    groups = offset.shape[1] // (2 * taps)
    rows = torch.arange(height, dtype=x.dtype)[:, None]
    columns = torch.arange(width, dtype=x.dtype)
    x = x.reshape(batch * groups, channels // groups, height, width)
    offset = offset.reshape(batch * groups, taps, 2, height, width)
    mask = mask.reshape(batch * groups, 1, taps, height, width)
    samples = []
    for k in range(taps):
        i, j = divmod(k, weight.shape[3])
        y_at = rows - padding[0] + i * dilation + offset[:, k, 0]
        x_at = columns - padding[1] + j * dilation + offset[:, k, 1]
        grid = torch.stack([(2 * x_at + 1) / width - 1, (2 * y_at + 1) / height - 1], -1)
        samples.append(F.grid_sample(x, grid, align_corners=False) * mask[:, :, k])
    product = weight.flatten(1) @ torch.stack(samples, 2).reshape(batch, channels * taps, height * width)
    return (product + bias[:, None]).reshape(batch, -1, height, width)


def torch_eager(case: Case, mode: str, dtype: torch.dtype):
    def function(x, offset, mask, weight, bias):
        return grid_sample_composition(x, offset, mask, weight, bias, case.padding, case.dilation)

    return forward_or_backward(function, case.args(), case.grad_y(), mode)


def torchvision(case: Case, mode: str, dtype: torch.dtype):
    from torchvision.ops import deform_conv2d

    def function(x, offset, mask, weight, bias):
        return deform_conv2d(x, offset, weight, bias, padding=case.padding, dilation=case.dilation, mask=mask)

    return forward_or_backward(function, case.args(), case.grad_y(), mode)


def serial_im2col(case: Case, mode: str, dtype: torch.dtype):
    """torchvision's and mmcv's CPU algorithm: serial loops over NCHW, the whole column matrix, one GEMM per image."""
    serial, (x, offset, mask, weight, bias), grad_y = library("serial_im2col.cpp"), case.args(), case.grad_y()
    points = case.height * case.width
    sizes = (case.channels, case.height, case.width, case.offset_groups, *case.kernel, case.height, case.width, 1)
    shape = (ctypes.c_int64 * 13)(*sizes, *case.padding, case.dilation, case.dilation)
    matrix = weight.flatten(1)

    def call(name, *tensors):
        getattr(serial, name)(*(ctypes.c_void_p(t.data_ptr()) for t in tensors), shape)

    def columns_of(b):
        columns = torch.empty(case.channels * case.taps, points)
        call("im2col", x[b], offset[b], mask[b], columns)
        return columns

    def forward():
        y = torch.stack([matrix @ columns_of(b) for b in range(case.batch)])
        return (y + bias[:, None]).reshape(grad_y.shape)

    def backward():
        grad_x, grad_offset, grad_mask = torch.zeros_like(x), torch.empty_like(offset), torch.empty_like(mask)
        grad_weight = torch.zeros_like(matrix)
        for b in range(case.batch):
            columns = matrix.t() @ grad_y[b].flatten(1)
            call("col2im_coord", columns, x[b], offset[b], mask[b], grad_offset[b], grad_mask[b])
            call("col2im", columns, offset[b], mask[b], grad_x[b])
            grad_weight += grad_y[b].flatten(1) @ columns_of(b).t()
        return grad_x, grad_offset, grad_mask, grad_weight.reshape(weight.shape), grad_y.sum((0, 2, 3))

    return forward if mode == "forward" else backward


def onnxruntime(case: Case, mode: str, dtype: torch.dtype, spinning: bool = True):
    """DeformConv of opset 19, CPU execution provider, as many threads as torch.

    spinning: whether its threads wait busily between calls (its default), which slows whatever is timed next.
    """
    import onnxruntime as ort
    from onnx import TensorProto, helper

    args = case.args()
    names = ("x", "w", "offset", "b", "mask")
    inputs = dict(zip(names, (args[0], args[3], args[1], args[4], args[2]), strict=True))
    node = helper.make_node(
        "DeformConv", names, ["y"], kernel_shape=case.kernel, pads=[*case.padding, *case.padding],
        dilations=[case.dilation] * 2, strides=[1, 1], group=1, offset_group=case.offset_groups,
    )  # fmt: skip
    info = helper.make_tensor_value_info
    graph_inputs = [info(n, TensorProto.FLOAT, tuple(t.shape)) for n, t in inputs.items()]
    graph = helper.make_graph([node], "deform_conv", graph_inputs, [info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {n: t.numpy() for n, t in inputs.items()}
    return lambda: session.run(None, feed)[0]


def openvino(case: Case, mode: str, dtype: torch.dtype):
    """DeformableConvolution-8 on the CPU plugin in float32, as many threads as torch."""
    import openvino as ov
    from openvino import opset8

    x, offset, mask, weight, bias = (t.numpy() for t in case.args())
    inputs = [opset8.parameter(a.shape, np.float32) for a in (x, offset, mask)]
    y = opset8.deformable_convolution(
        inputs[0], inputs[1], opset8.constant(weight), [1, 1], list(case.padding), list(case.padding),
        [case.dilation] * 2, inputs[2], "EXPLICIT", 1, case.offset_groups, True,
    )  # fmt: skip
    y = opset8.add(y, opset8.constant(bias.reshape(1, -1, 1, 1)))
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(ov.Model([y], inputs), "CPU", settings).create_infer_request()
    feed = dict(enumerate((x, offset, mask)))
    return lambda: np.array(request.infer(feed)[0])
