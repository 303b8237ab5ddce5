# SPDX-License-Identifier: Apache-2.0
"""Tables of benchmark results: `python -m bench.report RESULTS... [--save] [--all]`, `python -m bench.report --pages`.

RESULTS are files of `pytest --benchmark-json` or of bench.gpu_bench (CSV). The table compares each row of fastds with
the fastest peer that was measured under the same condition: freed memory retained by the process, or returned.

--save merges the rows into bench/results/networks.csv or gpu.csv. --all also prints all rows. --pages writes
docs/benchmarks/*.md and the summary in docs/benchmarks.md from the files in bench/results.
"""

import argparse
import json
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from bench import result_files

SLOW, TOO_SLOW = 0.95, 0.8
RATIO_COLUMNS = ("shapes", "median", "10 %", "worst", f"below {SLOW}", f"below {TOO_SLOW}")
# Required medians of (time of the fastest peer) / (time of fastds), by op and mode.
GOALS = {
    ("conv3x3", "forward"): "2.3", ("conv3x3", "step"): "2", ("conv_lstm_cell", "forward"): "2.5",
    ("conv_lstm_cell", "step"): "2.5", ("conv_gru_cell", "forward"): "2.5", ("conv_gru_cell", "step"): "2.5",
    ("deform_conv2d", "forward"): "2.5 contiguous, 3", ("deform_conv2d", "step"): "4",
    ("pixel_shuffle", "forward"): "1.5 contiguous, 2", ("pixel_shuffle", "step"): "1.5 contiguous, 2",
    ("lstm_gates", "forward"): "3", ("lstm_gates", "step"): "3", ("inr_query", "forward"): "4",
    ("inr_query", "step"): "4", ("window_attention2d", "forward"): "10", ("window_attention2d", "step"): "10",
}  # fmt: skip
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "benchmarks.md"
SUMMARY_BEGIN = "<!-- summary: python -m bench.report --pages -->"
SUMMARY_END = "<!-- end of the summary -->"
GENERATED = "This page is generated from `bench/results/{}` by `python -m bench.report --pages`; do not edit it."
SUMMARY = f"""\
## Ops on randomly drawn shapes

Each cell has the median ratio over all drawn shapes and, in brackets, the share of shapes with a ratio below {SLOW} and
the number of shapes. Processors with AVX-512, two cores, all machines and memory layouts together.

{{ops}}

## Whole networks

Each cell has the lowest and the highest ratio over all input sizes and machines. A training step is the forward pass,
the backward pass and an update by Adam.

{{networks}}"""
HOW_TO_READ_ROWS = """\
A row compares fastds with the fastest peer on the same data in the same process. "ratio" is the time of that peer
divided by the time of fastds: above 1, fastds is faster. "variant" names a setting of fastds. A row without a peer
measures fastds alone. "% of ceiling" compares with the peak rates of torch in the same run. "error" is the largest
error against a float64 reference, relative to the largest value. "peak MiB" is the memory that a fresh process needs
for one call."""


def load_results(paths: Iterable[pathlib.Path]) -> list[dict]:
    """Return the rows of files of pytest-benchmark (JSON) or bench.gpu_bench (CSV); later rows replace equal ones."""
    rows = []
    for path in paths:
        rows += read_pytest_benchmark(path) if path.suffix == ".json" else result_files.read_rows(path)
    return result_files.merge_rows(rows)


def read_pytest_benchmark(path: pathlib.Path) -> list[dict]:
    """Return the rows of a file of `pytest --benchmark-json`: the benchmarks, and the peak rates of the run."""
    data = json.loads(path.read_text())
    rows = [data["run"] | make_ceiling_row(name, rate) for name, rate in data["ceilings"].items()]
    rows += [data["run"] | {"memory": "kept"} | benchmark["extra_info"] for benchmark in data["benchmarks"]]
    return rows


def make_ceiling_row(name: str, rate: float) -> dict:
    """Return the columns of a peak rate: GB/s of a copy if `name` is "GB/s", else GFLOP/s of the dtype `name`."""
    row = {"op": "ceiling", "mode": "", "peer": "torch", "memory": "kept", "yardstick": True, "median_ms": None}
    if name == "GB/s":
        return row | {"case": "copy", "dtype": "float32", "gbytes": rate}
    return row | {"case": "product", "dtype": name, "gflops": rate}


def format_ceilings(rows: list[dict]) -> str:
    """Return the peak rates among the rows as text."""
    parts = []
    for row in rows:
        if row["op"] == "ceiling" and row["case"] == "copy":
            parts.append(f"copy {row['gbytes']:.0f} GB/s")
        elif row["op"] == "ceiling":
            parts.append(f"{row['dtype']} {row['gflops']:.0f} GFLOP/s")
    return ", ".join(parts)


def format_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def format_ms(value: float) -> str:
    return f"{value:.{3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def format_device(row: dict) -> str:
    threads = f", {row['threads']} threads of {row['cores']} cores" if row.get("threads") else ""
    return row["device"] + threads


def is_own(row: dict) -> bool:
    return row["peer"].startswith("fastds")


def format_variant(row: dict) -> str:
    """Return the setting of fastds that a row measures: peers are named "fastds" or "fastds SETTING"."""
    memory = "" if row["memory"] == "kept" else "freed memory returned"
    return ", ".join(part for part in (row["peer"].removeprefix("fastds").strip(), memory) if part)


def select_timed(rows: list[dict]) -> list[dict]:
    """Return the rows with a time: without peak rates and peers that were stopped."""
    return [row for row in rows if row["median_ms"] is not None]


def select_peers(row: dict, rows: list[dict]) -> list[dict]:
    """Return the rows of other libraries that can be compared with a row of fastds.

    These rows have the same op, case, mode, device, instruction set and handling of freed memory, and any dtype. Rows
    that do other work (`yardstick`), for example a plain convolution, are included.
    """
    keys = ("device", "isa", "op", "case", "mode", "memory")
    return [r for r in rows if not is_own(r) and all(r[k] == row[k] for k in keys)]


def find_fastest(rows: Iterable[dict]) -> dict | None:
    return min((r for r in rows if not r["yardstick"]), key=lambda r: r["median_ms"], default=None)


def format_summary_of_run(rows: list[dict]) -> str:
    """Return a table with one line per row of fastds.

    The peer is the fastest one of the same op, case, mode and handling of freed memory, in any dtype. The column
    "yardstick ms" is the time of other work in the same dtype, for example of a plain convolution.
    """
    rows = select_timed(rows)
    header = ("op", "case", "mode", "variant", "dtype", "fastds ms", "best peer ms", "ratio", "yardstick ms", "GFLOP/s",
              "GB/s", "% of ceiling", "peak MiB", "error vs float64")  # fmt: skip
    lines = []
    for row in filter(is_own, rows):
        peers = select_peers(row, rows)
        best = find_fastest(peers)
        yardstick = next((r for r in peers if r["yardstick"] and r["dtype"] == row["dtype"]), None)
        lines.append((
            row["op"], row["case"], row["mode"], format_variant(row), row["dtype"],
            format_ms(row["median_ms"]),
            f"{format_ms(best['median_ms'])} {best['peer']}" if best else "",
            f"{best['median_ms'] / row['median_ms']:.1f}x" if best else "",
            format_ms(yardstick["median_ms"]) if yardstick else "",
            f"{row['gflops']:.0f}", f"{row['gbytes']:.1f}", f"{row['percent_of_ceiling']:.0f}",
            f"{row['peak_mib']:.0f}", f"{row['error']:.0e}",
        ))  # fmt: skip
    return format_table(header, lines)


def format_every_row(rows: list[dict]) -> str:
    """Return a table of all rows; each time is also divided by that of fastds in float32 in the same case."""
    header = ("op", "case", "mode", "peer", "memory", "dtype", "ms", "ms / ms of fastds float32", "peak MiB",
              "launches", "error vs float64")  # fmt: skip
    lines = []
    for row in rows:
        if row["op"] == "ceiling":
            continue
        head = (row["op"], row["case"], row["mode"], row["peer"], row["memory"], row["dtype"])
        if row["median_ms"] is None:
            lines.append((*head, row["note"], "", "", "", ""))
            continue
        keys = ("isa", "op", "case", "mode", "memory")
        base = next((r["median_ms"] for r in rows if all(r[k] == row[k] for k in keys)
                     and r["peer"] == "fastds" and r["dtype"] == "float32"), None)  # fmt: skip
        lines.append((
            *head, format_ms(row["median_ms"]), f"{row['median_ms'] / base:.2f}" if base else "",
            f"{row['peak_mib']:.0f}", str(row.get("launches") or ""), f"{row['error']:.0e}",
        ))  # fmt: skip
    return format_table(header, lines)


def format_op(rows: list[dict]) -> str:
    """Return a table with one line per row of fastds of one op.

    The peer is the fastest one of the same dtype, or of any dtype if none was measured in the same dtype.
    """
    header = ("case", "mode", "variant", "dtype", "ms", "best peer, ms", "ratio", "GFLOP/s", "% of ceiling",
              "peak MiB", "error", "date")  # fmt: skip
    lines = []
    rows = select_timed(rows)
    for row in filter(is_own, rows):
        peers = select_peers(row, rows)
        best = find_fastest(r for r in peers if r["dtype"] == row["dtype"]) or find_fastest(peers)
        lines.append((
            row["case"], row["mode"], format_variant(row), row["dtype"],
            format_ms(row["median_ms"]),
            f"{best['peer']} {best['dtype']}, {format_ms(best['median_ms'])}" if best else "",
            f"{best['median_ms'] / row['median_ms']:.1f}" if best else "",
            f"{row['gflops']:.0f}", f"{row['percent_of_ceiling']:.0f}", f"{row['peak_mib']:.0f}",
            f"{row['error']:.0e}", row["date"],
        ))  # fmt: skip
    return format_table(header, lines)


def format_devices(path: pathlib.Path) -> str:
    """Return one section per machine of networks.csv or gpu.csv, with one table per op and instruction set."""
    devices = defaultdict(list)
    for row in result_files.read_rows(path):
        devices[format_device(row)].append(row)
    parts = []
    for device, rows in devices.items():
        parts.append(f"## {device}\n\ntorch {rows[-1]['torch']}. Peak rates: {format_ceilings(rows)}.")
        for op, isa in sorted({(row["op"], row["isa"]) for row in rows if row["op"] != "ceiling"}):
            same = [row for row in rows if (row["op"], row["isa"]) == (op, isa)]
            title = f"{op}, {isa}" if isa else op
            parts.append(f"### {title}\n\n{format_op(same)}")
    return "\n\n".join(parts)


def summarize_ratios(ratios: Sequence[float]) -> tuple[str, ...]:
    """Return RATIO_COLUMNS of ratios, which are (time of the fastest peer) / (time of fastds)."""
    values = (np.median(ratios), np.quantile(ratios, 0.1), min(ratios))
    slower = (sum(ratio < limit for ratio in ratios) for limit in (SLOW, TOO_SLOW))
    return str(len(ratios)), *(f"{value:.2f}" for value in values), *map(str, slower)


def get_ratio_in_one_layout(row: dict) -> float | None:
    """Return the ratio of a row of a sweep for peers with the same memory format as fastds.

    If fastds got contiguous tensors, peers that got channels_last tensors are left out.

    Returns:
        The ratio, or None if the times of all peers were not recorded.
    """
    if row["peers"] is None:
        return None
    last = row["layout"] == "channels_last"
    return min(ms for peer, ms in row["peers"].items() if last or "channels_last" not in peer) / row["ms"]


def format_sweeps(rows: list[dict]) -> str:
    """Return a table with one line per op, dtype, mode, instruction set and machine, over all seeds."""
    header = ("op", "dtype", "mode", *RATIO_COLUMNS, f"below {SLOW} in one layout", "goal", "seeds", "machine")
    groups = defaultdict(list)
    for row in rows:
        groups[row["op"], row["dtype"], row["mode"], f"{row['device']}, {row['isa']}"].append(row)
    lines = []
    for (op, dtype, mode, machine), same in sorted(groups.items()):
        ratios = [ratio for ratio in map(get_ratio_in_one_layout, same) if ratio is not None]
        slower = f"{sum(ratio < SLOW for ratio in ratios)} of {len(ratios)}" if ratios else ""
        seeds = ", ".join(map(str, sorted({row["seed"] for row in same})))
        numbers = summarize_ratios([row["ratio"] for row in same])
        lines.append((op, dtype, mode, *numbers, slower, GOALS.get((op, mode), ""), seeds, machine))
    return format_table(header, lines)


def format_sweep_summary(rows: list[dict]) -> str:
    """Return a table of median ratios with one line per op, over all seeds, machines and layouts with AVX-512."""
    header = ("op", "float32 forward", "float32 training", "bfloat16 forward", "bfloat16 training")
    groups = defaultdict(list)
    for row in rows:
        if row["isa"] == "avx512":
            groups[row["op"], row["dtype"], row["mode"]].append(row["ratio"])
    lines = []
    for op in sorted({op for op, *_ in groups}):
        cells = []
        for dtype, mode in ((d, m) for d in ("float32", "bfloat16") for m in ("forward", "step")):
            ratios = groups.get((op, dtype, mode))
            slow = f"{np.mean(np.array(ratios) < SLOW):.0%}".replace("%", " %") if ratios else ""
            cells.append(f"{np.median(ratios):.1f} ({slow} of {len(ratios)})" if ratios else "")
        lines.append((f"`{op}`", *cells))
    return format_table(header, lines)


def format_network_summary(rows: list[dict]) -> str:
    """Return a table with one line per network: the lowest and highest ratio over all sizes and machines.

    The peer of a ratio is the fastest one of the same dtype.
    """
    header = ("network", "float32 forward", "float32 training", "bfloat16 forward", "bfloat16 training")
    rows = select_timed(rows)
    ratios = defaultdict(list)
    for row in rows:
        if row["peer"] == "fastds" and (row["case"].startswith("whole") or row["op"] == "mlcast-convgru"):
            best = find_fastest(r for r in select_peers(row, rows) if r["dtype"] == row["dtype"])
            if best:
                ratios[row["op"], row["dtype"], row["mode"]].append(best["median_ms"] / row["median_ms"])
    lines = []
    for op in sorted({op for op, *_ in ratios}):
        columns = (ratios.get((op, d, m)) for d in ("float32", "bfloat16") for m in ("forward", "training step"))
        lines.append((f"`{op}`", *(f"{min(found):.1f} to {max(found):.1f}" if found else "" for found in columns)))
    return format_table(header, lines)


def format_scaling(rows: list[dict]) -> str:
    """Return the table of rows of bench.scaling."""
    names = ("axis", "value", *result_files.SCALING_NUMBERS)
    header = ("axis", "value", "s", "us per unit", "peak MiB", "bytes per unit")
    return format_table(header, [[v if isinstance(v := row[k], str) else f"{v:.4g}" for k in names] for row in rows])


def make_pages() -> dict[pathlib.Path, str]:
    """Return the generated pages of the documentation, and docs/benchmarks.md with its summary, by path."""
    sweeps, scaling = result_files.read_sweeps(), result_files.read_scaling()
    folder = PAGE.with_suffix("")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(SUMMARY_BEGIN)
    after = rest.partition(SUMMARY_END)[2]
    networks = result_files.read_rows(result_files.NETWORKS)
    summary = SUMMARY.format(ops=format_sweep_summary(sweeps), networks=format_network_summary(networks))
    return {
        PAGE: f"{before}{SUMMARY_BEGIN}\n\n{summary}\n\n{SUMMARY_END}{after}",
        folder / "sweeps.md": "\n\n".join((
            "# Benchmarks on randomly drawn shapes", GENERATED.format("sweeps.csv"),
            'A ratio is the time of the fastest peer divided by the time of fastds. "median", "10 %" (quantile) and\n'
            '"worst" are ratios; the columns "below" count shapes. "in one layout" leaves out peers that got\n'
            "channels_last tensors where fastds got contiguous ones, as far as the times of all peers were recorded.\n"
            '"goal" is the median that fastds aims at.',
            format_sweeps(sweeps) + "\n",
        )),
        folder / "networks.md": "\n\n".join((
            "# Benchmarks of ops and networks on CPUs", GENERATED.format("networks.csv"), HOW_TO_READ_ROWS,
            format_devices(result_files.NETWORKS) + "\n",
        )),
        folder / "gpu.md": "\n\n".join((
            "# Benchmarks on a GPU", GENERATED.format("gpu.csv"), HOW_TO_READ_ROWS,
            format_devices(result_files.GPU) + "\n",
        )),
        folder / "scaling.md": "\n\n".join((
            "# Cost of `fastds downscale`", GENERATED.format("scaling.csv"),
            f"Measured on {scaling[0]['device']}, {scaling[0]['date']}, by `python -m bench.scaling --save`. The\n"
            "unit of the axes size, threads and members is an input pixel (of one member); the unit of the axis files\n"
            "is a file. The time per unit leaves out the time of a run on two fields of 64 x 64 pixels.",
            format_scaling(scaling) + "\n",
        )),
    }  # fmt: skip


def write_pages() -> None:
    for path, text in make_pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", action="store_true", help="write docs/benchmarks/*.md from bench/results")
    parser.add_argument("results", nargs="*", type=pathlib.Path, help="files of pytest --benchmark-json or gpu_bench")
    parser.add_argument("--save", action="store_true", help="merge the rows into bench/results/*.csv")
    parser.add_argument("--all", action="store_true", help="also print the rows of every peer")
    options = parser.parse_args()
    if options.results:
        rows = load_results(options.results)
        for device in dict.fromkeys(map(format_device, rows)):
            same = [row for row in rows if format_device(row) == device]
            print(f"{device}, torch {same[-1]['torch']}; peak rates: {format_ceilings(same)}\n")
            print(format_summary_of_run(same))
            for row in same:
                if row["op"] != "ceiling" and row["median_ms"] is None:
                    print(f"\n{row['op']} {row['case']} {row['mode']} {row['peer']} {row['dtype']}: {row['note']}")
            if options.all:
                print("\n" + format_every_row(same))
        if options.save:
            print(f"\nsaved {', '.join(map(str, result_files.save_rows(rows)))}")
    if options.pages:
        write_pages()


if __name__ == "__main__":
    main()
