# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels of window_attention2d for several GPUs and checks the machine code."""

import pytest
import torch
from fastds.kernels import window_attention2d as kernels
from gpuless.triton_rig import TENSOR_CORES, compiled_launches


def compiled(arch, dtype, shape=(1, 24, 80, 80)):
    """Compile the attention of PrecipLSTM, where q, k and v are slices of one tensor."""
    batch, channels, height, width = shape
    packed = torch.empty(batch, 3 * channels, height, width, dtype=dtype, device="meta")
    q, k, v = packed.to(memory_format=torch.channels_last).chunk(3, 1)
    y, *grads = (torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last) for _ in range(4))
    lse = torch.empty(batch, height, width, device="meta")

    def launch():
        kernels.launch_forward(q, k, v, y, lse, 30)
        kernels.launch_backward(y, q, k, v, y, lse, *grads, 30)

    return compiled_launches(arch, launch)


CASES = [(80, torch.bfloat16), (90, torch.bfloat16), (90, torch.float32), (100, torch.bfloat16)]


@pytest.mark.parametrize("arch, dtype", CASES, ids=str)
def test_window_attention_kernels_compile(arch, dtype):
    found = compiled(arch, dtype)
    assert [kernel.name for kernel in found] == ["_forward_kernel", "_inner_kernel", "_query_kernel", "_key_kernel"]
    for kernel in found:
        kernel.check(registers=255, shared=64 << 10)
        if kernel.name != "_inner_kernel":
            assert any(name.startswith(TENSOR_CORES[arch]) for name in kernel.counts), kernel.counts
            # Eight channels of a pixel at a time, though 24 channels are no multiple of 16.
            vectors = [name for name in kernel.counts if name.startswith(("LDG", "LDGSTS")) and ".128" in name]
            assert vectors, kernel.counts


def test_window_attention_with_64_channels_fits_shared_memory():
    for kernel in compiled(90, torch.bfloat16, (1, 64, 40, 40)):
        kernel.check(registers=255, shared=96 << 10)
