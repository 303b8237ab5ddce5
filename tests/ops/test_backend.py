# SPDX-License-Identifier: Apache-2.0
"""Tests of the choice of a backend and of loading `_fastds`."""

import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fastds
from fastds.ops import null_op
from fastds.ops.core import native as _native
from fastds.ops.core.backends import Backend, select_backend
from fastds.ops.core.registry import OPS
from tests.support import forked

ROOT = Path(__file__).resolve().parents[2]
HIDE_NATIVE = "sys.modules['_fastds'] = None\n"


# Code of a process as a user starts it: only the given FASTDS_ variables are set, and warnings are shown.
FRESH = """
import os, sys, warnings
for name in [name for name in os.environ if name.startswith("FASTDS_")]:
    del os.environ[name]
os.environ.update({environment!r})
sys.path[:0] = {path!r}
warnings.simplefilter("default", RuntimeWarning)
"""


def python(code, *path, **environment):
    """Run code in a new process that has not imported fastds.

    Args:
        code: Python source.
        path: folders to put at the front of `sys.path`.
        environment: environment variables of the process.

    Returns:
        The finished process.
    """
    fresh = FRESH.format(environment=environment, path=list(map(str, path)))
    return forked.run(fresh + code, imports=forked.TORCH)


@pytest.fixture
def no_native(monkeypatch):
    monkeypatch.setattr(_native, "_missing", "it was left out for this test")
    monkeypatch.setattr(_native, "_module", None)
    monkeypatch.setattr(sys.modules[select_backend.__module__], "_warned", set())


def test_use_backend_restores_the_previous_backend(native):
    x = torch.ones(2)
    with fastds.use_backend("reference"):
        assert select_backend(OPS["null_op"], (x,)) == "reference"
        with fastds.use_backend("native"):
            assert select_backend(OPS["null_op"], (x,)) == "native"
        assert select_backend(OPS["null_op"], (x,)) == "reference"
    assert select_backend(OPS["null_op"], (x,)) == "native"
    with pytest.raises(KeyError), fastds.use_backend("reference"):
        raise KeyError
    assert select_backend(OPS["null_op"], (x,)) == "native"


def test_unknown_names():
    with pytest.raises(ValueError, match="use_backend: expected one of native, triton, reference, got 'cuda'"):
        fastds.use_backend("cuda").__enter__()
    with pytest.raises(ValueError, match="op_name: expected one of .*null_op.*, got 'nul_op'"):
        fastds.explain("nul_op")
    with pytest.raises(TypeError, match="null_op: arguments do not fit .*Tensor x"):
        fastds.explain("null_op", torch.ones(1), y=2)


def test_environment_variable():
    code = "import fastds, torch; print(fastds.explain('null_op', torch.ones(1))['reference'])"
    assert python(code, FASTDS_BACKEND="reference").stdout.strip() == "chosen"
    assert "FASTDS_BACKEND: expected one of" in python(code, FASTDS_BACKEND="fast").stderr


def test_explain_names_the_backend(native, monkeypatch):
    x = torch.ones(2)
    no_gpu = "refused: Triton kernels run on CUDA tensors, got a cpu tensor"
    assert fastds.explain("null_op", x) == {"native": "chosen", "triton": no_gpu, "reference": "usable"}
    with fastds.use_backend("reference"):
        assert fastds.explain("null_op", x=x) == {"native": "usable", "triton": no_gpu, "reference": "chosen"}
    monkeypatch.setitem(
        OPS["null_op"].backends, "triton", Backend(None, lambda x, *_: "x is on cpu, Triton needs CUDA")
    )
    assert fastds.explain("null_op", x)["triton"] == "refused: x is on cpu, Triton needs CUDA"
    assert fastds.explain("null_op_backward", x, x, None, 1.0, [True, False])["native"] == "chosen"


def test_forced_unsupported_backend_raises(monkeypatch):
    monkeypatch.setitem(
        OPS["null_op"].backends, "triton", Backend(None, lambda x, *_: "x is on cpu, Triton needs CUDA")
    )
    with (
        fastds.use_backend("triton"),
        pytest.raises(RuntimeError, match="'triton' was requested, but fastds.null_op .*on cpu"),
    ):
        null_op(torch.ones(1))


def test_op_without_the_forced_backend_keeps_its_default(native):
    with fastds.use_backend("triton"):
        assert select_backend(OPS["pixel_unshuffle"], (torch.ones(1, 1, 2, 2), 2)) == "native"


@pytest.mark.parametrize(
    "device,reason", [("xpu", "no native kernel for xpu"), ("cuda", "this build of _fastds has no")]
)
def test_unsupported_reasons_by_device(device, reason, native, monkeypatch):
    monkeypatch.setattr(_native, "_module", object())
    tensor = torch.empty(2, device="meta")
    assert _native.unsupported_reason({"cpu": "f"}, tensor) is None

    class Elsewhere:
        dtype, is_cpu = torch.float32, False

    Elsewhere.device = torch.device(device)
    assert reason in _native.unsupported_reason({"cuda": "null_op_cuda"}, Elsewhere)


def test_missing_native_warns_once_per_op_and_computes(no_native):
    x = torch.randn(3, requires_grad=True)
    with pytest.warns(
        RuntimeWarning, match="fastds.null_op runs on its slow PyTorch reference: native: it was left out"
    ):
        null_op(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        null_op(x)
        with torch.inference_mode():
            null_op(x.detach())
    with fastds.use_backend("native"), pytest.raises(RuntimeError, match="it was left out for this test"):
        null_op(x)
    with pytest.raises(ImportError, match="it was left out for this test"):
        _native.get_module()


def test_missing_native_warns_at_import_with_the_reason():
    run = python(HIDE_NATIVE + "import fastds.info; fastds.info.main()")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("RuntimeWarning") == 1 and "_fastds cannot be imported" in run.stderr
    assert "pip install ." in run.stderr and "_fastds cannot be imported" in run.stdout


def test_require_native_raises_without_extension():
    run = python(HIDE_NATIVE + "import fastds", FASTDS_REQUIRE_NATIVE="1")
    assert run.returncode != 0 and "ImportError: FASTDS_REQUIRE_NATIVE=1, but the native module" in run.stderr


@pytest.fixture
def checkout(tmp_path, native):
    """Copy the sources of fastds and the built `_fastds` into a new folder and return it."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    for name in ("csrc", "kernels", "fastds"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (ROOT / "setup.py", native.__file__):
        shutil.copy(file, tmp_path)
    return tmp_path


def test_extension_built_from_other_sources_raises(checkout):
    code = "import fastds, fastds.kernels; print(fastds.__file__)"
    run = python(code, checkout)
    assert run.returncode == 0 and run.stdout.startswith(str(checkout)), run.stderr
    with (checkout / "csrc" / "null_op" / "math.h").open("a") as file:
        file.write("// changed\n")
    run = python(code, checkout)
    assert run.returncode != 0
    assert "was built from other sources" in run.stderr and "python setup.py build_ext --inplace" in run.stderr


def test_installed_package_needs_no_sources(checkout):
    shutil.rmtree(checkout / "csrc")
    shutil.move(checkout / "kernels", checkout / "fastds" / "kernels")
    run = python("import fastds, fastds.kernels; print(fastds.kernels.__file__)", checkout)
    assert run.returncode == 0 and run.stdout.startswith(str(checkout)) and not run.stderr, run.stderr


def test_info_reports_backends():
    run = python("import fastds.info; fastds.info.main()")
    for word in ("fastds", "compiler", "instruction sets", "selected", "CUDA", "triton", "torch", "devices", "threads"):
        assert word in run.stdout
