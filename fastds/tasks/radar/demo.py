# SPDX-License-Identifier: Apache-2.0
"""Command `fastds demo`: downscale a coarsened synthetic rain event and compare the result with the truth."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import nn

from fastds._options import OptionError
from fastds.data import (
    CEILING_DBZ,
    coarsen_dataset,
    prepare,
    restore,
    save_dataset,
    synthetic_event,
    to_reflectivity,
)
from fastds.models.baselines import advection, trilinear
from fastds.tasks.radar.evaluation import evaluate
from fastds.tasks.radar.methods import pick_model
from fastds.tasks.radar.run import downscale
from fastds.tasks.radar.scores import EvaluationTable

SEED = 7
SIZE = 256
FRAMES = 7
# side in fine pixels of the part of the event in the picture; single pixels are visible
_PICTURE_PIXELS = 128
# lower limit of the colour scale; differences below it are not shown
_PICTURE_FLOOR_DBZ = 5.0


def demo(
    folder: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    seed: int = SEED,
    size: int = SIZE,
    frames: int = FRAMES,
    threads: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> EvaluationTable:
    """Downscale a synthetic event, print the table of errors, and write truth.nc, input.nc, OUT.nc and OUT.png.

    The event (fastds.data.synthetic_event) has pixels of 1 km and frames every 5 minutes; the input is every second
    frame averaged to 2 km. No network access is needed.

    Args:
        folder: output folder; created if it does not exist.
        model: see fastds.tasks.radar.methods.pick_model.
        seed: random seed of the event.
        size: side of the event in pixels, a multiple of 32, at least 64.
        frames: number of frames, odd, at least 3.
        threads: number of CPU threads; None: torch's setting.
        device: see downscale.
        progress: show progress bars.

    Returns:
        Table of errors.

    Raises:
        ValueError: invalid size or number of frames, or a model that pick_model rejects.
    """
    if size % 32 or size < 64:
        raise OptionError("size", f"must be a multiple of 32 and at least 64 pixels, got {size}")
    if frames % 2 == 0 or frames < 3:
        raise OptionError("frames", f"must be odd and at least 3, got {frames}")
    began = time.perf_counter()
    network, note = pick_model(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    truth = synthetic_event(seed, frames, (size, size))
    coarse = coarsen_dataset(truth)
    out = downscale(network, coarse, threads=threads, device=device, progress=progress)
    for name, dataset in (("truth.nc", truth), ("input.nc", coarse), ("OUT.nc", out)):
        save_dataset(dataset, folder / name)
    table = evaluate(out, truth, coarse=coarse, progress=progress)
    picture = folder / "OUT.png"
    _write_picture(picture, truth, coarse, out, network.card.name)
    print(f"synthetic rain event, seed {seed}: {frames} frames of {size} x {size} pixels, 1 km, 5 min")
    print(f"input: {(frames + 1) // 2} frames of {size // 2} x {size // 2} pixels, 2 km, 10 min; {note}")
    table.print()
    print(f"wrote truth.nc, input.nc, OUT.nc and {picture} in {time.perf_counter() - began:.0f} s")
    return table


def _write_picture(path: Path, truth: xr.Dataset, coarse: xr.Dataset, out: xr.Dataset, name: str) -> None:
    """Draw the pair of input frames with most rain: truth, input, baselines, model and differences from the truth."""
    from fastds.plot import field_panel, save_png

    given, z, predicted = (to_reflectivity(d) for d in (coarse, truth, out))
    fields = z.frames(slice(None))
    start = 2 * max(range(len(given.times) - 1), key=lambda i: np.mean(fields[2 * i + 1] >= 20.0))
    chosen = slice(start, start + 3)
    rows, columns = _find_rainiest_part(fields[start + 1])
    pair = torch.from_numpy(given.frames(slice(start // 2, start // 2 + 2)))
    x = prepare(pair, 0.0, CEILING_DBZ)[None, :, None]
    products = {
        method: restore(function(x)[0, :, 0], 0.0, CEILING_DBZ).numpy()
        for method, function in (("trilinear", trilinear), ("advection", advection))
    }
    products[name] = predicted.frames(chosen)
    maps = {method: values[:, rows, columns] for method, values in {"truth": fields[chosen], **products}.items()}
    lifted = {method: np.maximum(values, _PICTURE_FLOOR_DBZ) for method, values in maps.items()}
    first, second = pair[
        :, slice(rows.start // 2, rows.stop // 2), slice(columns.start // 2, columns.stop // 2)
    ].numpy()
    figure = field_panel(
        {method: list(values) for method, values in maps.items()},
        [np.datetime_as_string(t, unit="m")[11:] + " UTC" for t in z.times[chosen]],
        differences={method: list(lifted[method] - lifted["truth"]) for method in products},
        inputs=[first, None, second],
        x=z.raw[z.dims[2]].values[columns] / 1e3,
        y=z.raw[z.dims[1]].values[rows] / 1e3,
        title="Synthetic rain event: truth 1 km and 5 min, input 2 km and 10 min, downscaled fields, differences",
    )
    save_png(figure, path)


def _find_rainiest_part(field: np.ndarray) -> tuple[slice, slice]:
    """Return the square of at most 128 pixels, at multiples of 16, with most pixels of at least 25 dBZ."""
    side = min(_PICTURE_PIXELS, *field.shape)
    echo = field >= 25.0
    places = [(i, j) for i in range(0, field.shape[0] - side + 1, 16) for j in range(0, field.shape[1] - side + 1, 16)]
    i, j = max(places, key=lambda p: echo[p[0] : p[0] + side, p[1] : p[1] + side].sum())
    return slice(i, i + side), slice(j, j + side)
