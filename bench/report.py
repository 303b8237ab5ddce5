# SPDX-License-Identifier: Apache-2.0
"""Markdown table of a benchmark run: `python -m bench.report results.json [more.json] [--save] [--all]`.

`python -m bench.report --readme` writes the tables of bench/README.md from the files in bench/results.

Rows are compared with rows of the same condition: freed memory kept, or returned to the system.
--save puts the rows, small, into bench/results/<device>.json, where other rows stay; such a file is accepted in place
of a run.
--all prints the rows of every peer below the table.
"""

import argparse
import json
import os
import pathlib
import re
from collections import defaultdict

import numpy as np

from bench.sweep_results import read_rows

SLOW, TOO_SLOW = 0.95, 0.8
SPREAD = ("shapes", "median", "10 %", "worst", f"below {SLOW}", f"below {TOO_SLOW}")
# Of (time of the best peer) / (our time), by op and mode.
GOALS = {
    ("conv3x3", "forward"): "2.3", ("conv3x3", "step"): "2", ("conv_lstm_cell", "forward"): "2.5",
    ("conv_lstm_cell", "step"): "2.5", ("conv_gru_cell", "forward"): "2.5", ("conv_gru_cell", "step"): "2.5",
    ("deform_conv2d", "forward"): "2.5 contiguous, 3", ("deform_conv2d", "step"): "4",
    ("pixel_shuffle", "forward"): "1.5 contiguous, 2", ("pixel_shuffle", "step"): "1.5 contiguous, 2",
    ("lstm_gates", "forward"): "3", ("lstm_gates", "step"): "3", ("inr_query", "forward"): "4",
    ("inr_query", "step"): "4", ("window_attention2d", "forward"): "10", ("window_attention2d", "step"): "10",
}  # fmt: skip
RESULTS = pathlib.Path(__file__).parent / "results"
README = pathlib.Path(__file__).parent / "README.md"
MARKER = "<!-- tables: python -m bench.report --readme -->"
ROW_KEYS = ("op", "case", "mode", "dtype", "peer", "memory", "yardstick", "median_ms", "gflops", "gbytes",
            "percent_of_ceiling", "error", "peak_mib", "launches", "note")  # fmt: skip


def load(paths) -> dict:
    """merge() of pytest-benchmark or saved files."""
    return merge(json.loads(pathlib.Path(path).read_text()) for path in paths)


def merge(runs) -> dict:
    """{device, torch, freed_memory, ceilings, rows} of all runs; later ones win per row."""
    result, rows = {}, {}
    for data in runs:
        result |= {key: data[key] for key in ("device", "torch", "freed_memory", "ceilings") if key in data}
        found = [b["extra_info"] for b in data["benchmarks"]] if "benchmarks" in data else data["rows"]
        for row in found:
            row = {"memory": "kept"} | row
            key = tuple(row[k] for k in ("op", "case", "mode", "dtype", "peer", "memory"))
            rows[key] = {k: row[k] for k in ROW_KEYS if k in row}
    return result | {"rows": list(rows.values())}


def table(header, lines) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def milliseconds(value: float) -> str:
    return f"{value:.{3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def mode_of(row) -> str:
    return row["mode"] + ("" if row["memory"] == "kept" else ", freed memory returned")


def same_work(ours, rows) -> list[dict]:
    """Rows of others for the case, mode and condition of a row of ours, yardsticks too."""
    alike = (r for r in rows if all(r[k] == ours[k] for k in ("op", "case", "mode", "memory")))
    return [r for r in alike if not r["peer"].startswith("fastds")]


def fastest(rows) -> dict | None:
    return min((r for r in rows if not r["yardstick"]), key=lambda r: r["median_ms"], default=None)


def of_ours(rows) -> list[dict]:
    return [row for row in rows if row["peer"].startswith("fastds")]


def setting(ours) -> str:
    """Mode and condition; peers named "fastds WORDS" are ours too, with settings of their own, which follow."""
    return mode_of(ours) + ours["peer"].removeprefix("fastds")


def ceilings_of(result) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in result.get("ceilings", {}).items())


def summary(rows) -> str:
    """One line per row of ours: the best peer of the same case, mode and condition in any dtype, and torch's conv2d."""
    rows = [row for row in rows if row["median_ms"] is not None]
    header = ("op", "case", "mode", "dtype", "fastds ms", "predicted", "best peer ms", "ratio", "conv2d ms", "GFLOP/s",
              "GB/s", "% of ceiling", "peak MiB", "error vs float64")  # fmt: skip
    lines = []
    for ours in of_ours(rows):
        same = same_work(ours, rows)
        peer = fastest(same)
        yard = next((r for r in same if r["yardstick"] and r["dtype"] == ours["dtype"]), None)
        lines.append((
            ours["op"], ours["case"], setting(ours), ours["dtype"],
            milliseconds(ours["median_ms"]),
            milliseconds(ours["predicted_ms"]) if ours.get("predicted_ms") else "",
            f"{milliseconds(peer['median_ms'])} {peer['peer']}" if peer else "",
            f"{peer['median_ms'] / ours['median_ms']:.1f}x" if peer else "",
            milliseconds(yard["median_ms"]) if yard else "",
            f"{ours['gflops']:.0f}", f"{ours['gbytes']:.1f}", f"{ours['percent_of_ceiling']:.0f}",
            f"{ours['peak_mib']:.0f}", f"{ours['error']:.0e}",
        ))  # fmt: skip
    return table(header, lines)


def every_row(rows) -> str:
    header = ("op", "case", "mode", "peer", "dtype", "ms", "fastds float32 is", "peak MiB", "launches",
              "error vs float64")  # fmt: skip
    lines = []
    for row in rows:
        words = (row["op"], row["case"], mode_of(row), row["peer"], row["dtype"])
        if row["median_ms"] is None:
            lines.append((*words, row["note"], "", "", "", ""))
            continue
        key = [row[k] for k in ("op", "case", "mode", "memory")]
        base = next((r["median_ms"] for r in rows if [r[k] for k in ("op", "case", "mode", "memory")] == key
                     and r["peer"] == "fastds" and r["dtype"] == "float32"), None)  # fmt: skip
        lines.append((
            *words, milliseconds(row["median_ms"]), f"{row['median_ms'] / base:.2f}x as fast" if base else "",
            f"{row['peak_mib']:.0f}", str(row.get("launches", "")), f"{row['error']:.0e}",
        ))  # fmt: skip
    return table(header, lines)


def tables(op: str, rows) -> str:
    """One line per case and mode of an op: ours against the best peer of the same dtype, else of any dtype."""
    header = ("case", "mode", "dtype", "ms", "best peer, ms", "ratio", "GFLOP/s", "% of ceiling", "peak MiB", "error")
    lines = []
    rows = [row for row in rows if row["op"] == op and row["median_ms"] is not None]
    for ours in of_ours(rows):
        same = same_work(ours, rows)
        peer = fastest(r for r in same if r["dtype"] == ours["dtype"]) or fastest(same)
        lines.append((
            ours["case"], setting(ours), ours["dtype"],
            milliseconds(ours["median_ms"]),
            f"{peer['peer']} {peer['dtype']}, {milliseconds(peer['median_ms'])}" if peer else "",
            f"{peer['median_ms'] / ours['median_ms']:.1f}" if peer else "",
            f"{ours['gflops']:.0f}", f"{ours['percent_of_ceiling']:.0f}", f"{ours['peak_mib']:.0f}",
            f"{ours['error']:.0e}",
        ))  # fmt: skip
    return table(header, lines)


def spread(ratios: list[float]) -> tuple[str, ...]:
    """Of (time of the best peer) / (our time) of many shapes: how many, median, 10 %, worst, how many below SLOW and
    TOO_SLOW."""
    middle = (np.median(ratios), np.quantile(ratios, 0.1), min(ratios))
    slower = (sum(ratio < limit for ratio in ratios) for limit in (SLOW, TOO_SLOW))
    return str(len(ratios)), *(f"{value:.2f}" for value in middle), *map(str, slower)


def in_its_layout(row: dict) -> float | None:
    """The ratio of a row of a sweep without peers that were given channels_last for contiguous tensors; None: the times
    of all peers were not kept."""
    if row["peers"] is None:
        return None
    last = row["layout"] == "channels_last"
    return min(ms for peer, ms in row["peers"].items() if last or "channels_last" not in peer) / row["ms"]


def sweeps() -> str:
    """A line for every op, dtype, mode, instruction set and kind of machine, over all saved seeds."""
    header = ("op", "dtype", "mode", *SPREAD, f"below {SLOW} in one layout", "goal of the median", "seeds", "machine")
    rows, seeds = defaultdict(list), defaultdict(set)
    for row in read_rows():
        kind = row["op"], row["dtype"], row["mode"], f"{row['device']}, {row['isa']}"
        rows[kind].append(row)
        seeds[kind].add(row["seed"])
    lines = []
    for kind in sorted(rows):
        op, dtype, mode, machine = kind
        alike = [ratio for ratio in map(in_its_layout, rows[kind]) if ratio is not None]
        slower = f"{sum(ratio < SLOW for ratio in alike)} of {len(alike)}" if alike else ""
        told = spread([row["ratio"] for row in rows[kind]])
        drawn = ", ".join(map(str, sorted(seeds[kind])))
        lines.append((op, dtype, mode, *told, slower, GOALS.get((op, mode), ""), drawn, machine))
    return f"## Shapes drawn at random\n\n{table(header, lines)}"


def growth_table(rows: list[dict]) -> str:
    """The rows of bench.scaling."""
    lines = [[v if isinstance(v, str) else f"{v:.4g}" for v in row.values()] for row in rows]
    return table(tuple(rows[0]), lines)


def growth() -> str:
    """What bench.scaling saved."""
    result = json.loads((RESULTS / "scaling.json").read_text())
    told = growth_table(result["rows"])
    picture = "![Growth by size, threads, members and files](results/scaling.png)"
    return f"## How the cost of `fastds downscale` grows\n\n{result['device']}\n\n{told}\n\n{picture}"


def readme() -> str:
    """The tables of bench/README.md: every sweep, growth, every saved machine, every op."""
    parts = [sweeps(), growth()]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if "ceilings" not in result:  # no table of benchmarks
            continue
        ceilings = ceilings_of(result)
        parts.append(f"## {result['device']}\n\ntorch {result['torch']}; ceilings of its last run: {ceilings}.")
        for op in sorted({row["op"] for row in result["rows"]}):
            parts.append(f"### {op}\n\n{tables(op, result['rows'])}")
    return "\n\n".join(parts)


def write_readme() -> None:
    """Put the tables below the marker in bench/README.md."""
    head = README.read_text().partition(MARKER)[0]
    README.write_text(f"{head}{MARKER}\n\n{readme()}\n")


def save(result) -> pathlib.Path:
    name = re.sub(r"[^a-z0-9]+", "_", result["device"].lower()).strip("_")
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        result = merge([json.loads(path.read_text()), result])
    rows = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in result["rows"]]
    head = json.dumps({k: v for k, v in result.items() if k != "rows"})[:-1]
    body = ",\n".join(json.dumps(row) for row in rows)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f'{head}, "rows": [\n{body}\n]}}\n')
    os.replace(temporary, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="write the tables of bench/README.md")
    parser.add_argument("results", nargs="*", help="JSON of pytest --benchmark-json, or a saved file")
    parser.add_argument("--save", action="store_true", help="put the rows into bench/results/<device>.json")
    parser.add_argument("--all", action="store_true", help="print the rows of every peer too")
    options = parser.parse_args()
    if options.readme:
        write_readme()
    if not options.results:
        return
    result = load(options.results)
    kept = (
        "freed memory kept by all (fastds.keep_freed_memory) unless a row says returned; "
        if result.get("freed_memory") == "kept"
        else ""
    )
    ceilings = ceilings_of(result)
    print(f"{result.get('device', 'unknown device')}, torch {result.get('torch', '?')}; {kept}ceilings: {ceilings}\n")
    print(summary(result["rows"]))
    for row in result["rows"]:
        if row["median_ms"] is None:
            print(f"\n{row['op']} {row['case']} {mode_of(row)} {row['peer']} {row['dtype']}: {row['note']}")
    if options.all:
        print("\n" + every_row(result["rows"]))
    if options.save:
        print(f"\nsaved {save(result)}")


if __name__ == "__main__":
    main()
