# SPDX-License-Identifier: Apache-2.0
"""The command `fastds models`: list shipped weights and presets, print a model card or the leaderboard.

Only lists of presets import torch.
"""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path

from fastds._suggestions import resolve_name, suggest
from fastds.models.leaderboard import LEADERBOARD, read, table
from fastds.models.weight_files import WEIGHTS, count_values, list_shipped, load_card

_USAGE = """usage: fastds models            the weights in the package
       fastds models --presets  all networks that `fastds train` and fastds.models.create take
       fastds models NAME       the card of weights, by name or path, or the description of a preset
       fastds models --leaderboard [FILE]  scores of networks and baselines, see docs/models/leaderboard.md"""


def format_shipped() -> str:
    """Return a table of the shipped weights: name, task, number of values, size, licence and description."""
    lines = []
    for name in list_shipped():
        path, card = WEIGHTS / f"{name}.safetensors", load_card(name)
        values, size, licence = count_values(path), path.stat().st_size, card.licence.partition(" ")[0]
        lines.append(f"{name:18} {card.task:9} {values:9,} values {size / 1e3:6.0f} kB  {licence}")
        lines.append(textwrap.fill(card.description, 116, initial_indent="    ", subsequent_indent="    "))
    return "\n".join([*lines, "", "More: fastds models NAME, fastds models --presets"])


def format_presets() -> str:
    """Return a table of all presets with their descriptions."""
    from fastds.models.registry import PRESETS

    return "\n".join(f"{name:22} {PRESETS[name][2]}" for name in sorted(PRESETS))


def format_card(name: str) -> str:
    """Return the fields of a model card that are set, or the description of a preset.

    Args:
        name: name of shipped weights or of a preset, or path of a weights file.

    Raises:
        FileNotFoundError: If `name` is neither a name of weights or presets nor a file.
        ValueError: If the file is no weights file.
    """
    shipped = list_shipped()
    if name not in shipped and not Path(name).is_file():
        from fastds.models.registry import PRESETS

        name = resolve_name(name, {*PRESETS, *shipped}) or name
        if name in PRESETS and name not in shipped:
            architecture, _, description = PRESETS[name]
            return f"{name}: a preset of {architecture} without shipped weights. {description}"
        if name not in shipped:
            raise FileNotFoundError(
                f"{name!r} is no file, no weights of the package ({', '.join(shipped)}) and none of the "
                f"{len(PRESETS)} presets{suggest(name, [*PRESETS, *shipped])}"
            )
    fields = dataclasses.asdict(load_card(name))
    lines = [line for key, value in fields.items() if value not in (None, "", [], {}) for line in _lines(key, value)]
    # Weights of a user may have the name of their preset, but the leaderboard has scores of the shipped weights only.
    scored = [row for row in read() if name in shipped and row.model == fields["name"]]
    return "\n".join([*lines, *_lines("leaderboard", [f"{r.data}: {r.score} {r.text()}" for r in scored] or None)])


def _lines(key: str, value, indent: str = "") -> list[str]:
    """Return the lines of a field: "key: value", or indented lines for the items of a dictionary or list of texts."""
    if isinstance(value, dict):
        return [f"{indent}{key}:", *(line for k, v in value.items() for line in _lines(k, v, indent + "  "))]
    if isinstance(value, list) and value and isinstance(value[0], str | dict):
        items = [v if isinstance(v, str) else ", ".join(f"{k} {x}" for k, x in v.items()) for v in value]
        return [f"{indent}{key}:", *(f"{indent}  {item}" for item in items)]
    return [] if value is None else [f"{indent}{key}: {value}"]


def main(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: command-line arguments after `fastds models`.

    Raises:
        ValueError: If there are too many arguments, or if the file has another format.
        FileNotFoundError: If the argument is neither a name of weights or presets nor a file.
    """
    if arguments in (["-h"], ["--help"]):
        print(_USAGE)
    elif not arguments:
        print(format_shipped())
    elif arguments == ["--presets"]:
        print(format_presets())
    elif arguments[0] == "--leaderboard" and len(arguments) < 3:
        print(table(read(arguments[1] if arguments[1:] else LEADERBOARD)))
    elif len(arguments) == 1:
        print(format_card(arguments[0]))
    else:
        raise ValueError(f"one name is expected, got {' '.join(arguments)}")
