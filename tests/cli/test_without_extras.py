# SPDX-License-Identifier: Apache-2.0
"""Tests that functions that need no extra of the package work if no extra is installed."""

from tests.support import forked

HIDDEN = """
import sys

EXTRAS = (
    "lightning", "torchmetrics", "tensorboard", "cftime", "dask", "distributed", "zarr", "cfgrib", "eccodes", "pyproj",
    "scores", "scoringrules", "onnx", "onnxscript", "onnxruntime", "openvino", "hypothesis", "pytest", "pysteps",
)

sys.modules.update(dict.fromkeys(EXTRAS))
"""


def run(code):
    return forked.run(HIDDEN + code, imports=forked.TORCH)


def test_help_and_completion_without_extras():
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


def test_ensemble_scores_without_extras():
    """Evaluating an ensemble prints its scores as a table."""
    done = run("""
import numpy as np
import xarray as xr
import fastds

axes = {"latitude": np.arange(40.0, 30, -1), "longitude": np.arange(12.0)}
truth = xr.Dataset({"t": (("latitude", "longitude"), 280 + np.random.rand(10, 12), {"units": "K"})}, axes)
members = xr.concat([truth - 1, truth + 1], "realization").assign_attrs(fastds_scale=2)
members["t"].attrs = truth["t"].attrs
fastds.evaluate(members, truth).print()
""")
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    assert "Ensemble of 2 members" in done.stdout and "lanczos" in done.stdout
