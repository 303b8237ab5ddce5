# SPDX-License-Identifier: Apache-2.0
"""Scaling of archives with the number of workers: `python -m bench.archive_scaling [--files 64]`.

Measures an archive with one and two workers and the throughput of the scheduler, and simulates larger numbers of
workers.
"""

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
from fastds.inference.chunking import Chunk

EVENT_FRAMES = 48  # length of the synthetic event that the files repeat


def compute_nothing(packed: Packed, store: Path, piece: Chunk) -> Made:
    """Return an empty result, so that the scheduler is the only cost. Workers receive this function by pickle."""
    return Made(piece)


def measure_scheduler_rate(workers: int, count: int = 2000) -> float:
    """Return the chunks per second that the scheduler and this process can handle."""
    from fastds.archive import workers as module

    original, module._make = module._make, compute_nothing
    try:
        with cluster(workers, None) as found:
            pieces = [Chunk((k, k + 1), (k, k + 1), (k, k + 1)) for k in range(count)]
            list(by_workers(found, Packed(None), Path("."), pieces[:50]))
            began = time.perf_counter()
            list(by_workers(found, Packed(None), Path("."), pieces))
            return count / (time.perf_counter() - began)
    finally:
        module._make = original


def write_files(folder: Path, count: int, size: int = 128) -> None:
    """Write files of one field of size x size pixels each. The fields repeat a synthetic event."""
    folder.mkdir()
    event = coarsen_dataset(synthetic_event(1, 2 * EVENT_FRAMES, (2 * size, 2 * size))[["reflectivity", "crs"]])
    length = EVENT_FRAMES * (event.time[1] - event.time[0])
    for k in range(count):
        field = event.isel(time=slice(k % EVENT_FRAMES, k % EVENT_FRAMES + 1))
        save_dataset(field.assign_coords(time=field.time + k // EVENT_FRAMES * length), folder / f"{k:04}.nc")


def measure_archive(folder: Path, workers: int) -> tuple[int, float, float]:
    """Downscale the files in FOLDER/in.

    Args:
        folder: folder of the input, where the output is written too.
        workers: number of worker processes.

    Returns:
        Number of chunks, seconds per chunk in a worker, and seconds of the run.
    """
    began = time.perf_counter()
    target = folder / f"{workers}.zarr"
    report = compute_archive("radar", folder / "in", target, model="fczsm-small", workers=workers, threads=1)
    wall = time.perf_counter() - began
    (message,) = (note for note in report.notes if " s a piece" in note)
    return len(Manifest(target).done), float(message.split()[0]), wall


def simulate(workers: int, seconds: np.ndarray, rate: float) -> float:
    """Simulate a run in which each chunk goes to the first free worker.

    Args:
        workers: number of workers.
        seconds: seconds of each chunk in a worker.
        rate: chunks per second that the scheduler hands out.

    Returns:
        Seconds of the run.
    """
    free, ready = [0.0] * workers, 0.0
    for duration in seconds:
        ready = max(ready + 1 / rate, free[0])
        heapq.heapreplace(free, ready + duration)
    return max(free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=64)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "in", options.files)
        walls = {}
        for workers in (1, 2):
            count, seconds, walls[workers] = measure_archive(folder, workers)
            print(
                f"{workers} workers: {count} chunks, {seconds:.2f} s each, {walls[workers]:.1f} s in total", flush=True
            )
        print(f"2 workers are {walls[1] / walls[2]:.2f} times as fast as 1")
    rate = measure_scheduler_rate(2)
    print(f"scheduler: {rate:.0f} chunks/s, {1e3 / rate:.1f} ms each")
    print(
        "| workers | "
        + " | ".join(f"chunks of {s} s: speed-up, efficiency" for s in (2, 10, 60))
        + " |\n|---|---|---|---|"
    )
    for workers in (1, 10, 100, 300, 1000):
        cells = []
        for mean in (2.0, 10.0, 60.0):
            chunks = mean * np.exp(0.2 * np.random.default_rng(1).standard_normal(20 * workers))
            speed = chunks.sum() / simulate(workers, chunks, rate)
            cells.append(f"{speed:.0f}, {100 * speed / workers:.0f} %")
        print(f"| {workers} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
