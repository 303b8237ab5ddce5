# SPDX-License-Identifier: Apache-2.0
"""Runs the Python code of networks for CUDA with fake tensors of torch, without a GPU.

    def test_nothing_waits(fake_cuda):
        model = on_cuda("fczsm")
        with Watched() as seen:
            model(torch.rand(1, 2, 1, 16, 20, device="cuda"))

Watched raises an error for operations that a CUDA graph cannot capture, and records all operations. An op of fastds is
one operation. Meta tensors count as device tensors, because torch without CUDA has no backward for fake CUDA tensors.
"""

import ctypes
import functools
import subprocess
from pathlib import Path

import pytest
import torch
from gpuless.emu import BUILD, compiler
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastds import models
from fastds.ops.core import native

with FakeTensorMode():
    pass  # imports 900 modules: here, and not again in the fork of every test

# A torch without CUDA has no guard of CUDA devices, which indexing asks for even where tensors are fake.
GUARD = """#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::DeviceGuardImplRegistrar guard(
    c10::DeviceType::CUDA, new c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>());
"""


class BuiltWithCuda:
    """Replaces a `_fastds` built with CUDA: every function exists and does nothing."""

    def __getattr__(self, name):
        return lambda *_: None


@functools.cache
def _load_guard():
    folder = BUILD.parent / "fake_cuda"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"guard-{torch.__version__}.so"
    if not library.exists():
        parts = Path(torch.__file__).parent
        fresh = library.with_suffix(f".{id(folder)}")
        options = ["-std=c++20", "-shared", "-fPIC", "-xc++", "-", f"-I{parts}/include", f"-L{parts}/lib", "-lc10"]
        subprocess.run([*compiler(), *options, "-o", fresh], input=GUARD, text=True, check=True)
        fresh.replace(library)
    ctypes.CDLL(library)


@pytest.fixture
def fake_cuda(monkeypatch):
    """Run the test with fake tensors; torch and _fastds appear to be built with CUDA."""
    if not torch.backends.cuda.is_built():
        _load_guard()
    monkeypatch.setattr(native, "_module", BuiltWithCuda())
    monkeypatch.setattr(native, "_missing", None)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    # A torch without CUDA does not know that cuDNN keeps channels_last.
    monkeypatch.setattr(torch._C, "_conv_determine_backend_memory_format", lambda x, w, _: suggest_memory_format(w))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def on_cuda(name, **options):
    """Make a network by models.create with fake CUDA parameters, because Module.to cannot move fake tensors."""
    with unset_fake_temporarily():
        model = models.create(name, **options).to("meta")
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="cuda"))
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device="cuda")
    return model


class HostWorkError(AssertionError):
    """Error for an operation that copies between host and device or waits for values on the device."""


class Watched(TorchDispatchMode):
    """Raises HostWorkError for operations that a CUDA graph cannot capture.

    Attributes:
        calls: a list of (operation, input tensors, output tensors).
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = _tensors((args, kwargs or {}))
        if func is not torch.ops.prim.device.default and any(map(_on_device, given)):
            if func is torch.ops.aten._local_scalar_dense.default:
                raise HostWorkError(f"{func} waits for a value of the device")
            _check_index(func, args)
        result = func(*args, **(kwargs or {}))
        made = _tensors(result)
        _check_devices(func, given, made)
        self.calls.append((func, given, made))
        return result


def _tensors(tree):
    return [z for z in tree_leaves(tree) if isinstance(z, torch.Tensor)]


def _on_device(z):
    return z.device.type != "cpu"


def _check_index(func, args):
    """Raise HostWorkError for boolean indices, whose number the host must read, and for indices on the host."""
    if func._overloadpacket not in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return
    if any(z.dtype == torch.bool or not _on_device(z) for z in _tensors(args[1:])):
        raise HostWorkError(f"{func} by a mask or by tensors of the host waits for the device")


def _check_devices(func, given, made):
    """Raise HostWorkError for an operation with tensors of host and device. Scalars as arguments are allowed."""
    on_host = [z for z in given if not _on_device(z)]
    copies = func._overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
    scalars = all(z.dim() == 0 for z in on_host) and not copies and all(map(_on_device, made))
    if len({*map(_on_device, given), *map(_on_device, made)}) > 1 and given and not scalars:
        raise HostWorkError(f"{func} copies between host and device")
