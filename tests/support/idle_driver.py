# SPDX-License-Identifier: Apache-2.0
"""A driver of Triton that launches nothing, so that launchers run on a machine without a GPU.

    with idle_driver() as driver:
        implicit_gemm.launch(x, None, weight, None, None, out)
    (launch,) = driver.launches

Triton's binder, its specialization of arguments and CudaLauncher are those of a real launch. Kernels are not compiled:
each specialization of a kernel gets a handle of its own. The C function that passes a launch to CUDA is replaced by one
that notes its arguments.
"""

import itertools
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.driver import driver as config
from triton.runtime.jit import JITFunction

# Triton caches kernels by the index of the device. Each driver has its own indices.
_first_devices = itertools.count(1000, 10)
_handles = itertools.count(1)


class Launch(NamedTuple):
    """What a launch passes to CUDA.

    Attributes:
        name: name of the kernel.
        grid: numbers of programs along three axes.
        stream: handle of the stream.
        function: handle of the machine code.
        settings: cooperative grid, programmatic launch, packed metadata, addresses of scratch memory, annotations and
            types of the arguments.
        arguments: of the kernel. Tensors are replaced by ("address", address).
        hooks: launch metadata and hooks.
    """

    name: str
    grid: tuple[int, int, int]
    stream: int
    function: int
    settings: tuple
    arguments: tuple
    hooks: tuple

    @property
    def passed(self) -> tuple:
        """All but the hooks, with the classes of the arguments, and numbers as text (-0.0 equals 0.0)."""
        return (*self[:5], [(type(v), repr(v)) for v in self.arguments])


class _Kernel(CompiledKernel):
    """A kernel without machine code, for one specialization of its arguments."""

    def __init__(self, src: ASTSource, target: GPUTarget, options: Any):
        fields = {
            "target": target, "name": src.name, "shared": 0, "num_warps": options.num_warps, "num_ctas": 1,
            "warp_size": 32, "tmem_size": None, "tensordesc_meta": None, "instrumentation_mode": "",
            "global_scratch_size": 0, "global_scratch_align": 1, "profile_scratch_size": 0, "profile_scratch_align": 1,
            "launch_cooperative_grid": False, "launch_pdl": False,
        }  # fmt: skip
        self.metadata = namedtuple("KernelMetadata", sorted(fields))(**fields)
        self.packed_metadata = (options.num_warps, 1, 0)
        self.src, self.name, self.kernel, self.hash, self.metadata_group = src, src.name, b"", "", {}
        self.module = self.function = self._run = None

    def __del__(self):
        """Unload nothing."""


class _Utils:
    """Replaces the C module of Triton's driver."""

    def __init__(self, driver: "IdleDriver"):
        self._driver = driver

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple:
        handle = next(_handles)
        self._driver.names[handle] = name
        return object(), handle, 0, 0, 1024

    def unload_module(self, module: object) -> None:
        """Unload nothing."""

    def build_signature_metadata(self, signature: list) -> bytes:
        return repr(signature).encode()

    def launch(self, x, y, z, stream, function, cooperative, pdl, metadata, *rest) -> None:
        driver = self._driver
        if driver.launches is not None:
            *hooks, global_scratch, profile_scratch, annotations, signature, arguments = rest
            settings = (cooperative, pdl, metadata, global_scratch, profile_scratch, annotations, signature)
            plain = tuple(("address", v.data_ptr()) if isinstance(v, torch.Tensor) else v for v in arguments)
            name = driver.names[function]
            driver.launches.append(Launch(name, (x, y, z), stream, function, settings, plain, tuple(hooks)))


class IdleDriver:
    """The driver. Tensors on the CPU count as tensors on the current device.

    Attributes:
        device: index of the current device.
        streams: current stream of each device.
        launches: launches since the list was emptied, None to note none.
        names: names of kernels by handle.
    """

    launcher_cls = nvidia.CudaLauncher

    def __init__(self):
        self.device = next(_first_devices)
        self.streams: dict[int, int] = {}
        self.launches: list[Launch] | None = []
        self.names: dict[int, str] = {}
        self.utils = _Utils(self)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return self.streams.get(device, 0)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def take(self) -> list[Launch]:
        """Return the launches and empty the list."""
        assert self.launches is not None
        taken, self.launches = self.launches, []
        return taken


def _compile_nothing(self, key, signature, device, constexprs, options, attrs, warmup):
    """Take the place of JITFunction._do_compile."""
    cache, _, target, _, _ = self.device_caches[device]
    cache[key] = _Kernel(ASTSource(self, signature, constexprs, attrs), target, options)
    return cache[key]


@contextmanager
def idle_driver(compiles: bool = False) -> Iterator[IdleDriver]:
    """Make an IdleDriver the driver of Triton inside the block.

    Args:
        compiles: compile the kernels for sm_90.
    """
    names = ("PyKernelArg", "ARG_CONSTEXPR", "ARG_KERNEL", "ARG_TUPLE")
    before = config._active, JITFunction._do_compile, [getattr(nvidia, name) for name in names]
    config._active = IdleDriver()
    if not compiles:
        JITFunction._do_compile = _compile_nothing
    nvidia.PyKernelArg = namedtuple("PyKernelArg", ("nested_tuple", "type"))
    nvidia.ARG_CONSTEXPR, nvidia.ARG_KERNEL, nvidia.ARG_TUPLE = range(3)
    try:
        yield config._active
    finally:
        config._active, JITFunction._do_compile = before[:2]
        for name, value in zip(names, before[2], strict=True):
            setattr(nvidia, name, value)
