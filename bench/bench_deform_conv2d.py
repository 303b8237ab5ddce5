# SPDX-License-Identifier: Apache-2.0
"""deform_conv2d compared with other implementations, on shapes of the networks."""

import functools
import importlib

import pytest
import torch
import torch.nn.functional as F

from bench.deform_conv2d_peers import PEERS, Case
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference

CASES = {
    case.name: case
    for case in (
        Case("full", "(1,64,200,200) G=8", 1, 64, 64, 200, 200, 8, (3, 3), (1, 1), 1),  # alignment of FC-ZSM, full size
        Case("half", "(8,64,100,100) G=8", 8, 64, 64, 100, 100, 8, (3, 3), (1, 1), 1),  # half size, training batch
        Case("small", "(1,16,64,64) G=2", 1, 16, 16, 64, 64, 2, (3, 3), (1, 1), 1),  # small network
        # Links of TrajGRU: with dilation 0 all taps start at the same pixel and offsets alone place them.
        Case("points", "(1,24,160,160) 10 points", 1, 24, 72, 160, 160, 1, (1, 10), (0, 0), 0),
    )
}
ROWS = [  # peer, dtype, modes
    ("fastds", torch.float32, ("forward", "backward")),
    ("fastds", torch.bfloat16, ("forward", "backward")),
    ("torch_eager", torch.float32, ("forward", "backward")),
    ("serial_im2col", torch.float32, ("forward", "backward")),
    ("torchvision", torch.float32, ("forward", "backward")),
    ("onnxruntime", torch.float32, ("forward",)),
    ("openvino", torch.float32, ("forward",)),
    ("conv2d", torch.float32, ("forward", "backward")),
    ("conv2d", torch.bfloat16, ("forward", "backward")),
]
# Peers that are also measured with freed memory returned to the system.
RETURNED = (
    "fastds",
    "torch_eager",
    "serial_im2col",
    "torchvision",
    "onnxruntime",
    "conv2d",
)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def build(peer: str, case: str, mode: str, dtype: torch.dtype):
    """Build the callable to time.

    Args:
        peer: key of PEERS.
        case: key of CASES.
        mode: "forward" for the value, "backward" for all gradients.
        dtype: dtype of the tensors.
    """
    return PEERS[peer](CASES[case], mode, dtype)


def compute_reference_gradients(case: Case, args, grad_y):
    """Compute the gradients of all arguments in float64 by the reference implementation.

    Each tap is computed separately, as a 1x1 kernel with shifted padding, which limits the memory of the graph.
    """
    x, offset, mask, weight, bias = args
    groups, taps = case.offset_groups, case.taps
    offset = offset.unflatten(1, (groups, taps, 2))
    mask = mask.unflatten(1, (groups, taps))
    grad_x, grads = torch.zeros_like(x), []
    for k in range(taps):
        i, j = divmod(k, case.kernel[1])
        leaves = (x, offset[:, :, k].flatten(1, 2), mask[:, :, k], weight[:, :, i, j, None, None])
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        padding = (case.padding[0] - i * case.dilation, case.padding[1] - j * case.dilation)
        y = reference(leaves[0], leaves[1], leaves[3], None, 1, padding, 1, leaves[2])
        grad, *rest = torch.autograd.grad(y, leaves, grad_y)
        grad_x += grad
        grads.append(rest)
    grad_offset = torch.stack([g[0].unflatten(1, (groups, 2)) for g in grads], 2).flatten(1, 3)
    grad_mask = torch.stack([g[1] for g in grads], 2).flatten(1, 2)
    grad_weight = torch.cat([g[2] for g in grads], 2).reshape(weight.shape)
    return [g.float() for g in (grad_x, grad_offset, grad_mask, grad_weight, grad_y.sum((0, 2, 3)))]


@functools.lru_cache(maxsize=2)
def compute_expected(case: str, mode: str, yardstick: bool):
    """Compute the float64 result of the op, or of a plain convolution.

    Args:
        case: key of CASES.
        mode: "forward" or "backward".
        yardstick: True for the plain convolution of the peer conv2d.
    """
    case = CASES[case]
    args, grad_y = [a.double() for a in case.make_args()], case.make_grad_y().double()
    if yardstick:
        x, _, _, weight, bias = (a.requires_grad_() for a in args)
        y = F.conv2d(x, weight, bias, padding=case.padding)
        return y.detach() if mode == "forward" else torch.autograd.grad(y, (x, weight, bias), grad_y)
    if mode == "backward":
        return compute_reference_gradients(case, args, grad_y)
    x, offset, mask, weight, bias = args
    return reference(x, offset, weight, bias, 1, case.padding, case.dilation, mask)


def get_skip_reason(peer: str, case: Case) -> str | None:
    """Return why a peer cannot or should not run a case, or None."""
    if peer in ("torchvision", "onnxruntime", "openvino"):
        try:
            importlib.import_module(peer)
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
            return f"{peer} cannot be imported: {error}"
    if peer in ("onnxruntime", "openvino") and case.dilation == 0:
        return f"{peer} does not support dilation 0"
    if peer == "conv2d" and case.dilation == 0:
        return "there is no plain convolution with dilation 0"
    if peer == "serial_im2col" and case.batch > 1:
        return "a batch takes batch times as long as one image: the algorithm is serial"
    return None


def list_rows() -> list:
    params = []
    for case in CASES.values():
        for mode in ("forward", "backward"):
            for peer, dtype, modes in ROWS:
                if mode in modes:
                    reason = get_skip_reason(peer, case)
                    marks = pytest.mark.skipif(reason is not None, reason=reason or "")
                    label = "-".join((case.name, mode, peer, str(dtype).removeprefix("torch.")))
                    params.append(pytest.param(case.name, mode, peer, dtype, "kept", id=label, marks=marks))
                    if case.name == "full" and peer in RETURNED and dtype == torch.float32:
                        params.append(
                            pytest.param(case.name, mode, peer, dtype, "returned", id=f"{label}-returned", marks=marks)
                        )
    return params


@pytest.mark.parametrize("case,mode,peer,dtype,memory", list_rows())
def test_deform_conv2d(measure, case, mode, peer, dtype, memory):
    yardstick = peer == "conv2d"
    measure(
        build, (peer, case, mode, dtype), memory=memory, op="deform_conv2d", case=CASES[case].title, mode=mode,
        peer=peer, yardstick=yardstick, dtype=str(dtype).removeprefix("torch."), flops=CASES[case].count_flops(mode),
        bytes=CASES[case].count_bytes(mode, dtype.itemsize), expected=compute_expected(case, mode, yardstick),
        tolerance=TOLERANCE[dtype],
    )  # fmt: skip
