# SPDX-License-Identifier: Apache-2.0
"""`open_array`: raw binary files as datasets."""

import os
from collections.abc import Sequence

import xarray as xr

from fastds._argument_types import validate_arguments
from fastds.data.formats.opening import InputPaths, open_files
from fastds.data.formats.plain_array import ArrayLayout


@validate_arguments
def open_array(
    path: InputPaths,
    shape: Sequence[int],
    dtype: str,
    *,
    offset: int = 0,
    grid: str | os.PathLike | None = None,
    bounds: Sequence[float] | None = None,
    missing: float | None = None,
    scale_factor: float = 1.0,
    add_offset: float = 0.0,
    units: str | None = None,
    name: str = "field",
    standard_name: str | None = None,
    no_echo: float | None = None,
    time: str | None = None,
    step: str | None = None,
    order: str | None = None,
) -> xr.Dataset:
    """Open a raw binary file of numbers as an xarray.Dataset ([time,] y, x).

    Args:
        path: File of numbers in C order, or several files, a folder or a pattern as for `open_dataset`. The suffix is
            .bin, .dat or .raw, which .gz or .bz2 may follow.
        shape: (H, W), or (T, H, W) for several times.
        dtype: NumPy type of the numbers with its byte order, such as "<f4", ">i2" or "u1".
        offset: Number of bytes before the numbers.
        grid: File with a field of H x W points, whose coordinates are used; None: `bounds`, or no coordinates.
        bounds: Outer limits of the cells in degrees: south, north, west, east.
        missing: Number in the file that stands for missing data.
        scale_factor: Factor of the numbers in the file.
        add_offset: Summand after the factor.
        units: Units of the values.
        name: Name of the variable.
        standard_name: CF standard name.
        no_echo: Value that means no echo, in `units`.
        time: First time, such as "2024-01-01T00:00", or a pattern of the file name such as "rain_%Y%m%d%H%M.bin".
        step: Time step, such as "5min"; required for several times.
        order: First row, "north_first" or "south_first". None: north_first, or the order of `grid`.

    Returns:
        xarray.Dataset with one variable in float32, NaN where missing.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: An argument is invalid, or the size of the file does not fit. The message names the argument.
    """
    layout = ArrayLayout(
        shape, dtype, offset, grid, bounds, missing, scale_factor, add_offset, units, name, standard_name,
        no_echo, time, step, order,
    )  # fmt: skip
    return open_files(path, array=layout)
