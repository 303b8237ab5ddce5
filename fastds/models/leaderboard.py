# SPDX-License-Identifier: Apache-2.0
"""Scores of networks and methods that studies and others write down beside each other: leaderboard.json."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from fastds._outputs import atomic_write
from fastds._version import __version__
from fastds.models.registry import TASKS

LEADERBOARD = Path(__file__).parent / "leaderboard.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """A score.

    Attributes:
        task: radar, nowcast, fields or humidity. model: name of the weights or the method.
        data: what it was scored on. score: which, with what it is compared with. better: "lower" or "higher".
        value: the score; low, high: its 95 % interval, or None.
        cases: files, starts or crops it is the mean of, or None.
        command: that makes it again. version: of fastds.
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
        """What a later row replaces."""
        return self.task, self.model, self.data, self.score

    def text(self) -> str:
        """The value with its interval and the number of cases."""
        interval = "" if self.low is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{interval}" + (f", {self.cases} cases" if self.cases is not None else "")


def read(path: str | os.PathLike = LEADERBOARD) -> list[Row]:
    """The rows of a file.

    Raises: FileNotFoundError; ValueError in a sentence with the file and the row for what is no leaderboard."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no leaderboard: it is not JSON ({error})") from None
    if not isinstance(found, list):
        raise ValueError(f"{path} is no leaderboard: expected a list of rows, got {type(found).__name__}")
    return [_row(values, f"{path}, row {number}") for number, values in enumerate(found, 1)]


def add(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Write rows into a file, which is made where there is none; a row of the same task, model, data and score is
    replaced. Raises as read."""
    kept = {row.key: row for row in (read(path) if Path(path).exists() else [])}
    for row in rows:
        kept[row.key] = _row(dataclasses.asdict(row), f"the row of {row.model}")
    texts = [json.dumps(dataclasses.asdict(kept[key]), ensure_ascii=False) for key in sorted(kept)]
    with atomic_write(path) as temporary:
        temporary.write_text("[\n" + ",\n".join(texts) + "\n]\n", encoding="utf-8")


def table(rows: Iterable[Row]) -> str:
    """The rows by task, data and score, the best first."""
    lines, head = [], None
    for row in sorted(rows, key=lambda r: (r.task, r.data, r.score, r.value if r.better == "lower" else -r.value)):
        if (row.task, row.data, row.score) != head:
            head = row.task, row.data, row.score
            lines.append(f"{row.task}, {row.data}: {row.score} ({row.better} is better)")
        lines.append(f"  {row.model:24} {row.text()}")
    return "\n".join(lines)


def _row(values: object, where: str) -> Row:
    """A row of JSON, checked."""
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
    for name, choices in (("task", TASKS), ("better", ("lower", "higher"))):
        if values[name] not in choices:
            raise ValueError(f"{where}: {name} must be one of {', '.join(choices)}, got {values[name]!r:.60}")
    ends = values.get("low"), values.get("high")
    if (ends[0] is None) != (ends[1] is None) or (ends[0] is not None and not ends[0] <= values["value"] <= ends[1]):
        raise ValueError(f"{where}: low and high must enclose value {values['value']}, got {ends[0]} and {ends[1]}")
    return Row(**values)


def _check(where: str, name: str, value: object, kind: str) -> None:
    """Raise ValueError for a value that is not of the kind of its key."""
    if value is None and "None" in kind:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    wanted = {"s": "a text", "f": "a number", "i": "a whole number above 0"}[kind[0]]
    fits = {
        "s": isinstance(value, str) and value != "",
        "f": number,
        "i": number and isinstance(value, int) and value > 0,
    }
    if not fits[kind[0]]:
        raise ValueError(f"{where}: {name} must be {wanted}, got {value!r:.60}")
