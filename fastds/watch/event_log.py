# SPDX-License-Identifier: Apache-2.0
"""Log of events, one JSON object a line, and their counts."""

from __future__ import annotations

import collections
import contextlib
import datetime
import json
import sys
from pathlib import Path
from typing import Any, TextIO

EVENTS = (
    "started", "computed", "skipped", "refused", "late", "duplicate", "gap", "postponed", "deadline_missed", "removed",
    "reloaded", "stopped",
)  # fmt: skip


class EventLog:
    """Log of events.

    Args:
        path: File to which lines are appended; None: standard error.

    Attributes:
        counts: Number of events by kind.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path | None):
        self.path, self.counts = path, collections.Counter[str]()
        self._file: TextIO | None = None
        self.reopen()

    def reopen(self) -> None:
        """Open the file again, so that a rotated file can be compressed or removed."""
        if self.path is not None:
            file = self.path.open("a", encoding="utf-8")
            self.close()
            self._file = file

    def write(self, event: str, **fields: Any) -> None:
        """Write one event. A full disk loses the line and does not end the process.

        Args:
            event: One of EVENTS.
            fields: Further values that JSON can store; None is left out.
        """
        assert event in EVENTS, event
        self.counts[event] += 1
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": now, "event": event} | {name: value for name, value in fields.items() if value is not None}
        file = sys.stderr if self._file is None else self._file
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
