# SPDX-License-Identifier: Apache-2.0
"""What needs no extra works without any of them."""

import subprocess
import sys

HIDDEN = """
import sys

EXTRAS = (
    "lightning", "torchmetrics", "tensorboard", "cftime", "dask", "distributed", "zarr", "cfgrib", "eccodes", "pyproj", "scores",
    "scoringrules", "onnx", "onnxscript", "onnxruntime", "openvino", "hypothesis", "pytest", "pysteps",
)

sys.modules.update(dict.fromkeys(EXTRAS))
"""


def run(code):
    words = [sys.executable, "-W", "ignore", "-c", HIDDEN + code]
    return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_help_and_every_name_that_completion_offers():
    done = run("""
import fastds
help(fastds)
for module in (fastds, *(getattr(fastds, name) for name in dir(fastds) if hasattr(getattr(fastds, name), "__path__"))):
    for name in dir(module):
        getattr(module, name)
    help(module)
print("end", len(dir(fastds)))
""")
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    assert "Help on package fastds:" in done.stdout and int(done.stdout.split()[-1]) > 15
