# SPDX-License-Identifier: Apache-2.0
"""Write a graph as an AOTInductor package, compiled for this machine; PyTorch runs it without fastds."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastds.models.export.program import convert_export_errors
from fastds.models.export.signatures import Signature

SLOW = ", which takes minutes"  # appended to the progress message


def check_installed() -> None:
    """Raise ValueError if there is no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        message = "a .pt2 package needs a C++ compiler: install one (apt install g++) or name it by CXX"
        raise ValueError(message) from None


def write(program: ExportedProgram, given: Signature, notes: dict[str, str], path: Path) -> None:
    """Compile a graph into a package.

    Args:
        program: the graph.
        given: its signature.
        notes: metadata of the package.
        path: path of the file.

    Raises:
        ValueError: If AOTInductor cannot compile the graph.
    """
    options = {"aot_inductor.metadata": {**notes, "fastds.inputs": given.text}}
    with tempfile.TemporaryDirectory() as folder, convert_export_errors("AOTInductor cannot compile it"):
        package = Path(folder) / "model.pt2"  # torch requires this suffix
        torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=options)
        shutil.copyfile(package, path)


def load_runner(path: Path) -> Callable[..., Tensor]:
    """Load the package and return it as a function of tensors."""
    with tempfile.TemporaryDirectory() as folder:
        return torch._inductor.aoti_load_package(str(shutil.copyfile(path, Path(folder) / "model.pt2")))
