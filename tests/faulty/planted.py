# SPDX-License-Identifier: Apache-2.0
"""Deliberate faults of readers and writers, each of which the comparison of random files must detect."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from fastds.data.formats import nimrod
from fastds.data.io.storage import Packing

from .campaign import campaign

_FORMATS = "fastds.data.formats"
_IO = "fastds.data.io"


def _fits_always(self: Packing, values: np.ndarray) -> bool:
    return True


def _placed_by_eccodes(dataset: object) -> object:
    return dataset


# What is wrong: patches of a function by another.
FAULTS: dict[str, list[tuple[str, object]]] = {
    "valid ranges are ignored": [(f"{_FORMATS}.masking._pop_valid_limits", lambda name, variable: None)],
    "fill values of several numbers are ignored": [
        (f"{_FORMATS}.masking._declare_missing", lambda variable, fill: variable.attrs.pop("missing_value", None))
    ],
    "GRIB messages keep the order in which they scan": [
        (f"{_FORMATS}.grib._undo_scan_order", lambda values, **how: values)
    ],
    "projections keep units that are not metres": [
        (f"{_FORMATS}.cf_builder.convert_to_metres", lambda crs: (crs, 1.0))
    ],
    "KNMI lengths are always km": [(f"{_FORMATS}.knmi._METRES", {"KM": 1e3, "M": 1e3})],
    "ODIM codes are compared exactly": [(f"{_FORMATS}.cf_builder.match_code", lambda codes, code: codes == code)],
    "zero is missing in every Zarr store": [(f"{_FORMATS}.cf._declare_zarr_fill", lambda raw, path: None)],
    "cells lie half a cell to the south and east": [
        (
            f"{_FORMATS}.cf_builder.compute_cell_centres",
            lambda corner, step, size: corner + step * (np.arange(size) + 1.0),
        )
    ],
    "the packing of the first file serves all": [
        (f"{_IO}.storage.Packing.fits", _fits_always),
        (f"{_FORMATS}.opening._is_stored_alike", lambda name, parts: True),
        (f"{_IO}.files.check_written", lambda *arguments: None),
    ],
    "undeclared fill values are values": [("fastds.data.fill_values.find_fill_values", lambda values: [])],
    "impossible latitudes stay": [
        (f"{_FORMATS}.masking.find_invalid_positions", lambda latitude, longitude: np.zeros(latitude.shape, bool))
    ],
    "masks and alpha bands are ignored": [
        (f"{_FORMATS}.geotiff.find_masked_pixels", lambda image: np.zeros((image.height, image.width), bool))
    ],
    "projected GRIB is placed as ecCodes does": [
        (f"{_FORMATS}.grib._correct_projected_coordinates", _placed_by_eccodes)
    ],
    "the secondary bit of RADOLAN counts as a value": [(f"{_FORMATS}.radolan._VALUE_BITS", 0x1FFF)],
    "clutter of RADOLAN is rain": [(f"{_FORMATS}.radolan._CLUTTER_BIT", 0)],
    "bytes of Nimrod are signed": [(f"{_FORMATS}.nimrod._TYPES", nimrod._TYPES | {(2, 1): ">i1"})],
    "missing codes of MeteoNet's new product are those of the old": [(f"{_FORMATS}.meteonet._NEW_MISSING", 255)],
    "fill values of unsigned codes are compared as signed": [
        (f"{_FORMATS}.masking._convert_unsigned_fills", lambda variable: None)
    ],
}  # fmt: skip
# Part of the name of a fault -> formats in which the fault is searched, because other formats do not show it.
_SHOWN_BY = {
    "RADOLAN": ["radolan"],
    "Nimrod": ["nimrod"],
    "MeteoNet": ["meteonet"],
    "GRIB": ["grib"],
    "unsigned": ["netcdf3"],
}


@contextlib.contextmanager
def planted(fault: str) -> Iterator[None]:
    """Context manager in which a fault of FAULTS is active."""
    with contextlib.ExitStack() as stack:
        for target, other in FAULTS[fault]:
            stack.enter_context(mock.patch(target, other))
        yield


def find_fault(fault: str, seed: int, most: int, folder: Path, first: int = 0) -> tuple[int, str] | None:
    """Find the first undamaged file that shows a deliberate fault.

    Args:
        fault: name of the fault.
        seed: seed of the files.
        most: number of files to try.
        folder: folder for files.
        first: number of the first file.

    Returns:
        The number of the file and the message, or None if no file shows the fault.
    """
    formats = next((forms for name, forms in _SHOWN_BY.items() if name in fault), None)
    with planted(fault):
        for number, outcome, message, drawn in campaign(most, seed, folder, first, formats=formats):
            if outcome != "right" and not drawn.damaged:
                return number, f"{outcome}: {message}"
    return None
