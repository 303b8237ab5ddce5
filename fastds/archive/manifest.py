# SPDX-License-Identifier: Apache-2.0
"""Which pieces of an archive are done: a text file beside it, a line of JSON for each, so that nothing is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from fastds.archive.request import Request, stamp_of
from fastds.inference.chunking import Chunk


class Wanted(NamedTuple):
    """What a request computes, and its files with size and time of change, as they are now."""

    told: dict
    files: dict[str, list[int]]

    @classmethod
    def by(cls, request: Request) -> Wanted:
        """What a request wants; looks at every file, which takes its time on a network."""
        return cls(request.told(), {os.path.abspath(file): stamp_of(file) for file in request.files})


class Manifest:
    """The manifest of a store, read where there is one.

    The first line says what is computed, of which files (with size and time of change); every other line is a piece
    that is done, or a new first line of a store that grew.

    Attributes: path; told, of the request, None without a manifest; files and their stamps; steps of a piece; length of
    the store along its job's dimension; done, the pieces.
    """

    def __init__(self, store: Path):
        self.path = store.with_name(store.name + ".manifest")
        self.told: dict | None = None
        self.files: dict[str, list[int]] = {}
        self.steps = self.length = 0
        self.done: set[Chunk] = set()
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return  # half a line, of a run that was killed
        if "told" in entry:
            self.told, self.files = entry["told"], entry["files"]
            self.steps, self.length = entry["steps"], entry["length"]
        else:
            self.done.add(Chunk(*(tuple(pair) for pair in entry["piece"])))

    def begin(self, wanted: Wanted, steps: int, length: int) -> None:
        """Say what is computed from here on, in pieces of so many steps, in a store of this length."""
        (self.told, self.files), self.steps, self.length = wanted, steps, length
        self._add({"told": self.told, "files": self.files, "steps": steps, "length": length})

    def add(self, piece: Chunk) -> None:
        """A piece is done and on disk."""
        self.done.add(piece)
        self._add({"piece": [piece.steps, piece.reads, piece.outputs]})

    def _add(self, entry: dict) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def is_of(self, wanted: Wanted) -> bool:
        """Whether it tells of the same computation of the same files."""
        return (self.told, self.files) == wanted

    def grows_to(self, wanted: Wanted) -> bool:
        """Whether the same is wanted of more files."""
        return self.told == wanted.told and self.files.items() <= wanted.files.items()

    def move(self, store: Path) -> None:
        """Take the name that belongs to a store that was renamed."""
        target = store.with_name(store.name + ".manifest")
        os.replace(self.path, target)
        self.path = target

    def remove(self) -> None:
        """Forget everything."""
        self.path.unlink(missing_ok=True)
        self.told, self.done = None, set()
