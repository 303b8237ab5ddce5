# SPDX-License-Identifier: Apache-2.0
"""Loading of the Triton kernels (fastds.kernels) and checks whether they can run. Only loading imports Triton."""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from fastds.ops.core.arguments import DTYPES

MIN_CAPABILITY = (8, 0)  # bfloat16 tensor cores and asynchronous copies
describe_tensors: Callable[[tuple], bytes | None] | None = None  # for keys of launch plans; plans.py sets it


@functools.cache
def get_missing_reason() -> str | None:
    """Return the reason why Triton is not available, or None if it is."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


def is_interpreting() -> bool:
    """Return True if Triton interprets its kernels on the CPU.

    The environment variable TRITON_INTERPRET=1 must be set before Triton is imported.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def get_capability(index: int) -> tuple[int, int] | None:
    """Return the compute capability of a CUDA device, or None on a machine without CUDA, where tensors may be fake."""
    return torch.cuda.get_device_capability(index) if torch.cuda.is_available() else None


def unsupported_reason(tensor: Tensor) -> str | None:
    """Return the reason why a Triton kernel cannot run on a tensor, or None if it can."""
    if get_missing_reason() is not None:
        return get_missing_reason()
    device = tensor.device
    if device.type not in ("cuda", "meta") and not (device.type == "cpu" and is_interpreting()):
        return f"Triton kernels run on CUDA tensors, got a {device.type} tensor"
    if tensor.dtype == torch.float64 or tensor.dtype not in DTYPES:
        return f"no Triton kernel for {tensor.dtype}"
    found = get_capability(device.index) if device.type == "cuda" else None
    if found is not None and found < MIN_CAPABILITY:
        return f"Triton kernels need compute capability 8.0 or newer, {device} has {found[0]}.{found[1]}"
    return None


def atomic_unsupported_reason(tensor: Tensor, adds: bool) -> str | None:
    """Return the reason why a Triton kernel with atomic additions cannot run on a tensor, or None if it can.

    Args:
        tensor: the tensor.
        adds: bool, whether this call adds atomically, which torch.use_deterministic_algorithms forbids.
    """
    if adds and torch.are_deterministic_algorithms_enabled():
        return "its gradient of input adds atomically, and torch.use_deterministic_algorithms is on"
    return unsupported_reason(tensor)


def find_reason_without_launch_plans() -> str | None:
    """Return the reason why every launch of a Triton kernel runs the Python code that prepares it, or None.

    See fastds/kernels/launch_plans.py.
    """
    return get_missing_reason() or load_kernels("launch_plans").UNAVAILABLE_REASON


@functools.cache
def load_kernels(name: str):
    """Import and return the module fastds.kernels.<name>."""
    if describe_tensors is not None:
        importlib.import_module("fastds.kernels.launch_plans").use_native_description(describe_tensors)
    return importlib.import_module(f"fastds.kernels.{name}")
