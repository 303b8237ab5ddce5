# SPDX-License-Identifier: Apache-2.0
"""Write a graph as an ONNX file with standard operators, and run such a file in onnxruntime."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastds.data.packages import format_install_command
from fastds.models.export.program import DEFORM, convert_export_errors
from fastds.models.export.signatures import Signature

OPSET = 20  # DeformConv needs 19
SLOW = ""
_PACKAGES = "onnx", "onnxscript", "onnxruntime"


def check_installed() -> None:
    """Raise ImportError if a required package is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        needed = "export to ONNX needs the packages onnx, onnxscript and onnxruntime"
        raise ImportError(f"{needed}: {format_install_command(*_PACKAGES)}") from error


def write(program: ExportedProgram, given: Signature, notes: dict[str, str], path: Path) -> None:
    """Write a graph as an ONNX file.

    Args:
        program: the graph.
        given: its signature.
        notes: metadata of the file.
        path: path of the file.

    Raises:
        ValueError: If the graph has no equivalent in ONNX.
    """
    import onnx

    with convert_export_errors("it cannot be written in operators of ONNX"):
        exported = torch.onnx.export(
            program, dynamo=True, custom_translation_table=cast(Any, _TRANSLATIONS), opset_version=OPSET, verbose=False,
            input_names=list(given.inputs), output_names=["y"],
        )  # fmt: skip
    assert exported is not None  # with dynamo=True
    model = exported.model_proto
    _name_sizes(model.graph, given)
    for node in model.graph.node:
        del node.metadata_props[:]  # contains paths of source files of this machine
    for key, value in notes.items():
        model.metadata_props.add(key=key, value=value)
    model.doc_string = given.text
    onnx.save(model, path)


def load_runner(path: Path) -> Callable[..., Tensor]:
    """Load the file into onnxruntime on the CPU and return it as a function of tensors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *inputs: torch.from_numpy(
        session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0]
    )


def _deform_conv(input, offset, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), mask=None):
    """Translate deform_conv2d to ONNX's DeformConv, which has the same conventions.

    DeformConv supports no dilation of 0. Such a dilation becomes 1, and the distance of the taps is subtracted from the
    offsets.
    """
    import onnx_ir
    from onnxscript import opset20

    rows, columns = (int(n) for n in weight.shape[2:])
    groups = int(offset.shape[1]) // (2 * rows * columns)
    least = [max(d, 1) for d in dilation]
    extra = [more - d for more, d in zip(least, dilation, strict=True)]
    if any(extra):
        taps = [(i * extra[0], j * extra[1]) for i in range(rows) for j in range(columns)]
        surplus = np.array(groups * taps, np.float32).reshape(1, -1, 1, 1)
        offset = opset20.Sub(offset, opset20.Constant(value=onnx_ir.tensor(surplus)))
    ends = [p + (n - 1) * more for p, n, more in zip(padding, (rows, columns), extra, strict=True)]
    return opset20.DeformConv(
        input, weight, offset, bias, mask, kernel_shape=[rows, columns], strides=list(stride), pads=[*padding, *ends],
        dilations=least, group=int(input.shape[1]) // int(weight.shape[1]), offset_group=groups,
    )  # fmt: skip


def _remainder(whole, divisor):
    """Translate the remainder of integers. PyTorch's own translation supports no symbolic size as divisor."""
    from onnxscript import opset20

    return opset20.Mod(whole, opset20.CastLike(divisor, whole))


_TRANSLATIONS = {DEFORM: _deform_conv, torch.ops.aten.remainder.Scalar: _remainder}


def _name_sizes(graph, given: Signature) -> None:
    """Replace PyTorch's symbols of dynamic sizes by the names in the signature."""
    shapes = [[d for d in value.type.tensor_type.shape.dim] for value in graph.input]
    names: dict[Any, Any] = {}
    for dims, expected in zip(shapes, given.inputs.values(), strict=True):
        names |= {d.dim_param: n for d, n in zip(dims, expected.shape, strict=True) if isinstance(n, str)}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for d in value.type.tensor_type.shape.dim:
            if d.dim_param:
                d.dim_param = re.sub(r"\bs\d+\b", lambda found: names.get(found[0], found[0]), d.dim_param)
