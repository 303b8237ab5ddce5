# SPDX-License-Identifier: Apache-2.0
"""Reader of the HKO-7 radar images (Hong Kong Observatory) in the folder layout in which they are distributed."""

import os
import pathlib
import re

import numpy as np
import pandas
import xarray as xr

from fastds.data.radar.pixels import HKO_Z_R, PIXEL_SCALES, from_pixels

_NAME = re.compile(r"RAD(\d{12})\.png$")
_SCALE = "-10-60"
_SIDE_M = 512e3  # side of the square image in metres


def open_hko7(
    folder: str | os.PathLike, start: str | None = None, stop: str | None = None, size: int | None = None
) -> xr.Dataset:
    """Read HKO-7 images, FOLDER/YYYY/MM/DD/RADyymmddHHMM00.png, as reflectivity.

    A code P becomes z = 70 P / 255 - 10 dBZ; code 0 means no echo. The masks of the data set are not applied. Times are
    those of the file names. `recode_pixels` converts to the scale of the paper.

    Args:
        folder: The folder radarPNG, or any folder above the folders of days.
        start: Date such as "2015-06-01"; the first image is at or after this date. None: no limit.
        stop: Date; images are before this date. None: no limit.
        size: Side in pixels to which images are resized bilinearly (160 in the DB-RNN paper); None: original size
            (480).

    Returns:
        xarray.Dataset with `reflectivity` (time, y, x), float32 dBZ, in memory.

    Raises:
        FileNotFoundError: There is no image in the time range.
        ValueError: An image cannot be read, images differ in size, or `start` or `stop` is not a date.

    Source: Shi et al. 2017.
    """
    folder = pathlib.Path(folder)
    first, last = _parse_date(start, "start", "1900-01-01"), _parse_date(stop, "stop", "2200-01-01")
    found = sorted((_parse_time(path), path) for path in folder.rglob("RAD*.png") if _NAME.match(path.name))
    chosen = [(time, path) for time, path in found if first <= time < last]
    if not chosen:
        raise FileNotFoundError(f"no image RADyymmddHHMM00.png from {start} to {stop} in {folder}: {len(found)} in all")
    images = [_read_image(path, size) for _, path in chosen]
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"the images in {folder} differ in size: {sorted({image.shape for image in images})}")
    attrs = {
        "standard_name": "equivalent_reflectivity_factor",
        "units": "dBZ",
        "no_echo_value": PIXEL_SCALES[_SCALE][0],
    }
    attrs |= {"zr_a": HKO_Z_R[0], "zr_b": HKO_Z_R[1]}
    z = from_pixels(np.stack(images), _SCALE)
    steps = [_SIDE_M / n * (np.arange(n) + 0.5) - 0.5 * _SIDE_M for n in z.shape[1:]]
    return xr.Dataset(
        {"reflectivity": (("time", "y", "x"), z, attrs)},
        {
            "time": ("time", np.array([time for time, _ in chosen], "datetime64[ns]"), {"standard_name": "time"}),
            "y": ("y", steps[0][::-1], {"long_name": "distance north of the centre", "units": "m", "axis": "Y"}),
            "x": ("x", steps[1], {"long_name": "distance east of the centre", "units": "m", "axis": "X"}),
        },
        {"Conventions": "CF-1.8", "title": "HKO-7", "institution": "Hong Kong Observatory"},
    )


def _parse_time(path: pathlib.Path) -> np.datetime64:
    match = _NAME.match(path.name)
    assert match is not None  # the format was recognized by the name
    return pandas.Timestamp("20" + match[1]).to_datetime64()


def _parse_date(text: str | None, name: str, default: str) -> np.datetime64:
    try:
        return pandas.Timestamp(default if text is None else text).to_datetime64()
    except ValueError:
        raise ValueError(f"{name} must be a date such as 2015-06-01, got {text!r}") from None


def _read_image(path: pathlib.Path, size: int | None) -> np.ndarray:
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ValueError(f"{path} cannot be read as an image")
    return image if size is None else cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
