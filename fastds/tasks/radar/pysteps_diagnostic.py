# SPDX-License-Identifier: Apache-2.0
"""Downscaling as a post-processor of pysteps.

pysteps finds this module by its entry point pysteps.plugins.diagnostic. If fastds is installed, the function is
pysteps.postprocessing.get_method("diagnostic_fastds", "diagnostics").
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from fastds.inference.pysteps_fields import Metadata


def diagnostic_fastds(
    precip: np.ndarray,
    metadata: Metadata,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    timestep: float | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> tuple[np.ndarray, Metadata]:
    """Downscale fields or forecasts to twice the resolution and half the time step.

    Args:
        precip: (m, n), (t, m, n), or for ensembles (members, t, m, n), in the unit and transformation (None or dB) of
            the metadata, NaN = missing.
        metadata: metadata of pysteps.
        model: see fastds.downscale, for radar fields; None: the shipped network.
        timestep: time step of precip in minutes; None: accutime of the metadata.
        threads: number of CPU threads; None: torch's setting.
        device: "auto", "cpu" or "cuda"; None: the device of the model.

    Returns:
        Fields and metadata with the new pixel size and accutime. Shape (2m, 2n) for a single time, (2t - 1, 2m, 2n) for
        rates and (2t, 2m, 2n) for amounts in mm, which are preserved for each cell and interval; ensembles have the
        dimension of the members in front.

    Raises:
        ValueError: invalid shape or incomplete metadata, or an argument that fastds.downscale rejects.
        ImportError: pysteps is not installed.
    """
    # pysteps imports this module at its import; slow imports are therefore inside the function
    from fastds.inference.pysteps_fields import check_metadata, from_linear, make_dataset, to_linear
    from fastds.tasks.radar.run import downscale

    metadata = check_metadata(metadata)
    precip = np.asarray(precip)
    if precip.ndim not in (2, 3, 4):
        raise ValueError(f"precip must be (m, n), (t, m, n) or (members, t, m, n), got the shape {precip.shape}")
    minutes = float(metadata["accutime"] if timestep is None else timestep)
    fields, linear = to_linear(precip, metadata, metadata["unit"] if metadata["unit"] == "mm" else "mm/h")
    series = fields.reshape(-1, *(1, *fields.shape)[-3:])
    given = [make_dataset(one, linear, minutes) for one in series]
    (name,) = given[0].data_vars
    fine = np.stack([downscale(model, one, threads=threads, device=device)[name].values for one in given])
    shape = (*precip.shape[:-2], *fine.shape[-2:]) if precip.ndim == 2 else (*precip.shape[:-3], *fine.shape[-3:])
    linear, given_form = (_refine_metadata(one, series.shape[1] > 1) for one in (linear, metadata))
    return from_linear(fine.reshape(shape), linear, given_form)


def _refine_metadata(metadata: Metadata, in_time: bool) -> Metadata:
    """Return the metadata of fields at twice the resolution, and at half the time step if `in_time`."""
    finer = dict(metadata)
    for name in ("xpixelsize", "ypixelsize"):
        if name in finer:
            finer[name] = finer[name] / 2
    if in_time:
        finer["accutime"] = finer["accutime"] / 2
        if finer["unit"] == "mm" and finer["transform"] is None:
            finer["threshold"] = finer["threshold"] / 2  # the same rain rate
    return finer
