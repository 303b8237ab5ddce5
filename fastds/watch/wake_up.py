# SPDX-License-Identifier: Apache-2.0
"""Waiting for new files, for signals, or for the next turn of polling."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from fastds._outputs import set_signal_handlers

POLL_S = 5.0  # without notifications of the operating system
RESCAN_S = 10.0  # with notifications, which network file systems do not send for files of other machines


class WakeUp:
    """Context manager that receives signals and notifications about files in a folder.

    The first SIGINT or SIGTERM asks for an end; the second acts as if there were no handler. SIGHUP asks for a reload.
    Outside the main thread there are no signals.

    Args:
        folder: Folder to observe.
        poll: Seconds between two looks at the folder, without notifications; None: notifications if the package
            watchdog is installed.

    Attributes:
        interval: Longest wait in seconds.
        method: "notifications" or "polling".
        stop: Number of the signal that asked for the end; 0: none.
        reload: Whether a reload was asked for.
    """

    def __init__(self, folder: Path, poll: float | None):
        self.folder, self.stop, self.reload = folder, 0, False
        notified = poll is None and importlib.util.find_spec("watchdog") is not None
        self.method = "notifications" if notified else "polling"
        self.interval = poll if poll is not None else RESCAN_S if notified else POLL_S
        # A pipe, because a lock that a signal handler takes could be held by the code that the signal interrupted.
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._handlers: dict[int, Any] = {}
        self._observer: Any = None

    def __enter__(self) -> WakeUp:
        self._handlers = set_signal_handlers(self._ask_for_end)
        if self._handlers:
            self._handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._ask_for_reload)
        if self.method == "notifications":
            try:
                self._observer = self._observe()
            except OSError:  # the limit of inotify is reached
                self.method, self.interval = "polling", POLL_S
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for end in (self._reader, self._writer):
            os.close(end)

    def _observe(self) -> Any:
        from watchdog.events import (
            DirCreatedEvent,
            FileClosedEvent,
            FileCreatedEvent,
            FileMovedEvent,
            FileSystemEvent,
            FileSystemEventHandler,
        )
        from watchdog.observers import Observer

        wake = self.wake

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                wake()

        kinds: list[type[FileSystemEvent]] = [DirCreatedEvent, FileClosedEvent, FileCreatedEvent, FileMovedEvent]
        observer = Observer()
        observer.schedule(Handler(), str(self.folder), event_filter=kinds)
        observer.start()
        return observer

    def wake(self) -> None:
        """End the current or the next wait. May be called from other threads and from signal handlers."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._writer, b"x")

    def wait(self, seconds: float) -> None:
        """Wait until something happens, at most some seconds."""
        select.select([self._reader], [], [], max(0.0, seconds))
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass

    def _ask_for_end(self, number: int, frame: FrameType | None) -> None:
        if self.stop and callable(self._handlers.get(number)):
            self._handlers[number](number, frame)
        self.stop = number
        self.wake()

    def _ask_for_reload(self, number: int, frame: FrameType | None) -> None:
        self.reload = True
        self.wake()
