# SPDX-License-Identifier: Apache-2.0
"""The page: its parts, and the one HTML file they become."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastds._outputs import atomic_write
from fastds._version import __version__
from fastds.plot.style import MISSING_COLOUR
from fastds.report.charts import Chart
from fastds.report.maps import Maps

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass
class Page:
    """A report.

    Attributes:
        title: its heading.
        facts: what was run, heading -> rows of name -> text.
        tables: of scores, as they are printed. notes: sentences below them.
        maps: over time. charts: of curves.
    """

    title: str
    facts: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    maps: Maps | None = None
    charts: Sequence[Chart] = ()

    def html(self) -> str:
        """The page, complete in itself: no link, script or picture lies elsewhere."""
        from jinja2 import Environment

        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(importlib.resources.files(__package__).joinpath("page.html").read_text())
        drawn = {"maps": self.maps, "missing": MISSING_COLOUR}
        made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        tables = [_cells(table) for table in self.tables]
        return template.render(page=self, tables=tables, **drawn, made=made, version=__version__)

    def write(self, path: str | os.PathLike) -> None:
        """Write the page by a temporary name; path: of the HTML file."""
        text = self.html()
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _cells(table: Table) -> dict:
    """A rich table as plain text: title, heads, rows, and which rows end a section."""
    rows = zip(*(column.cells for column in table.columns), strict=True)
    return {
        "title": str(table.title),
        "heads": [str(column.header) for column in table.columns],
        "rows": [(row, drawn.end_section) for row, drawn in zip(rows, table.rows, strict=True)],
    }


def check_report(
    path: str | os.PathLike, *files: str | os.PathLike | None, made: str | os.PathLike | None = None
) -> None:
    """What would make writing a report fail, before anything is computed.

    path: of the report. files: inputs and outputs that it must not replace; None is no file. made: a folder
        that will be there.
    Raises: ValueError where it is one of them, by another name, too, or no HTML file; FileNotFoundError where its
        folder is missing, IsADirectoryError for a folder, PermissionError for a folder that is read-only.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"report must be a file that ends in .html, got {path}")
    if any(_same(path, Path(file)) for file in files if file is not None):
        raise ValueError(f"report must be another file than the input and the output, got {path} twice")
    if path.is_dir():
        raise IsADirectoryError(f"report must be a file, {path} is a folder")
    if made is not None and path.parent.resolve() == Path(made).resolve():
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"report: no such folder: {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"report: the folder is read-only: {path.parent}")


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))
