# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of `fastds downscale` by the size of a field: `python -m bench.scaling [--sizes 512 1024 ...]`.

Each run is a process of its own on a packed file of two synthetic fields, start and writing included. Memory that does
not grow with the field (the start of Python, torch and the network) is the row of size 64.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from fastds.data import save_dataset, synthetic_event

SIZES = (64, 512, 1024, 2048, 4000)
PACKED = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 0.0, "_FillValue": np.int16(-32768)}


def write_fields(path: pathlib.Path, size: int) -> None:
    """Two fields of size x size pixels ten minutes apart; above 512 pixels mirrored copies of one event."""
    event = synthetic_event(3, 3, (min(size, 512),) * 2).isel(time=[0, 2])
    pad = (0, size - event.sizes["y"])
    z = np.pad(event.reflectivity.values, ((0, 0), pad, pad), mode="symmetric")
    axes = {dim: 1000.0 * np.arange(size) for dim in ("y", "x")}
    large = event.drop_dims(("y", "x")).assign_coords({d: (d, v, event[d].attrs) for d, v in axes.items()})
    large["reflectivity"] = (event.reflectivity.dims, z, event.reflectivity.attrs, PACKED)
    save_dataset(large, path)


def measure(size: int, folder: pathlib.Path, options: list[str]) -> tuple[float, float, int]:
    """Seconds, peak resident memory in MB and bytes of output."""
    source, target = folder / f"in{size}.nc", folder / f"out{size}.nc"
    write_fields(source, size)
    began = time.perf_counter()
    run = subprocess.Popen([sys.executable, "-m", "fastds.cli", "downscale", source, target, *options])
    _, status, usage = os.wait4(run.pid, 0)
    if status:
        raise SystemExit(f"fastds downscale of {size} x {size} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024, target.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments, options = parser.parse_known_args()
    print("| pixels | s | peak MB | us a pixel | bytes a pixel | output MB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            seconds, peak, output = measure(size, pathlib.Path(folder), options)
            pixels = 2 * size**2
            print(
                f"| 2 x {size}² | {seconds:.1f} | {peak:.0f} | {1e6 * seconds / pixels:.2f} | "
                f"{peak * 2**20 / pixels:.0f} | {output / 2**20:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
