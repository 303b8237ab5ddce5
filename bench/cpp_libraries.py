# SPDX-License-Identifier: Apache-2.0
"""Compilation of the C++ files in this folder to shared libraries."""

import ctypes
import functools
import pathlib
import shutil
import subprocess
import tempfile


def find_compiler() -> str | None:
    """Return the path of the C++ compiler, or None."""
    return shutil.which("c++") or shutil.which("g++")


def build_library(source: pathlib.Path, library: pathlib.Path, *options: str) -> None:
    """Compile a C++ file to a shared library, which appears when it is complete."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = pathlib.Path(folder, library.name)
        words = [find_compiler(), "-O3", "-shared", "-fPIC", "-pthread", source, *options, "-o", built]
        subprocess.run(words, check=True)
        built.replace(library)


@functools.cache
def compile_library(source: str, *options: str) -> ctypes.CDLL:
    """Compile a file of this folder with further options of the compiler, once per process, and load it."""
    path = pathlib.Path(__file__).with_name(source)
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder, f"{path.stem}.so")
        build_library(path, library, *options)
        return ctypes.CDLL(str(library))
