# SPDX-License-Identifier: Apache-2.0
"""Threads on a machine that other processes use, too: see csrc/core/team.h."""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn

from fastds.ops.core import native


@functools.cache
def _connect_openmp() -> bool:
    """Give the native module the functions that set the number of threads of torch. Return False without the module."""
    if native.get_missing_reason() is not None:
        return False
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    except OSError:  # another platform
        return True
    openmp, mkl = (_find_address(library, name) for name in ("omp_set_num_threads", "MKL_Set_Num_Threads_Local"))
    native.get_module().set_thread_functions(openmp, mkl)
    return True


def _find_address(library: ctypes.CDLL, name: str) -> int:
    """Return the address of a function, or 0 if the library has no such function."""
    function = getattr(library, name, None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


@contextmanager
def adapt_threads(enabled: bool = True) -> Iterator[None]:
    """Context manager in which torch computes on one thread while several threads would be slower.

    If other processes use the cores, a thread of a parallel loop may start 24 ms late. The native kernels then run on
    one thread, and try several threads again after up to a second. In this context torch.get_num_threads() is 1 until
    several threads are faster again.

    Args:
        enabled: False for computations whose bits depend on the number of threads of torch.
    """
    if not enabled or torch.compiler.is_compiling() or not _connect_openmp():
        yield
        return
    module = native.get_module()
    module.begin_scope(torch.get_num_threads())
    try:
        yield
    finally:
        module.end_scope()


def adapt_threads_to(module: nn.Module) -> AbstractContextManager[None]:
    """Return adapt_threads for a forward of a module.

    It is disabled with gradients, because bits of torch's operators depend on the number of threads in the backward
    pass, and for modules with the attribute `bits_depend_on_threads`.
    """
    return adapt_threads(not (torch.is_grad_enabled() or getattr(module, "bits_depend_on_threads", False)))
