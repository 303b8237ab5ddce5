# SPDX-License-Identifier: Apache-2.0
"""Problems and tolerances for the tests of deform_conv2d."""

from dataclasses import dataclass, replace

import numpy
import pytest
import torch

from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference

NAMES = ("input", "offset", "weight", "bias", "mask")


@dataclass(frozen=True)
class Problem:
    id: str
    B: int = 2
    C: int = 8
    O: int = 6  # noqa: E741
    H: int = 7
    W: int = 9
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    G: int = 2
    bias: bool = True
    mask: bool = True

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation

    @property
    def out(self):
        sizes = zip((self.H, self.W), self.kernel, *self.geometry, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)

    def tensors(self, dtype=torch.float64, offset_dtype=None, layout=torch.channels_last):
        """Make input, offset, weight, bias and mask.

        Offsets are odd multiples of 1/16 pixel, up to 4 pixels, which most dtypes represent exactly. Positions then
        differ by at least 1/16 pixel from integers, where gradients jump.
        """
        taps = self.kernel[0] * self.kernel[1]
        field = (self.B, self.C, self.H, self.W)
        shapes = [field, (self.O, self.C // self.groups, *self.kernel), (self.O,), (self.B, self.G * taps, *self.out)]
        x, weight, bias, mask = (torch.randn(s, dtype=torch.float64) for s in shapes)
        offset = (2 * torch.randint(-32, 32, (self.B, 2 * self.G * taps, *self.out)).double() + 1) / 16
        x, offset, mask = (t.contiguous(memory_format=layout) for t in (x, offset, mask))
        values = [x, offset, weight, bias if self.bias else None, mask if self.mask else None]
        dtypes = [dtype, offset_dtype or dtype, dtype, dtype, dtype]
        return [t if t is None else t.to(d) for t, d in zip(values, dtypes, strict=True)]

    def run(self, function, tensors):
        x, offset, weight, bias, mask = tensors
        return function(x, offset, weight, bias, *self.geometry, mask)


PROBLEMS = [
    Problem("plain"),
    Problem("torchvision", 33, 6, 2, 5, 4, (3, 2), (2, 1), (1, 0), (2, 1), groups=2, G=3),
    Problem("batch37", 37, 4, 3, 4, 5),
    Problem("fczsm", 1, 64, 64, 19, 23, G=8),
    Problem("kernel1x1", 2, 12, 5, 11, 6, (1, 1), padding=(0, 0), G=3),
    Problem("kernel5x5", 1, 6, 4, 8, 7, (5, 5), padding=(2, 2), G=2),
    Problem("row", 2, 8, 4, 1, 13),
    Problem("column", 2, 8, 4, 13, 1),
    Problem("pixel", 3, 8, 4, 1, 1),
    Problem("groups_not_nested", 2, 12, 9, 7, 5, groups=3, G=2),
    Problem("offset_groups_inside", 2, 12, 8, 7, 5, groups=2, G=6),
    Problem("depthwise", 2, 10, 10, 5, 7, groups=10, G=5),
    Problem("depthwise_x2", 1, 4, 8, 5, 7, groups=4, G=1),
    Problem("channels8", 1, 32, 17, 6, 11, G=4),
    Problem("channels8_one_group", 1, 8, 5, 6, 11, G=1),
    Problem("channels16", 1, 32, 32, 6, 11, G=2),
    Problem("channels5", 1, 35, 65, 5, 11, G=7),
    Problem("channels41", 1, 41, 19, 5, 7, G=1),
    Problem("one_channel", 1, 1, 1, 11, 13, (1, 1), padding=(0, 0), G=1),
    Problem("points10", 1, 24, 40, 9, 8, (1, 10), padding=(0, 0), dilation=(0, 0), G=1),
    Problem("masked_warp9", 2, 9, 9, 6, 7, (3, 3), padding=(0, 0), dilation=(0, 0), groups=9, G=1),
    Problem("no_bias", bias=False),
    Problem("no_mask", mask=False),
    Problem("bare", bias=False, mask=False),
    Problem("stride_padding", 1, 8, 6, 13, 11, stride=(3, 2), padding=(2, 4), dilation=(1, 3)),
    Problem("many_pixels", 1, 8, 8, 61, 67, G=2),
    Problem("groups_of_32", 1, 64, 96, 9, 11, groups=2, G=4),
    Problem("odd_outputs", 1, 40, 75, 12, 14, G=2),
]
FEW = [p for p in PROBLEMS if p.id in ("plain", "torchvision", "fczsm", "points10", "channels5", "groups_not_nested")]


def by_id(problems):
    return {"argvalues": problems, "ids": [p.id for p in problems]}


def small(**changes) -> Problem:
    """Return a problem for numerical derivatives."""
    return replace(Problem("small", 2, 4, 3, 3, 4, (2, 2), (1, 1), (1, 0), groups=1, G=2), **changes)


def gradients(function, tensors, grad_y):
    """Return a list of the value and the gradients of the tensors that are not None."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    y = function(leaves)
    return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], grad_y.to(y.dtype))]


def run_with_gradients(problem, tensors, grad_y):
    """Return the value of deform_conv2d and its gradients, see gradients."""
    return gradients(lambda t: problem.run(deform_conv2d, t), tensors, grad_y)


def compute_one_gradient(problem, tensors, index):
    """Return the gradient of the sum of deform_conv2d with respect to tensors[index], the only leaf."""
    tensors = [t.detach() for t in tensors]
    tensors[index].requires_grad_()
    return torch.autograd.grad(problem.run(deform_conv2d, tensors).sum(), tensors[index])[0]


def torch_in_dtype(problem, tensors):
    """Compute the op with torch operators: positions in float32, samples, mask and product in the dtype of x."""
    x, offset, weight, bias, mask = tensors
    (s_h, s_w), (p_h, p_w), (d_h, d_w) = problem.geometry
    taps = problem.kernel[0] * problem.kernel[1]
    one = torch.ones(problem.C, 1, 1, 1, dtype=x.dtype)
    shift, columns = offset.unflatten(1, (problem.G, taps, 2)), []
    for k in range(taps):
        i, j = divmod(k, problem.kernel[1])
        padding = (p_h - i * d_h, p_w - j * d_w)
        sample = reference(x, shift[:, :, k].flatten(1, 2), one, None, (s_h, s_w), padding)
        if mask is not None:
            factor = mask.unflatten(1, (problem.G, taps))[:, :, k]
            sample = sample * factor.repeat_interleave(problem.C // problem.G, 1)
        columns.append(sample.flatten(2))
    columns = torch.stack(columns, 2).unflatten(1, (problem.groups, -1)).flatten(2, 3)
    y = weight.reshape(problem.groups, problem.O // problem.groups, -1) @ columns
    y = y.reshape(problem.B, problem.O, *problem.out)
    return y if bias is None else y + bias[:, None, None]


def assert_within_rule(ours, peer, exact, names, grad_y):
    """Check the errors of results and gradients.

    The largest error must be at most twice the largest error of the peer plus one rounding of the largest value. A bias
    gradient may be close to 0 by cancellation: one float32 rounding of the sum of magnitudes is added.
    """
    for name, a, b, e in zip(names, ours, peer, exact, strict=True):
        if e.numel() == 0:
            continue
        floor = torch.finfo(a.dtype).eps * e.abs().max()
        if name == "bias":
            floor += torch.finfo(torch.float32).eps * grad_y.double().abs().sum((0, 2, 3)).max()
        error, allowed = (a.double() - e).abs().max(), 2 * (b.double() - e).abs().max() + floor
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


def assert_agrees(problem, tensors):
    """Check the value of the op."""
    exact = problem.run(reference, [t if t is None else t.double() for t in tensors])
    got, peer = problem.run(deform_conv2d, tensors), torch_in_dtype(problem, tensors)
    assert_within_rule([got], [peer], [exact], ["value"], torch.ones_like(exact))


def assert_gradients_agree(problem, tensors):
    """Check value and gradients; float64 results equal the reference up to the order of sums."""
    grad_y = torch.randn(problem.B, problem.O, *problem.out, dtype=torch.float64).to(tensors[0].dtype)
    got = gradients(lambda t: problem.run(deform_conv2d, t), tensors, grad_y)
    exact = [t if t is None else t.double() for t in tensors]
    exact = gradients(lambda t: problem.run(reference, t), exact, grad_y.double())
    assert [g.dtype for g in got[1:]] == [t.dtype for t in tensors if t is not None]
    if tensors[0].dtype == torch.float64:
        for a, b in zip(got, exact, strict=True):
            tolerance = 1e-6 if a.dtype == torch.float32 else 1e-12
            torch.testing.assert_close(a.double(), b, rtol=0, atol=float(tolerance * (1 + b.abs().max())))
        return
    peer = gradients(lambda t: torch_in_dtype(problem, t), tensors, grad_y)
    names = ["value", *(n for n, t in zip(NAMES, tensors, strict=True) if t is not None)]
    assert_within_rule(got, peer, exact, names, grad_y)


def views(name, tensor):
    """Return a view with other strides or another address."""
    if name == "contiguous":
        return tensor.contiguous()
    if name == "channel_slice":
        wide = tensor.new_zeros(tensor.shape[0], tensor.shape[1] + 16, *tensor.shape[2:])
        wide = wide.contiguous(memory_format=torch.channels_last)
        wide[:, 8:-8] = tensor
        return wide[:, 8:-8]
    if name == "expanded":
        return tensor[:1, :, :1].expand_as(tensor)
    storage = tensor.new_zeros(tensor.numel() + 1)
    flat = storage[1:].view(tensor.shape[0], *tensor.shape[2:], tensor.shape[1])
    return flat.copy_(tensor.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def far_problem(far: str, C: int = 8, outputs: int = 4):
    """Return a problem, its tensors, and the same tensors with an input of which one stride is 2^30 elements.

    The memory of that input is reserved, but only a few pages are used. The test is skipped if 6 GiB cannot be
    reserved.
    """
    step = 2**30
    shape = {"batch": (4, C, 3, 5), "row": (1, C, 4, 5), "pixel": (1, C, 3, 4)}[far]
    strides = {"batch": (step, 1, 5 * C, C), "row": (1, 1, step, C), "pixel": (1, 1, C, step)}[far]
    try:
        memory = numpy.zeros(3 * step + 4096, numpy.int16)
    except MemoryError:
        pytest.skip("6 GiB of address space are not to be had")
    problem = Problem("far", shape[0], C, outputs, *shape[2:], G=2)
    values = problem.tensors(torch.bfloat16)
    x = torch.from_numpy(memory).view(torch.bfloat16).as_strided(shape, strides)
    x.copy_(values[0])
    return problem, values, [x, *values[1:]]


MESSAGES = [
    ("input_type", {"input": [1.0]}, TypeError, "input is a list, expected a Tensor"),
    ("mask_type", {"mask": 1.0}, TypeError, "mask is a float, expected a Tensor"),
    ("input_dtype", {"input": torch.ones(2, 8, 7, 9, dtype=torch.int32)}, TypeError, "input has dtype torch.int32"),
    ("offset_dtype", {"offset": torch.ones(2, 36, 7, 9, dtype=torch.float16)}, TypeError,
     "offset has dtype torch.float16, expected torch.float32"),
    ("weight_dtype", {"weight": torch.ones(6, 8, 3, 3, dtype=torch.bfloat16)}, TypeError,
     "weight has dtype torch.bfloat16"),
    ("bias_dtype", {"bias": torch.ones(6, dtype=torch.float64)}, TypeError, "bias has dtype torch.float64"),
    ("mask_dtype", {"mask": torch.ones(2, 18, 7, 9).bool()}, TypeError, "mask has dtype torch.bool"),
    ("input_dims", {"input": torch.ones(8, 7, 9)}, ValueError, r"input has shape \(8, 7, 9\), expected 4 dimensions"),
    ("input_empty", {"input": torch.ones(2, 8, 0, 9)}, ValueError, "input has shape .* expected at least one channel"),
    ("weight_dims", {"weight": torch.ones(6, 8, 3)}, ValueError, r"weight has shape \(6, 8, 3\), expected 4 dim"),
    ("weight_channels", {"weight": torch.ones(6, 3, 3, 3)}, ValueError, "weight has shape .* divisor of input's 8"),
    ("weight_groups", {"weight": torch.ones(6, 2, 3, 3)}, ValueError, "weight has 6 output channels, expected a mult"),
    ("offset_channels", {"offset": torch.ones(2, 35, 7, 9)}, ValueError, r"offset has 35 channels, expected 2 \* 9"),
    ("offset_groups", {"offset": torch.ones(2, 54, 7, 9)}, ValueError, "offset has 54 channels, .* divisor of"),
    ("offset_size", {"offset": torch.ones(2, 36, 7, 8)}, ValueError, r"offset has shape .* expected \(2, 36, 7, 9\)"),
    ("offset_batch", {"offset": torch.ones(1, 36, 7, 9)}, ValueError, r"offset has shape .* expected \(2, 36, 7, 9\)"),
    ("mask_shape", {"mask": torch.ones(2, 9, 7, 9)}, ValueError, r"mask has shape .* expected \(2, 18, 7, 9\)"),
    ("bias_shape", {"bias": torch.ones(5)}, ValueError, "bias has 5 values, expected 6"),
    ("bias_dims", {"bias": torch.ones(6, 1)}, ValueError, r"bias has shape \(6, 1\), expected 1 dimension"),
    ("stride", {"stride": 0}, ValueError, "stride must be an int or a pair of ints from 1 to 16777215, got 0"),
    ("stride_pair", {"stride": (1, 2, 3)}, ValueError, r"stride must be .* got \(1, 2, 3\)"),
    ("padding", {"padding": (-1, 0)}, ValueError, r"padding must be .* pair of ints from 0 to 16777215, got \(-1, 0\)"),
    ("dilation", {"dilation": 1.5}, ValueError, "dilation must be .* pair of ints from 0 to 16777215, got 1.5"),
    ("kernel_too_large", {"padding": 0, "dilation": 9}, ValueError, "output would have size -11 x -9"),
    ("offset_device", {"offset": torch.ones(2, 36, 7, 9, device="meta")}, ValueError,
     "offset is on device meta, expected cpu"),
    ("bias_device", {"bias": torch.ones(6, device="meta")}, ValueError, "bias is on device meta, expected cpu"),
]  # fmt: skip
