# SPDX-License-Identifier: Apache-2.0
"""The CSV files in bench/results: their columns, and how benchmarks read and write them."""

import csv
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

RESULTS = pathlib.Path(__file__).parent / "results"
SWEEPS, NETWORKS, GPU, SCALING = (RESULTS / f"{name}.csv" for name in ("sweeps", "networks", "gpu", "scaling"))

# A new run of a sweep replaces all rows with the same values in these columns.
SWEEP_KEY = ("op", "dtype", "seed", "isa", "device")
SWEEP_COLUMNS = (
    *SWEEP_KEY, "threads", "torch", "load", "commit", "date", "mode", "layout", "shape", "ms", "best", "best_ms",
    "core_latency_ns", "peers",
)  # fmt: skip
# A new row of networks.csv or gpu.csv replaces the row with the same values in these columns.
ROW_KEY = ("device", "threads", "op", "case", "mode", "dtype", "isa", "peer", "memory")
NUMBERS = ("median_ms", "gflops", "gbytes", "percent_of_ceiling", "error", "peak_mib")
ROW_COLUMNS = (*ROW_KEY, "yardstick", *NUMBERS, "launches", "note", "cores", "torch", "commit", "date")
SCALING_NUMBERS = ("seconds", "us_per_unit", "peak_mib", "bytes_per_unit")
SCALING_COLUMNS = ("axis", "value", *SCALING_NUMBERS, "device", "torch", "commit", "date")


def read_csv(path: pathlib.Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file as dicts of strings, or an empty list if the file does not exist."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: pathlib.Path, columns: Sequence[str], lines: Iterable[Mapping[str, object]]) -> pathlib.Path:
    """Write a CSV file so that an interrupted call leaves the previous file.

    Args:
        path: file to replace.
        columns: columns in order. Other keys of the lines are not written; a missing key is an empty field.
        lines: one mapping per line.

    Returns:
        path.
    """
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    os.replace(temporary, path)
    return path


def read_sweeps() -> list[dict]:
    """Return the rows of all sweeps.

    Returns:
        Dicts of SWEEP_COLUMNS: seed and threads are int; ms (fastds) and best_ms (the fastest peer) are milliseconds;
        peers is a dict of the milliseconds of all peers, or None if only the fastest one was recorded. The key ratio
        is best_ms / ms.
    """
    rows = read_csv(SWEEPS)
    for row in rows:
        row |= {key: int(row[key]) for key in ("seed", "threads")} | {key: float(row[key]) for key in ("ms", "best_ms")}
        pairs = [part.split("=") for part in row["peers"].split(";") if part]
        row["peers"] = {name: float(ms) for name, ms in pairs} or None
        row["ratio"] = row["best_ms"] / row["ms"]
    return rows


def save_sweep(shared: dict, rows: Iterable[dict]) -> pathlib.Path:
    """Write the rows of one sweep to sweeps.csv in place of the rows of the same sweep.

    Args:
        shared: values of the columns that are equal in all rows, SWEEP_KEY among them.
        rows: dicts with mode, layout, shape, ms, best, best_ms, core_latency_ns and peers.

    Returns:
        Path of the file.
    """
    key = [str(shared[name]) for name in SWEEP_KEY]
    lines = [line for line in read_csv(SWEEPS) if [line[name] for name in SWEEP_KEY] != key]
    for row in rows:
        line = {name: str(value) for name, value in (shared | row).items()}
        line |= {name: f"{row[name]:.7g}" for name in ("ms", "best_ms")}
        line["peers"] = ";".join(f"{name}={ms:.7g}" for name, ms in (row.get("peers") or {}).items())
        lines.append(line)
    lines.sort(key=lambda line: [line[name] for name in SWEEP_KEY])
    return write_csv(SWEEPS, SWEEP_COLUMNS, lines)


def read_rows(path: pathlib.Path) -> list[dict]:
    """Return the rows of networks.csv, gpu.csv or a file of bench.gpu_bench.

    Returns:
        Dicts of ROW_COLUMNS: NUMBERS are float, or None where the field is empty; yardstick is bool; the others are
        strings.
    """
    rows = read_csv(path)
    for row in rows:
        row |= {name: float(row[name]) if row[name] else None for name in NUMBERS}
        row["yardstick"] = row["yardstick"] == "True"
    return rows


def write_rows(path: pathlib.Path, rows: Iterable[dict]) -> pathlib.Path:
    """Write rows as read_rows() returns them, numbers with six digits."""
    lines = ({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return write_csv(path, ROW_COLUMNS, lines)


def merge_rows(rows: Iterable[dict]) -> list[dict]:
    """Return the rows in the order of first appearance; a later row replaces an earlier one with the same ROW_KEY."""
    return list({tuple(str(row.get(name, "")) for name in ROW_KEY): row for row in rows}.values())


def save_rows(rows: Sequence[dict]) -> list[pathlib.Path]:
    """Merge rows into networks.csv or, if they have no number of threads, into gpu.csv.

    Returns:
        Paths of the files that were written.
    """
    written = []
    for path, selected in (
        (NETWORKS, [row for row in rows if row.get("threads")]),
        (GPU, [row for row in rows if not row.get("threads")]),
    ):
        if selected:
            merged = merge_rows([*read_rows(path), *selected])
            written.append(write_rows(path, sorted(merged, key=lambda row: row["device"])))
    return written


def read_scaling() -> list[dict]:
    """Return the rows of scaling.csv: SCALING_NUMBERS as float, value as int, the others as strings."""
    return [
        row | {name: float(row[name]) for name in SCALING_NUMBERS} | {"value": int(row["value"])}
        for row in read_csv(SCALING)
    ]


def save_scaling(shared: dict, rows: Iterable[dict]) -> pathlib.Path:
    """Replace scaling.csv by these rows.

    Args:
        shared: device, torch, commit and date.
        rows: dicts with axis, value and SCALING_NUMBERS.
    """
    lines = ({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in (shared | row).items()} for row in rows)
    return write_csv(SCALING, SCALING_COLUMNS, lines)
