# SPDX-License-Identifier: Apache-2.0
"""Record of the finished chunks of an archive: a text file next to the store, to which lines of JSON are appended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from fastds.archive.request import Request, get_file_stamp
from fastds.data.io.files import is_zarr_path
from fastds.inference.chunking import Chunk


class ManifestKey(NamedTuple):
    """Identification of a computation.

    Attributes:
        fingerprint: What is computed, see `Request.compute_fingerprint`.
        files: Absolute path -> size and modification time of each input file.
    """

    fingerprint: dict
    files: dict[str, list[int]]

    @classmethod
    def from_request(cls, request: Request) -> ManifestKey:
        """Make the key of a request. This reads the status of every file, which may be slow on network file systems."""
        return cls(
            request.compute_fingerprint(), {os.path.abspath(file): get_file_stamp(file) for file in request.files}
        )


class Manifest:
    """Manifest of a store; read from its file if that exists.

    The first line contains fingerprint, files, steps and length. Every other line is a finished chunk, or a new first
    line of a store that was extended.

    Args:
        store: Store.

    Attributes:
        path: File of the manifest.
        fingerprint: Fingerprint of the request; None without a manifest.
        files: Absolute path -> size and modification time.
        steps: Number of steps of a chunk.
        length: Length of the store along the dimension of the chunks.
        done: Finished chunks.
    """

    def __init__(self, store: Path):
        self.path = store.with_name(store.name + ".manifest")
        self.fingerprint: dict | None = None
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
            return  # incomplete line of a killed run
        if "told" in entry:
            self.fingerprint, self.files = entry["told"], entry["files"]
            self.steps, self.length = entry["steps"], entry["length"]
        else:
            self.done.add(Chunk(*(tuple(pair) for pair in entry["piece"])))

    def begin(self, key: ManifestKey, steps: int, length: int) -> None:
        """Write a first line.

        Args:
            key: What is computed from which files.
            steps: Number of steps of a chunk.
            length: Length of the store.
        """
        (self.fingerprint, self.files), self.steps, self.length = key, steps, length
        self._add({"told": self.fingerprint, "files": self.files, "steps": steps, "length": length})

    def add(self, chunk: Chunk) -> None:
        """Record a chunk that is completely on disk."""
        self.done.add(chunk)
        self._add({"piece": [chunk.steps, chunk.reads, chunk.outputs]})

    def _add(self, entry: dict) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def matches(self, key: ManifestKey) -> bool:
        """Return True if the manifest belongs to the same computation of the same files."""
        return (self.fingerprint, self.files) == key

    def can_grow_to(self, key: ManifestKey) -> bool:
        """Return True if the key is the same computation of the same files and possibly more.

        Zarr stores among the files may have changed, because they grow.
        """
        same = all(key.files.get(file) == stamp for file, stamp in self.files.items() if not is_zarr_path(file))
        return self.fingerprint == key.fingerprint and same and self.files.keys() <= key.files.keys()

    def find_changed_stores(self, key: ManifestKey) -> list[str]:
        """Return the Zarr stores among the files that have changed."""
        return [file for file, stamp in self.files.items() if is_zarr_path(file) and key.files.get(file) != stamp]

    def move(self, store: Path) -> None:
        """Rename the manifest to the name that belongs to a renamed store."""
        target = store.with_name(store.name + ".manifest")
        os.replace(self.path, target)
        self.path = target

    def remove(self) -> None:
        """Delete the file and reset the manifest."""
        self.path.unlink(missing_ok=True)
        self.fingerprint, self.done = None, set()
