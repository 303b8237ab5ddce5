# SPDX-License-Identifier: Apache-2.0
"""The results of bench.sweep: bench/results/sweeps.csv, one line per shape."""

import csv
import os
import pathlib
from collections.abc import Iterable

FILE = pathlib.Path(__file__).parent / "results" / "sweeps.csv"
# What identifies a sweep; a new run of the same sweep replaces its rows.
SWEEP = ("op", "dtype", "seed", "isa", "device")
COLUMNS = (
    *SWEEP, "threads", "torch", "load", "commit", "date", "mode", "layout", "shape", "ms", "best", "best_ms",
    "exchange_ns", "peers",
)  # fmt: skip


def read_rows() -> list[dict]:
    """Return the rows of all sweeps.

    Returns: dicts of COLUMNS: seed and threads int; ms (ours) and best_ms (the fastest peer) in milliseconds; peers, a
        dict of the times of all peers, or None where only the best was recorded; and ratio, best_ms / ms.
    """
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {key: int(row[key]) for key in ("seed", "threads")} | {key: float(row[key]) for key in ("ms", "best_ms")}
        pairs = [part.split("=") for part in row["peers"].split(";") if part]
        row["peers"] = {name: float(ms) for name, ms in pairs} or None
        row["ratio"] = row["best_ms"] / row["ms"]
    return rows


def save_sweep(head: dict, rows: Iterable[dict]) -> pathlib.Path:
    """Write the rows of a sweep to the file, in place of those of the same sweep.

    Args:
        head: the columns that all rows share, SWEEP among them.
        rows: with shape, layout, mode, ms, best, best_ms and peers; others are left out.
    """
    before = []
    if FILE.exists():
        with FILE.open(newline="", encoding="utf-8") as file:
            before = list(csv.DictReader(file))
    same = [str(head[key]) for key in SWEEP]
    lines = [line for line in before if [line[key] for key in SWEEP] != same]
    lines += [_line(head | row) for row in rows]
    lines.sort(key=lambda line: [line[key] for key in SWEEP])
    temporary = FILE.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    os.replace(temporary, FILE)
    return FILE


def _line(row: dict) -> dict:
    """A row as it is written, times with seven digits."""
    line = {key: str(row.get(key, "")) for key in COLUMNS}
    line |= {key: f"{row[key]:.7g}" for key in ("ms", "best_ms")}
    line["peers"] = ";".join(f"{name}={ms:.7g}" for name, ms in (row.get("peers") or {}).items())
    return line
