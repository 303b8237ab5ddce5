# SPDX-License-Identifier: Apache-2.0
"""Heartbeat file, from whose modification time a supervisor sees that the process works."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from types import TracebackType

_INTERVAL_S = 5.0


class Heartbeat:
    """Context manager: a thread touches a file every 5 s as long as the main thread reports progress.

    A computation of one output reports no progress while it runs, so that the limit must be longer than that.

    Args:
        path: File to touch; None: no file.
        limit: Seconds without progress after which the process counts as hung, and the file is no longer touched.

    Raises:
        OSError: The file cannot be created.
    """

    def __init__(self, path: Path | None, limit: float):
        self.path, self.limit = path, limit
        self._progress, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        if self.path is not None:
            self.path.touch()
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def report_progress(self) -> None:
        """Record that the main thread is not hung."""
        self._progress = time.monotonic()

    def _run(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            if self.path is not None and time.monotonic() - self._progress < self.limit:
                with contextlib.suppress(OSError):  # a full disk must not end the thread
                    self.path.touch()
