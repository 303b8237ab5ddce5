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


@functools.cache
def compile_library(source: str, *options: str) -> ctypes.CDLL:
    """Compile a file of this folder with further options of the compiler, once per process, and load it."""
    path = pathlib.Path(__file__).with_name(source)
    with tempfile.TemporaryDirectory() as folder:
        built = f"{folder}/{path.stem}.so"
        subprocess.run(
            [find_compiler(), "-O3", "-shared", "-fPIC", "-pthread", path, *options, "-o", built], check=True
        )
        return ctypes.CDLL(built)
