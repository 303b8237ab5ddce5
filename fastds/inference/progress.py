# SPDX-License-Identifier: Apache-2.0
"""Progress of long computations: a progress bar in a terminal, else a line every LINE_EVERY seconds."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Seconds between two lines if the output is not a terminal.
LINE_EVERY = 30.0


@contextlib.contextmanager
def progress_bar(enabled: bool, total: int, doing: str, unit: str) -> Iterator[Callable[[], None] | None]:
    """Show the progress of a computation: "doing 3/7 unit", the elapsed and the remaining time.

    Args:
        enabled: whether to show the progress.
        total: number of units.
        doing: label, such as "evaluating".
        unit: name of a unit in the plural.

    Yields:
        A function that advances the progress by one unit, or None if `enabled` is False. If standard output is not a
        terminal, it prints a line on standard error at most every LINE_EVERY seconds.
    """
    if not enabled:
        yield None
        return
    console = _make_terminal()
    if console is None:
        yield _ProgressLines(total, doing, unit)
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


def _make_terminal() -> Console | None:
    """Return a console if standard output is a terminal, else None.

    The import of rich takes a while, so that it is imported only if it may find a terminal: it also takes an output for
    one if a variable of the environment says so.
    """
    declared = "FORCE_COLOR" in os.environ or "TTY_COMPATIBLE" in os.environ
    if not declared and (sys.stdout is None or not sys.stdout.isatty()):
        return None
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else None


class _ProgressLines:
    """Function object that is called after each unit of work and prints a line at most every LINE_EVERY seconds."""

    def __init__(self, total: int, doing: str, unit: str):
        self.total, self.doing, self.unit, self.done = total, doing, unit, 0
        self.began = self.printed = time.monotonic()

    def __call__(self) -> None:
        self.done, now = self.done + 1, time.monotonic()
        if now - self.printed < LINE_EVERY or self.done >= self.total:
            return
        self.printed, taken = now, now - self.began
        left = taken / self.done * (self.total - self.done)
        print(
            f"{self.doing}: {self.done} of {self.total} {self.unit} in {format_duration(taken)}, about "
            f"{format_duration(left)} left",
            file=sys.stderr,
            flush=True,
        )


def format_duration(seconds: float) -> str:
    """Format a duration as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
