# SPDX-License-Identifier: Apache-2.0
"""Tables of scores: CSV files, rich tables, number formats."""

from __future__ import annotations

import abc
import csv
import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from fastds._html import format_heading, format_note, format_rich_table
from fastds._options import spell_argument
from fastds._outputs import atomic_write
from fastds.inference.progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

# Headings of the columns that identify a row. Each part of a split table repeats these columns.
_LABELS = (
    "method", "score", "mm/h", "cells", "variable", "above", "block", "floor dBZ", "coarsened", "samples", "times",
)  # fmt: skip
_MAX_WIDTH = 10_000  # terminal width in columns; larger than any table


def write_csv(path: str | os.PathLike, header: list[str], lines: Iterable[list[str]]) -> None:
    """Write a CSV file atomically.

    Args:
        path: path of the file, which is overwritten.
        header: names of the columns.
        lines: rows of the table.
    """
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)


class ScoreTables(abc.ABC):
    """Scores that can be printed as tables or written as an HTML page."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """Heading of the HTML page."""

    @abc.abstractmethod
    def tables(self) -> list[Table]:
        """Return all tables."""

    def main_tables(self) -> list[Table]:
        """Return the tables that are printed by default."""
        return self.tables()

    @abc.abstractmethod
    def list_notes(self) -> list[str]:
        """Return the notes below the tables, one sentence each."""

    def __repr__(self) -> str:
        heads = ", ".join(str(table.title) for table in self.main_tables() if table.title)
        return f"<{type(self).__name__} {self.title}: {heads}>"

    def _repr_html_(self) -> str:
        """Return the main tables and the notes for a notebook."""
        shown, notes = self.main_tables(), self.list_notes()
        if len(shown) < len(self.tables()):
            notes = [*notes, "print(all_scores=True) shows all scores."]
        return "".join([format_heading(self.title), *map(format_rich_table, shown), *map(format_note, notes)])

    def print(self, console=None, *, all_scores: bool = False) -> None:
        """Print the tables with rich.

        Numbers are never truncated: a table that is wider than the terminal is split by columns. If the output is not a
        terminal (file, pipe, log), the table is printed at full width.

        Args:
            console: rich console; default: standard output.
            all_scores: print all tables. Default: the main scores, with a note about further tables.
        """
        from rich.console import Console

        console = console or Console()
        shown, tables = self.main_tables(), self.tables()
        for table in tables if all_scores else shown:
            print_table(table, console)
        notes = self.list_notes()
        if not all_scores and len(shown) < len(tables):
            notes = [*notes, f"{spell_argument('all_scores')} prints all scores."]
        for sentence in notes:
            console.print(sentence, style="dim", markup=False)

    def to_html(self, path: str | os.PathLike) -> None:
        """Write the tables as an HTML page, atomically.

        The argument `report` of fastds.evaluate writes a page with maps and curves.
        """
        from fastds.report import Page

        Page(self.title, tables=self.tables(), notes=self.list_notes()).write(path)


def print_table(table: Table, console: Console) -> None:
    """Print a table; in a narrow terminal, split it by columns and repeat the label columns."""
    parts = [table]
    if console.is_terminal and _measure_width(table, console) > console.width:
        parts = _split_table(table, console)
    width = console.width
    try:
        for part in parts:
            console.width = max(
                width, _measure_width(part, console)
            )  # rich truncates tables that are wider than the console
            console.print(part, crop=False)
    finally:
        console.width = width


def _measure_width(table: Table, console: Console) -> int:
    """Return the width of a table in terminal columns, without its title, which may be wrapped."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=_MAX_WIDTH), table).maximum


def _split_table(table: Table, console: Console) -> list[Table]:
    """Split a table by columns into parts that fit the console; a part has at least one column besides the labels."""
    labels = list(itertools.takewhile(lambda column: column.header in _LABELS, table.columns))
    parts: list[list[Column]] = []
    for column in table.columns[len(labels) :]:
        if not parts or _measure_width(_select_columns(table, [*labels, *parts[-1], column]), console) > console.width:
            parts.append([])
        parts[-1].append(column)
    return [_select_columns(table, labels + part, titled=number == 0) for number, part in enumerate(parts)] or [table]


def _select_columns(table: Table, columns: list[Column], titled: bool = True) -> Table:
    """Return a table of some columns of another table."""
    part = make_score_table(str(table.title) if titled else None, tuple(str(column.header) for column in columns))
    rows = zip(*(column.cells for column in columns), strict=True)
    for cells, drawn in zip(rows, table.rows, strict=True):
        part.add_row(*cells, end_section=drawn.end_section)
    return part


def format_number(value: float) -> str:
    """Format a number with three decimals; "-" for NaN."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def make_score_table(title: str | None, heads: tuple[str, ...]) -> Table:
    """Return an empty table with these headings. The column "method" is left-aligned, others right-aligned."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    return table


def format_count(number: int, what: str) -> str:
    """Format a number of things: "1 start", "2 starts"."""
    return f"{number} {what}{'s' * (number != 1)}"


def track_progress(items: Collection, progress: bool, unit: str = "starts", doing: str = "evaluating") -> Iterator:
    """Yield items and show a progress bar.

    Args:
        items: items to iterate over.
        progress: whether to show the progress bar.
        unit: name of the items in the progress bar, in the plural.
        doing: description of the work in the progress bar.

    Yields:
        The items.
    """
    with progress_bar(progress, len(items), doing, unit) as advance:
        for item in items:
            yield item
            if advance is not None:
                advance()
