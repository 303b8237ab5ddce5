# SPDX-License-Identifier: Apache-2.0
"""Compiles the fused Triton kernel of inr_query for several GPUs and checks the machine code."""

import pytest
import torch
from fastds.kernels import inr_query as kernels
from gpuless.triton_rig import ARCHS, TENSOR_CORES, compiled_launches

SHARED = {80: 160 << 10, 90: 224 << 10, 100: 224 << 10}
LATE_ON_BLACKWELL = [(100, torch.bfloat16, 256, "late")] if kernels.get_triton_version() >= (3, 9) else []


def compiled(arch, dtype, depth, ensemble):
    def meta(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    heads, dk = (4, 16) if ensemble == "early_attn" else (1, 1)
    total = depth + (2 * heads * dk if heads > 1 else 0)
    maps = meta(1, total, 180, 360, dtype=dtype).to(memory_format=torch.channels_last)
    trunk = [(meta(b, a), meta(b)) for a, b in [(depth, depth)] * 3 + [(depth, 4)]]
    call = kernels.Query(
        maps, trunk, None, None, [720, 360, -540, 1440, 1440, 720, -1080, 2880], meta(2, depth), meta(2, depth),
        meta(depth), meta(2, heads) if heads > 1 else None, meta(1, 2), meta(1, 180, 360, 4), ensemble, heads, dk, True,
        (False, True),
    )  # fmt: skip
    (kernel,) = compiled_launches(arch, lambda: kernels.launch(call, meta(1, 720 * 1440, 4)))
    return kernel


CASES = [(arch, torch.bfloat16, 128, "early_attn") for arch in ARCHS]
CASES += [(90, torch.bfloat16, 64, "early_attn")]
CASES += [(arch, torch.bfloat16, depth, "late") for arch, depth in ((80, 256), (90, 256), (90, 128), (90, 64))]
CASES += LATE_ON_BLACKWELL


@pytest.mark.parametrize("arch, dtype, depth, ensemble", CASES, ids=str)
def test_inr_query_kernels_compile(arch, dtype, depth, ensemble):
    kernel = compiled(arch, dtype, depth, ensemble)
    narrow = depth == 64 and ensemble == "early_attn"  # twice the features of a thread: 16 bytes do not fit
    kernel.check(registers=255, shared=SHARED[arch], stack=16 if narrow else 0)
    assert any(name.startswith(TENSOR_CORES[arch]) for name in kernel.counts), kernel.counts
