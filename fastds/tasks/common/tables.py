# SPDX-License-Identifier: Apache-2.0
"""What tables of scores share: CSV files, rich tables, numbers as text."""

from __future__ import annotations

import abc
import csv
import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from fastds._outputs import replacing
from fastds.tasks.common.progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

# Heads of columns that say what a row is; a part of a table begins with those that the table begins with.
_LABELS = (
    "method", "score", "mm/h", "cells", "variable", "above", "block", "floor dBZ", "coarsened", "samples", "times",
)  # fmt: skip
_WIDEST = 10_000  # columns of a terminal; no table needs as many


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
        """Print the tables with rich on a console (default: standard output).

        Numbers are never cut: a table that is wider than a terminal is printed in several parts, and as it is where
        there is no terminal (files, pipes, logs)."""
        from rich.console import Console

        console = console or Console()
        for table in self.tables():
            print_table(table, console)
        for sentence in self.sentences():
            console.print(sentence, style="dim", markup=False)

    def to_html(self, path: str | os.PathLike) -> None:
        """Write a page of the tables, by a temporary name; with maps and curves: evaluate's argument report."""
        from fastds.report import Page

        Page(self.title, tables=self.tables(), notes=self.sentences()).write(path)


def print_table(table: Table, console: Console) -> None:
    """Print a table whole, or in parts of whole columns that each begin with its labels, where a terminal is narrow."""
    parts = [table]
    if console.is_terminal and _width(table, console) > console.width:
        parts = _parts(table, console)
    width = console.width
    try:
        for part in parts:
            console.width = max(width, _width(part, console))  # rich cuts what is wider than its console
            console.print(part, crop=False)
    finally:
        console.width = width


def _width(table: Table, console: Console) -> int:
    """The columns of a terminal that a table needs, without its title, which may be broken into lines."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum


def _parts(table: Table, console: Console) -> list[Table]:
    """The table in parts that fit a console where one column beside the labels does."""
    labels = list(itertools.takewhile(lambda column: column.header in _LABELS, table.columns))
    parts: list[list[Column]] = []
    for column in table.columns[len(labels) :]:
        if not parts or _width(_of_columns(table, [*labels, *parts[-1], column]), console) > console.width:
            parts.append([])
        parts[-1].append(column)
    return [_of_columns(table, labels + part, titled=number == 0) for number, part in enumerate(parts)] or [table]


def _of_columns(table: Table, columns: list[Column], titled: bool = True) -> Table:
    """A table of these columns of another."""
    part = score_table(str(table.title) if titled else None, tuple(str(column.header) for column in columns))
    rows = zip(*(column.cells for column in columns), strict=True)
    for cells, drawn in zip(rows, table.rows, strict=True):
        part.add_row(*cells, end_section=drawn.end_section)
    return part


def number_text(value: float) -> str:
    """Three decimals, "-" where a score is not defined."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def score_table(title: str | None, heads: tuple[str, ...]) -> Table:
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
