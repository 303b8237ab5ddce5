# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernel of the fused cells for several GPUs and checks the machine code."""

import pytest
import torch
from fastds.kernels import conv_rnn as kernels
from gpuless.triton_rig import TENSOR_CORES, compiled_launches

WIDE = {"lstm_gates": (0,), "st_lstm_gates": (0,), "memory_gates": (0,), "output_gate": (), "gru_reset": ()}
RESULTS = {"lstm_gates": 2, "st_lstm_gates": 2, "gru_reset": 2}


def maps(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)


def compiled(arch, dtype, formula="lstm_gates", channels=24, size=160, ready=False):
    """Compile one step of the first layer of a network.

    Args:
        arch: compute capability, 90 for sm_90.
        dtype: dtype of the maps.
        formula: name of the cell formula.
        channels: number of hidden channels.
        size: height and width.
        ready: True if the convolution of the input is given as a residual and no pre-activations are stored.
    """
    gates = kernels.GATES[formula]
    x, h, *results = (maps(4, channels, size, size, dtype=dtype) for _ in range(2 + RESULTS.get(formula, 1)))
    others = [maps(4, channels, size, size, dtype=dtype) for _ in range(1 + formula.startswith("gru_update"))]
    for k in WIDE.get(formula, ()):
        others[k] = maps(4, channels, size, size, dtype=torch.float32)
    bias, wide = torch.empty(gates * channels, device="meta"), maps(4, gates * channels, size, size, dtype=dtype)
    weight = maps(gates * channels, channels if ready else 2 * channels, 3, 3, dtype=dtype)
    convolution = (h, None, weight, None, wide) if ready else (x, h, weight, bias, None)
    pre = None if ready else wide
    (kernel,) = compiled_launches(arch, lambda: kernels.launch(formula, 1.0, 0.2, convolution, others, results, pre))
    return kernel


CASES = [
    pytest.param(80, torch.bfloat16, {}, id="sm_80"),
    pytest.param(90, torch.bfloat16, {}, id="sm_90"),
    pytest.param(90, torch.bfloat16, {"channels": 64, "size": 40, "ready": True}, id="sm_90-64_channels-residual"),
    pytest.param(90, torch.float32, {}, id="sm_90-float32"),
    pytest.param(100, torch.bfloat16, {}, id="sm_100"),
    *(
        pytest.param(arch, torch.bfloat16, {"formula": formula}, id=f"sm_{arch}-{formula}")
        for formula in ("gru_reset", "gru_update")
        for arch in (80, 90, 100)
    ),
    *(
        pytest.param(90, torch.bfloat16, {"formula": formula}, id=f"sm_90-{formula}")
        for formula in ("st_lstm_gates", "memory_gates", "output_gate")
    ),
    pytest.param(90, torch.bfloat16, {"formula": "gru_reset", "channels": 64, "ready": True}, id="sm_90-reset-64"),
    pytest.param(90, torch.float32, {"formula": "gru_update_leaky"}, id="sm_90-float32-update"),
]


@pytest.mark.parametrize("arch, dtype, options", CASES)
def test_conv_cell_kernels_compile(arch, dtype, options):
    kernel = compiled(arch, dtype, **options)
    kernel.check(registers=255, shared=112 << 10)
    assert any(name.startswith(TENSOR_CORES[arch]) for name in kernel.counts), kernel.counts
    vectors = [name for name in kernel.counts if name.startswith(("LDG", "LDGSTS")) and ".128" in name]
    assert vectors, kernel.counts
