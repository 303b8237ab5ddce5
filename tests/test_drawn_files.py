# SPDX-License-Identifier: Apache-2.0
"""Files drawn by seed, see tests/faulty: a short campaign, and faults that it finds. `python -m tests.faulty --files
10000 --seed N` is a long one."""

import warnings

import pytest
from faulty.campaign import campaign
from faulty.planted import FAULTS, find_fault

for package in ("netCDF4", "zarr", "eccodes", "rasterio", "pyproj", "cftime"):
    pytest.importorskip(package, reason="the extra test brings the packages of all formats")


def test_no_drawn_file_is_wrong(tmp_path):
    found = [(number, outcome, said) for number, outcome, said, drawn in campaign(100, 20261129, tmp_path)
             if outcome not in ("right", "refused") or (outcome == "refused" and not drawn.damaged)]  # fmt: skip
    assert found == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(tmp_path, fault):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert find_fault(fault, 7, 400, tmp_path) is not None
