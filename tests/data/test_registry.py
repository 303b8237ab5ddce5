# SPDX-License-Identifier: Apache-2.0
"""Tests of the registry of file formats: declarations, order, and a format that a new module declares."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fastds.data import formats, open_dataset
from fastds.data.formats.registry import list_formats

ROOT = Path(__file__).resolve().parents[2]
MODULE = '''
"""Reader of a toy format: a signature, the numbers of rows and columns, and rain rates."""

import numpy as np

from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format


def matches(probe):
    return probe.header.startswith(b"TOY")


def read(probe):
    rows, columns = probe.header[3:5]
    values = np.frombuffer(probe.read()[5:], "u1").reshape(rows, columns)
    fields = cf_builder.make_reflectivity_field(values.astype("f4"), 0.0)
    axes = 50.0 - np.arange(rows), 10.0 + np.arange(columns)
    return cf_builder.make_geographic_dataset(fields, [np.datetime64("2024-06-01T12:00", "ns")], axes)


FORMAT = Format(name="Toy", files="toys", matches=matches, read=read, order={order})
'''


@pytest.fixture
def add_toy_format(tmp_path, monkeypatch):
    """Return a function that adds a module with a toy format to the modules of fastds.data.formats."""

    def add(order):
        (tmp_path / "modules").mkdir()
        (tmp_path / "modules" / "toy.py").write_text(MODULE.replace("{order}", str(order)))
        monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "modules")])
        list_formats.cache_clear()

    yield add
    monkeypatch.undo()
    sys.modules.pop("fastds.data.formats.toy", None)
    vars(formats).pop("toy", None)
    list_formats.cache_clear()


def test_names_and_orders_of_formats_are_unique():
    listed = list_formats()
    assert len({form.name for form in listed}) == len({form.order for form in listed}) == len(listed)
    assert [form.order for form in listed] == sorted(form.order for form in listed)


def test_formats_keep_their_order():
    """Formats in HDF5 precede NetCDF-4, which matches all HDF5 files; RADOLAN is the last, since it opens archives."""
    expected = [
        "ODIM HDF5", "KNMI HDF5", "Radar-DPC HDF5", "NetCDF-4", "NetCDF-3", "Zarr", "GRIB", "MeteoNet npz", "FMI PGM",
        "MeteoSwiss GIF", "GeoTIFF", "Nimrod", "DWD DX", "RADOLAN",
    ]  # fmt: skip
    assert [form.name for form in list_formats() if form.name in expected] == expected


def test_format_of_a_new_module_is_read(tmp_path, add_toy_format):
    path = tmp_path / "a.toy"
    path.write_bytes(b"TOY" + bytes([2, 3, 0, 1, 2, 3, 4, 5]))
    with pytest.raises(ValueError, match="is in no format that is known: ODIM HDF5, .*RADOLAN"):
        open_dataset(path)
    add_toy_format(order=5)
    with open_dataset(path) as dataset:
        assert dataset.encoding["format"] == "Toy"
        np.testing.assert_array_equal(dataset["reflectivity"].values[0], [[0, 1, 2], [3, 4, 5]])
    (tmp_path / "b.unknown").write_bytes(b"unknown")
    with pytest.raises(ValueError, match="is in no format that is known: Toy, ODIM HDF5"):
        open_dataset(tmp_path / "b.unknown")


def test_order_decides_between_formats(add_toy_format):
    add_toy_format(order=150)
    assert [form.name for form in list_formats()][-2:] == ["RADOLAN", "Toy"]


def test_manual_lists_the_declared_formats(add_toy_format):
    add_toy_format(order=5)
    rows = [(form.name, form.files) for form in list_formats()]  # as docs/_ext/generated_content.py
    assert rows[0] == ("Toy", "toys") and ("FMI PGM", "composites of FMI") in rows
    assert ":::{file-formats}\n:::\n" in (ROOT / "docs" / "formats.md").read_text()
