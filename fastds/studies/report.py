# SPDX-License-Identifier: Apache-2.0
"""The HTML report of a study: its tables, curves and options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastds.report import Chart, Page
from fastds.tasks.common.reports import facts, flat

if TYPE_CHECKING:
    from rich.table import Table


def write_study(
    title: str, config: Any, tables: Sequence[Table], notes: Sequence[str] = (), charts: Sequence[Chart] = ()
) -> None:
    """Write the page config.report. title, tables, notes, charts: see Page; config: a StudyConfig with a model."""
    told = facts(config.model, dict(flat(dataclasses.asdict(config))), {})
    Page(title, told, tables, notes, charts=charts).write(config.report)
