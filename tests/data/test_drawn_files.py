# SPDX-License-Identifier: Apache-2.0
"""Draws and reads some random files, see tests/faulty.

`python -m tests.faulty --files 10000 --seed N` does the same with many files.
"""

import warnings

import pytest

from tests.faulty.campaign import campaign
from tests.faulty.planted import FAULTS, find_fault

for package in ("netCDF4", "zarr", "eccodes", "rasterio", "pyproj", "cftime"):
    pytest.importorskip(package, reason="the extra test brings the packages of all formats")


def test_random_files_are_read_correctly(tmp_path):
    found = [(number, outcome, message) for number, outcome, message, drawn in campaign(100, 20261129, tmp_path)
             if outcome not in ("right", "refused") or (outcome == "refused" and not drawn.damaged)]  # fmt: skip
    assert found == []


# The first file of seed 7 that shows a fault: the search begins there, to take less time.
_FIRST = {
    "valid ranges are ignored": 11,
    "fill values of several numbers are ignored": 12,
    "projections keep units that are not metres": 19,
    "KNMI lengths are always km": 18,
    "ODIM codes are compared exactly": 85,
    "zero is missing in every Zarr store": 57,
    "cells lie half a cell to the south and east": 1,
    "the packing of the first file serves all": 11,
    "undeclared fill values are values": 5,
    "impossible latitudes stay": 25,
    "masks and alpha bands are ignored": 19,
    "projected GRIB is placed as ecCodes does": 7,
    "bytes of Nimrod are signed": 10,
    "fill values of unsigned codes are compared as signed": 7,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_reader_faults_are_detected(tmp_path, fault):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert find_fault(fault, 7, 400, tmp_path, _FIRST.get(fault, 0)) is not None
