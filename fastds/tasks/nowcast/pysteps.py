# SPDX-License-Identifier: Apache-2.0
"""Our nowcasters as a method of pysteps: pysteps.nowcasts.get_method("fastds") once register() was called.

pysteps has entry points for importers and post-processors, and none for nowcasts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np
from torch import nn

from fastds.data.packages import require
from fastds.tasks.common.pysteps_fields import Metadata, check_metadata, dataset_of, from_linear, to_linear
from fastds.tasks.nowcast.run import nowcast

NAME = "fastds"


def register(name: str = NAME) -> None:
    """Let pysteps.nowcasts.get_method(name) give forecast. Raises: ImportError without pysteps."""
    require("pysteps", "nowcasts of pysteps")
    from pysteps.nowcasts import interface

    interface._nowcast_methods[name.lower()] = forecast


def forecast(
    precip: np.ndarray,
    velocity: np.ndarray | None,
    timesteps: int | Sequence[int],
    metadata: Metadata | None = None,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    n_ens_members: int | None = None,
    seed: int | None = None,
    timestep: float | None = None,
    threads: int | None = None,
    device: str | None = None,
    measure_time: bool = False,
) -> np.ndarray | tuple[np.ndarray, float]:
    """Nowcast as the methods of pysteps do.

    Args:
        precip: (t, m, n), the last fields, oldest first, in the unit and transformation (None or dB) of the metadata;
            as many as the model needs, 5 for the default one. NaN: missing.
        velocity: (2, m, n) or None; not used, since the models find the motion themselves.
        timesteps: how many, or a list of ascending whole numbers of steps.
        metadata: as pysteps' importers, converters and transformers give them.
        model: as fastds.nowcast takes it. n_ens_members, seed: of an ensemble; None: one forecast.
        timestep: minutes between the fields; None: the accutime of the metadata.
        threads, device: see fastds.tasks.common.settings.settle.
        measure_time: give the seconds that it took, too.

    Returns: (timesteps, m, n), of an ensemble (n_ens_members, timesteps, m, n), in the unit and transformation of
        precip; with measure_time a pair of it and the seconds.

    Raises: ValueError for other shapes, timesteps or metadata, and what fastds.nowcast raises; ImportError without
        pysteps.
    """
    begin = time.perf_counter()
    metadata = check_metadata(metadata)
    precip = np.asarray(precip)
    if precip.ndim != 3:
        raise ValueError(f"precip must be fields (t, m, n), got the shape {precip.shape}")
    if velocity is not None and np.shape(velocity) != (2, *precip.shape[1:]):
        raise ValueError(f"velocity must have the shape {(2, *precip.shape[1:])}, got {np.shape(velocity)}")
    wanted = _wanted(timesteps)
    minutes = float(metadata["accutime"] if timestep is None else timestep)
    fields, linear = to_linear(precip, metadata)
    options = {"steps": wanted[-1], "interval": f"{round(minutes * 60)}s", "coarsen": 1}
    options |= {"threads": threads, "device": device, "members": n_ens_members, "seed": seed}
    made = nowcast(model, dataset_of(fields, linear, minutes), **options)["rainfall_rate"].values
    result = from_linear(made[..., np.array(wanted) - 1, :, :], linear, metadata)[0]
    return (result, time.perf_counter() - begin) if measure_time else result


def _wanted(timesteps: int | Sequence[int]) -> list[int]:
    """The steps that are asked for, from 1 on."""
    steps = list(range(1, timesteps + 1)) if isinstance(timesteps, int | np.integer) else list(timesteps)
    whole = all(float(step).is_integer() and step >= 1 for step in steps)
    if not steps or not whole or sorted(set(steps)) != steps:
        raise ValueError(f"timesteps must be a number or ascending whole numbers >= 1, got {timesteps!r}")
    return [int(step) for step in steps]
