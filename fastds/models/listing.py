# SPDX-License-Identifier: Apache-2.0
"""The command `fastds models`: the weights in the package, the presets, and what one of them is."""

from __future__ import annotations

import dataclasses
import textwrap

from fastds._nearest import did_you_mean, spelled
from fastds.models.checkpoint import WEIGHTS, available, load, load_card
from fastds.models.leaderboard import LEADERBOARD, read, table
from fastds.models.registry import PRESETS

_USAGE = """usage: fastds models            the weights in the package
       fastds models --presets  all networks that `fastds train` and fastds.models.create take
       fastds models NAME       the card of weights, by name or path, or the sentence of a preset
       fastds models --leaderboard [FILE]  scores of networks and methods, see docs/models/leaderboard.md"""


def shipped() -> str:
    """The weights in the package: name, task, parameters, size, licence, and what they do."""
    lines = []
    for name in available(pretrained=True):
        model, size = load(name), (WEIGHTS / f"{name}.safetensors").stat().st_size
        parameters = sum(p.numel() for p in model.parameters())
        licence = model.card.licence.partition(" ")[0]
        lines.append(f"{name:18} {model.card.task:9} {parameters:9,} parameters {size / 1e3:6.0f} kB  {licence}")
        lines.append(textwrap.fill(model.card.description, 116, initial_indent="    ", subsequent_indent="    "))
    return "\n".join([*lines, "", "More: fastds models NAME, fastds models --presets"])


def presets() -> str:
    """Every preset and its sentence."""
    return "\n".join(f"{name:22} {PRESETS[name][2]}" for name in available())


def card(name: str) -> str:
    """The card of weights, a line a field that is set, or the sentence of a preset.

    Raises: FileNotFoundError for what is neither; ValueError for a file that is no weights."""
    name = spelled(name, {*PRESETS, *available(pretrained=True)}) or name
    if name in PRESETS and name not in available(pretrained=True):
        architecture, _, sentence = PRESETS[name]
        return f"{name}: a preset of {architecture} without shipped weights. {sentence}"
    try:
        fields = dataclasses.asdict(load_card(name))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{name!r} is no file, no weights of the package ({', '.join(available(pretrained=True))}) and none of the "
            f"{len(PRESETS)} presets{did_you_mean(name, [*PRESETS, *available(pretrained=True)])}"
        ) from None
    lines = [line for key, value in fields.items() if value not in (None, "", [], {}) for line in _lines(key, value)]
    # Weights of a user may have the name of the preset that they were trained as: these scores are not theirs.
    scored = [row for row in read() if name in available(pretrained=True) and row.model == fields["name"]]
    return "\n".join([*lines, *_lines("leaderboard", [f"{r.data}: {r.score} {r.text()}" for r in scored] or None)])


def _lines(key: str, value, indent: str = "") -> list[str]:
    """A value after its name; mappings and lists of them below it."""
    if isinstance(value, dict):
        return [f"{indent}{key}:", *(line for k, v in value.items() for line in _lines(k, v, indent + "  "))]
    if isinstance(value, list) and value and isinstance(value[0], str | dict):
        items = [v if isinstance(v, str) else ", ".join(f"{k} {x}" for k, x in v.items()) for v in value]
        return [f"{indent}{key}:", *(f"{indent}  {item}" for item in items)]
    return [] if value is None else [f"{indent}{key}: {value}"]


def main(arguments: list[str]) -> None:
    """Prints one of them. Raises: ValueError, FileNotFoundError for what is neither weights nor a preset."""
    if arguments in (["-h"], ["--help"]):
        print(_USAGE)
    elif not arguments:
        print(shipped())
    elif arguments == ["--presets"]:
        print(presets())
    elif arguments[0] == "--leaderboard" and len(arguments) < 3:
        print(table(read(arguments[1] if arguments[1:] else LEADERBOARD)))
    elif len(arguments) == 1:
        print(card(arguments[0]))
    else:
        raise ValueError(f"one name is expected, got {' '.join(arguments)}")
