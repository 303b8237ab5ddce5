# SPDX-License-Identifier: Apache-2.0
"""Files that arrive in a folder, turns of `fastds watch`, and comparison with the single command."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import xarray as xr

from fastds.cli import main
from fastds.data import save_dataset, synthetic_event


def write_frames(folder: Path, count: int, side: int = 64) -> list[Path]:
    """Write files of one radar field each, five minutes apart."""
    event = synthetic_event(7, count, (side, side))[["reflectivity", "crs"]]
    files = [folder / f"r{k:03}.nc" for k in range(count)]
    for k, file in enumerate(files):
        save_dataset(event.isel(time=slice(k, k + 1)), file)
    return files


class Station:
    """Input folder and output folder of `fastds watch`.

    Args:
        folder: Folder for both.
        frames: Files that can arrive.
        command: Words after "--".
    """

    def __init__(self, folder: Path, frames: list[Path], command: str):
        self.frames, self.command, self.log = frames, command.split(), folder / "log.jsonl"
        self.incoming, self.out, self.folder = folder / "in", folder / "out", folder
        self.incoming.mkdir()
        self.out.mkdir()

    def arrive(self, *numbers: int, name: str | None = None, share: float = 1.0) -> None:
        """Let frames arrive, each by renaming, or the first share of a file that is being written."""
        for number in numbers:
            target = self.incoming / (name or self.frames[number].name)
            contents = self.frames[number].read_bytes()
            part = target.with_name(f".{target.name}")
            part.write_bytes(contents[: int(share * len(contents))])
            os.replace(part, target)

    def words(self, *options: str) -> list[str]:
        always = ["--once", "--settle", "0", "--log", str(self.log)]
        return ["watch", str(self.incoming), str(self.out), *always, *options, "--", *self.command]

    def turn(self, *options: str) -> tuple[int, list[dict]]:
        """Run the command once in this process, and return its exit status and the events that it logged."""
        before = len(self.events())
        return main(self.words(*options)), self.events()[before:]

    def events(self, kind: str | None = None) -> list[dict]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [event for event in map(json.loads, lines) if kind in (None, event["event"])]

    def outputs(self) -> list[str]:
        """Return the names in the output folder, but that of the state, and check that no other file is there."""
        names = sorted(os.listdir(self.out))
        assert not [name for name in names if name.startswith(".")], names
        return [name for name in names if name != "fastds-watch.json"]

    def equals_single_command(self, output: str, inputs: list[str]) -> bool:
        """Return whether an output has the variables that the single command writes for the input files."""
        folder = self.folder / f"inputs of {output}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in inputs:
            shutil.copy(self.incoming / name, folder)
        command, *options = self.command
        assert main([command, str(folder), str(self.folder / "single.nc"), *options]) == 0
        return has_equal_variables(self.out / output, self.folder / "single.nc")


def has_equal_variables(one: Path, other: Path) -> bool:
    """Return whether two files have the same variables, stored alike, bit for bit."""
    with xr.open_dataset(one, decode_cf=False) as a, xr.open_dataset(other, decode_cf=False) as b:
        assert set(a.variables) == set(b.variables) and a.sizes == b.sizes
        pairs = [(a[name].values, b[name].values) for name in a.variables]
        return all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def kinds(events: list[dict]) -> list[str]:
    """Return the kinds of events but those of start and end."""
    return [event["event"] for event in events if event["event"] not in ("started", "stopped")]
