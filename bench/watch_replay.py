# SPDX-License-Identifier: Apache-2.0
"""Replay of a weather service for `fastds watch`: python -m bench.watch_replay --files 300.

Files of one synthetic radar field each arrive in a folder. Some, drawn by seed, are truncated at first, late, missing,
or arrive twice, and the process is killed (SIGKILL) and started again a few times. The script prints the events, the
latency from the arrival of a file to its result, and the memory of the process, and compares outputs with those of the
single command.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import xarray as xr

from fastds.cli import main as run_command
from fastds.data import save_dataset, synthetic_event

TRUNCATED, LATE, TWICE, MISSING = "truncated", "late", "twice", "missing"
SHARE = 0.04  # of the files for each fault
MEMORY_ROWS = 12


@dataclasses.dataclass
class Replay:
    """Folders and process of a replay."""

    folder: Path
    command: list[str]
    process: subprocess.Popen | None = None

    def __post_init__(self):
        self.incoming, self.out, self.log = (self.folder / name for name in ("in", "out", "log.jsonl"))
        self.incoming.mkdir()
        self.out.mkdir()

    def start(self, settle: float) -> None:
        """Start the process, and wait until it looks at the folder."""
        words = ["watch", str(self.incoming), str(self.out), "--settle", str(settle), "--log", str(self.log)]
        count = len(self.events("started"))
        self.process = subprocess.Popen([sys.executable, "-m", "fastds", *words, "--", *self.command])
        while len(self.events("started")) == count and self.process.poll() is None:
            time.sleep(0.1)

    def write(self, file: Path, share: float = 1.0) -> None:
        """Let a file arrive as by a slow upload: it is written in place."""
        contents = file.read_bytes()
        (self.incoming / file.name).write_bytes(contents[: int(share * len(contents))])

    def events(self, kind: str) -> list[dict]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def memory_mib(self) -> float:
        """Return the resident memory of the process."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def write_files(folder: Path, count: int, side: int, seed: int) -> list[Path]:
    """Write files of one field each, five minutes apart."""
    length, files = 50, []
    for first in range(0, count, length):
        event = synthetic_event(seed + first, length, (side, side))[["reflectivity", "crs"]]
        shifted = event.assign_coords(time=event.time + first * (event.time[1] - event.time[0]))
        for k in range(min(length, count - first)):
            files.append(folder / f"r{first + k:05}.nc")
            save_dataset(shifted.isel(time=slice(k, k + 1)), files[-1])
    return files


def replay(run: Replay, files: list[Path], options: argparse.Namespace) -> list[tuple[int, float]]:
    """Let the files arrive, and return the memory by the number of files."""
    draw, memory, late, unfinished = random.Random(options.seed), [], [], []
    kills = {len(files) * (k + 1) // 20 for k in range(options.kills)}
    run.start(options.settle)
    for number, file in enumerate(files):
        for other in unfinished:
            run.write(other)
        for other in (one for one in late if draw.random() < 0.5):
            run.write(other)
            late.remove(other)
        unfinished = []
        fault = draw.choices((TRUNCATED, LATE, TWICE, MISSING, ""), [SHARE] * 4 + [1 - 4 * SHARE])[0]
        if fault == TRUNCATED:
            run.write(file, draw.uniform(0.1, 0.9))
            unfinished.append(file)
        elif fault == LATE:
            late.append(file)
        elif fault != MISSING:
            run.write(file)
        if fault == TWICE:
            shutil.copy(file, run.incoming / f"copy_{file.name}")
        time.sleep(options.interval)
        if number % max(1, len(files) // MEMORY_ROWS) == 0:
            memory.append((number, run.memory_mib()))
        if number in kills:
            time.sleep(draw.uniform(0, options.interval))
            run.process.kill()
            run.process.wait()
            run.start(options.settle)
    for file in unfinished:
        run.write(file)
    time.sleep(2 * options.settle + 10)
    memory.append((len(files), run.memory_mib()))
    run.process.send_signal(signal.SIGTERM)
    run.process.wait()
    return memory


def count_different(run: Replay, files: list[Path], sample: int) -> tuple[int, int]:
    """Compare a sample of the outputs with the single command; return the number of comparisons and of differences."""
    computed = [event for event in run.events("computed") if "inputs" in event]
    chosen = computed[:: max(1, len(computed) // sample)]
    different = 0
    for event in chosen:
        folder = run.folder / "single"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in event["inputs"]:
            shutil.copy(run.incoming / name, folder)
        name, *options = run.command
        with contextlib.redirect_stdout(io.StringIO()):
            run_command([name, str(folder), str(run.folder / "single.nc"), *options])
        outputs = run.out / event["output"], run.folder / "single.nc"
        one, other = (xr.load_dataset(path, engine="h5netcdf") for path in outputs)
        different += not one.identical(other.assign_attrs(one.attrs))
    return len(chosen), different


def print_results(run: Replay, files: list[Path], memory: list[tuple[int, float]], sample: int) -> None:
    """Print events, latency, memory and differences."""
    lines = run.log.read_text().splitlines()
    counts = collections.Counter(json.loads(line)["event"] for line in lines)
    print("events: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    computed = [event for event in run.events("computed") if "latency" in event]
    names = collections.Counter(event["output"] for event in run.events("computed"))
    latency, seconds = (sorted(event[key] for event in computed) for key in ("latency", "seconds"))
    for name, values in (("latency", latency), ("computation", seconds)):
        print(f"{name} in s: median {statistics.median(values):.3f}, worst {values[-1]:.3f}")
    print(f"outputs: {len(names)} of {len(files)} files, computed more than once: {sum(n > 1 for n in names.values())}")
    left = [name for name in os.listdir(run.out) if name not in names and name != "fastds-watch.json"]
    print(f"other files in the output folder: {', '.join(left) or 'none'}")
    print("files  resident memory in MiB")
    for number, size in memory:
        print(f"{number:5}  {size:.1f}")
    print("compared with the single command: {}, different: {}".format(*count_different(run, files, sample)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300, help="number of files (default: 300)")
    parser.add_argument("--size", type=int, default=64, help="side of a field in pixels (default: 64)")
    parser.add_argument("--interval", type=float, default=0.6, help="seconds between two files (default: 0.6)")
    parser.add_argument("--settle", type=float, default=0.2, help="option --settle of fastds watch (default: 0.2)")
    parser.add_argument("--kills", type=int, default=2, help="number of kills in the first part (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--sample", type=int, default=10, help="number of outputs to compare (default: 10)")
    parser.add_argument(
        "--command",
        default="nowcast --model persistence --steps 1",
        help="command that fastds watch runs (default: nowcast --model persistence --steps 1)",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        files = write_files(folder / "files", options.files, options.size, options.seed)
        run = Replay(folder, options.command.split())
        try:
            memory = replay(run, files, options)
        finally:
            if run.process is not None and run.process.poll() is None:
                run.process.kill()
        print_results(run, files, memory, options.sample)


if __name__ == "__main__":
    main()
