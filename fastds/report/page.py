# SPDX-License-Identifier: Apache-2.0
"""The HTML page of a report."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastds._html import extract_cells
from fastds._options import OptionError, spell_name
from fastds._outputs import atomic_write
from fastds._version import __version__
from fastds.plot.style import MISSING_COLOUR
from fastds.report.charts import Chart
from fastds.report.grid import SIDE
from fastds.report.maps import Maps

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass
class Page:
    """A report.

    Attributes:
        title: heading.
        facts: description of the run, heading -> name -> text.
        tables: tables of scores.
        notes: sentences below the tables.
        maps: maps over time, or None.
        charts: line charts.
        further_maps: further groups of maps with the times of `maps`; one slider moves all groups.
    """

    title: str
    facts: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    maps: Maps | None = None
    charts: Sequence[Chart] = ()
    further_maps: Sequence[Maps] = ()

    def html(self) -> str:
        """Render the page; it refers to no other file and no network address."""
        from jinja2 import Environment

        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(importlib.resources.files(__package__).joinpath("page.html").read_text())
        groups = [] if self.maps is None else [self.maps, *self.further_maps]
        first = 0 if self.maps is None else self.maps.first
        lines = {group.grid.outlines.name: group.grid.outlines for group in groups if group.grid.outlines is not None}
        drawn: dict[str, Any] = {"outlines": list(lines.values()), "side": SIDE}
        drawn |= {"maps": self.maps, "groups": groups, "first": first, "missing": MISSING_COLOUR}
        made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        tables = [extract_cells(table) for table in self.tables]
        return template.render(page=self, tables=tables, **drawn, made=made, version=__version__)

    def write(self, path: str | os.PathLike) -> None:
        """Write the page to the HTML file `path`, atomically."""
        text = self.html()
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def check_report(
    path: str | os.PathLike, *files: str | os.PathLike | None, made: str | os.PathLike | None = None
) -> None:
    """Check before a computation that a report can be written.

    Args:
        path: path of the report.
        files: inputs and outputs that the report must not replace; None is ignored.
        made: folder that will be created before the report is written.

    Raises:
        ValueError: if the path is no HTML file or is one of `files`, also by another name.
        FileNotFoundError: if the folder does not exist.
        IsADirectoryError: if the path is a folder.
        PermissionError: if the folder is read-only.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise OptionError("report", f"must be a file that ends in .html, got {path}")
    if any(_is_same_file(path, Path(file)) for file in files if file is not None):
        raise OptionError("report", f"must be another file than the input and the output, got {path} twice")
    if path.is_dir():
        raise IsADirectoryError(f"{spell_name('report')} must be a file, {path} is a folder")
    if made is not None and path.parent.resolve() == Path(made).resolve():
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{spell_name('report')}: no such folder: {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{spell_name('report')}: the folder is read-only: {path.parent}")


def _is_same_file(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))
