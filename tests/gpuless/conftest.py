# SPDX-License-Identifier: Apache-2.0
"""Marks and fixtures of the tests of GPU code that need no GPU.

Tests marked "interpreted" run in a subprocess under the Triton interpreter (triton_rig.py). Tests with the fixture
fake_cuda run in a fork.
"""

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from _pytest.runner import runtestprotocol
from gpuless.deform_fused_cases import fused_outputs  # noqa: F401  a fixture
from gpuless.emu import BUILD, emulated  # noqa: F401  a fixture
from gpuless.fake_cuda import fake_cuda  # noqa: F401  a fixture
from gpuless.triton_rig import interpret
from gpuless.two_passes_cases import columns  # noqa: F401  a fixture
from triton.runtime.interpreter import interpreter_builder

from fastds.ops.core import plans
from fastds.ops.impl.deform_conv2d.selection import use_two_passes
from tests.support.forked import in_a_child
from tests.support.idle_driver import idle_driver

# For tests that import bench. At the end: fastds is that of the environment.
sys.path.append(str(Path(__file__).parents[2]))
_outcomes = {}  # path of a test module -> {test name: (outcome, text)}


os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # today's default; Triton warns that it will change

# Without "debug", the interpreter computes whether integers overflow but does not use the result, which takes a third
# of its time.
if not interpreter_builder.options.debug:
    interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)


def pytest_configure(config):
    config.addinivalue_line("markers", "interpreted: run in a subprocess with TRITON_INTERPRET=1")
    config.addinivalue_line("markers", "sanitized: once more with the emulated CUDA kernels under ASan and UBSan")


def pytest_runtest_protocol(item, nextitem):
    """Run tests with fake_cuda and idle_cuda in a fork.

    After fake CUDA tensors were used in a process, autograd does not work in its forks.
    """
    if not {"fake_cuda", "idle_cuda"} & set(item.fixturenames):
        return None

    def reported(out):
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        to_json = item.config.hook.pytest_report_to_serializable
        json.dump([to_json(config=item.config, report=report) for report in reports], out, default=str)

    lines, status = in_a_child(reported)
    assert status == 0, f"{item.nodeid}: the fork ended with {status}"
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in json.loads("".join(lines)):
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        item.ihook.pytest_runtest_logreport(report=report)
    item.session._setupstate.teardown_exact(nextitem)  # what the test before it left for this one
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Report the outcome of a marked test from the run under the interpreter.

    The subprocess is needed because Triton reads TRITON_INTERPRET when it is imported.
    """
    if pyfuncitem.get_closest_marker("interpreted") is None or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    path = Path(pyfuncitem.path)
    if path not in _outcomes:
        items = [i for i in pyfuncitem.session.items if Path(i.path) == path and i.get_closest_marker("interpreted")]
        _outcomes[path] = interpret(pyfuncitem.config.rootpath, path, [item.nodeid.split("::", 1)[1] for item in items])
    outcome, text = _outcomes[path].get(pyfuncitem.name, ("failure", _outcomes[path].get("", "not run")))
    if outcome == "skipped":
        pytest.skip(text)
    if outcome != "passed":
        pytest.fail(f"under the Triton interpreter:\n{text}", pytrace=False)
    return True


@pytest.fixture
def in_one_pass():
    """Run the kernels of deform_conv2d that compute the result in one pass."""
    with use_two_passes(False):
        yield


@pytest.fixture
def idle_cuda(monkeypatch):
    """Make "cuda" a device that computes nothing, and yield the driver of Triton, which launches nothing.

    Calls have plans, as with FASTDS_PLANS=gpu.
    """
    from bench import cpp_libraries, idle_cuda

    library = BUILD.parent / "idle_cuda" / f"idle_cuda-{torch.__version__}.so"
    source = Path(idle_cuda.__file__).with_suffix(".cpp")
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        cpp_libraries.build_library(source, library, *idle_cuda.get_compiler_options())
    idle_cuda.use_idle_cuda(library)
    idle_cuda.stop_reuse()
    monkeypatch.setattr(plans, "gpu_plans_enabled", True)
    for name in ("empty", "empty_like", "empty_strided"):  # poisoned in other tests
        monkeypatch.setattr(torch, name, getattr(torch._C._VariableFunctions, name))
    with idle_driver() as driver:
        driver.device = 0
        yield driver


@pytest.fixture(autouse=True)
def without_plans(request):
    """Switch plans of calls off: they run native CPU kernels, and these tests run GPU kernels on tensors of the CPU."""
    with contextlib.nullcontext() if "idle_cuda" in request.fixturenames else plans.suspended():
        yield
