# SPDX-License-Identifier: Apache-2.0
"""Imports of the fork server from which memory measurements start, so that libraries do not count as peak memory."""

import contextlib
import importlib

for _name in ("torch", "fastds", "onnxruntime", "openvino", "torchvision", "bench.deform_conv2d_peers"):
    with contextlib.suppress(Exception):  # not installed, or built for another torch
        importlib.import_module(_name)
