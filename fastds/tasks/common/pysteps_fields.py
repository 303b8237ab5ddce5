# SPDX-License-Identifier: Apache-2.0
"""Fields as pysteps has them, arrays with a dictionary of metadata, as datasets and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from fastds.data.formats import maps
from fastds.data.packages import require

Metadata = dict[str, Any]
_NEEDED = ("unit", "transform", "accutime", "threshold", "zerovalue")
_START = np.datetime64("2000-01-01", "ns")  # pysteps' arrays have no times; only steps between them matter


def check_metadata(metadata: Metadata | None) -> Metadata:
    """The metadata of pysteps' importers and transformations. Raises: ValueError where they tell too little, or a
    transformation other than dB; ImportError without pysteps."""
    require("pysteps", "fields of pysteps")
    missing = [name for name in _NEEDED if name not in (metadata or {})]
    if metadata is None or missing:
        raise ValueError(f"metadata must be those that pysteps' importers give, it lacks {', '.join(missing)}")
    if metadata["transform"] not in (None, "dB"):
        raise ValueError(f"metadata must tell the transform None or 'dB', got {metadata['transform']!r}")
    return metadata


def to_linear(precip: np.ndarray, metadata: Metadata, unit: str = "mm/h") -> tuple[np.ndarray, Metadata]:
    """Fields in mm/h or mm, not transformed, and the metadata of these."""
    from pysteps.utils import conversion

    change = conversion.to_raindepth if unit == "mm" else conversion.to_rainrate
    return change(np.asarray(precip, np.float64), metadata)


def from_linear(fields: np.ndarray, linear: Metadata, given: Metadata) -> tuple[np.ndarray, Metadata]:
    """Fields in the unit and transformation of given metadata, and their metadata; linear: those of the fields, in mm
    or mm/h. In dB what is below the threshold has the zero value, as pysteps does it."""
    from pysteps.utils import conversion, transformation

    fields = np.asarray(fields, np.float64)
    dry = fields < linear["threshold"]
    if given["unit"] == "dBZ":
        with np.errstate(divide="ignore"):
            fields, linear = conversion.to_reflectivity(fields, linear)
    elif given["unit"] != linear["unit"]:
        fields, linear = conversion.to_raindepth(fields, linear)
    if given["transform"] == "dB":
        fields, linear = transformation.dB_transform(fields, linear)
        fields[dry] = given["zerovalue"]
        linear["zerovalue"] = given["zerovalue"]
    return fields, linear


def dataset_of(fields: np.ndarray, linear: Metadata, minutes: float) -> xr.Dataset:
    """A dataset of fields (t, m, n) in mm or mm/h as their metadata tell, so many minutes apart, with the coordinates
    and Z-R law of the metadata."""
    named = maps.rainfall_amount(fields, minutes) if linear["unit"] == "mm" else maps.rainfall_rate(fields)
    ((name, (values, attrs)),) = named.items()
    attrs = attrs | {key: float(linear[key]) for key in ("zr_a", "zr_b") if key in linear}
    times = _START + (np.arange(len(fields)) * round(minutes * 60e9)).astype("timedelta64[ns]")
    return xr.Dataset({name: (("time", "y", "x"), values.astype(np.float32), attrs)}, {"time": times, **_axes(linear)})


def _axes(metadata: Metadata) -> dict[str, Any]:
    """Coordinates of the centres of the cells; none where the metadata do not tell."""
    if not {"x1", "x2", "xpixelsize", "y1", "y2", "ypixelsize"} <= metadata.keys():
        return {}
    units, axes = metadata.get("cartesian_unit", "m"), {}
    for name in ("y", "x"):
        low, high, step = (float(metadata[key]) for key in (f"{name}1", f"{name}2", f"{name}pixelsize"))
        values = maps.centres(low, step, round((high - low) / step))
        if name == "y" and metadata.get("yorigin", "upper") == "upper":
            values = values[::-1]
        axes[name] = (name, values, {"standard_name": f"projection_{name}_coordinate", "units": units})
    return axes
