# SPDX-License-Identifier: Apache-2.0
"""Tests that `import fastds` adds its accessor to xarray objects, in any order of imports."""

import subprocess
import sys

import pytest

from fastds._import_hooks import run_after_import

USED = "\nprint(type(xarray.Dataset().fastds).__name__, type(xarray.DataArray(1).fastds).__name__)"


@pytest.mark.parametrize(
    "imports",
    [
        "import fastds, xarray",
        "import xarray, fastds",
        "import fastds, xarray, fastds.data",
        "import fastds.data, xarray",
        "import fastds, pandas\nimport xarray.core\nimport xarray",
    ],
)
def test_accessor_is_registered(imports):
    code = f"import warnings\nwarnings.simplefilter('error', UserWarning)\n{imports}{USED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "Accessor Accessor\n", done.stderr


def test_accessor_exists_after_a_search_for_xarray():
    """Packages test whether others are installed by find_spec, between the import of fastds and that of xarray."""
    search = "import fastds\nfrom importlib.util import find_spec\nfind_spec('xarray'), find_spec('torch')\n"
    code = f"{search}import xarray{USED}\nimport torch\nprint(hasattr(torch.ops.fastds, 'conv3x3'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "Accessor Accessor\nTrue\n", done.stderr


def test_accessor_does_not_import_xarray():
    code = "import sys, fastds; print('xarray' in sys.modules, 'torch.utils.flop_counter' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False False\n", done.stderr


def test_deferred_work_runs_after_import(tmp_path, monkeypatch):
    (tmp_path / "late_module.py").write_text("value = 3\n")
    seen = []
    run_after_import("late_module", lambda module: seen.append(module.value))
    with pytest.raises(ModuleNotFoundError):
        import late_module
    monkeypatch.syspath_prepend(tmp_path)
    import late_module

    assert seen == [late_module.value] == [3]
    run_after_import("late_module", lambda module: seen.append(-module.value))
    assert seen == [3, -3]
