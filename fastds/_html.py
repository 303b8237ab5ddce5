# SPDX-License-Identifier: Apache-2.0
"""Fragments of HTML that notebooks show for tables, model cards and datasets.

The fragments load nothing and set no colours, so that they are readable on light and dark pages. All text is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_LINE = "1px solid rgba(128, 128, 128, 0.5)"
_CELL = "padding: 0.15em 0.7em; vertical-align: top;"


def format_heading(title: str) -> str:
    """Return a heading."""
    return f'<div style="font-weight: bold; margin: 0.6em 0 0.2em">{html.escape(title)}</div>'


def format_note(text: str) -> str:
    """Return a sentence in small letters."""
    return f'<div style="font-size: 90%; opacity: 0.75">{html.escape(text)}</div>'


def format_table(heads: Sequence[str], rows: Iterable[Sequence[Any]], *, texts: Iterable[int] = (0,)) -> str:
    """Return a table.

    Args:
        heads: headings of the columns; empty: no row of headings.
        rows: cells. A cell is text that is escaped, or the result of format_value.
        texts: numbers of the columns that are aligned on the left; others are aligned on the right.
    """
    left = set(texts)

    def make_row(tag: str, cells: Sequence[Any], line: str = "") -> str:
        sides = ("left" if column in left else "right" for column in range(len(cells)))
        parts = (
            f'<{tag} style="{_CELL} text-align: {side};{line}">{_get_html(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(parts)}</tr>"

    head = f"<thead>{make_row('th', heads, f' border-bottom: {_LINE};')}</thead>" if heads else ""
    body = "".join(make_row("td", row) for row in rows)
    return f'<table style="border-collapse: collapse; margin: 0 0 0.4em 0">{head}<tbody>{body}</tbody></table>'


class Fragment(str):
    """Text that is HTML already."""


def format_value(value: Any) -> Fragment:
    """Return a value of a model card: mappings and lists of mappings as lists of lines, long ones folded."""
    if isinstance(value, Mapping):
        lines = [f"{html.escape(str(key))}: {format_value(item)}" for key, item in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], str | Mapping):
        texts = (item if isinstance(item, str) else ", ".join(f"{k} {v}" for k, v in item.items()) for item in value)
        lines = [html.escape(text) for text in texts]
    elif isinstance(value, list | tuple):
        return Fragment(html.escape(" to ".join(map(str, value)) if len(value) == 2 else ", ".join(map(str, value))))
    else:
        return Fragment(html.escape(str(value)))
    listed = "".join(f"<div>{line}</div>" for line in lines)
    return Fragment(listed if len(lines) < 6 else f"<details><summary>{len(lines)} entries</summary>{listed}</details>")


def extract_cells(table: Table) -> dict:
    """Return the content of a rich table.

    Returns:
        A dict of title, heads and rows, pairs of (cells, True if the row ends a section).
    """
    rows = zip(*(column.cells for column in table.columns), strict=True)
    return {
        "title": str(table.title),
        "heads": [str(column.header) for column in table.columns],
        "rows": [(row, drawn.end_section) for row, drawn in zip(rows, table.rows, strict=True)],
    }


def format_rich_table(table: Table) -> str:
    """Return a rich table with its title as HTML."""
    content = extract_cells(table)
    texts = [number for number, column in enumerate(table.columns) if column.justify == "left"]
    title = format_heading(content["title"]) if table.title else ""
    return title + format_table(content["heads"], (row for row, _ in content["rows"]), texts=texts)


def _get_html(cell: Any) -> str:
    return cell if isinstance(cell, Fragment) else html.escape(str(cell))
