# SPDX-License-Identifier: Apache-2.0
"""Fixtures and options of the tests that need a CUDA device.

bench/gpu_suite.sh runs these tests. Without a device they are skipped. Tests marked "sanitize" are small and also run
under compute-sanitizer. Tests marked "smoke" are a quick selection. With FASTDS_GPU_DRY_RUN=1 the tests run on CPU
tensors as far as possible, which finds errors in the Python code without a GPU.
"""

import contextlib
import os
from pathlib import Path

import pytest
import torch

import fastds

HERE = Path(__file__).parent
DRY = os.environ.get("FASTDS_GPU_DRY_RUN") == "1" and not torch.cuda.is_available()
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it under deterministic algorithms


def pytest_configure(config):
    config.addinivalue_line("markers", "sanitize: small, run under compute-sanitizer too")
    config.addinivalue_line("markers", "smoke: the first of every short test function on every backend")


LONG = ("compile", "gradcheck", "2_to_the_31", "training_step")  # in the names of test functions


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    seen = set()
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        kind = item.path, item.originalname, parameters.get("backend")
        if HERE in Path(item.path).parents and kind not in seen and not any(word in item.name for word in LONG):
            item.add_marker(pytest.mark.smoke)
        seen.add(kind)
    if not torch.cuda.is_available() and not DRY:
        for item in items:
            if HERE in Path(item.path).parents:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def device():
    return torch.device("cpu") if DRY else torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def gpu(device):
    """Fixture: a real GPU, not the device of the dry run."""
    if device.type != "cuda":
        pytest.skip("means nothing on a CPU")
    return device


@pytest.fixture(autouse=True)
def float32_convolutions(monkeypatch):
    """Disable TF32, the default of cuDNN in float32, because its errors exceed the tolerances."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def forced():
    """Return force(op, backend, *arguments), a context manager that forces a backend.

    The context manager skips the test if the backend refuses the arguments.
    """

    @contextlib.contextmanager
    def force(op, backend, *args):
        answer = fastds.explain(op, *args)[backend]
        if answer.startswith("refused"):
            pytest.skip(f"{backend} {answer}")
        with fastds.use_backend(backend):
            yield

    return force
