# SPDX-License-Identifier: Apache-2.0
"""A graph as a package of AOTInductor, compiled for this machine; torch runs it without fastds."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastds.models.export.program import exporting
from fastds.models.export.signatures import Signature

SLOW = ", which takes minutes"  # to add to what is said of it


def check_installed() -> None:
    """Raise ValueError where no C++ compiler is there."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        said = "a .pt2 package needs a C++ compiler: install one (apt install g++) or name it by CXX"
        raise ValueError(said) from None


def write(program: ExportedProgram, given: Signature, notes: dict[str, str], path: Path) -> None:
    """Compile the graph, with notes as its metadata."""
    options = {"aot_inductor.metadata": {**notes, "fastds.inputs": given.text}}
    with tempfile.TemporaryDirectory() as folder, exporting("AOTInductor cannot compile it"):
        made = Path(folder) / "model.pt2"  # torch wants this suffix
        torch._inductor.aoti_compile_and_package(program, package_path=str(made), inductor_configs=options)
        shutil.copyfile(made, path)


def opened(path: Path) -> Callable[..., Tensor]:
    """The package as a function of tensors."""
    with tempfile.TemporaryDirectory() as folder:
        return torch._inductor.aoti_load_package(str(shutil.copyfile(path, Path(folder) / "model.pt2")))
