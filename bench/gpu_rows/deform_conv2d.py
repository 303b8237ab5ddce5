# SPDX-License-Identifier: Apache-2.0
"""deform_conv2d: CUDA C++, Triton, torchvision, and a formula with grid_sample in eager torch and torch.compile.

torchvision runs on the default stream of CUDA, and once more from another stream that events join with it, see
load_torchvision_op. The rows "smooth" have offsets as networks make them, all others have independent offsets with a
standard deviation of 2 pixels.
"""

import contextlib
import functools
from dataclasses import replace

import torch
import torch.nn.functional as F

import fastds
from bench.bench_deform_conv2d import CASES, compute_reference_gradients
from bench.deform_conv2d_peers import compute_by_grid_sample, make_forward_or_backward, to_channels_last
from bench.gpu_rows import Row, get_dtype_name, load_torchvision_op
from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from fastds.ops.impl.deform_conv2d.selection import use_fused, use_two_passes

FLOAT16, BFLOAT16, FLOAT32 = torch.float16, torch.bfloat16, torch.float32
WITHOUT_INPUT = "backward without x"  # the gradients of all tensors but the input
JOINED = "torchvision, joined streams"
FORWARD_PEERS = ("fastds tensor cores", "fastds fused")  # whose gradients are those of "fastds cuda"
# Peer, dtype, tolerance. "fastds cuda" is the kernel of CUDA C++ in one pass that the call selects. The sampling
# positions of torchvision in float16 are float16, and its errors are large.
PEERS = [
    ("fastds two passes", BFLOAT16, 2e-2),
    ("fastds fused", BFLOAT16, 2e-2),
    ("fastds cuda", BFLOAT16, 2e-2),
    ("fastds tensor cores", BFLOAT16, 2e-2),
    ("fastds triton", BFLOAT16, 2e-2),
    ("torchvision", FLOAT16, 0.5),
    (JOINED, FLOAT16, 0.5),
    ("fastds two passes", FLOAT32, 1e-4),
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


def misalign(tensor):
    """Copy a channels_last tensor to an address that is not a multiple of 8 bytes."""
    memory = tensor.new_empty(tensor.numel() + 1)[1:]
    nhwc = tensor.permute(0, 2, 3, 1)
    return memory.view(nhwc.shape).copy_(nhwc).permute(0, 3, 1, 2)


def make_run(function, args, grad_y, mode):
    """Return the callable to time; see make_forward_or_backward."""
    if mode != WITHOUT_INPUT:
        return make_forward_or_backward(function, args, grad_y, mode)
    return make_forward_or_backward(functools.partial(function, args[0]), args[1:], grad_y, "backward")


def build_fastds(case, mode, dtype, peer, device):
    *args, grad_y = make_tensors(case, dtype, device, True)
    if peer == "fastds tensor cores":
        args[1] = misalign(args[1])  # the kernel with a window in shared memory needs aligned offsets

    @contextlib.contextmanager
    def use_backend():
        if peer == "fastds":  # on a CPU
            yield
            return
        backend = "triton" if peer == "fastds triton" else "native"
        fused = use_fused() if peer == "fastds fused" else contextlib.nullcontext()
        with fastds.use_backend(backend), use_two_passes(peer == "fastds two passes"), fused:
            yield

    def function(x, offset, mask, weight, bias):
        return deform_conv2d(x, offset, weight, bias, 1, case.padding, case.dilation, mask)

    with use_backend():
        run = make_run(function, args, grad_y, mode)

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
    peer = load_torchvision_op()
    *args, grad_y = make_tensors(case, dtype, device, False)

    def function(x, offset, mask, weight, bias):
        return peer(x, offset, weight, bias, padding=case.padding, dilation=case.dilation, mask=mask)

    return make_run(function, args, grad_y, mode)


def build_by_grid_sample(case, mode, dtype, device, compiled):
    *args, grad_y = make_tensors(case, dtype, device, False)

    def function(x, offset, mask, weight, bias):
        with torch.device(device):
            return compute_by_grid_sample(x, offset, mask, weight, bias, case.padding, case.dilation)

    return make_run(torch.compile(function) if compiled else function, args, grad_y, mode)


def build_conv2d(case, mode, dtype, device):
    x, _, _, weight, bias, grad_y = make_tensors(case, dtype, device, True)
    return make_run(lambda *a: F.conv2d(*a, padding=case.padding), (x, weight, bias), grad_y, mode)


def build(name, mode, peer, dtype, device, small):
    """Build the callable to time.

    Args:
        name: key of CASES.
        mode: "forward", "backward" or WITHOUT_INPUT.
        peer: peer of the row.
        dtype: dtype of the tensors.
        device: their device.
        small: reduce the case to one image of 12 x 12 pixels.
    """
    case = make_case(name, small)
    if peer.startswith("fastds"):
        return build_fastds(case, mode, dtype, peer, device)
    if peer in ("torchvision", JOINED):
        return build_torchvision(case, mode, dtype, device)
    if peer == "conv2d":
        return build_conv2d(case, mode, dtype, device)
    return build_by_grid_sample(case, mode, dtype, device, peer == "torch.compile")


def make_case(name, small):
    if name == "smooth":
        return replace(make_case("full", small), title="(1,64,200,200) G=8, smooth", smooth=True)
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
    if mode != "forward":
        return compute_reference_gradients(case, args, grad_y)[mode == WITHOUT_INPUT :]
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
        rows = [row for name in ("small", "points", "smooth") for row in make_case_rows(name, True)]
        return [replace(row, first=True) for row in rows]
    first, *others = CASES
    rows = [*make_first_rows(), *(make_tiles_row(what, t) for what, sizes in TILES.items() for t in sizes)]
    started = {(row.case, row.mode, row.dtype, row.peer) for row in rows}
    rows += [row for row in make_case_rows(first, False) if (row.case, row.mode, row.dtype, row.peer) not in started]
    rows += [row for name in others for row in make_case_rows(name, False)]
    compiled = ("torch.compile", FLOAT32, 1e-3, False, False)  # last, because it compiles for many seconds
    return [*rows, *(make_row(first, mode, *compiled) for mode in ("forward", "backward"))]


def make_first_rows():
    """Return the rows of the first call: all kernels in 16 bits, forward, then backward with and without the input."""
    selected = [(mode, name) for mode in ("forward", "backward") for name in ("full", "smooth")]
    selected.append((WITHOUT_INPUT, "full"))
    peers = [peer for peer in PEERS if peer[1] != FLOAT32 and peer[0] != "conv2d"]
    return [
        replace(make_row(name, mode, *peer, False, False), first=True)
        for mode, name in selected
        for peer in peers
        if mode == "forward" or peer[0] not in FORWARD_PEERS
    ]


def make_case_rows(name, small):
    has_conv2d = make_case(name, small).dilation != 0
    peers = [peer for peer in (SMALL if small else PEERS) if has_conv2d or peer[0] != "conv2d"]
    return [
        make_row(name, mode, *peer, small, peer[0] == "conv2d")
        for mode in ("forward", "backward")
        for peer in peers
        if mode == "forward" or peer[0] not in FORWARD_PEERS
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
        timing={"torchvision": "default stream", JOINED: "joined streams"}.get(peer, "graph"),
    )  # fmt: skip
