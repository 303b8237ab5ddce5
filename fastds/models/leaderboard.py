# SPDX-License-Identifier: Apache-2.0
"""The leaderboard: scores of networks and baselines in the file leaderboard.json."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from fastds._outputs import atomic_write
from fastds._version import __version__
from fastds.models.card import TASK_NAMES

LEADERBOARD = Path(__file__).parent / "leaderboard.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """One score.

    Attributes:
        task: "radar", "nowcast", "fields" or "humidity".
        model: name of the weights or of the baseline.
        data: data set on which the model was scored.
        score: name of the score, including the reference of relative scores.
        better: "lower" or "higher".
        value: the score.
        command: command that reproduces the score.
        low, high: bounds of the 95 % confidence interval, or None.
        cases: number of files, start times or crops in the mean, or None.
        version: version of fastds.
    """

    task: str
    model: str
    data: str
    score: str
    better: str
    value: float
    command: str
    low: float | None = None
    high: float | None = None
    cases: int | None = None
    version: str = __version__

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Key of the row. A new row replaces an old row with the same key."""
        return self.task, self.model, self.data, self.score

    def text(self) -> str:
        """Format the value with its confidence interval and the number of cases."""
        interval = "" if self.low is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{interval}" + (f", {self.cases} cases" if self.cases is not None else "")


def read(path: str | os.PathLike = LEADERBOARD) -> list[Row]:
    """Read the rows of a leaderboard file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no leaderboard. The message names the file and the row.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no leaderboard: it is not JSON ({error})") from None
    if not isinstance(found, list):
        raise ValueError(f"{path} is no leaderboard: expected a list of rows, got {type(found).__name__}")
    return [_parse_row(values, f"{path}, row {number}") for number, values in enumerate(found, 1)]


def add(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Add rows to a leaderboard file, and create the file if there is none.

    A row replaces an existing row of the same task, model, data and score.

    Args:
        path: path of the JSON file.
        rows: rows to add.

    Raises:
        ValueError: If the file is no leaderboard or a row is invalid.
    """
    rows_by_key = {row.key: row for row in (read(path) if Path(path).exists() else [])}
    for row in rows:
        rows_by_key[row.key] = _parse_row(dataclasses.asdict(row), f"the row of {row.model}")
    texts = [json.dumps(dataclasses.asdict(rows_by_key[key]), ensure_ascii=False) for key in sorted(rows_by_key)]
    with atomic_write(path) as temporary:
        temporary.write_text("[\n" + ",\n".join(texts) + "\n]\n", encoding="utf-8")


def table(rows: Iterable[Row]) -> str:
    """Format rows as a table, grouped by task, data and score, the best first."""
    lines, head = [], None
    for row in sorted(rows, key=lambda r: (r.task, r.data, r.score, r.value if r.better == "lower" else -r.value)):
        if (row.task, row.data, row.score) != head:
            head = row.task, row.data, row.score
            lines.append(f"{row.task}, {row.data}: {row.score} ({row.better} is better)")
        lines.append(f"  {row.model:24} {row.text()}")
    return "\n".join(lines)


def _parse_row(values: object, where: str) -> Row:
    """Check the values of a row read from JSON and return the row."""
    known = {field.name: field for field in dataclasses.fields(Row)}
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object with the keys {', '.join(known)}, got {values!r:.60}")
    for name in values.keys() - known.keys():
        raise ValueError(f"{where}: there is no key {name!r}; the keys are {', '.join(known)}")
    for name, field in known.items():
        if name in values:
            _check(where, name, values[name], str(field.type))
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{where}: the key {name} is missing")
    for name, choices in (("task", TASK_NAMES), ("better", ("lower", "higher"))):
        if values[name] not in choices:
            raise ValueError(f"{where}: {name} must be one of {', '.join(choices)}, got {values[name]!r:.60}")
    ends = values.get("low"), values.get("high")
    if (ends[0] is None) != (ends[1] is None) or (ends[0] is not None and not ends[0] <= values["value"] <= ends[1]):
        raise ValueError(f"{where}: low and high must enclose value {values['value']}, got {ends[0]} and {ends[1]}")
    return Row(**values)


def _check(where: str, name: str, value: object, kind: str) -> None:
    """Raise ValueError if a value does not have the type of its key."""
    if value is None and "None" in kind:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    expected = {"s": "a text", "f": "a number", "i": "a whole number above 0"}[kind[0]]
    fits = {
        "s": isinstance(value, str) and value != "",
        "f": number,
        "i": number and isinstance(value, int) and value > 0,
    }
    if not fits[kind[0]]:
        raise ValueError(f"{where}: {name} must be {expected}, got {value!r:.60}")
