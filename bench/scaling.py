# SPDX-License-Identifier: Apache-2.0
"""Cost of `fastds downscale` by size: `python -m bench.scaling [--axes size threads members files] [--save]`.

Axes: size varies the pixels per side of two synthetic fields; threads and members vary these options, for fields of
1024 and 256 pixels per side; files varies the number of files of one field of 64 pixels per side that become a Zarr
archive.

Each run is a separate process; its time includes the start and the writing of the output. The time per unit is (time of
the run - time of a run on two fields of 64 pixels per side) / units. A unit is an input pixel, for members a pixel of
one member, for files a file.
--save writes bench/results/scaling.csv. Other options are passed to `fastds downscale`.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from bench.archive_scaling import write_files
from bench.machine import describe_cpu_run
from bench.memory import read_resident_bytes
from bench.report import format_scaling
from bench.result_files import SCALING_NUMBERS, save_scaling
from fastds.data import save_dataset, synthetic_event

AXES = {"size": (512, 1024, 2048, 4000), "threads": (1, 2), "members": (2, 4, 8), "files": (1, 10, 100, 1000)}
SIDES = {"threads": 1024, "members": 256, "files": 64}  # pixels per side
START_SIDE = 64  # of the run whose time is subtracted
PACKED = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 0.0, "_FillValue": np.int16(-32768)}


def write_fields(path: pathlib.Path, size: int) -> None:
    """Write two fields of size x size pixels and a time step of 10 min, padded by reflection above 512 pixels."""
    event = synthetic_event(3, 3, (min(size, 512),) * 2).isel(time=[0, 2])
    pad = (0, size - event.sizes["y"])
    z = np.pad(event.reflectivity.values, ((0, 0), pad, pad), mode="symmetric")
    axes = {dim: 2000.0 * np.arange(size) for dim in ("y", "x")}
    large = event.drop_dims(("y", "x")).assign_coords({d: (d, v, event[d].attrs) for d, v in axes.items()})
    large["reflectivity"] = (event.reflectivity.dims, z, event.reflectivity.attrs, PACKED)
    save_dataset(large, path)


def downscale(source: pathlib.Path, target: pathlib.Path, options: list[str]) -> tuple[float, float]:
    """Run `fastds downscale` in a process.

    Args:
        source: input file or folder.
        target: output file or Zarr store.
        options: further options of the command.

    Returns:
        Seconds and peak resident memory in MiB. The memory is polled, because getrusage() of a child process includes
        the memory of this process at the fork.

    Raises:
        SystemExit: if the command fails, with its messages.
    """
    command = [sys.executable, "-m", "fastds", "downscale", source, target, *options]
    peak, began = 0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as messages:
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=messages)
        while run.poll() is None:
            peak = max(peak, read_resident_bytes("VmHWM", run.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        if run.returncode:
            messages.seek(0)
            raise SystemExit(f"{messages.read()}\nfastds downscale of {source} ended with {run.returncode}")
    return seconds, peak / 2**20


def measure(axis: str, value: int, folder: pathlib.Path, options: list[str]) -> tuple[float, float, int]:
    """Run one value of an axis.

    Args:
        axis: key of AXES.
        value: one of its values.
        folder: folder of the files.
        options: further options of `fastds downscale`.

    Returns:
        Seconds, peak memory in MiB and the number of units.
    """
    source, target = folder / f"{axis}{value}.nc", folder / f"{axis}{value}_fine.nc"
    if axis == "files":
        source, target = source.with_suffix(""), target.with_suffix(".zarr")
        write_files(source, value, SIDES["files"])
        return *downscale(source, target, options), value
    size = SIDES.get(axis, value)
    write_fields(source, size)
    option = [] if axis == "size" else [f"--{axis}", str(value)]
    return *downscale(source, target, [*option, *options]), 2 * size**2 * (value if axis == "members" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--save", action="store_true")
    arguments, options = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        start = min(measure("size", START_SIDE, folder, options)[0] for _ in range(3))
        for axis in arguments.axes:
            for value in AXES[axis]:
                seconds, peak, units = measure(axis, value, folder, options)
                us_per_unit, bytes_per_unit = 1e6 * (seconds - start) / units, peak * 2**20 / units
                numbers = dict(zip(SCALING_NUMBERS, (seconds, us_per_unit, peak, bytes_per_unit), strict=True))
                rows.append({"axis": axis, "value": value} | numbers)
                print(f"{axis} {value}: {seconds:.1f} s, {us_per_unit:.3g} us per unit, {peak:.0f} MiB", flush=True)
    run = describe_cpu_run()
    print(f"\n{run['device']}, start {start:.1f} s\n\n{format_scaling(rows)}")
    if arguments.save:
        save_scaling(run, rows)


if __name__ == "__main__":
    main()
