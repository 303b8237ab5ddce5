# SPDX-License-Identifier: Apache-2.0
"""How far long work is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

# Seconds from line to line where there is no terminal.
LINE_EVERY = 30.0


@contextlib.contextmanager
def progress_bar(wanted: bool, total: int, doing: str, unit: str) -> Iterator[Callable[[], None] | None]:
    """Show "doing 3/7 unit", the time taken and the time left; yields a function that advances by one, or None where it
    is not wanted. Without a terminal it prints lines on standard error, one every LINE_EVERY seconds."""
    if not wanted:
        yield None
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        yield _Lines(total, doing, unit)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), transient=True, console=console) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


class _Lines:
    """Called after each unit of work; says how far it is when the last line is old enough."""

    def __init__(self, total: int, doing: str, unit: str):
        self.total, self.doing, self.unit, self.done = total, doing, unit, 0
        self.began = self.said = time.monotonic()

    def __call__(self) -> None:
        self.done, now = self.done + 1, time.monotonic()
        if now - self.said < LINE_EVERY or self.done >= self.total:
            return
        self.said, taken = now, now - self.began
        left = taken / self.done * (self.total - self.done)
        print(
            f"{self.doing}: {self.done} of {self.total} {self.unit} in {clock(taken)}, about {clock(left)} left",
            file=sys.stderr,
            flush=True,
        )


def clock(seconds: float) -> str:
    """As 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
