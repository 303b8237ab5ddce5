# SPDX-License-Identifier: Apache-2.0
"""Outputs of studies: HTML reports and leaderboard rows."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fastds._outputs import is_running_as_cli
from fastds.inference.run_facts import describe_run, flatten_options
from fastds.models import leaderboard
from fastds.report import Chart, Page
from fastds.studies.common.bootstrap import Estimate

if TYPE_CHECKING:
    from rich.table import Table


def write_study(
    title: str, config: Any, tables: Sequence[Table], notes: Sequence[str] = (), charts: Sequence[Chart] = ()
) -> None:
    """Write the HTML page config.report.

    Args:
        title: see fastds.report.Page.
        config: StudyConfig with the attribute model.
        tables: see fastds.report.Page.
        notes: see fastds.report.Page.
        charts: see fastds.report.Page.
    """
    run = describe_run(config.model, dict(flatten_options(dataclasses.asdict(config))), {})
    Page(title, run, tables, notes, charts=charts).write(config.report)


def write_rows(config: Any, model: str, rows: Iterable[dict[str, Any]]) -> None:
    """Append leaderboard rows of a model to the file config.leaderboard.

    Args:
        config: StudyConfig.
        model: name of the model.
        rows: fields of the rows; the field "value" is a number or an Estimate, whose interval is stored as well.
    """
    command = format_command(config)
    added = [leaderboard.Row(model=model, command=command, **(row | _format_value(row["value"]))) for row in rows]
    leaderboard.add(config.leaderboard, added)
    print(f"added {len(added)} rows to {config.leaderboard}")


def format_command(config: Any) -> str:
    """Return the command line of the study, without --leaderboard and with FOLDER in place of the data folder."""
    words = sys.argv[1:] if is_running_as_cli() else ["study", type(config).__module__.rpartition(".")[2]]
    if "--leaderboard" in words:  # followed by its value
        at = words.index("--leaderboard")
        del words[at : at + 2]
    words = [word.replace(config.data.path, "FOLDER") for word in words if not word.startswith("--leaderboard=")]
    return shlex.join(["fastds", *words])


def _format_value(value: float | Estimate) -> dict[str, float | None]:
    if not isinstance(value, Estimate):
        return {"value": value}
    low, high = (None if math.isnan(end) else round(end, 4) for end in value[1:])
    return {"value": round(value.mean, 4), "low": low, "high": high}
