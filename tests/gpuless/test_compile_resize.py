# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernel that doubles the resolution for several GPUs and checks the machine code."""

import pytest
import torch
from fastds.kernels.resize import upsample2
from gpuless.triton_rig import ARCHS, compiled_launches


@pytest.mark.parametrize("arch", ARCHS)
def test_resize_kernels_compile(arch):
    x, out = (
        torch.empty(1, 64, n, n, dtype=torch.bfloat16, device="meta").to(memory_format=torch.channels_last)
        for n in (100, 200)
    )
    (kernel,) = compiled_launches(arch, lambda: upsample2(x, out))
    kernel.check(registers=64, shared=16 << 10)
    assert sum(n for name, n in kernel.counts.items() if name.startswith("LDG.E.128")) >= 4, kernel.counts
