# SPDX-License-Identifier: Apache-2.0
"""Tests of printed score tables in files, pipes and narrow terminals."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from fastds.inference.tables import ScoreTables, make_score_table

HEADS = ("method", "score", *(f"{minutes}" for minutes in range(5, 65, 5)))
NUMBERS = [[f"{10 * row + column + 0.123:.3f}" for column in range(12)] for row in range(2)]


class Tables(ScoreTables):
    title = "Scores"

    def tables(self):
        table = make_score_table("Scores by lead in minutes", HEADS)
        for name, numbers in zip(("extrapolation", "nowcast-small"), NUMBERS, strict=True):
            table.add_row(name, "CSI", *numbers, end_section=True)
        return [table]

    def list_notes(self):
        return ["A sentence."]


def _printed(width: int, terminal: bool) -> str:
    file = io.StringIO()
    Tables().print(Console(file=file, width=width, force_terminal=terminal, no_color=True, color_system=None))
    return file.getvalue()


@pytest.mark.parametrize("width", [20, 80])
def test_table_is_whole_without_terminal(width):
    lines = [line for line in _printed(width, terminal=False).splitlines() if "CSI" in line]
    assert [re.findall(r"\d+\.\d{3}", line) for line in lines] == NUMBERS


@pytest.mark.parametrize("width", [30, 47, 80, 200])
def test_table_is_split_on_a_narrow_terminal(width):
    printed = _printed(width, terminal=True)
    assert "…" not in printed and all(len(line) <= width for line in printed.splitlines())
    lines = [line for line in printed.splitlines() if "CSI" in line]
    assert len(lines) % 2 == 0 and (len(lines) == 2) == (width == 200)
    for name, numbers in zip(("extrapolation", "nowcast-small"), NUMBERS, strict=True):
        found = [re.findall(r"\d+\.\d{3}", line) for line in lines if name in line]
        assert np.concatenate(found).tolist() == numbers
    assert printed.count("Scores by lead") == 1


def test_table_on_a_very_narrow_terminal():
    lines = [line for line in _printed(12, terminal=True).splitlines() if "CSI" in line]
    assert len(lines) == 24 and all(re.search(r"\d+\.\d{3}", line) for line in lines)


def test_table_in_a_console_of_fixed_width():
    console = Console(file=io.StringIO(), width=40)
    Tables().print(console)
    assert console.width == 40
