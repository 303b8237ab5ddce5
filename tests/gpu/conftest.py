# SPDX-License-Identifier: Apache-2.0
"""Tests that need a CUDA device; bench/gpu_suite.sh runs them. Collected everywhere, skipped where there is none.

A new op adds tests/gpu/test_<op>.py made of the checks in gpu/checks.py. Tests marked "sanitize" are small; they run
once more under compute-sanitizer. With FASTDS_GPU_DRY_RUN=1 they run on CPU tensors, as far as that goes: Python of the
tests is then right before the first GPU sees it.
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


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available() and not DRY:
        for item in items:
            if HERE in Path(item.path).parents:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def device():
    return torch.device("cpu") if DRY else torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def gpu(device):
    """A device that is none of the dry run's."""
    if device.type != "cuda":
        pytest.skip("means nothing on a CPU")
    return device


@pytest.fixture(autouse=True)
def float32_convolutions(monkeypatch):
    """cuDNN's default for float32 is tf32, whose errors would hide ours."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def forced():
    """with forced(op, backend, *arguments of the op): runs on that backend; skips the test where it is refused."""

    @contextlib.contextmanager
    def force(op, backend, *args):
        answer = fastds.explain(op, *args)[backend]
        if answer.startswith("refused"):
            pytest.skip(f"{backend} {answer}")
        with fastds.backend(backend):
            yield

    return force
