# SPDX-License-Identifier: Apache-2.0
"""deform_conv2d: CUDA C++, Triton, torchvision, and a formula with grid_sample in eager torch and torch.compile."""

import contextlib
import functools
from dataclasses import replace

import torch
import torch.nn.functional as F

import fastds
from bench.bench_deform_conv2d import CASES, compute_reference_gradients
from bench.deform_conv2d_peers import compute_by_grid_sample, make_forward_or_backward, to_channels_last
from bench.gpu_rows import Row, get_dtype_name
from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference

FLOAT16, BFLOAT16, FLOAT32 = torch.float16, torch.bfloat16, torch.float32
# Peer, dtype, tolerance. The sampling positions of torchvision in float16 are float16, and its errors are large.
PEERS = [
    ("fastds triton", BFLOAT16, 2e-2),
    ("fastds cuda", BFLOAT16, 2e-2),
    ("torchvision", FLOAT16, 0.5),
    ("fastds triton", FLOAT32, 1e-4),
    ("fastds cuda", FLOAT32, 1e-4),
    ("torchvision", FLOAT32, 1e-3),
    ("torch eager", FLOAT32, 1e-3),
    ("conv2d", BFLOAT16, 2e-2),
    ("conv2d", FLOAT32, 1e-2),
]
SMALL = [
    ("fastds", BFLOAT16, 2e-2),
    ("fastds", FLOAT32, 1e-4),
    ("torch eager", FLOAT32, 1e-3),
    ("conv2d", FLOAT32, 1e-2),
]
# Tile sizes to compare with those in kernels/deform_conv2d*.py: arguments of fastds.kernels.device.Tiles, of which the
# last is the number of stages. With two or more stages the gather is asynchronous; Triton 3.6 then bypasses the L1
# cache, Triton 3.9 uses it.
TILES = {
    "forward": [(64, 64, 64, 8, 2), (32, 64, 64, 4, 1), (64, 64, 64, 4, 1), (128, 64, 64, 8, 1), (128, 64, 64, 8, 2)],
    "maps": [(64, 64, 64, 8, 1), (32, 64, 64, 4, 1), (128, 64, 32, 8, 1)],
    "weight": [(64, 64, 64, 4, 1), (64, 64, 64, 4, 2), (128, 64, 64, 8, 1), (32, 64, 64, 4, 3)],
}


def make_tensors(case, dtype, device, last):
    """Make x, offset, mask, weight, bias and grad_y.

    Args:
        case: the call.
        dtype: dtype of the tensors.
        device: their device.
        last: channels_last with offsets in float32, as fastds takes them, instead of contiguous tensors.
    """
    values = [t.to(device) for t in (*case.make_args(), case.make_grad_y())]
    values = [to_channels_last(t) if last else t for t in values]
    return [t if i == 1 and last else t.to(dtype) for i, t in enumerate(values)]


def build_fastds(case, mode, dtype, peer, device):
    *args, grad_y = make_tensors(case, dtype, device, True)
    names = {"fastds cuda": "native", "fastds triton": "triton"}

    def use_backend():
        return fastds.use_backend(names[peer]) if peer in names else contextlib.nullcontext()

    def function(x, offset, mask, weight, bias):
        return deform_conv2d(x, offset, weight, bias, 1, case.padding, case.dilation, mask)

    with use_backend():
        run = make_forward_or_backward(function, args, grad_y, mode)

    def timed():
        with use_backend():
            return run()

    return timed


def build_with_tiles(case, what, tiles, device):
    """Build one kernel of fastds with given tile sizes, on bfloat16.

    Args:
        case: the call.
        what: "forward" for y, "maps" for the gradients of x, offset and mask, "weight" for the weight's gradient.
        tiles: arguments of Tiles.
        device: CUDA device.
    """
    from fastds.kernels.deform_conv2d import Problem, Tiles, launch_forward
    from fastds.kernels.deform_conv2d_backward import compute_weight_gradient, launch_maps

    x, offset, mask, weight, bias, grad_y = make_tensors(case, BFLOAT16, device, True)
    problem = Problem(case.kernel, (1, 1), case.padding, (case.dilation,) * 2, 1, case.offset_groups)
    y, grad_offset, grad_mask = (torch.empty_like(t) for t in (grad_y, offset, mask))

    def forward():
        launch_forward(x, offset, mask, weight, bias, y, problem, tiles=Tiles(*tiles))
        return y

    def grad_maps():
        grad_x = torch.zeros_like(x, dtype=torch.float32)
        launch_maps(grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, problem, tiles=Tiles(*tiles))
        return grad_x, grad_offset, grad_mask

    def grad_weight():
        return compute_weight_gradient(grad_y, x, offset, mask, weight, problem, tiles=Tiles(*tiles))

    return {"forward": forward, "maps": grad_maps, "weight": grad_weight}[what]


def build_torchvision(case, mode, dtype, device):
    from torchvision.ops import deform_conv2d as peer

    *args, grad_y = make_tensors(case, dtype, device, False)

    def function(x, offset, mask, weight, bias):
        return peer(x, offset, weight, bias, padding=case.padding, dilation=case.dilation, mask=mask)

    return make_forward_or_backward(function, args, grad_y, mode)


def build_by_grid_sample(case, mode, dtype, device, compiled):
    *args, grad_y = make_tensors(case, dtype, device, False)

    def function(x, offset, mask, weight, bias):
        with torch.device(device):
            return compute_by_grid_sample(x, offset, mask, weight, bias, case.padding, case.dilation)

    return make_forward_or_backward(torch.compile(function) if compiled else function, args, grad_y, mode)


def build_conv2d(case, mode, dtype, device):
    x, _, _, weight, bias, grad_y = make_tensors(case, dtype, device, True)
    return make_forward_or_backward(lambda *a: F.conv2d(*a, padding=case.padding), (x, weight, bias), grad_y, mode)


def build(name, mode, peer, dtype, device, small):
    """Build the callable to time.

    Args:
        name: key of CASES.
        mode: "forward" or "backward".
        peer: peer of the row.
        dtype: dtype of the tensors.
        device: their device.
        small: reduce the case to one image of 12 x 12 pixels.
    """
    case = make_case(name, small)
    if peer.startswith("fastds"):
        return build_fastds(case, mode, dtype, peer, device)
    if peer == "torchvision":
        return build_torchvision(case, mode, dtype, device)
    if peer == "conv2d":
        return build_conv2d(case, mode, dtype, device)
    return build_by_grid_sample(case, mode, dtype, device, peer == "torch.compile")


def make_case(name, small):
    if not small:
        return CASES[name]
    return replace(CASES[name], title=f"{name}, tiny", batch=1, height=12, width=12)


def compute_expected(name, mode, yardstick, small, device):
    """Compute the float64 result of the op, or of a plain convolution if yardstick is True."""
    case = make_case(name, small)
    args = [t.double().to(device) for t in case.make_args()]
    grad_y = case.make_grad_y().double().to(device)
    if yardstick:
        x, _, _, weight, bias = (a.requires_grad_() for a in args)
        y = F.conv2d(x, weight, bias, padding=case.padding)
        return y.detach() if mode == "forward" else torch.autograd.grad(y, (x, weight, bias), grad_y)
    if mode == "backward":
        return compute_reference_gradients(case, args, grad_y)
    x, offset, mask, weight, bias = args
    with torch.no_grad():
        return reference(x, offset, weight, bias, 1, case.padding, case.dilation, mask)


def compute_expected_part(what, device):
    """Return the float64 results of build_with_tiles(what)."""
    results = compute_expected("full", "forward" if what == "forward" else "backward", False, False, device)
    return {"forward": lambda: results, "maps": lambda: results[:3], "weight": lambda: results[3]}[what]()


def make_rows(small: bool) -> list[Row]:
    """Return the rows, the most important first: the last ones are left out if the time is over."""
    if small:
        return [row for name in ("small", "points") for row in make_case_rows(name, True)]
    first, *others = CASES
    rows = [*make_case_rows(first, False), *(make_tiles_row(what, t) for what, sizes in TILES.items() for t in sizes)]
    rows += [row for name in others for row in make_case_rows(name, False)]
    compiled = ("torch.compile", FLOAT32, 1e-3, False, False)  # last, because it compiles for many seconds
    return [*rows, *(make_row(first, mode, *compiled) for mode in ("forward", "backward"))]


def make_case_rows(name, small):
    has_conv2d = CASES[name].dilation != 0
    peers = [peer for peer in (SMALL if small else PEERS) if has_conv2d or peer[0] != "conv2d"]
    return [
        make_row(name, mode, *peer, small, peer[0] == "conv2d") for mode in ("forward", "backward") for peer in peers
    ]


def make_tiles_row(what, tiles):
    mode = "forward" if what == "forward" else "backward"
    return replace(
        make_row("full", mode, "fastds triton", BFLOAT16, 2e-2, False, False),
        op="deform_conv2d tiles", mode=what, peer=f"fastds {tiles}", reference_key=("deform_conv2d tiles", what),
        build=functools.partial(build_with_tiles, CASES["full"], what, tiles),
        expected=functools.partial(compute_expected_part, what),
        flops=CASES["full"].count_flops("forward"), bytes=CASES["full"].count_bytes("forward", 2),
    )  # fmt: skip


def make_row(name, mode, peer, dtype, tolerance, small, yardstick):
    """Return the row of one peer; see build() and Row for the arguments."""
    case = make_case(name, small)
    return Row(
        "deform_conv2d", case.title, mode, get_dtype_name(dtype), peer,
        build=lambda device: build(name, mode, peer, dtype, device, small),
        expected=lambda device: compute_expected(name, mode, yardstick, small, device),
        reference_key=("deform_conv2d", name, mode, yardstick), tolerance=tolerance,
        flops=case.count_flops(mode), bytes=case.count_bytes(mode, dtype.itemsize), yardstick=yardstick,
    )  # fmt: skip
