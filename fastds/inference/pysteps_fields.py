# SPDX-License-Identifier: Apache-2.0
"""Conversion between xarray Datasets and the arrays and metadata dictionaries of pysteps."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from fastds.data.formats import cf_builder
from fastds.data.packages import require

Metadata = dict[str, Any]
_REQUIRED = ("unit", "transform", "accutime", "threshold", "zerovalue")
_START = np.datetime64("2000-01-01", "ns")  # arrays of pysteps have no times; only the time step matters


def check_metadata(metadata: Metadata | None) -> Metadata:
    """Return the metadata of a pysteps field after checking it.

    Raises:
        ValueError: an entry is missing, or the transformation is not dB.
        ImportError: pysteps is not installed.
    """
    require("pysteps", "fields of pysteps")
    missing = [name for name in _REQUIRED if name not in (metadata or {})]
    if metadata is None or missing:
        raise ValueError(f"metadata must be those that pysteps' importers give, it lacks {', '.join(missing)}")
    if metadata["transform"] not in (None, "dB"):
        raise ValueError(f"metadata must have the transform None or 'dB', got {metadata['transform']!r}")
    return metadata


def to_linear(precip: np.ndarray, metadata: Metadata, unit: str = "mm/h") -> tuple[np.ndarray, Metadata]:
    """Convert fields of pysteps to mm/h or mm, without transformation.

    Args:
        precip: fields in the unit and transformation of `metadata`.
        metadata: metadata of the fields.
        unit: "mm/h" or "mm".

    Returns:
        Converted fields and their metadata.
    """
    from pysteps.utils import conversion

    change = conversion.to_raindepth if unit == "mm" else conversion.to_rainrate
    return change(np.asarray(precip, np.float64), metadata)


def from_linear(fields: np.ndarray, linear: Metadata, given: Metadata) -> tuple[np.ndarray, Metadata]:
    """Convert fields from mm or mm/h to the unit and transformation of other metadata.

    Args:
        fields: values in mm or mm/h.
        linear: metadata of the fields.
        given: metadata with the requested unit and transformation.

    Returns:
        Converted fields and their metadata. In dB, values below the threshold are replaced by the zero value, as in
        pysteps.
    """
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


def make_dataset(fields: np.ndarray, linear: Metadata, minutes: float) -> xr.Dataset:
    """Make a dataset of rain fields.

    Args:
        fields: (t, m, n), mm or mm/h.
        linear: metadata of the fields: unit, coordinates, Z-R relation.
        minutes: time step in minutes.
    """
    named = (
        cf_builder.make_rain_amount_field(fields, minutes)
        if linear["unit"] == "mm"
        else cf_builder.make_rain_rate_field(fields)
    )
    ((name, (values, attrs)),) = named.items()
    attrs = attrs | {key: float(linear[key]) for key in ("zr_a", "zr_b") if key in linear}
    times = _START + (np.arange(len(fields)) * round(minutes * 60e9)).astype("timedelta64[ns]")
    return xr.Dataset(
        {name: (("time", "y", "x"), values.astype(np.float32), attrs)}, {"time": times, **_make_axes(linear)}
    )


def _make_axes(metadata: Metadata) -> dict[str, Any]:
    """Return the coordinates of the cell centres, or no coordinates if the metadata lack them."""
    if not {"x1", "x2", "xpixelsize", "y1", "y2", "ypixelsize"} <= metadata.keys():
        return {}
    units, axes = metadata.get("cartesian_unit", "m"), {}
    for name in ("y", "x"):
        low, high, step = (float(metadata[key]) for key in (f"{name}1", f"{name}2", f"{name}pixelsize"))
        values = cf_builder.compute_cell_centres(low, step, round((high - low) / step))
        if name == "y" and metadata.get("yorigin", "upper") == "upper":
            values = values[::-1]
        axes[name] = (name, values, {"standard_name": f"projection_{name}_coordinate", "units": units})
    return axes
