# SPDX-License-Identifier: Apache-2.0
"""Faults of readers and writers, planted one at a time, which the campaign of drawn files has to find."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from fastds.data.io.storage import Packing

from .campaign import campaign

_FORMATS = "fastds.data.formats"
_IO = "fastds.data.io"


def _fits_always(self: Packing, values: np.ndarray) -> bool:
    return True


# What is wrong: patches of a function by another.
FAULTS: dict[str, list[tuple[str, object]]] = {
    "valid ranges are ignored": [(f"{_FORMATS}.masking._valid_limits", lambda name, variable: None)],
    "fill values of several numbers are ignored": [
        (f"{_FORMATS}.masking._declare_missing", lambda variable, fill: variable.attrs.pop("missing_value", None))
    ],
    "GRIB messages keep the order in which they scan": [(f"{_FORMATS}.grib._in_order", lambda values, **how: values)],
    "projections keep units that are not metres": [(f"{_FORMATS}.maps.in_metres", lambda crs: (crs, 1.0))],
    "KNMI lengths are always km": [(f"{_FORMATS}.knmi._METRES", {"KM": 1e3, "M": 1e3})],
    "ODIM codes are compared exactly": [(f"{_FORMATS}.maps.equals_code", lambda codes, code: codes == code)],
    "zero is missing in every Zarr store": [(f"{_FORMATS}.cf._declare_zarr_fill", lambda raw, path: None)],
    "cells lie half a cell to the south and east": [
        (f"{_FORMATS}.maps.centres", lambda corner, step, size: corner + step * (np.arange(size) + 1.0))
    ],
    "the packing of the first file serves all": [
        (f"{_IO}.storage.Packing.fits", _fits_always),
        (f"{_FORMATS}.opening._stored_alike", lambda name, parts: True),
        (f"{_IO}.files.check_written", lambda *arguments: None),
    ],
    "undeclared fill values are values": [("fastds.data.undeclared.find_fill_values", lambda values: [])],
    "impossible latitudes stay": [
        (f"{_FORMATS}.masking.impossible_places", lambda latitude, longitude: np.zeros(latitude.shape, bool))
    ],
    "masks and alpha bands are ignored": [
        (f"{_FORMATS}.geotiff.masked_pixels", lambda image: np.zeros((image.height, image.width), bool))
    ],
}  # fmt: skip


@contextlib.contextmanager
def planted(fault: str) -> Iterator[None]:
    """A block in which a fault of FAULTS is there."""
    with contextlib.ExitStack() as stack:
        for target, other in FAULTS[fault]:
            stack.enter_context(mock.patch(target, other))
        yield


def find_fault(fault: str, seed: int, most: int, folder: Path) -> tuple[int, str] | None:
    """Number of the first undamaged file that shows a fault, and what was found; None where none of `most` does."""
    with planted(fault):
        for number, outcome, said, drawn in campaign(most, seed, folder):
            if outcome != "right" and not drawn.damaged:
                return number, f"{outcome}: {said}"
    return None
