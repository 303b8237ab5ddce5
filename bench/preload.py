# SPDX-License-Identifier: Apache-2.0
"""Imported once by the server that the memory measurements fork from: what is loaded here is in no row's memory."""

import contextlib
import importlib

for _name in ("torch", "fastds", "onnxruntime", "openvino", "torchvision", "bench.peers"):
    with contextlib.suppress(Exception):  # not installed, or built for another torch
        importlib.import_module(_name)
