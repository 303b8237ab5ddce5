# SPDX-License-Identifier: Apache-2.0
"""What tables of scores share: CSV files, rich tables, numbers as text."""

from __future__ import annotations

import abc
import csv
import os
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from fastds._outputs import replacing
from fastds.tasks.common.progress import progress_bar

if TYPE_CHECKING:
    from rich.table import Table


def write_csv(path: str | os.PathLike, header: list[str], lines: Iterable[list[str]]) -> None:
    """Write a CSV file by a temporary name."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)


class ScoreTables(abc.ABC):
    """Scores that are shown as tables, in a terminal or as a page."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """The heading of a page of the tables."""

    @abc.abstractmethod
    def tables(self) -> list[Table]:
        """The tables as they are printed."""

    @abc.abstractmethod
    def sentences(self) -> list[str]:
        """What stands below the tables."""

    def print(self, console=None) -> None:
        """Print the tables with rich on a console (default: standard output)."""
        from rich.console import Console

        console = console or Console()
        for table in self.tables():
            console.print(table)
        for sentence in self.sentences():
            console.print(sentence, style="dim", markup=False)

    def to_html(self, path: str | os.PathLike) -> None:
        """Write a page of the tables, by a temporary name; with maps and curves: evaluate's argument report."""
        from fastds.report import Page

        Page(self.title, tables=self.tables(), notes=self.sentences()).write(path)


def number_text(value: float) -> str:
    """Three decimals, "-" where a score is not defined."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def score_table(title: str, heads: tuple[str, ...]) -> Table:
    """An empty table of numbers by method."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    return table


def counted(number: int, what: str) -> str:
    """ "1 start", "2 starts"."""
    return f"{number} {what}{'s' * (number != 1)}"


def tracked(items: Collection, progress: bool, unit: str = "starts", doing: str = "evaluating") -> Iterator:
    """The items, with a progress bar where it is wanted."""
    with progress_bar(progress, len(items), doing, unit) as advance:
        for item in items:
            yield item
            if advance is not None:
                advance()
