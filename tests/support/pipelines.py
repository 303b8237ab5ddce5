# SPDX-License-Identifier: Apache-2.0
"""Radar fields at several times, and pipelines that record what they compute."""

import numpy as np
import xarray as xr

from fastds.data import coarsen_dataset, synthetic_event
from tests.support.small_models import gridded


def fields(variable, steps):
    one = gridded(variable)
    parts = [one.assign_coords(time=one.time + np.timedelta64(6 * k, "h")) for k in range(steps // 2)]
    return xr.concat([part + k for k, part in enumerate(parts)], "time", combine_attrs="override").map(
        lambda field: field.assign_attrs(one[field.name].attrs), keep_attrs=True
    )


def counted(monkeypatch, job, computed):
    """Let a kind of job append to a list what it computes."""
    known = job.compute
    monkeypatch.setattr(job, "compute", lambda self, piece: computed.append(piece) or known(self, piece))


def make_event():
    """Make 12 coarse fields with gaps, which form segments of 6, 5 and 1 fields."""
    coarse = coarsen_dataset(synthetic_event(5, 30, (64, 64))[["reflectivity", "crs"]])
    return coarse.isel(time=[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13])
