# SPDX-License-Identifier: Apache-2.0
"""Sphinx extension with directives whose content comes from the installed package, so that pages cannot go stale.

`command-help COMMAND` shows `fastds COMMAND --help`, `model-card NAME` the facts in the card of shipped weights,
`leaderboard` the rows of fastds/models/leaderboard.json, and `file-formats` the formats that the readers declare.
"""

import contextlib
import importlib
import inspect
import io
import os
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import Directive


def get_help(*command: str) -> str:
    """Return the text that `fastds COMMAND --help` prints."""
    from fastds.cli import main

    out = io.StringIO()
    arguments = [*command] if command == ("info",) else [*command, "--help"]
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        main(arguments)
    return out.getvalue().rstrip()


def list_public_names(module: str) -> dict[str, list[str]]:
    """Return the names in `__all__` of a module by kind; autosummary itself misses names that are loaded lazily."""
    found = importlib.import_module(module)
    kinds = {"Classes": [], "Functions": [], "Constants": []}
    for name in sorted(found.__all__):
        value = getattr(found, name)
        if inspect.ismodule(value) or name.startswith("__"):
            continue
        kind = "Classes" if inspect.isclass(value) else "Functions" if callable(value) else "Constants"
        kinds[kind].append(name)
    return kinds


class CommandHelp(Directive):
    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        text = get_help(*self.arguments[0].split())
        block = nodes.literal_block(text, text)
        block["language"] = "text"
        return [block]


def make_table(header: list[str], rows: list[list[str]]) -> nodes.table:
    table = nodes.table()
    group = nodes.tgroup(cols=len(header))
    table += group
    for _ in header:
        group += nodes.colspec(colwidth=1)
    for container, lines in ((nodes.thead(), [header]), (nodes.tbody(), rows)):
        group += container
        for cells in lines:
            row = nodes.row()
            container += row
            for cell in cells:
                entry = nodes.entry()
                entry += nodes.paragraph(cell, cell)
                row += entry
    return table


def describe_card(name: str) -> list[list[str]]:
    """Return the facts of a card as pairs of a name and lines of text."""
    from fastds.models import load_card

    card = load_card(name)

    def join(variables):
        return "; ".join(", ".join(str(part) for part in variable.values()) for variable in variables)

    def span(value, factor, unit):
        low, high = (part / factor for part in value)
        return f"{low:g} to {high:g} {unit}" if low != high else f"{low:g} {unit}"

    facts = [["licence", card.licence], ["training data", "; ".join(card.training_data)]]
    if card.training_hours:
        facts.append(["training time", f"{card.training_hours:g} hours of one CPU core or thread"])
    if card.input_variables:
        facts.append(["input variables", join(card.input_variables)])
    if card.grid_spacing_m:
        facts.append(["grid spacing of the training", span(card.grid_spacing_m, 1000, "km")])
    if card.cadence_s:
        facts.append(["time step of the training", span(card.cadence_s, 60, "min")])
    return facts


class CardTable(Directive):
    required_arguments = 1

    def run(self):
        name = self.arguments[0]
        return [make_table([name, "from its card"], describe_card(name))]


class Leaderboard(Directive):
    def run(self):
        from fastds.models.leaderboard import LEADERBOARD, read

        rows = []
        for row in sorted(read(LEADERBOARD), key=lambda row: (row.task, row.data, row.score, row.model)):
            interval = "" if row.low is None else f" [{row.low:g}, {row.high:g}]"
            cases = "" if row.cases is None else str(row.cases)
            better = f"{row.score} ({row.better} is better)"
            rows.append([row.task, row.data, better, row.model, f"{row.value:g}{interval}", cases, row.command])
        return [make_table(["task", "data", "score", "model", "value", "cases", "command"], rows)]


def list_format_rows() -> list[list[str]]:
    """Return the name and the files of each format that a module of fastds.data.formats declares."""
    from fastds.data.formats.registry import list_formats

    return [[form.name, form.files] for form in list_formats()]


class FileFormats(Directive):
    def run(self):
        return [make_table(["format", "files"], list_format_rows())]


def setup(app):
    app.add_directive("command-help", CommandHelp)
    app.add_directive("model-card", CardTable)
    app.add_directive("leaderboard", Leaderboard)
    app.add_directive("file-formats", FileFormats)
    return {"parallel_read_safe": True}
