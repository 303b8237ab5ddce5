# SPDX-License-Identifier: Apache-2.0
"""Tests that FASTDS_REQUIRE_NATIVE=1 turns skips into failures, except those that tests/conftest.py accepts."""

from pathlib import Path

from tests.support import forked

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SKIPS = """
import pytest

def test_skip_of_missing_peer():
    pytest.skip("pysteps is not installed (optional peer)")

def test_skip_of_missing_file():
    pytest.skip("no radar files")

def test_skip_of_missing_vectors():
    pytest.skip("avx512 is not available on this machine or in this build")
"""


PYTEST = """
import os, sys
os.environ["FASTDS_REQUIRE_NATIVE"] = "1"
os.chdir(sys.argv[-1])
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_unexpected_skips_fail_in_ci(tmp_path, native):
    has_avx512 = "avx512" in native.build_info()["isa_usable"]
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_one.py").write_text(SKIPS)
    (tmp_path / "test_two.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--rootdir", tmp_path]
    done = forked.run(PYTEST, *options, tmp_path, imports=forked.TORCH)
    assert done.returncode != 0 and f"{1 if has_avx512 else 2} skipped" in done.stdout
    assert ("forbids: Skipped: avx512 is not available" in done.stdout) == has_avx512
    assert "forbids: Skipped: no radar files" in done.stdout
    assert "forbids: Skipped: could not import 'no_such_module'" in done.stdout
