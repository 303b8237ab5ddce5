# SPDX-License-Identifier: Apache-2.0
"""Folder of a study, which stores each result as a JSON file so that an interrupted study can be resumed."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

from fastds._outputs import replacing


class StudyFolder:
    """Stored results of a study.

    Args:
        path: the folder; created with the first result.
        options: options that the results depend on.
    Raises:
        ValueError: if the folder holds results of other options.
    """

    def __init__(self, path: str, options: dict[str, Any]):
        self.path, self.options = pathlib.Path(path), json.loads(json.dumps(options))
        file, options = self.path / "options.json", self.options
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else options
        differing = sorted(key for key in {*before, *options} if before.get(key) != options.get(key))
        if differing:
            key = differing[0]
            raise ValueError(
                f"output={path} holds a study of other options: {key} was {before.get(key)!r} and is "
                f"{options.get(key)!r}; output=FOLDER begins one elsewhere"
            )

    def load_or_compute(self, name: str, make: Callable[[], Any]) -> Any:
        """Load the result NAME.json, or compute it with make() and store it; the result must be JSON data."""
        file = self.path / f"{name}.json"
        if not file.exists():
            made = make()
            _write(self.path / "options.json", self.options)  # after make(), so that a failing study leaves no file
            _write(file, made)
        return json.loads(file.read_text(encoding="utf-8"))


def _write(file: pathlib.Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
