# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernel of null_op for GPUs without a GPU, a template for the tests of other Triton kernels."""

import pytest
import torch
from fastds.kernels import null_op
from gpuless.triton_rig import ARCHS, compiled_launches


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_triton_kernel_compiles(arch, dtype):
    x, other, y = (torch.empty(4096, dtype=dtype, device="meta") for _ in range(3))
    for addend in (None, other):
        (kernel,) = compiled_launches(arch, lambda addend=addend: null_op.launch(x, addend, y, 0.5))
        kernel.check(registers=64, shared=0)
