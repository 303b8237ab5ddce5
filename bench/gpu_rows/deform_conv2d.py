# SPDX-License-Identifier: Apache-2.0
"""deform_conv2d: ours in CUDA C++ and in Triton, torchvision, the grid_sample composition eager and compiled."""

import contextlib
import functools
from dataclasses import replace

import torch
import torch.nn.functional as F

import fastds
from bench.bench_deform_conv2d import CASES, oracle_backward
from bench.gpu_rows import Row, name_of
from bench.peers import channels_last, forward_or_backward, grid_sample_composition
from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
PEERS = [  # peer, dtype, tolerance; torchvision's float16 has float16 positions, and compute errors to match
    ("fastds triton", BRAIN, 2e-2),
    ("fastds cuda", BRAIN, 2e-2),
    ("torchvision", HALF, 0.5),
    ("fastds triton", FULL, 1e-4),
    ("fastds cuda", FULL, 1e-4),
    ("torchvision", FULL, 1e-3),
    ("torch eager", FULL, 1e-3),
    ("conv2d", BRAIN, 2e-2),
    ("conv2d", FULL, 1e-2),
]
SMALL = [("fastds", BRAIN, 2e-2), ("fastds", FULL, 1e-4), ("torch eager", FULL, 1e-3), ("conv2d", FULL, 1e-2)]
# Tiles to try beside those of kernels/deform_conv2d*.py, named in the row: evidence for the rules there. With two or
# more stages the gather is asynchronous; Triton 3.6 then goes past L1, 3.9 through it.
TILES = {
    "forward": [(64, 64, 64, 8, 2), (32, 64, 64, 4, 1), (64, 64, 64, 4, 1), (128, 64, 64, 8, 1), (128, 64, 64, 8, 2)],
    "maps": [(64, 64, 64, 8, 1), (32, 64, 64, 4, 1), (128, 64, 32, 8, 1)],
    "weight": [(64, 64, 64, 4, 1), (64, 64, 64, 4, 2), (128, 64, 64, 8, 1), (32, 64, 64, 4, 3)],
}


def tensors(case, dtype, device, last):
    """x, offset, mask, weight, bias, grad_y; offsets of ours in float32."""
    values = [t.to(device) for t in (*case.args(), case.grad_y())]
    values = [channels_last(t) if last else t for t in values]
    return [t if i == 1 and last else t.to(dtype) for i, t in enumerate(values)]


def ours(case, mode, dtype, peer, device):
    *args, grad_y = tensors(case, dtype, device, True)
    names = {"fastds cuda": "native", "fastds triton": "triton"}

    def backend():
        return fastds.backend(names[peer]) if peer in names else contextlib.nullcontext()

    def function(x, offset, mask, weight, bias):
        return deform_conv2d(x, offset, weight, bias, 1, case.padding, case.dilation, mask)

    with backend():
        run = forward_or_backward(function, args, grad_y, mode)

    def timed():
        with backend():
            return run()

    return timed


def with_tiles(case, what, tiles, device):
    """Our kernels alone on bfloat16: y; gradients of x, offset and mask; or of the weight."""
    from fastds.kernels.deform_conv2d import Problem, Tiles, launch_forward
    from fastds.kernels.deform_conv2d_backward import launch_maps, weight_gradient

    x, offset, mask, weight, bias, grad_y = tensors(case, BRAIN, device, True)
    problem = Problem(case.kernel, (1, 1), case.padding, (case.dilation,) * 2, 1, case.offset_groups)
    y, grad_offset, grad_mask = (torch.empty_like(t) for t in (grad_y, offset, mask))

    def forward():
        launch_forward(x, offset, mask, weight, bias, y, problem, tiles=Tiles(*tiles))
        return y

    def maps():
        grad_x = torch.zeros_like(x, dtype=torch.float32)
        launch_maps(grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, problem, tiles=Tiles(*tiles))
        return grad_x, grad_offset, grad_mask

    def grad_weight():
        return weight_gradient(grad_y, x, offset, mask, weight, problem, tiles=Tiles(*tiles))

    return {"forward": forward, "maps": maps, "weight": grad_weight}[what]


def torchvision(case, mode, dtype, device):
    from torchvision.ops import deform_conv2d as peer

    *args, grad_y = tensors(case, dtype, device, False)

    def function(x, offset, mask, weight, bias):
        return peer(x, offset, weight, bias, padding=case.padding, dilation=case.dilation, mask=mask)

    return forward_or_backward(function, args, grad_y, mode)


def composition(case, mode, dtype, device, compiled):
    *args, grad_y = tensors(case, dtype, device, False)

    def function(x, offset, mask, weight, bias):
        with torch.device(device):
            return grid_sample_composition(x, offset, mask, weight, bias, case.padding, case.dilation)

    return forward_or_backward(torch.compile(function) if compiled else function, args, grad_y, mode)


def conv2d(case, mode, dtype, device):
    x, _, _, weight, bias, grad_y = tensors(case, dtype, device, True)
    return forward_or_backward(lambda *a: F.conv2d(*a, padding=case.padding), (x, weight, bias), grad_y, mode)


def build(name, mode, peer, dtype, device, small):
    case = case_of(name, small)
    if peer.startswith("fastds"):
        return ours(case, mode, dtype, peer, device)
    if peer == "torchvision":
        return torchvision(case, mode, dtype, device)
    if peer == "conv2d":
        return conv2d(case, mode, dtype, device)
    return composition(case, mode, dtype, device, peer == "torch.compile")


def case_of(name, small):
    if not small:
        return CASES[name]
    return replace(CASES[name], title=f"{name}, tiny", batch=1, height=12, width=12)


def expected(name, mode, yardstick, small, device):
    case = case_of(name, small)
    args = [t.double().to(device) for t in case.args()]
    grad_y = case.grad_y().double().to(device)
    if yardstick:
        x, _, _, weight, bias = (a.requires_grad_() for a in args)
        y = F.conv2d(x, weight, bias, padding=case.padding)
        return y.detach() if mode == "forward" else torch.autograd.grad(y, (x, weight, bias), grad_y)
    if mode == "backward":
        return oracle_backward(case, args, grad_y)
    x, offset, mask, weight, bias = args
    with torch.no_grad():
        return reference(x, offset, weight, bias, 1, case.padding, case.dilation, mask)


def part_of_oracle(what, device):
    """The float64 results that with_tiles(what) is checked against."""
    results = expected("full", "forward" if what == "forward" else "backward", False, False, device)
    return {"forward": lambda: results, "maps": lambda: results[:3], "weight": lambda: results[3]}[what]()


def rows(small: bool) -> list[Row]:
    """The most telling first: where the time ends early the last are left out."""
    if small:
        return [row for name in ("small", "points") for row in of_case(name, True)]
    first, *others = CASES
    found = [*of_case(first, False), *(tiles_row(what, t) for what, many in TILES.items() for t in many)]
    found += [row for name in others for row in of_case(name, False)]
    compiled = ("torch.compile", FULL, 1e-3, False, False)  # compiles for many seconds
    return [*found, *(row(first, mode, *compiled) for mode in ("forward", "backward"))]


def of_case(name, small):
    free = CASES[name].dilation == 0  # free points have no plain convolution beside them
    peers = [peer for peer in (SMALL if small else PEERS) if not (free and peer[0] == "conv2d")]
    return [row(name, mode, *peer, small, peer[0] == "conv2d") for mode in ("forward", "backward") for peer in peers]


def tiles_row(what, tiles):
    mode = "forward" if what == "forward" else "backward"
    return replace(
        row("full", mode, "fastds triton", BRAIN, 2e-2, False, False),
        op="deform_conv2d tiles", mode=what, peer=f"fastds {tiles}", oracle=("deform_conv2d tiles", what),
        build=functools.partial(with_tiles, CASES["full"], what, tiles),
        expected=functools.partial(part_of_oracle, what),
        flops=CASES["full"].flops("forward"), bytes=CASES["full"].bytes("forward", 2),
    )  # fmt: skip


def row(name, mode, peer, dtype, tolerance, small, yardstick):
    case = case_of(name, small)
    return Row(
        "deform_conv2d", case.title, mode, name_of(dtype), peer,
        build=lambda device: build(name, mode, peer, dtype, device, small),
        expected=lambda device: expected(name, mode, yardstick, small, device),
        oracle=("deform_conv2d", name, mode, yardstick), tolerance=tolerance,
        flops=case.flops(mode), bytes=case.bytes(mode, dtype.itemsize), yardstick=yardstick,
    )  # fmt: skip
