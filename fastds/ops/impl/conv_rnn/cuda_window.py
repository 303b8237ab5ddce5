# SPDX-License-Identifier: Apache-2.0
"""Steps of recurrent cells in 16 bits on a GPU by one CUDA C++ kernel, csrc/conv_rnn/cuda_window.cuh.

The kernel is the convolution of fastds/ops/impl/conv3x3/cuda_window.py with the gates of the cell as epilogue.
"""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.layout import as_nhwc, to_contiguous
from fastds.ops.impl.conv3x3 import cuda_window, triton_implicit_gemm


def unsupported_reason(x: Tensor) -> str | None:
    """Return the reason why this build and device have no such kernel for x, or None; see also get_call_reason."""
    return native.unsupported_reason({"cuda": "conv_gates_window_cuda"}, x)


def get_call_reason(x, x2, weight, residual, others, gates: int) -> str | None:
    """Return the reason why the kernel cannot compute a step, or None if it can.

    Args:
        x: (B, C1, H, W), for which unsupported_reason is None.
        x2: (B, C2, H, W) or None.
        weight: (gates * C, C1 + C2, 3, 3).
        residual: (B, gates * C, H, W) or None.
        others: other inputs of the formula, (B, C, H, W).
        gates: number of gates.
    """
    if x.dtype not in triton_implicit_gemm.HALF_DTYPES:
        return f"the kernel has no {x.dtype}"
    if any(t.dtype not in (x.dtype, torch.float32) for t in others):
        return f"the kernel has no states other than {x.dtype} and torch.float32"
    if (reason := cuda_window.get_maps_reason((x, x2, residual, *others))) is not None:
        return reason
    if 16 * (x.shape[3] + 4) * weight.shape[0] > cuda_window.MAX_IMAGE_BYTES:  # four rows of float32
        return "a row is larger than 32-bit positions reach"
    channels = weight.shape[0] // gates
    if not native.get_module().conv_gates_window_fits(weight.shape[1], channels, gates, x.device.index or 0):
        return "the weights of 8 channels of all gates do not fit in shared memory"
    return None


def launch(formula: str, option: float, slope: float, convolution, others, results, pre: Tensor | None) -> None:
    """Compute a step and write its results. get_call_reason must be None for the arguments.

    Args:
        formula: str, name of the formula in csrc/gates.
        option: number for the formula.
        slope: slope of leaky_relu in the formula.
        convolution: fused.Convolution.
        others: other inputs of the formula, in its order.
        results: outputs of the formula, (B, C, H, W), dense channels_last.
        pre: output for the pre-activations, (B, gates * C, H, W), dense channels_last, or None.
    """
    c = convolution.nhwc()
    if c.x.shape[0] == 0:
        return
    others = [as_nhwc(t) for t in others]
    weight, bias = cuda_window.to_tap_layout(c.weight, c.x.dtype), None if c.bias is None else to_contiguous(c.bias)
    module = native.get_module()
    module.conv_gates_window_cuda(
        module.GATE_FORMULAS[formula], option, slope,
        *cuda_window.describe_convolution(c.x, c.x2, weight, bias, c.residual),
        [cuda_window.describe_map(t) for t in others], [cuda_window.describe_map(t) for t in results],
        native.get_address(pre), *native.get_cuda_launch_arguments(c.x),
    )  # fmt: skip
