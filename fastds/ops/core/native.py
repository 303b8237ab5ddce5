# SPDX-License-Identifier: Apache-2.0
"""Access to the native module _fastds: loading, reasons why it cannot be used, and arguments of its functions."""

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastds._source_hash import source_hash

DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/core/dtype.h
MAX_CACHED_WORKSPACE_BYTES = 64 << 20

# Functions of the module that return information and write no memory of tensors.
QUERIES = frozenset(
    ("build_info", "conv3x3_amx_available", "conv3x3_available", "conv3x3_packed_size", "conv3x3_window_fits")
    + ("begin_scope", "conv_gates_fits", "conv_gates_window_fits", "deform_conv2d_fused_fits")
    + ("deform_conv2d_window_fits", "end_scope", "isa")
    + ("same_bytes", "scope_threads", "set_team_mode", "set_thread_functions", "simulate_teams", "use_huge_pages")
)

_thread = threading.local()
_recording = threading.Lock()
_module: Any = None
suspend_plans: Callable = nullcontext  # plans.py, which imports this module, sets it to plans.suspended
_missing = None  # reason why the module is missing, or None


def _load():
    global _module, _missing
    try:
        import _fastds
    except ImportError as error:
        _missing = f"the native module _fastds cannot be imported ({error}); build it with: python -m pip install ."
        if os.environ.get("FASTDS_REQUIRE_NATIVE") == "1":
            raise ImportError(f"FASTDS_REQUIRE_NATIVE=1, but {_missing}") from error
        warnings.warn(f"fastds runs on its slow PyTorch reference: {_missing}", RuntimeWarning, stacklevel=2)
        return
    root = Path(__file__).resolve().parents[3]
    if (root / "csrc").is_dir() and _fastds.build_info()["source_hash"] != source_hash(root):
        raise ImportError(
            f"{_fastds.__file__} was built from other sources than those in {root}; "
            "run: python setup.py build_ext --inplace (or remove the left-over module)"
        )
    _module = _fastds


def get_module():
    """Return the module _fastds, or raise ImportError if it is missing."""
    if _module is None:
        raise ImportError(_missing)
    return _module


class _Recorder:
    """Proxy of the module that records the calls of one thread which write memory, as (function, arguments, {})."""

    def __init__(self, module, calls: list, results: list | None):
        self._module, self._thread, self._results = module, threading.get_ident(), results
        self._calls: list | None = calls

    def __getattr__(self, name: str):
        found = getattr(self._module, name)
        if name in QUERIES or isinstance(found, type) or not callable(found):
            return found

        def call(*args):
            if self._calls is None or threading.get_ident() != self._thread:
                return found(*args)
            self._calls.append((found, args, {}))
            result = found(*args)
            if self._results is not None:
                self._results.append(result)
            return result

        return call


@contextmanager
def record_calls(calls: list, results: list | None = None) -> Iterator[None]:
    """Append the native calls that this thread makes inside the block to `calls`, and their results to `results`.

    Calls of the functions QUERIES are not recorded. Blocks of several threads run one after another.
    """
    global _module
    with _recording, suspend_plans():
        before, _module = get_module(), _Recorder(get_module(), calls, results)
        try:
            yield
        finally:
            _module._calls, _module = None, before  # caches may have the recorder as a key


def get_missing_reason() -> str | None:
    """Return the reason why the native module is missing, or None if it is not."""
    return _missing


def unsupported_reason(functions: dict[str, str], tensor: Tensor) -> str | None:
    """Return the reason why the native kernel cannot run on a tensor, or None if it can.

    Args:
        functions: dict from device type to the name of a function in _fastds.
        tensor: the tensor that gives device and dtype.
    """
    if _missing is not None:
        return _missing
    device = "cpu" if tensor.is_cpu else tensor.device.type
    if device == "meta":
        return None
    if device not in functions:
        return f"there is no native kernel for {device} tensors"
    if not hasattr(_module, functions[device]):
        return f"this build of _fastds has no {functions[device]} (see python -m fastds.info)"
    if tensor.dtype not in DTYPE_CODES:
        return f"no native kernel for {tensor.dtype}"
    return None


def runs_on_cuda(tensor: Tensor) -> bool:
    """Return True if CUDA functions of _fastds take the tensor.

    tests/gpuless replaces this function, so that its emulator runs them on CPU tensors.
    """
    return tensor.is_cuda


def get_cuda_launch_arguments(tensor: Tensor) -> tuple[int, int]:
    """Return the device index and the current stream, the last arguments of every CUDA function of _fastds."""
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def get_address(tensor: Tensor | None) -> int:
    """Return the address of the tensor's data, or 0 for None.

    The caller keeps a reference to the tensor until the native call returns.
    """
    return 0 if tensor is None else tensor.data_ptr()


def describe_map(tensor: Tensor) -> tuple:
    """Describe a feature map for csrc/conv3x3 by its address, dtype code, C, and strides of B, H, W and C."""
    b, c, h, w = tensor.stride()
    return tensor.data_ptr(), DTYPE_CODES[tensor.dtype], tensor.shape[1], b, h, w, c


def get_cached_workspace() -> Tensor | None:
    """Return the cached workspace of this Python thread, or None if it has none."""
    return getattr(_thread, "workspace", None)


def get_workspace(size: int) -> Tensor:
    """Return a uint8 tensor of at least `size` bytes on the CPU for the use of this thread.

    A workspace of up to 64 MiB is cached and returned again by later calls.
    """
    cached = get_cached_workspace()
    if cached is not None and cached.numel() >= size:
        return cached
    new, private = torch.empty(size, dtype=torch.uint8), getattr(_thread, "all", None)
    if private is not None:
        private.append(new)
    if size <= MAX_CACHED_WORKSPACE_BYTES or private is not None:
        _thread.workspace = new
    return new


@contextmanager
def private_workspaces() -> Iterator[list[Tensor]]:
    """Use new workspaces inside the block and yield the list that holds them, which keeps their memory valid."""
    before = get_cached_workspace()
    private: list[Tensor] = []
    _thread.workspace, _thread.all = None, private
    try:
        with suspend_plans():
            yield private
    finally:
        _thread.workspace, _thread.all = before, None


def get_threads() -> int:
    """Return the number of threads for a native call of this thread."""
    return (0 if _missing is not None else _module.scope_threads()) or torch.get_num_threads()


def call_with_workspace(function, *args) -> None:
    """Call a native function with the number of threads and a workspace as last arguments.

    The function returns the size that it needs. If the cached workspace is too small, the function computes nothing,
    and it is called again with a larger workspace.
    """
    cached, threads = get_cached_workspace(), get_threads()
    address, size = (0, 0) if cached is None else (cached.data_ptr(), cached.numel())
    needed = function(*args, threads, address, size)
    if needed > size:
        larger = get_workspace(needed)
        function(*args, threads, larger.data_ptr(), needed)


def _renew_lock() -> None:
    """Replace the lock in a forked child, because another thread of the parent may have held it."""
    global _recording
    _recording = threading.Lock()


_load()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
