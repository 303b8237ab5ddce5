# SPDX-License-Identifier: Apache-2.0
"""How the cost of `fastds downscale` grows: `python -m bench.scaling [--axes size threads members files] [--save]`.

size: two synthetic fields of so many pixels a side. threads: of 1024 pixels. members: of 256 pixels. files: a folder of
files of one field of 64 pixels into a Zarr archive. Each run is a process of its own, start and writing included. The
unit is a pixel, for members one of a member, for files a file; "beyond" is what a unit takes beyond the start, which is
the run of two fields of 64 pixels. --save puts the rows and a picture into bench/results. Other options are passed on.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from bench.archive_scaling import write_files
from bench.conftest import cpu_name
from bench.memory import resident
from bench.report import RESULTS, growth_table
from fastds.data import save_dataset, synthetic_event

AXES = {"size": (512, 1024, 2048, 4000), "threads": (1, 2), "members": (2, 4, 8), "files": (1, 10, 100, 1000)}
SIDES = {"threads": 1024, "members": 256, "files": 64}  # pixels, other than by size
START = 64
PACKED = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 0.0, "_FillValue": np.int16(-32768)}
COLUMNS = ("axis", "value", "s", "us a unit beyond the start", "peak MB", "bytes a unit")


def write_fields(path: pathlib.Path, size: int) -> None:
    """Two fields of size x size pixels ten minutes apart; above 512 pixels mirrored copies of one event."""
    event = synthetic_event(3, 3, (min(size, 512),) * 2).isel(time=[0, 2])
    pad = (0, size - event.sizes["y"])
    z = np.pad(event.reflectivity.values, ((0, 0), pad, pad), mode="symmetric")
    axes = {dim: 2000.0 * np.arange(size) for dim in ("y", "x")}
    large = event.drop_dims(("y", "x")).assign_coords({d: (d, v, event[d].attrs) for d, v in axes.items()})
    large["reflectivity"] = (event.reflectivity.dims, z, event.reflectivity.attrs, PACKED)
    save_dataset(large, path)


def downscale(source: pathlib.Path, target: pathlib.Path, options: list[str]) -> tuple[float, float]:
    """Seconds and peak resident memory in MB. The system's own account of it counts what this process holds, too."""
    command = [sys.executable, "-m", "fastds.cli", "downscale", source, target, *options]
    peak, began = 0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        while run.poll() is None:
            peak = max(peak, resident("VmHWM", run.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        if run.returncode:
            said.seek(0)
            raise SystemExit(f"{said.read()}\nfastds downscale of {source} ended with {run.returncode}")
    return seconds, peak / 2**20


def measure(axis: str, value: int, folder: pathlib.Path, options: list[str]) -> tuple[float, float, int]:
    """Seconds, peak memory in MB and the number of units."""
    source, target = folder / f"{axis}{value}.nc", folder / f"{axis}{value}_fine.nc"
    if axis == "files":
        source, target = source.with_suffix(""), target.with_suffix(".zarr")
        write_files(source, value, SIDES["files"])
        return *downscale(source, target, options), value
    size = SIDES.get(axis, value)
    write_fields(source, size)
    own = [] if axis == "size" else [f"--{axis}", str(value)]
    return *downscale(source, target, [*own, *options]), 2 * size**2 * (value if axis == "members" else 1)


def save(device: str, rows: list[dict]) -> None:
    from matplotlib.figure import Figure

    from fastds.plot import save_png

    path = RESULTS / "scaling.json"
    path.write_text(json.dumps({"device": device, "rows": rows}, indent=0) + "\n")
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure = Figure(figsize=(3 * len(axes), 4.5), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in zip(panels.T, axes, strict=True):
        values = [row["value"] for row in rows if row["axis"] == axis]
        for panel, quantity in zip(column, ("us a unit beyond the start", "peak MB"), strict=True):
            found = [row[quantity] for row in rows if row["axis"] == axis]
            panel.plot(values, found, marker="o")
            panel.set(xscale="log", xlabel=axis, ylim=(0, 1.1 * max(found)))
            panel.set_xticks(values, values)
            panel.set_xticks([], minor=True)
            panel.set_title(quantity, fontsize="medium")
    save_png(figure, path.with_suffix(".png"), dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--save", action="store_true")
    arguments, options = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        start = min(measure("size", START, folder, options)[0] for _ in range(3))
        for axis in arguments.axes:
            for value in AXES[axis]:
                seconds, peak, units = measure(axis, value, folder, options)
                beyond, memory = 1e6 * (seconds - start) / units, peak * 2**20 / units
                rows.append(dict(zip(COLUMNS, (axis, value, seconds, beyond, peak, memory), strict=True)))
                print(f"{axis} {value}: {seconds:.1f} s, {beyond:.3g} us a unit, {peak:.0f} MB", flush=True)
    print(f"\n{cpu_name()}, start {start:.1f} s\n\n{growth_table(rows)}")
    if arguments.save:
        save(cpu_name(), rows)


if __name__ == "__main__":
    main()
