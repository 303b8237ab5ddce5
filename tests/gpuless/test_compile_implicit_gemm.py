# SPDX-License-Identifier: Apache-2.0
"""Compiles the implicit-GEMM convolution for several GPUs and checks the machine code."""

import pytest
import torch
import triton
from fastds.kernels import implicit_gemm as kernels
from gpuless.triton_rig import TENSOR_CORES, compiled_launches
from packaging.version import Version


def maps(*shape, dtype):
    return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)


def compiled(
    arch, inputs=(64, 0), outputs=64, dtype=torch.bfloat16, batch=1, pixels=200, size=3, stride=1, shuffle=1,
    residual=True, padding_mode="zeros",
):  # fmt: skip
    x, x2 = (maps(batch, n, pixels, pixels, dtype=dtype) if n else None for n in inputs)
    coarse, fine = -(-pixels // stride), -(-pixels // stride) * shuffle
    weight, bias = maps(outputs, sum(inputs), size, size, dtype=dtype), torch.empty(outputs, dtype=dtype, device="meta")
    after = maps(batch, outputs, coarse, coarse, dtype=dtype) if residual else None
    out = maps(batch, outputs // shuffle**2, fine, fine, dtype=dtype)
    options = {"stride": stride, "padding_mode": padding_mode, "slope": 0.1, "shuffle": shuffle}
    (kernel,) = compiled_launches(arch, lambda: kernels.launch(x, x2, weight, bias, after, out, **options))
    return kernel


# Cases of FC-ZSM at 200 x 200 with the maximum number of registers. A multiprocessor can hold three programs of 128
# threads with 168 registers, or two of 256 threads with 128 registers.
FCZSM = [
    pytest.param({}, 168, id="64_residual"),
    pytest.param({"inputs": (64, 64), "residual": False}, 168, id="64+64"),
    pytest.param({"outputs": 216, "residual": False}, 128, id="64_to_216"),
    pytest.param({"outputs": 256, "shuffle": 2, "residual": False}, 128, id="shuffle"),
]
OTHERS = [
    pytest.param({"inputs": (64, 64), "size": 1, "residual": False}, 168, id="1x1"),
    pytest.param({"stride": 2, "residual": False}, 128, id="stride_2"),
    pytest.param({"inputs": (24, 24), "outputs": 24, "batch": 4, "pixels": 160}, 168, id="24+24"),
    pytest.param({"padding_mode": "circular_x"}, 168, id="circular_x"),
    pytest.param({"dtype": torch.float32}, 168, id="float32"),
]


@pytest.mark.parametrize("arch, options, registers", [
    *(pytest.param(90, *case.values, id=f"sm_90-{case.id}") for case in (*FCZSM, *OTHERS)),
    *(pytest.param(arch, FCZSM[1].values[0], 255, id=f"sm_{arch}-{FCZSM[1].id}") for arch in (80, 100)),
])  # fmt: skip
def test_implicit_gemm_kernels_compile(arch, options, registers):
    kernel = compiled(arch, **options)
    kernel.check(registers=registers, shared=100 << 10)  # two on the 227 KB of an H100
    assert any(name.startswith(TENSOR_CORES[arch]) for name in kernel.counts), kernel.counts
    narrow = [name for name in kernel.counts if name.startswith(("LDG", "LDGSTS", "STG")) and "U16" in name]
    assert not narrow or options.get("shuffle", 1) > 1, kernel.counts  # there the bias is read one by one


def test_neighbouring_taps_are_read_through_l1():
    """Asynchronous copies of Triton 3.6 always bypass L1."""
    counts = compiled(90).counts
    through = sum(n for name, n in counts.items() if name.startswith("LDGSTS") and "BYPASS" not in name)
    assert (through >= 8) == (Version(triton.__version__) >= Version("3.9")), counts


@pytest.mark.parametrize(
    "points, inputs, outputs, dtype, expected",
    [
        (40000, 64, 64, torch.bfloat16, (128, 64, 64, 4, 3)),
        (40000, 64, 216, torch.bfloat16, (128, 128, 64, 8, 3)),
        (10000, 64, 64, torch.bfloat16, (64, 64, 64, 4, 3)),
        (2500, 64, 64, torch.bfloat16, (64, 32, 64, 4, 3)),
        (640000, 64, 1, torch.float16, (128, 16, 64, 4, 3)),
        (40000, 3, 64, torch.float32, (64, 64, 16, 4, 3)),
    ],
)
def test_implicit_gemm_tile_sizes(points, inputs, outputs, dtype, expected):
    assert kernels.select_tiles(points, inputs, outputs, dtype) == expected
