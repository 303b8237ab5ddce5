# SPDX-License-Identifier: Apache-2.0
import contextlib
import functools
import gc
import os
import platform
import shutil
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as in the command: a busy machine makes no test ten times slower
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # tests of threads ask for theirs
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))

import numpy
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

with contextlib.suppress(ImportError):
    import pyproj  # noqa: F401  before ecCodes, which brings a PROJ of its own: else the process ends with a double free

from fastds.info import info
from fastds.ops.core import native as _native
from fastds.ops.core import plans

ROOT, CPU = Path(__file__).resolve().parent.parent, Path("/proc/cpuinfo")


# Reasons to skip that FASTDS_REQUIRE_NATIVE=1 accepts: the machine or the build lacks a feature, or the extra `test`
# does not install a package. Outside tests/gpu, any other skipped test fails.
EXPECTED_SKIPS = [
    "(optional peer)",
    "the op is the same node in both",
    "no engine for this instruction set in this build",
    "this build has the engine for every instruction set",
    "no Linux with transparent huge pages",
    "no chromium on this machine",
    "matrix tiles come with avx512",
    "this nvcc does not compile for",
]
if not shutil.which("nvcc") and not shutil.which("nvcc", path="/usr/local/cuda/bin"):
    EXPECTED_SKIPS += ["no nvcc on this machine"]
PROCESSOR_FLAGS = CPU.read_text().split() if CPU.exists() else []
if "avx512_bf16" not in PROCESSOR_FLAGS:  # the build may lack it, so the CPU decides
    EXPECTED_SKIPS += ["avx512 is not available", "this machine cannot run avx512"]
if "avx512bw" not in PROCESSOR_FLAGS:  # what oneDNN requires for bfloat16
    EXPECTED_SKIPS += ["no oneDNN for bfloat16 on this processor"]
if "amx_bf16" not in PROCESSOR_FLAGS:
    EXPECTED_SKIPS += ["no matrix tiles in this processor"]
if "asan" in os.environ.get("LD_PRELOAD", ""):
    EXPECTED_SKIPS += ["AddressSanitizer holds freed memory"]


def unexpected(reason):
    strict = os.environ.get("FASTDS_REQUIRE_NATIVE") == "1"
    return strict and not any(text in reason for text in EXPECTED_SKIPS)


def failed_where_unexpected(report):
    judged = report.skipped and isinstance(report.longrepr, tuple) and not report.nodeid.startswith("tests/gpu/")
    if judged and unexpected(report.longrepr[2]):
        report.outcome, report.longrepr = "failed", f"FASTDS_REQUIRE_NATIVE=1 forbids: {report.longrepr[2]}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return failed_where_unexpected((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return failed_where_unexpected((yield))


def pytest_collection_finish():
    """Freeze imported objects, so that garbage collections do not traverse them."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_unconfigure():
    gc.unfreeze()  # nanobind complains of what is left at the end


def pytest_report_header():
    rows = info()
    names = ("native module", "instruction sets", "torch", "threads")
    return [f"fastds: {name}: {rows[name]}" for name in names if name in rows]


@pytest.fixture(autouse=True)
def threads_of_torch():
    """Restore the number of threads after a test, because float64 results of torch depend on it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads(threads_of_torch):
    """Fixture: use two threads at least, as kernels of users do."""
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seed():
    """Start every test from the same random state; FASTDS_TEST_SEED changes it."""
    torch.manual_seed(int(os.environ.get("FASTDS_TEST_SEED", "0")))


@pytest.fixture(autouse=True)
def no_plans_of_other_tests():
    """Fixture: drop the plans of calls, which would not run what a test replaces by monkeypatch."""
    plans.clear()


@pytest.fixture(autouse=True)
def instruction_set():
    """Force the instruction set FASTDS_TEST_ISA at the start of a test, for python -m tests.sanitize."""
    if "FASTDS_TEST_ISA" in os.environ:
        _native.get_module().set_isa(os.environ["FASTDS_TEST_ISA"])


# The functions are the same in all tests, because torch.compile recognises the functions of torch by identity.
@functools.cache
def _poisoned(allocate):
    def empty(*args, **kwargs):
        result = allocate(*args, **kwargs)
        if not result.is_floating_point() or isinstance(result, FakeTensor):  # a graph would keep the filling
            return result
        with torch._C.DisableTorchFunction():  # function modes do not observe the filling
            filled = result.detach().fill_(float("nan"))
        return filled.requires_grad_() if result.requires_grad else filled  # vmap refuses requires_grad_()

    return empty


@functools.cache
def _poisoned_array(allocate):
    def empty(*args, **kwargs):
        result = allocate(*args, **kwargs)
        if result.dtype.kind in "fc":
            result.fill(float("nan"))
        return result

    return empty


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fill torch.empty, numpy.empty and similar with NaN, so that unwritten elements are detected."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(numpy, name, _poisoned_array(getattr(numpy, name)))


@pytest.fixture(scope="session")
def data_dir():
    """Return the folder of real radar files, $FASTDS_DATA or ../shared/data next to the checkout."""
    folder = Path(os.environ.get("FASTDS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no radar files: {folder} is not there (set FASTDS_DATA)")
    return folder


@pytest.fixture(scope="session")
def native():
    """Return the module _fastds; skip the test if it is missing, unless FASTDS_REQUIRE_NATIVE=1."""
    if _native.get_missing_reason() is not None:
        pytest.skip(_native.get_missing_reason())
    return _native.get_module()


ISAS = ["neon"] if platform.machine() == "aarch64" else ["baseline", "avx2", "avx512"]


def has(native, isa):
    found = native.build_info()
    return isa in found["isa_usable"] and isa in found["isa_built"]


@pytest.fixture(params=ISAS)
def isa(request, native):
    """Run the test with each instruction set that the machine and the build have."""
    if not has(native, request.param):
        pytest.skip(f"{request.param} is not available on this machine or in this build")
    native.set_isa(request.param)
    yield request.param
    native.set_isa("auto")


@pytest.fixture
def engine_isa(isa, native):
    """Run the test with each instruction set for which conv3x3 has a Winograd kernel."""
    if not native.conv3x3_available():
        pytest.skip("no engine for this instruction set in this build")
    return isa


@pytest.fixture
def each_isa(native):
    """Return a generator function: `for isa in each_isa():` forces one instruction set after the other.

    A slow reference is then computed once for all instruction sets.
    """

    def sets():
        for isa in ISAS:
            if has(native, isa):
                native.set_isa(isa)
                yield isa

    yield sets
    native.set_isa("auto")


@pytest.fixture
def bars_of(monkeypatch):
    """Return bars_of(module), which records the progress bars of a module and their steps."""

    def watch(module):
        bars, done = [], []

        @contextlib.contextmanager
        def bar(*args):
            bars.append(args)
            yield lambda: done.append(1)

        monkeypatch.setattr(module, "progress_bar", bar)
        return bars, done

    return watch
