# SPDX-License-Identifier: Apache-2.0
"""Result tables of studies, written as CSV and Markdown and shown on HTML pages."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastds._outputs import atomic_write
from fastds.inference.tables import make_score_table, write_csv
from fastds.studies.common.bootstrap import Estimate

if TYPE_CHECKING:
    from rich.table import Table


def format_markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def compare_with_paper(ours: Estimate, paper: float | None, digits: int) -> tuple[str, Estimate, str]:
    """Make three table cells that compare a difference with the one in the paper.

    Args:
        ours: the difference.
        paper: difference in the paper, or None if the paper has none.
        digits: number of decimals.

    Returns:
        The difference in the paper, ours, and the comparison of their signs.
    """
    if paper is None:
        return "-", ours, "not in the paper"
    return f"{paper:+.{digits}f}", ours, ours.compare_sign(paper)


@dataclasses.dataclass
class ResultTable:
    """A table of a study.

    Attributes:
        title: line above the table.
        heads: column heads.
        rows: rows of cells. A cell is a text or an Estimate.
        digits: decimals of Estimates, except in CSV files, which have six significant digits.
        sign: "+" writes the sign of positive Estimates, "" does not.
    """

    title: str
    heads: tuple[str, ...]
    rows: Sequence[Sequence[str | Estimate]]
    digits: int = 3
    sign: str = ""

    def format_rows(self) -> list[list[str]]:
        """Format all cells as text, Estimates with their intervals."""
        return [[c if isinstance(c, str) else c.format(self.digits, self.sign) for c in row] for row in self.rows]

    def to_markdown(self) -> str:
        """Format title and table as Markdown."""
        return f"{self.title}\n\n{format_markdown(self.heads, self.format_rows())}"

    def write(self, folder: pathlib.Path, name: str) -> None:
        """Write the table to folder/name.md and folder/name.csv.

        In the CSV file, an Estimate has three columns (mean and interval) with six significant digits.
        """
        with atomic_write(folder / f"{name}.md") as temporary:
            temporary.write_text(self.to_markdown(), encoding="utf-8")
        numbers = {k for row in self.rows for k, cell in enumerate(row) if isinstance(cell, Estimate)}
        heads = [[h, f"{h} low", f"{h} high"] if k in numbers else [h] for k, h in enumerate(self.heads)]
        lines = [sum((_format_csv_cells(c, k in numbers) for k, c in enumerate(row)), []) for row in self.rows]
        write_csv(folder / f"{name}.csv", sum(heads, []), lines)

    def to_rich(self) -> Table:
        """Convert to a rich table for a terminal or a page."""
        table = make_score_table(self.title, self.heads)
        for row in self.format_rows():
            table.add_row(*row)
        return table


def _format_csv_cells(cell: str | Estimate, wide: bool) -> list[str]:
    if isinstance(cell, Estimate):
        return [f"{number:.6g}" for number in cell]
    return [cell, "", ""] if wide else [cell]
