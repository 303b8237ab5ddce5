# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel of conv_lstm_cell compiled for GPUs that are not there: tensor cores, vectors, no spills."""

import pytest
import torch
from fastds.kernels import conv_lstm_cell as kernels
from gpuless.triton_rig import TENSOR_CORES, compiled_launches


def maps(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)


def compiled(arch, dtype, channels=24, size=160, ready=False):
    """One step of MS-ConvLSTM's first layer; ready: the part of the input is a residual, nothing is kept."""
    x, h, new_h = (maps(4, channels, size, size, dtype=dtype) for _ in range(3))
    c, new_c = (maps(4, channels, size, size, dtype=torch.float32) for _ in range(2))
    bias, wide = torch.empty(4 * channels, device="meta"), maps(4, 4 * channels, size, size, dtype=dtype)
    weight = maps(4 * channels, channels if ready else 2 * channels, 3, 3, dtype=dtype)
    inputs = (h, None, weight, None, wide) if ready else (x, h, weight, bias, None)
    (kernel,) = compiled_launches(arch, lambda: kernels.launch(*inputs, c, new_h, new_c, None if ready else wide))
    return kernel


CASES = [
    pytest.param(80, torch.bfloat16, {}, id="sm_80"),
    pytest.param(90, torch.bfloat16, {}, id="sm_90"),
    pytest.param(90, torch.bfloat16, {"channels": 64, "size": 40, "ready": True}, id="sm_90-64_channels-residual"),
    pytest.param(90, torch.float32, {}, id="sm_90-float32"),
    pytest.param(100, torch.bfloat16, {}, id="sm_100"),
]


@pytest.mark.parametrize("arch, dtype, options", CASES)
def test_machine_code(arch, dtype, options):
    kernel = compiled(arch, dtype, **options)
    kernel.check(registers=255, shared=112 << 10)
    assert any(name.startswith(TENSOR_CORES[arch]) for name in kernel.counts), kernel.counts
    vectors = [name for name in kernel.counts if name.startswith(("LDG", "LDGSTS")) and ".128" in name]
    assert vectors, kernel.counts
