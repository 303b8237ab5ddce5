# SPDX-License-Identifier: Apache-2.0
"""Implementations of deform_conv2d to compare with, each on inputs in its fastest memory layout.

Each builder in PEERS takes a Case, a mode ("forward" or "backward") and a dtype, and returns the callable to time. Only
the builders of fastds and conv2d use the dtype; the other libraries compute in float32.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cpp_libraries import compile_library


@dataclass(frozen=True)
class Case:
    """One call of deform_conv2d with stride 1 and a mask. The output has the size of the input."""

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
    smooth: bool = False  # offsets of a smooth field and little noise, as networks make them

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def count_flops(self, mode: str) -> float:
        """Return the FLOPs of the matrix product, a multiply-add counted as two. The backward pass has two products."""
        forward = 2 * self.batch * self.height * self.width * self.channels * self.taps * self.out_channels
        return forward * (1 if mode == "forward" else 2)

    def count_bytes(self, mode: str, itemsize: int) -> float:
        """Return the least memory traffic in bytes: one access to each image, mask and float32 offset.

        The backward pass counts twice as much.
        """
        points = self.batch * self.height * self.width
        samples = self.offset_groups * self.taps
        forward = points * ((self.channels + self.out_channels + samples) * itemsize + 2 * samples * 4)
        return forward * (1 if mode == "forward" else 2)

    def make_args(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return contiguous float32 input, offset (standard deviation 2 pixels), mask, weight and bias.

        With `smooth`, the offsets are noise of a standard deviation of 2 pixels on every 16th pixel, interpolated, plus
        noise of 0.3 pixels. Offsets are odd multiples of 1/32 pixel. They are exact in float32 and never integers,
        where the gradient of bilinear interpolation jumps.
        """
        generator = torch.Generator().manual_seed(7)
        samples = self.offset_groups * self.taps

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        x = normal(self.batch, self.channels, self.height, self.width)
        size = (self.height, self.width)
        if self.smooth:
            coarse = normal(self.batch, 2 * samples, *(n // 16 + 2 for n in size))
            field = F.interpolate(coarse, scale_factor=16, mode="bilinear")[..., : size[0], : size[1]]
            offset = 2 * field + 0.3 * normal(self.batch, 2 * samples, *size)
        else:
            offset = 2 * normal(self.batch, 2 * samples, *size)
        offset = ((16 * offset).floor() + 0.5) / 16
        mask = torch.sigmoid(normal(self.batch, samples, self.height, self.width))
        weight = normal(self.out_channels, self.channels, *self.kernel) / (self.channels * self.taps) ** 0.5
        return x, offset, mask, weight, normal(self.out_channels)

    def make_grad_y(self) -> Tensor:
        """Return the contiguous float32 gradient of the output."""
        generator = torch.Generator().manual_seed(8)
        return torch.randn(self.batch, self.out_channels, self.height, self.width, generator=generator)


def to_channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor of four dimensions in channels_last, and other tensors unchanged."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def make_forward_or_backward(function, args, grad_y, mode):
    """Return the callable to time for a torch function.

    Args:
        function: function of the tensors `args`.
        args: tensors.
        grad_y: gradient of the result, for the backward pass.
        mode: "forward" for a callable that returns the value, "backward" for one that returns the gradients of all
            tensors and retains the graph.
    """
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return function(*args)

        return forward
    args = [a.detach().requires_grad_() for a in args]
    y = function(*args)
    return lambda: torch.autograd.grad(y, args, grad_y, retain_graph=True)


def build_fastds(case: Case, mode: str, dtype: torch.dtype):
    """Build the op of fastds on channels_last tensors, with offsets in float32."""
    from fastds.ops.impl.deform_conv2d.op import deform_conv2d

    x, offset, mask, weight, bias = (to_channels_last(t) for t in case.make_args())
    x, mask, weight, bias = (t.to(dtype) for t in (x, mask, weight, bias))

    def function(x, offset, mask, weight, bias):
        return deform_conv2d(x, offset, weight, bias, 1, case.padding, case.dilation, mask)

    return make_forward_or_backward(
        function, (x, offset, mask, weight, bias), to_channels_last(case.make_grad_y()).to(dtype), mode
    )


def build_conv2d(case: Case, mode: str, dtype: torch.dtype):
    """Build a convolution of torch of the same shape in channels_last, without offsets and mask, for comparison."""
    x, _, _, weight, bias = (to_channels_last(t).to(dtype) for t in case.make_args())

    def function(x, weight, bias):
        return F.conv2d(x, weight, bias, padding=case.padding)

    return make_forward_or_backward(function, (x, weight, bias), to_channels_last(case.make_grad_y()).to(dtype), mode)


def compute_by_grid_sample(x, offset, mask, weight, bias, padding, dilation):
    """Compute deform_conv2d by F.grid_sample for each tap and one matrix product, as in PyTorch without the op."""
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


def build_torch_eager(case: Case, mode: str, dtype: torch.dtype):
    def function(x, offset, mask, weight, bias):
        return compute_by_grid_sample(x, offset, mask, weight, bias, case.padding, case.dilation)

    return make_forward_or_backward(function, case.make_args(), case.make_grad_y(), mode)


def build_torchvision(case: Case, mode: str, dtype: torch.dtype):
    from torchvision.ops import deform_conv2d

    def function(x, offset, mask, weight, bias):
        return deform_conv2d(x, offset, weight, bias, padding=case.padding, dilation=case.dilation, mask=mask)

    return make_forward_or_backward(function, case.make_args(), case.make_grad_y(), mode)


def build_serial_im2col(case: Case, mode: str, dtype: torch.dtype):
    """Build the CPU algorithm of torchvision and mmcv: serial loops, a full column matrix and one GEMM per image."""
    serial, (x, offset, mask, weight, bias), grad_y = (
        compile_library("serial_im2col.cpp"),
        case.make_args(),
        case.make_grad_y(),
    )
    points = case.height * case.width
    sizes = (case.channels, case.height, case.width, case.offset_groups, *case.kernel, case.height, case.width, 1)
    shape = (ctypes.c_int64 * 13)(*sizes, *case.padding, case.dilation, case.dilation)
    matrix = weight.flatten(1)

    def call(name, *tensors):
        getattr(serial, name)(*(ctypes.c_void_p(t.data_ptr()) for t in tensors), shape)

    def make_columns(b):
        columns = torch.empty(case.channels * case.taps, points)
        call("im2col", x[b], offset[b], mask[b], columns)
        return columns

    def forward():
        y = torch.stack([matrix @ make_columns(b) for b in range(case.batch)])
        return (y + bias[:, None]).reshape(grad_y.shape)

    def backward():
        grad_x, grad_offset, grad_mask = torch.zeros_like(x), torch.empty_like(offset), torch.empty_like(mask)
        grad_weight = torch.zeros_like(matrix)
        for b in range(case.batch):
            columns = matrix.t() @ grad_y[b].flatten(1)
            call("col2im_coord", columns, x[b], offset[b], mask[b], grad_offset[b], grad_mask[b])
            call("col2im", columns, offset[b], mask[b], grad_x[b])
            grad_weight += grad_y[b].flatten(1) @ make_columns(b).t()
        return grad_x, grad_offset, grad_mask, grad_weight.reshape(weight.shape), grad_y.sum((0, 2, 3))

    return forward if mode == "forward" else backward


def build_onnxruntime(case: Case, mode: str, dtype: torch.dtype, spinning: bool = True):
    """Build DeformConv of opset 19 on the CPU, with as many threads as torch.

    Args:
        case: the call.
        mode: not used; the callable computes the forward pass.
        dtype: not used; the callable computes in float32.
        spinning: whether the threads of onnxruntime spin between calls, as by default. This slows down the callable
            that is timed next.
    """
    import onnxruntime as ort
    from onnx import TensorProto, helper

    args = case.make_args()
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


def build_openvino(case: Case, mode: str, dtype: torch.dtype):
    """Build the forward pass by DeformableConvolution-8 on the CPU in float32, with as many threads as torch."""
    import openvino as ov
    from openvino import opset8

    x, offset, mask, weight, bias = (t.numpy() for t in case.make_args())
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


PEERS = {
    "fastds": build_fastds,
    "torch_eager": build_torch_eager,
    "serial_im2col": build_serial_im2col,
    "torchvision": build_torchvision,
    "onnxruntime": build_onnxruntime,
    "openvino": build_openvino,
    "conv2d": build_conv2d,
}
