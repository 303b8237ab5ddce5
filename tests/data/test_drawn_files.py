# SPDX-License-Identifier: Apache-2.0
"""Draws and reads some random files, see tests/faulty.

`python -m tests.faulty --files 10000 --seed N` does the same with many files.
"""

import warnings

import numpy as np
import pytest

from tests.faulty.campaign import campaign
from tests.faulty.planted import FAULTS, find_fault
from tests.faulty.writers import load_writers

for package in ("netCDF4", "zarr", "eccodes", "rasterio", "pyproj", "cftime"):
    pytest.importorskip(package, reason="the extra test brings the packages of all formats")


def find_wrong_results(count, folder, formats=None):
    drawn_files = campaign(count, 20261129, folder, formats=formats)
    return [(number, outcome, message) for number, outcome, message, drawn in drawn_files
            if outcome not in ("right", "refused") or (outcome == "refused" and not drawn.damaged)]  # fmt: skip


def test_random_files_are_read_correctly(tmp_path):
    assert find_wrong_results(100, tmp_path) == []


@pytest.mark.parametrize("form", load_writers())
def test_random_files_of_each_format_are_read_correctly(tmp_path, form):
    assert find_wrong_results(3, tmp_path, [form]) == []


def test_writers_have_the_recorded_intervals():
    """New writers take files of NetCDF-4 only, so that a seed still draws the same files of other formats."""
    ends = np.cumsum([writer.share for writer in load_writers().values()])
    starts = dict(zip(load_writers(), [0.0, *ends[:-1]], strict=True))
    recorded = {"netcdf4": 0.0, "netcdf3": 0.35, "zarr2": 0.43, "zarr3": 0.52, "grib": 0.59, "odim": 0.76, "knmi": 0.84,
                "geotiff": 0.88, "radolan": 0.92, "nimrod": 0.935, "meteonet": 0.97}  # fmt: skip
    assert {form: starts[form] for form in recorded} == pytest.approx(recorded, abs=1e-12)
    assert ends[-1] == pytest.approx(1.0)


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
