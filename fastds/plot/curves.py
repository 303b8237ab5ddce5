# SPDX-License-Identifier: Apache-2.0
"""Line figures: training curves from a CSV log, and power spectra of fields."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def training_curves(
    logs: Mapping[str, str | Path],
    columns: Sequence[str] = ("train_loss", "val_loss"),
    x: str = "step",
    log_y: bool = True,
) -> Figure:
    """Draw the columns of one or more CSV training logs against step or epoch and return the Figure.

    logs: label -> path of a metrics.csv as Lightning's CSVLogger writes it (empty cells are left out). columns: the
    columns to draw where a log has them. x: "step" or "epoch". Raises ValueError where no log holds any of them.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    found = set()
    for label, path in logs.items():
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            rows, found_here = list(reader), reader.fieldnames or []
        found.update(found_here)
        for column in columns:
            points = [(float(r[x]), float(r[column])) for r in rows if r.get(x) and r.get(column)]
            if points:
                axes.plot(*zip(*sorted(points), strict=True), label=f"{label} {column}", linewidth=1.2)
    if not axes.lines:
        raise ValueError(f"no column named {' or '.join(columns)} in the logs; they have {', '.join(sorted(found))}")
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel("loss")
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=8)
    return figure


def spectra(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit: str = "km") -> Figure:
    """Draw radially averaged power spectra against wavelength on logarithmic axes, long waves left, and return the
    Figure.

    curves: label -> (wavenumber in cycles per `unit`, power in dB^2); wavenumber 0 is left out.
    """
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for label, (wavenumber, power) in curves.items():
        wavenumber, power = np.asarray(wavenumber, float), np.asarray(power, float)
        keep = (wavenumber > 0) & (power > 0)
        axes.loglog(1 / wavenumber[keep], power[keep], label=label, linewidth=1.2)
    axes.invert_xaxis()
    axes.set_xlabel(f"wavelength ({unit})")
    axes.set_ylabel("power (dB$^2$)")
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=8)
    return figure
