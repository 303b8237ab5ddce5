# SPDX-License-Identifier: Apache-2.0
"""A driver that does nothing, so that the rows of bench/gpu_rows run without a GPU, on meta tensors.

The ops take their way to the kernels of a GPU: checks, selection, allocations and launch arguments in Python run as
there. Functions of the native module and Triton kernels then do nothing. Operators of torch compute the shapes alone.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from fastds.ops.core import native, plans
from fastds.ops.core.registry import Op


class NoKernels:
    """Replaces the module _fastds, as if it was built with CUDA: functions do nothing, and workspaces have no bytes.

    Classes and constants are those of the module.
    """

    def __init__(self, module):
        self._of_module = {
            name: value for name, value in vars(module).items() if not callable(value) or isinstance(value, type)
        }

    def __getattr__(self, name: str):
        if name in self._of_module:
            return self._of_module[name]
        if name.endswith(("_workspace", "_size")):
            return lambda *_, **__: 0
        return lambda *_, **__: name.endswith("_fits")


class NoGPU:
    """Replaces the driver of Triton: has a target and no device."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _skip_draws(draw):
    """Return a replacement of torch.rand or torch.randn, which take most of the time, for the inputs of rows."""

    def replaced(*shape, generator=None, **options):
        return draw(*shape, **options) if generator is None else torch.empty(*shape, device="meta")

    return replaced


def _autocast_of(autocast):
    """Return a replacement of torch.autocast, which has no meta device, nor the device "cuda" without a GPU."""
    return lambda kind, *args, **options: autocast("cpu", *args, **options)


@contextlib.contextmanager
def replace_driver() -> Iterator[None]:
    """Run ops on meta tensors as on CUDA tensors, with kernels that do nothing, and torch.compile as eager code."""
    replaced = [
        (native, "_module", NoKernels(native.get_module())),
        (native, "_missing", None),
        (native, "runs_on_cuda", lambda tensor: True),
        (native, "get_cuda_launch_arguments", lambda tensor: (0, 0)),
        (JITFunction, "run", lambda self, *args, **options: None),
        (driver, "_active", NoGPU()),
        (torch, "get_autocast_dtype", lambda kind: torch.bfloat16),
        (torch, "is_autocast_enabled", lambda kind=None: False),
        (torch, "rand", _skip_draws(torch.rand)),
        (torch, "randn", _skip_draws(torch.randn)),
        (Op, "_needs_dispatcher", lambda self, args: False),
        (plans, "lack_memory", lambda *args: False),
        (torch, "autocast", _autocast_of(torch.autocast)),
        (torch, "compile", lambda function, **options: function),
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(plans.suspended())
        # Module.to(device) cannot move the memory of a parameter to meta.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(
            mock.patch.object(torch.Tensor, "is_cuda", property(lambda self: self.is_meta), create=True)
        )
        yield
