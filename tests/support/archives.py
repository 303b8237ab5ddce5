# SPDX-License-Identifier: Apache-2.0
"""Compute an archive, and compare stores."""

import xarray as xr

from fastds.archive.run import compute_archive


def archive(files, source="in", target="out.zarr", **options):
    form = {"model": "trilinear", "dtype": "float32", "threads": 1}
    source = [files / "in" / name for name in source] if isinstance(source, list) else files / source
    return compute_archive("radar", source, files / target, **form | options)


def stored(path):
    with xr.open_zarr(path) as dataset:
        return dataset.load()


def same(a, b):
    """Return True if two stores are equal except for the date in their history."""
    return a.drop_attrs().identical(b.drop_attrs()) and all(a[name].attrs == b[name].attrs for name in a.variables)
