# SPDX-License-Identifier: Apache-2.0
"""Counts the kernels that a network launches on a GPU and their memory traffic, with fake CUDA tensors."""

import torch
from gpuless.fake_cuda import Watched
from triton.runtime.jit import JITFunction

from fastds.models.graph import capture_mode
from fastds.ops.core.registry import Op
from fastds.ops.impl.conv3x3 import library

# Operations that start no kernel.
VIEWS = {
    "_unsafe_view", "alias", "as_strided", "detach", "device", "empty", "empty_like", "empty_strided", "expand",
    "new_empty", "permute", "promote_types", "rand", "select", "slice", "split", "split_with_sizes", "squeeze",
    "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


def size(tensors):
    return sum(z.numel() * z.element_size() for z in tensors)


def counted(monkeypatch, call, in_one_pass=True):
    """Count the kernels of call(), a forward pass in bfloat16 without gradients.

    A convolution and its epilogue are counted by their kernels; any other op of fastds counts as one kernel.

    Args:
        monkeypatch: pytest fixture.
        call: function that runs the network.
        in_one_pass: True if the epilogue of a library convolution is one kernel, False if it consists of torch
            operators.

    Returns:
        A list of (name, bytes), one entry per kernel.
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
    """Estimate the time of a CUDA graph on an H200 in milliseconds.

    The model is 400 TFLOP/s for arithmetic and, for each kernel, its bytes at 3.5 TB/s, but at least 2 us, plus 0.8 us
    until the next kernel starts.
    """
    return 1e3 * (flops / 400e12 + sum(max(n / 3.5e12, 2e-6) + 0.8e-6 for _, n in kernels))
