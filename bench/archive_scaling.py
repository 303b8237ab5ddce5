# SPDX-License-Identifier: Apache-2.0
"""How an archive scales: overhead of a piece with one and two workers, the rate of the scheduler, and from both what
N workers would take: `python -m bench.archive_scaling [--files 64]`."""

import argparse
import heapq
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from fastds.archive.manifest import Manifest
from fastds.archive.run import compute_archive
from fastds.archive.workers import Made, Packed, by_workers, cluster
from fastds.data import coarsen_dataset, save_dataset, synthetic_event
from fastds.tasks.common.pieces import Piece

EVENT = 48  # fields, of which a synthetic event is held at a time


def nothing(packed: Packed, store: Path, piece: Piece) -> Made:
    """A piece that costs nothing but its way through the scheduler; the workers get this function itself."""
    return Made(piece)


def scheduler_rate(workers: int, count: int = 2000) -> float:
    """Pieces a second that pass through the scheduler and this process."""
    from fastds.archive import workers as module

    kept, module._make = module._make, nothing
    try:
        with cluster(workers, None) as found:
            pieces = [Piece((k, k + 1), (k, k + 1), (k, k + 1)) for k in range(count)]
            list(by_workers(found, Packed(None), Path("."), pieces[:50]))
            began = time.perf_counter()
            list(by_workers(found, Packed(None), Path("."), pieces))
            return count / (time.perf_counter() - began)
    finally:
        module._make = kept


def write_files(folder: Path, count: int, size: int = 128) -> None:
    """One field of size x size pixels a file, of an event that comes again and again."""
    folder.mkdir()
    event = coarsen_dataset(synthetic_event(1, 2 * EVENT, (2 * size, 2 * size))[["reflectivity", "crs"]])
    length = EVENT * (event.time[1] - event.time[0])
    for k in range(count):
        field = event.isel(time=slice(k % EVENT, k % EVENT + 1))
        save_dataset(field.assign_coords(time=field.time + k // EVENT * length), folder / f"{k:04}.nc")


def measured(folder: Path, workers: int) -> tuple[int, float, float]:
    """Pieces of a real archive, seconds that one takes in its worker, and seconds of the whole run."""
    began = time.perf_counter()
    target = folder / f"{workers}.zarr"
    report = compute_archive("radar", folder / "in", target, model="fczsm-small", workers=workers, threads=1)
    wall = time.perf_counter() - began
    (said,) = (note for note in report.notes if " s a piece" in note)
    return len(Manifest(target).done), float(said.split()[0]), wall


def simulated(workers: int, seconds: np.ndarray, rate: float) -> float:
    """Seconds until pieces that take these seconds are done, handed out one after another at a rate to the first worker
    that is free."""
    free, ready = [0.0] * workers, 0.0
    for duration in seconds:
        ready = max(ready + 1 / rate, free[0])
        heapq.heapreplace(free, ready + duration)
    return max(free)


def main() -> None:
    """Print the measurements and the simulation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=64)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "in", options.files)
        walls = {}
        for workers in (1, 2):
            count, seconds, walls[workers] = measured(folder, workers)
            print(f"{workers} workers: {count} pieces, {seconds:.2f} s each, {walls[workers]:.1f} s in all", flush=True)
        print(f"2 workers are {walls[1] / walls[2]:.2f} times as fast as 1")
    rate = scheduler_rate(2)
    print(f"scheduler: {rate:.0f} pieces/s, {1e3 / rate:.1f} ms each")
    print(
        "| workers | "
        + " | ".join(f"pieces of {s} s: speed-up, efficiency" for s in (2, 10, 60))
        + " |\n|---|---|---|---|"
    )
    for workers in (1, 10, 100, 300, 1000):
        cells = []
        for mean in (2.0, 10.0, 60.0):
            pieces = mean * np.exp(0.2 * np.random.default_rng(1).standard_normal(20 * workers))
            speed = pieces.sum() / simulated(workers, pieces, rate)
            cells.append(f"{speed:.0f}, {100 * speed / workers:.0f} %")
        print(f"| {workers} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
