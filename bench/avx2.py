# SPDX-License-Identifier: Apache-2.0
"""Measures as on an AVX2 machine, on one that has more."""

import os
import sys

from fastds.ops.core import native

# Torch reads them once, before it computes.
OF_TORCH = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def keep_to_avx2() -> None:
    """Ours and torch, from here on. Starts the program again where torch has not been told."""
    if not OF_TORCH.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, os.environ | OF_TORCH)
    native.module().set_isa("avx2")
