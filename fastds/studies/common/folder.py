# SPDX-License-Identifier: Apache-2.0
"""The folder of a study: what is done is a JSON file in it and is not done again, so that a killed study goes on."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

from fastds._outputs import replacing


class StudyFolder:
    """Results by their names.

    Args:
        path: of the folder, made where it is missing.
        options: what the results depend on. A folder with results of others is refused.
    Raises: ValueError for such a folder.
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
        """What make returned when this was called first, by whatever run; plain data, written to NAME.json."""
        file = self.path / f"{name}.json"
        if not file.exists():
            made = make()
            _write(self.path / "options.json", self.options)  # last: a study that cannot begin leaves nothing
            _write(file, made)
        return json.loads(file.read_text(encoding="utf-8"))


def _write(file: pathlib.Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
