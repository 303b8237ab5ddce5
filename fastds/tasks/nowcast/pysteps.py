# SPDX-License-Identifier: Apache-2.0
"""Nowcasting methods of fastds for pysteps: after register(), pysteps.nowcasts.get_method("fastds").

pysteps has entry points for importers and post-processors, but not for nowcasts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from fastds.data.packages import require
from fastds.inference.pysteps_fields import Metadata, check_metadata, from_linear, make_dataset, to_linear
from fastds.tasks.nowcast.run import nowcast

NAME = "fastds"


def register(name: str = NAME) -> None:
    """Register the function `forecast` as a nowcasting method of pysteps. Raises ImportError without pysteps."""
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
    """Nowcast with the interface of pysteps' methods.

    Args:
        precip: (t, m, n), last frames, oldest first, in the unit and transformation (None or dB) of the metadata, NaN =
            missing; as many as the model needs, 5 for the default model.
        velocity: (2, m, n) or None; not used, because the models estimate the motion.
        timesteps: number of time steps, or ascending list of time steps.
        metadata: metadata of pysteps.
        model: see fastds.nowcast.
        n_ens_members: number of ensemble members; None: a single forecast.
        seed: random seed of the ensemble; None: 0.
        timestep: time step of precip in minutes; None: accutime of the metadata.
        threads: number of CPU threads; None: torch's setting.
        device: "auto", "cpu" or "cuda"; None: the device of the model.
        measure_time: also return the computation time in seconds.

    Returns:
        (timesteps, m, n), or for ensembles (n_ens_members, timesteps, m, n), in the unit and transformation of precip.
        With measure_time, a pair of this array and the time.

    Raises:
        ValueError: shapes, timesteps or metadata that do not fit, or an argument that fastds.nowcast rejects.
        ImportError: pysteps is not installed.
    """
    begin = time.perf_counter()
    metadata = check_metadata(metadata)
    precip = np.asarray(precip)
    if precip.ndim != 3:
        raise ValueError(f"precip must be fields (t, m, n), got the shape {precip.shape}")
    if velocity is not None and np.shape(velocity) != (2, *precip.shape[1:]):
        raise ValueError(f"velocity must have the shape {(2, *precip.shape[1:])}, got {np.shape(velocity)}")
    steps = _list_steps(timesteps)
    minutes = float(metadata["accutime"] if timestep is None else timestep)
    fields, linear = to_linear(precip, metadata)
    options: dict[str, Any] = {"steps": steps[-1], "interval": f"{round(minutes * 60)}s", "coarsen": 1}
    options |= {"threads": threads, "device": device, "members": n_ens_members, "seed": seed}
    made = nowcast(model, make_dataset(fields, linear, minutes), **options)["rainfall_rate"].values
    result = from_linear(made[..., np.array(steps) - 1, :, :], linear, metadata)[0]
    return (result, time.perf_counter() - begin) if measure_time else result


def _list_steps(timesteps: int | Sequence[int]) -> list[int]:
    """Return the list of time steps, counted from 1."""
    steps = list(range(1, timesteps + 1)) if isinstance(timesteps, int | np.integer) else list(timesteps)
    whole = all(float(step).is_integer() and step >= 1 for step in steps)
    if not steps or not whole or sorted(set(steps)) != steps:
        raise ValueError(f"timesteps must be a number or ascending whole numbers >= 1, got {timesteps!r}")
    return [int(step) for step in steps]
