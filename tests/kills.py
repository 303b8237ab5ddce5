# SPDX-License-Identifier: Apache-2.0
"""Kills commands at random moments by SIGKILL and restarts them: `python -m tests.kills`.

After a kill, the output must be absent or complete; after the restart, it must equal that of an uninterrupted run.
Commands that can be resumed are killed several times. Rounds are drawn by seed; each is a line of the log.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import xarray as xr

from fastds.data import save_dataset, synthetic_event
from tests.support.training_runs import OPTIONS, arguments, make_files

TRAININGS = {f"train {task}": task for task in OPTIONS}
ARCHIVES = {
    "archive downscale": ("downscale", "--model", "fczsm-small"),
    "archive nowcast": ("nowcast", "--every", "20min", "--steps", "3"),
}
COMMANDS = ("downscale", "nowcast", *ARCHIVES, *TRAININGS)
WHOLE = ("downscale", "nowcast")  # whose output appears at once
SEVERAL_KILLS = 3  # of the others
FILES_OF_ARCHIVE = 208


def write_archive(folder: Path) -> Path:
    """Write a folder of files with one field each, from a repeated synthetic event."""
    if folder.exists():
        return folder
    folder.mkdir()
    event = synthetic_event(1, 26, (96, 96), spacing_m=2000.0)[["reflectivity", "crs"]]
    length = 26 * (event.time[1] - event.time[0])
    for k in range(FILES_OF_ARCHIVE):
        field = event.isel(time=slice(k % 26, k % 26 + 1))
        save_dataset(field.assign_coords(time=field.time + k // 26 * length), folder / f"{k:04}.nc")
    return folder


def command(name: str, files: Path, folder: Path, workers: int = 2) -> list[str]:
    if name in ARCHIVES:
        verb, *options = ARCHIVES[name]
        archive = write_archive(files / "archive")
        return [verb, str(archive), str(folder / "out.zarr"), *options, "--workers", str(workers)]
    if name == "downscale":
        return ["downscale", str(files / "radar.nc"), str(folder / "out.nc"), "--model", "fczsm-small"]
    if name == "nowcast":
        return ["nowcast", str(files / "radar.nc"), str(folder / "out.nc")]
    return ["train", *arguments(files, TRAININGS[name], folder / "run", max_steps=24)]


def outputs(folder: Path) -> dict[str, bytes]:
    """Return the results by name: variables of a file or store, or contents of weights files."""
    if (folder / "out.zarr").exists():
        with xr.open_zarr(folder / "out.zarr") as fields:
            return {str(name): variable.values.tobytes() for name, variable in fields.variables.items()}
    weights = {path.name: path.read_bytes() for path in (folder / "run").glob("*.safetensors")}
    if not (folder / "out.nc").exists():
        return weights
    with xr.open_dataset(folder / "out.nc", engine="h5netcdf") as fields:
        return {str(name): variable.values.tobytes() for name, variable in fields.variables.items()}


def start(words: list[str]) -> subprocess.Popen:
    main = "import sys; sys.argv[0] = 'fastds'; from fastds.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", main, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(words: list[str]) -> float:
    """Run to the end and return the seconds."""
    began = time.monotonic()
    process = start(words)
    stderr = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with status {process.returncode}: {stderr[-2000:]}")
    return time.monotonic() - began


def killed(words: list[str], after: float) -> str:
    """Kill a run after some seconds; return "killed", or "ended" if it was faster."""
    process = start(words)
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return "killed" if process.returncode == -signal.SIGKILL else "ended"


def round_of(name: str, files: Path, whole: dict[str, bytes], seconds: float, seed: str) -> dict:
    """Kill a command at random moments, restart it, and return the findings."""
    draw, faults, ends = random.Random(seed), [], []
    with tempfile.TemporaryDirectory() as folder:
        words = command(name, files, Path(folder))
        for _ in range(1 if name in WHOLE else SEVERAL_KILLS):
            latest = 1.0 if name in WHOLE else 0.5  # what goes on has less left to do
            ends.append(killed(words, draw.uniform(0.2, latest) * seconds))
            if name in WHOLE and outputs(Path(folder)) not in ({}, whole):
                faults.append("the output is there and not whole")
        finished(words)
        if outputs(Path(folder)) != whole:
            faults.append("the result is not that of a run nobody killed")
    return {"command": name, "seed": seed, "ends": ends, "faults": faults}


def campaign(names, rounds: int, seed: int, log: Path) -> list[dict]:
    """Run rounds of every command; an existing log is continued."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {row["seed"] for row in done}
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder))
        for name in names:
            missing = [mark for i in range(rounds) if (mark := f"{name} {seed} {i}") not in known]
            if not missing:
                continue
            whole_run = Path(folder) / name.replace(" ", "-")
            whole_run.mkdir()
            words = command(name, files, whole_run, workers=1)
            seconds = finished(words)
            whole = outputs(whole_run)
            for mark in missing:
                done.append(round_of(name, files, whole, seconds, mark))
                with log.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    return done


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="of every command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--log", type=Path, default=Path("build/kills.jsonl"))
    args = parser.parse_args()
    args.log.parent.mkdir(exist_ok=True)
    done = campaign(args.commands, args.rounds, args.seed, args.log)
    for name in COMMANDS:
        rows = [row for row in done if row["command"] == name]
        kills = sum(end == "killed" for row in rows for end in row["ends"])
        faults = [(row["seed"], fault) for row in rows for fault in row["faults"]]
        print(f"{name:14} {len(rows):4} rounds {kills:4} kills  faults: {faults or 'none'}")
    return int(any(row["faults"] for row in done))


if __name__ == "__main__":
    sys.exit(main())
