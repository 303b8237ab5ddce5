# SPDX-License-Identifier: Apache-2.0
"""ONNX files computed by onnxruntime and OpenVINO on the CPU, and functions of PyTorch exported to such files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


class _Function(nn.Module):
    """Module that calls a function of tensors."""

    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(*inputs)


def export_function(function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], path: Path) -> Path:
    """Export a function of operators of PyTorch to an ONNX file with fixed shapes, and return its path."""
    torch.onnx.export(_Function(function).eval(), tuple(inputs), path, dynamo=True, verbose=False)
    return path


def load_onnxruntime(path: Path, inputs: Sequence[Tensor], threads: int) -> Callable[[], object]:
    """Return a function that computes the first output of an ONNX file by onnxruntime.

    Args:
        path: the file.
        inputs: its inputs, in the order of the file.
        threads: number of threads, which do not spin between calls.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feed = dict(zip(names, (x.numpy() for x in inputs), strict=True))
    return lambda: session.run(None, feed)[0]


def load_openvino(
    path: Path, inputs: Sequence[Tensor], threads: int, dtype: torch.dtype = torch.float32
) -> Callable[[], object]:
    """Return a function that computes the first output of an ONNX file by OpenVINO.

    Args:
        path: the file. OpenVINO cannot read deformable convolutions.
        inputs: its inputs, in the order of the file; their shapes are fixed.
        threads: number of threads.
        dtype: float32 or bfloat16, the precision of the computation.
    """
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "bf16"}
    settings |= {"INFERENCE_NUM_THREADS": threads}
    arrays = [x.numpy() for x in inputs]
    graph = ov.Core().read_model(path)
    graph.reshape({i: list(x.shape) for i, x in enumerate(arrays)})
    compiled = ov.Core().compile_model(graph, "CPU", settings)
    return lambda: compiled(arrays)[0]
