# SPDX-License-Identifier: Apache-2.0
"""Compiles the epilogue kernel of library convolutions for several GPUs."""

import pytest
import torch
from fastds.kernels.conv3x3 import apply_epilogue
from gpuless.triton_rig import ARCHS, compiled_launches


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shuffle", [1, 2])
def test_conv3x3_kernels_compile(arch, shuffle):
    def maps(channels, size):
        y = torch.empty(1, channels, size, size, dtype=torch.bfloat16, device="meta")
        return y.to(memory_format=torch.channels_last)

    y = maps(64 * shuffle**2, 200)
    out, bias = maps(64, 200 * shuffle), torch.empty(y.shape[1], dtype=torch.bfloat16, device="meta")
    (kernel,) = compiled_launches(arch, lambda: apply_epilogue(y, out, bias, y, y, 0.1, shuffle))
    kernel.check(registers=72, shared=16 << 10)
    wide = {name: n for name, n in kernel.counts.items() if name.startswith("LDG.E.128")}
    assert shuffle > 1 or sum(wide.values()) >= 3, kernel.counts  # y, second and residual: 16 bytes a thread
