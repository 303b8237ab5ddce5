# SPDX-License-Identifier: Apache-2.0
"""What the reports of the tasks share: what was run, by which model, from which files."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from fastds._outputs import is_command
from fastds.data import grid_spacing_m
from fastds.info import info
from fastds.models import ModelCard, available, load_card

_OF_CARD = ("name", "description", "licence", "training_data", "grid_spacing_m", "cadence_s", "motion_px")
_HEADS = {
    "training_data": "trained on",
    "grid_spacing_m": "grid spacing (m)",
    "cadence_s": "interval (s)",
    "motion_px": "motion (pixels an interval)",
}
_OF_MACHINE = ("fastds", "python", "torch", "instruction sets", "devices", "threads")
_OF_FILE = ("title", "institution", "source", "licence", "license")


def facts(
    model: str | os.PathLike | None, settings: Mapping[str, str], files: Mapping[str, tuple[xr.Dataset, xr.DataArray]]
) -> dict:
    """What was run, for fastds.report.Page. model: name or file of weights whose card is told; None: as the settings
    name it. settings: name -> value, see settings_of. files: what each is -> it, and its
    field (..., y, x)."""
    rows = info()
    told = {"command": shlex.join(["fastds", *sys.argv[1:]]) if is_command() else "called from Python"}
    told |= {key: rows[key] for key in _OF_MACHINE if key in rows}
    found = {"Run": told, "Model": _named(settings) if model is None else _card(model), "Settings": settings}
    return found | {f"File: {what}": _file(*file) for what, file in files.items()}


def settings_of(made: xr.Dataset) -> dict[str, str]:
    """The settings that the attributes of a dataset that fastds made tell."""
    return {key.removeprefix("fastds_"): str(v) for key, v in made.attrs.items() if key.startswith("fastds_")}


def _named(settings: Mapping[str, str]) -> dict[str, str]:
    """The card of the shipped weights that made a file; weights of a user that have their name have another licence."""
    name, licence = settings.get("model", ""), settings.get("model_licence", "")
    card = _card(name)
    return card if card.get("licence") == licence else {"name": name or "not told"}


def _card(name: str | os.PathLike) -> dict[str, str]:
    if not (Path(name).is_file() or name in available(pretrained=True)):
        return {"name": str(name) or "not told"}
    card = load_card(name)
    return {_HEADS.get(key, key): text for key in _OF_CARD if (text := _text(card, key))}


def _text(card: ModelCard, key: str) -> str:
    value = getattr(card, key)
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return f"{value[0]:g} to {value[1]:g}" if isinstance(value, tuple) else str(value or "")


def _file(dataset: xr.Dataset, field: xr.DataArray) -> dict[str, str]:
    """Name, origin, variable, size and times of a file."""
    spacing = grid_spacing_m(field)
    found = {"file": file_of(dataset) or "of several files, or in memory"}
    found |= {key: str(dataset.attrs[key]) for key in _OF_FILE if key in dataset.attrs}
    found["variable"] = f"{field.name} ({field.attrs.get('units', 'no units')})"
    found["fields"] = " x ".join(map(str, field.shape))
    if spacing is not None and None not in spacing:
        found["fields"] += f", {np.mean(spacing) / 1e3:.3g} km"
    times = [values for d in field.dims if d in field.coords and (values := field[d].values).dtype.kind in "MO"]
    if times:
        found["times"] = f"{utc(times[0][0])} to {utc(times[0][-1])}"
    return found


def file_of(dataset: xr.Dataset) -> str | None:
    """The file that a dataset was opened from; None: it has none."""
    return dataset.encoding.get("source")


def utc(time) -> str:
    """A time for a label."""
    text = np.datetime_as_string(time, unit="s") if isinstance(time, np.datetime64) else time.isoformat()
    return text[:19].replace("T", " ").removesuffix(":00") + " UTC"


def flat(values: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every option of a configuration and its value, those of its parts as data.path."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
