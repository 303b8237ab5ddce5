# SPDX-License-Identifier: Apache-2.0
"""Random calls of deformable convolutions."""

import torch

from fastds import ops
from fastds.ops.impl.deform_conv2d.guided import guided_deform_conv2d

from ..small import B, H, W, maps, vector, weight


def deform_conv2d(d):
    groups, offset_groups = d.pick((1, 1, 2, 3)), d.pick((1, 1, 2))
    per = d.int(1, 4) * offset_groups
    kernel, stride = (d.int(1, 3), d.int(1, 3)), (d.int(1, 2), d.int(1, 3))
    padding, dilation = (d.int(0, 2), d.int(0, 2)), (d.int(0, 2), d.int(0, 2))
    sides = list(zip(kernel, stride, padding, dilation, strict=True))
    size = tuple(max(1, (k - 1) * step + 1 - 2 * p) + d.int(0, 5) for k, _, p, step in sides)
    out = tuple((n + 2 * p - step * (k - 1) - 1) // s + 1 for n, (k, s, p, step) in zip(size, sides, strict=True))
    taps, outputs = kernel[0] * kernel[1], d.int(1, 4) * groups
    dtype = "float64" if d.dtype == "float64" else "float32" if d.autocast else d.wide
    offset = d.image(2 * offset_groups * taps, out, role="uncast", dtype=dtype, scale=d.pick((0.5, 2.0, 9.0)))
    return {
        "input": d.image(groups * per, size),
        "offset": offset,
        "weight": d.tensor(outputs, per, *kernel, scale=(per * taps) ** -0.5),
        "bias": d.maybe(d.tensor(outputs)),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "mask": d.maybe(d.image(offset_groups * taps, out)),
    }


STRATEGIES = {"deform_conv2d": deform_conv2d}


def examples():
    x, filters, bias = maps(), weight(6, 2), vector(6)
    yield lambda: ops.deform_conv2d(x, maps(2 * 2 * 9), filters, bias, 1, 1, 1, maps(2 * 9))
    yield lambda: guided_deform_conv2d(x, maps(3 * 2 * 9), filters, bias, maps(2), 2, True, 0.5)


def recorded_elsewhere():
    """Yield registered ops that run on a GPU only, with valid arguments."""
    args = (torch.randn(B, 6, H, W), maps(), maps(3 * 2 * 9), weight(6, 2), maps(2), 2, True, [True] * 5)
    yield "guided_deform_conv2d_backward", args
