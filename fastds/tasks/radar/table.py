# SPDX-License-Identifier: Apache-2.0
"""The table of scores that evaluation returns: printed with rich or written as CSV."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fastds.metrics import EVALUATION_FLOORS
from fastds.tasks.radar.scores import FSS_WINDOW, THRESHOLDS_DBZ


@dataclasses.dataclass(frozen=True)
class EvaluationTable:
    """Scores by method, method -> column -> number, and how they were made.

    Columns for each floor f in dBZ: mse_total_f, mse_t2_f, mse_t13_f (dBZ^2), ssim_f; csi_q and fss_q for each
    threshold q in dBZ; spectrum (power over the truth's at wavelengths of 2 to 4 pixels); recoarsened_rmse (dBZ, the
    output's outer frames averaged back against the input). t2 = frames between the input times, t13 = frames at the
    input times.

    Attributes:
        rows: the scores. pairs: of input frames. pixels: valid fine ones a frame, mean. notes: sentences below the
        table.
    """

    rows: dict[str, dict[str, float]]
    pairs: int
    pixels: int
    notes: tuple[str, ...] = ()

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write one line per method, by a temporary name."""
        columns = list(next(iter(self.rows.values())))
        lines = ([name, *(f"{row[c]:.6g}" for c in columns)] for name, row in self.rows.items())
        write_csv(path, ["method", *columns], lines)

    def print(self, console=None) -> None:
        """Print the tables with rich on a console (default: standard output)."""
        from rich.console import Console

        console = console or Console()
        for floor in EVALUATION_FLOORS:
            console.print(self._error_table(floor))
        console.print(self._skill_table())
        console.print(
            f"{self.pairs} pairs of input frames, {self.pixels} valid fine pixels a frame on average. t2: between the "
            "input times, t1+t3: at the input times. "
            f"FSS in windows of {FSS_WINDOW} pixels; detail: power at wavelengths of 2 to 4 pixels over the truth's; "
            "refit: rms of the output averaged back minus the input.",
            style="dim",
        )
        for note in self.notes:
            console.print(note, style="dim", markup=False)

    def _error_table(self, floor: float):
        key = f"{floor:g}"
        table = score_table(
            f"Errors above {key} dBZ", ("method", "MSE total dBZ²", "vs trilinear", "MSE t2", "MSE t1+t3", "SSIM")
        )
        reference = self.rows["trilinear"][f"mse_total_{key}"]
        for name, row in self.rows.items():
            total = row[f"mse_total_{key}"]
            change = f"{100 * (total / reference - 1):+.1f} %" if reference > 0 else "-"
            numbers = [row[f"{c}_{key}"] for c in ("mse_t2", "mse_t13", "ssim")]
            table.add_row(name, number_text(total), "" if name == "trilinear" else change, *map(number_text, numbers))
        return table

    def _skill_table(self):
        heads = [
            (f"{score} {q:g}" if q == THRESHOLDS_DBZ[0] else f"{q:g}")
            for score in ("CSI", "FSS")
            for q in THRESHOLDS_DBZ
        ]
        title = "Skill at " + ", ".join(f"{q:g}" for q in THRESHOLDS_DBZ) + " dBZ, detail, fit to the input"
        table = score_table(title, ("method", *heads, "detail", "refit dB"))
        keys = [f"{score}_{q:g}" for score in ("csi", "fss") for q in THRESHOLDS_DBZ] + ["spectrum", "recoarsened_rmse"]
        for name, row in self.rows.items():
            table.add_row(name, *(number_text(row[k]) for k in keys))
        return table


def write_csv(path: str | os.PathLike, header: list[str], lines: Iterable[list[str]]) -> None:
    """Write a CSV file by a temporary name."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(lines)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def number_text(value: float) -> str:
    """Three decimals, "-" where a score is not defined."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def score_table(title: str, heads: tuple[str, ...]):
    """An empty table of numbers by method."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    return table
