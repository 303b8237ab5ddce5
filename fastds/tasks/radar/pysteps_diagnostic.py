# SPDX-License-Identifier: Apache-2.0
"""Downscaling as a post-processor of pysteps, which finds it by its entry point pysteps.plugins.diagnostic: an
installed fastds has it in pysteps.postprocessing.get_method("diagnostic_fastds", "diagnostics")."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from fastds.tasks.common.pysteps_fields import Metadata


def diagnostic_fastds(
    precip: np.ndarray,
    metadata: Metadata,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    timestep: float | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> tuple[np.ndarray, Metadata]:
    """Fields or forecasts at twice the resolution and half the time step.

    Args:
        precip: (m, n), (t, m, n), or (members, t, m, n) of an ensemble, in the unit and transformation (None or dB) of
            the metadata. NaN: missing.
        metadata: as pysteps' importers, converters and transformers give them.
        model: as fastds.downscale takes it for radar fields; None: the shipped network.
        timestep: minutes between the fields; None: the accutime of the metadata.
        threads, device: see fastds.tasks.common.settings.settle.

    Returns: (2m, 2n), which a single time is made finer in, (2t - 1, 2m, 2n), or amounts in mm (2t, 2m, 2n), which stay
        the same by cell and interval, all with members before them; and the metadata with the new pixel size and
        accutime.

    Raises: ValueError for another shape or metadata that tell too little, and what fastds.downscale raises; ImportError
        without pysteps.
    """
    # pysteps imports this module whenever it is itself imported: what takes time is imported here.
    from fastds.tasks.common.pysteps_fields import check_metadata, dataset_of, from_linear, to_linear
    from fastds.tasks.radar.run import downscale

    metadata = check_metadata(metadata)
    precip = np.asarray(precip)
    if precip.ndim not in (2, 3, 4):
        raise ValueError(f"precip must be (m, n), (t, m, n) or (members, t, m, n), got the shape {precip.shape}")
    minutes = float(metadata["accutime"] if timestep is None else timestep)
    fields, linear = to_linear(precip, metadata, metadata["unit"] if metadata["unit"] == "mm" else "mm/h")
    series = fields.reshape(-1, *(1, *fields.shape)[-3:])
    given = [dataset_of(one, linear, minutes) for one in series]
    (name,) = given[0].data_vars
    fine = np.stack([downscale(model, one, threads=threads, device=device)[name].values for one in given])
    shape = (*precip.shape[:-2], *fine.shape[-2:]) if precip.ndim == 2 else (*precip.shape[:-3], *fine.shape[-3:])
    linear, given_form = (_finer(one, series.shape[1] > 1) for one in (linear, metadata))
    return from_linear(fine.reshape(shape), linear, given_form)


def _finer(metadata: Metadata, in_time: bool) -> Metadata:
    """The metadata of fields at twice the resolution, and at half the time step."""
    finer = dict(metadata)
    for name in ("xpixelsize", "ypixelsize"):
        if name in finer:
            finer[name] = finer[name] / 2
    if in_time:
        finer["accutime"] = finer["accutime"] / 2
        if finer["unit"] == "mm" and finer["transform"] is None:
            finer["threshold"] = finer["threshold"] / 2  # the same rain rate
    return finer
