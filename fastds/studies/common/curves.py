# SPDX-License-Identifier: Apache-2.0
"""The curves of a training, from all logs of a run that may have been killed."""

import csv
import pathlib
from collections.abc import Sequence

from fastds.tasks.common.tables import write_csv
from fastds.tasks.common.training_report import logs_of


def write_curves(run: pathlib.Path, target: pathlib.Path, columns: Sequence[str], steps: int) -> None:
    """Write the logged columns of a run of so many steps: of a step that was taken again after a kill, the last time.

    (A run that is resumed at its end logs its last step once more, as a further one.)
    """
    found: dict[int, dict[str, str]] = {}
    for path in logs_of(run / "csv").values():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                values = {name: row[name] for name in columns if row.get(name)}
                if values and int(row["step"]) < steps:
                    found.setdefault(int(row["step"]), {}).update(values)
    lines = [[str(step), *(found[step].get(name, "") for name in columns)] for step in sorted(found)]
    write_csv(target, ["step", *columns], lines)
