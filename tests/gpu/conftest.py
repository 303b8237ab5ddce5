# SPDX-License-Identifier: Apache-2.0
"""Tests that need a CUDA device; bench/gpu_suite.sh runs them. Collected everywhere, skipped where there is none.

A new op adds tests/gpu/test_<op>.py made of the checks in gpu/checks.py. Tests marked "sanitize" are small; they run
once more under compute-sanitizer.
"""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_configure(config):
    config.addinivalue_line("markers", "sanitize: small, run under compute-sanitizer too")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if HERE in Path(item.path).parents:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def device():
    return torch.device("cuda", torch.cuda.current_device())
