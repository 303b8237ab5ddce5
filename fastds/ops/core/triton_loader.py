# SPDX-License-Identifier: Apache-2.0
"""Which calls the Triton kernels (fastds.kernels) can take. Nothing here imports Triton or touches a GPU to decide."""

import functools
import importlib
import importlib.util
import os

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_CAPABILITY = (8, 0)  # bfloat16 tensor cores and asynchronous copies


@functools.cache
def missing():
    """Why there is no Triton, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


def interpreting():
    """Whether Triton interprets its kernels on the CPU (TRITON_INTERPRET=1 from the start of the process)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def capability(index):
    """Compute capability of a CUDA device; None where there is none, as when tracing for one."""
    return torch.cuda.get_device_capability(index) if torch.cuda.is_available() else None


def refusal(tensor):
    """Why a Triton kernel cannot take `tensor`, or None."""
    if missing() is not None:
        return missing()
    device = tensor.device
    if device.type not in ("cuda", "meta") and not (device.type == "cpu" and interpreting()):
        return f"Triton kernels run on CUDA tensors, got a {device.type} tensor"
    if tensor.dtype not in DTYPES:
        return f"no Triton kernel for {tensor.dtype}"
    found = capability(device.index) if device.type == "cuda" else None
    if found is not None and found < LEAST_CAPABILITY:
        return f"Triton kernels need compute capability 8.0 or newer, {device} has {found[0]}.{found[1]}"
    return None


def kernels(name):
    """The module fastds.kernels.<name>, imported at its first use."""
    return importlib.import_module(f"fastds.kernels.{name}")
