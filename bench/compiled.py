# SPDX-License-Identifier: Apache-2.0
"""The C++ files of this folder as libraries."""

import ctypes
import functools
import pathlib
import shutil
import subprocess
import tempfile


def compiler() -> str | None:
    return shutil.which("c++") or shutil.which("g++")


@functools.cache
def library(source: str) -> ctypes.CDLL:
    """Compiled for this process."""
    path = pathlib.Path(__file__).with_name(source)
    with tempfile.TemporaryDirectory() as folder:
        built = f"{folder}/{path.stem}.so"
        subprocess.run([compiler(), "-O3", "-shared", "-fPIC", "-pthread", path, "-o", built], check=True)
        return ctypes.CDLL(built)
