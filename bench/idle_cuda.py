# SPDX-License-Identifier: Apache-2.0
"""A CUDA device that computes nothing, for timing the host's part of calls without a GPU.

use_idle_cuda() makes "cuda" a device of this process, for as long as the process runs. Its tensors are ordinary tensors
of torch, so fastds and torch decide as on an H200. Operators of torch run their dispatch, shape computation and
allocation in C++. Kernels of Triton run as far as the C function that passes them to CUDA, see
tests/support/idle_driver.py. CUDA functions of _fastds return at once.
"""

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from bench.cpp_libraries import compile_library
from fastds.ops.core import native

CAPABILITY = (9, 0)


class _IdleNative:
    """Replaces _fastds: its classes and constants, and functions that do nothing."""

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name, None)
        is_constant = found is not None and (isinstance(found, type) or not callable(found))
        value = found if is_constant else lambda *_: None
        setattr(self, name, value)
        return value


_library: Any = None
_COPIES = 1024  # of idle_cuda.cpp


def use_idle_cuda(library: Path | None = None) -> None:
    """Make "cuda" a device that computes nothing.

    Args:
        library: the compiled idle_cuda.cpp. None: compile it.

    Raises:
        RuntimeError: torch is built with CUDA.
    """
    if torch.backends.cuda.is_built():
        raise RuntimeError("the idle device replaces CUDA in a torch that was built without it")
    global _library
    if library is None:
        _library = compile_library("idle_cuda.cpp", *get_compiler_options())
    else:
        _library = ctypes.CDLL(str(library))
    stream, h200 = SimpleNamespace(cuda_stream=0), SimpleNamespace(L2_cache_size=50 << 20, multi_processor_count=132)
    functions: dict[str, Any] = {
        "_lazy_init": lambda: None, "is_available": lambda: True, "device_count": lambda: 1,
        "current_device": lambda: 0, "current_stream": lambda *_: stream, "is_bf16_supported": lambda *_: True,
        "get_device_capability": lambda *_: CAPABILITY, "get_device_properties": lambda *_: h200,
    }  # fmt: skip
    for name, function in functions.items():
        setattr(torch.cuda, name, function)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    native._module = _IdleNative(native._module)


def get_compiler_options() -> list[str]:
    """Return the options of the compiler for idle_cuda.cpp."""
    parts = Path(torch.__file__).parent
    includes = [f"-I{parts / folder}" for folder in ("include", "include/torch/csrc/api/include")]
    return ["-std=c++20", *includes, f"-L{parts / 'lib'}", "-lc10", "-ltorch_cpu"]


def stop_reuse() -> None:
    """Give all later tensors addresses of their own."""
    _library.stop_reuse()


def take_copies() -> list[tuple[int, int]]:
    """Return the addresses of source and target of each copy or cast since the last call, at most the last 1024."""
    memory = (ctypes.c_ssize_t * (2 * _COPIES))()
    count = _library.take_copies(memory)
    return [(memory[2 * k], memory[2 * k + 1]) for k in range(count)]


def move_to_idle_cuda(model: nn.Module) -> nn.Module:
    """Replace the parameters and buffers of a model by tensors of the same layout on the device."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(move(parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = move(buffer)
    return model
