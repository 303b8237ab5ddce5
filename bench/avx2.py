# SPDX-License-Identifier: Apache-2.0
"""Limits a benchmark to AVX2 on a processor with AVX-512."""

import os
import sys

from fastds.ops.core import native

TORCH_ENVIRONMENT = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def limit_to_avx2() -> None:
    """Limit the kernels of fastds and torch to AVX2.

    Torch reads TORCH_ENVIRONMENT once, before it computes. If the variables are not set, the program is started again
    with them.
    """
    if not TORCH_ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, os.environ | TORCH_ENVIRONMENT)
    native.get_module().set_isa("avx2")
