# SPDX-License-Identifier: Apache-2.0
"""The command `fastds models`: list shipped weights and presets, print a model card or the leaderboard."""

from __future__ import annotations

import dataclasses
import textwrap

from fastds._suggestions import resolve_name, suggest
from fastds.models.card import Network
from fastds.models.checkpoint import WEIGHTS, available, load, load_card
from fastds.models.leaderboard import LEADERBOARD, read, table
from fastds.models.registry import PRESETS

_USAGE = """usage: fastds models            the weights in the package
       fastds models --presets  all networks that `fastds train` and fastds.models.create take
       fastds models NAME       the card of weights, by name or path, or the description of a preset
       fastds models --leaderboard [FILE]  scores of networks and baselines, see docs/models/leaderboard.md"""


def format_shipped() -> str:
    """Return a table of the shipped weights: name, task, number of parameters, size, licence and description."""
    lines = []
    for name in available(pretrained=True):
        size = (WEIGHTS / f"{name}.safetensors").stat().st_size
        model: Network = load(name)
        parameters = sum(p.numel() for p in model.parameters())
        licence = model.card.licence.partition(" ")[0]
        lines.append(f"{name:18} {model.card.task:9} {parameters:9,} parameters {size / 1e3:6.0f} kB  {licence}")
        lines.append(textwrap.fill(model.card.description, 116, initial_indent="    ", subsequent_indent="    "))
    return "\n".join([*lines, "", "More: fastds models NAME, fastds models --presets"])


def format_presets() -> str:
    """Return a table of all presets with their descriptions."""
    return "\n".join(f"{name:22} {PRESETS[name][2]}" for name in available())


def format_card(name: str) -> str:
    """Return the fields of a model card that are set, or the description of a preset.

    Args:
        name: name of shipped weights or of a preset, or path of a weights file.

    Raises:
        FileNotFoundError: If `name` is neither a name of weights or presets nor a file.
        ValueError: If the file is no weights file.
    """
    name = resolve_name(name, {*PRESETS, *available(pretrained=True)}) or name
    if name in PRESETS and name not in available(pretrained=True):
        architecture, _, description = PRESETS[name]
        return f"{name}: a preset of {architecture} without shipped weights. {description}"
    try:
        fields = dataclasses.asdict(load_card(name))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{name!r} is no file, no weights of the package ({', '.join(available(pretrained=True))}) and none of the "
            f"{len(PRESETS)} presets{suggest(name, [*PRESETS, *available(pretrained=True)])}"
        ) from None
    lines = [line for key, value in fields.items() if value not in (None, "", [], {}) for line in _lines(key, value)]
    # Weights of a user may have the name of their preset, but the leaderboard has scores of the shipped weights only.
    scored = [row for row in read() if name in available(pretrained=True) and row.model == fields["name"]]
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
