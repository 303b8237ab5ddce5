# SPDX-License-Identifier: Apache-2.0
"""Counts of the kernels that a network launches on a GPU and of the bytes that they move, on fake CUDA tensors."""

import torch
from gpuless.fake_cuda import Watched
from triton.runtime.jit import JITFunction

from fastds.models.graph import capture_mode
from fastds.ops.core.registry import Op
from fastds.ops.impl.conv3x3 import library

# Operations that start no kernel.
VIEWS = {
    "_unsafe_view", "alias", "as_strided", "detach", "device", "empty", "empty_like", "empty_strided", "expand",
    "new_empty", "permute", "rand", "select", "slice", "split", "split_with_sizes", "squeeze", "transpose", "unbind",
    "unsqueeze", "view",
}  # fmt: skip


def size(tensors):
    return sum(z.numel() * z.element_size() for z in tensors)


def counted(monkeypatch, call, in_one_pass=True):
    """Return (name, bytes) of every kernel of call(), a forward pass without gradients in bfloat16.

    Convolutions are counted with their epilogues, and every other op of fastds as one kernel. in_one_pass: the epilogue
    of a library convolution is one kernel; otherwise it is made of operators of torch.
    """
    inside, kernels = Op._run_backend, []

    def computed(self, args, visible=False):
        return inside(self, args, visible and self.name not in ("conv1x1", "conv2d", "conv3x3"))

    def run(self, *args, grid, warmup, **options):
        kernels.append((self.fn.__name__, size(z for z in args if isinstance(z, torch.Tensor))))

    with monkeypatch.context() as patched:
        patched.setattr(Op, "_run_backend", computed)
        patched.setattr(JITFunction, "run", run)
        patched.setattr(torch.cuda, "current_device", lambda: 0)
        patched.setattr(library, "can_fuse_epilogue", lambda x: in_one_pass)  # fake tensors are refused
        with Watched() as seen, torch.no_grad(), capture_mode(torch.bfloat16):
            call()
    for func, given, made in seen.calls:
        name = func._overloadpacket.__name__
        if name not in VIEWS:
            kernels.append((name, size([*given, *made])))
        if name == "convolution" and len(given) == 3:  # torch adds cuDNN's bias by a kernel of its own
            kernels.append(("bias", size([*made, *made])))
    return kernels


def estimated_ms(kernels, flops):
    """Estimate the time on an H200 as a CUDA graph: arithmetic at 400 TFLOP/s; each kernel takes its bytes at 3.5 TB/s,
    at least 2 us, and 0.8 us until the next."""
    return 1e3 * (flops / 400e12 + sum(max(n / 3.5e12, 2e-6) + 0.8e-6 for _, n in kernels))
