# SPDX-License-Identifier: Apache-2.0
"""Facts about a run for HTML reports: command, model, settings, files."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fastds._outputs import is_running_as_cli
from fastds.data import grid_spacing_m
from fastds.info import info
from fastds.models import ModelCard, available, load_card

_CARD_FIELDS = ("name", "description", "licence", "training_data", "grid_spacing_m", "cadence_s", "motion_px")
_HEADINGS = {
    "training_data": "trained on",
    "grid_spacing_m": "grid spacing (m)",
    "cadence_s": "interval (s)",
    "motion_px": "motion (pixels an interval)",
}
_MACHINE_FACTS = ("fastds", "python", "torch", "instruction sets", "devices", "threads")
_FILE_ATTRIBUTES = ("title", "institution", "source", "licence", "license")


def describe_run(
    model: str | os.PathLike | None, settings: Mapping[str, str], files: Mapping[str, tuple[xr.Dataset, xr.DataArray]]
) -> dict:
    """Return the facts about a run, for fastds.report.Page.

    Args:
        model: name or file of weights; None: the model that the settings name.
        settings: name -> value, see read_settings.
        files: role of each file -> the dataset and its field (..., y, x).

    Returns:
        Heading -> {name: value}.
    """
    rows = info()
    run = {"command": shlex.join(["fastds", *sys.argv[1:]]) if is_running_as_cli() else "called from Python"}
    run |= {key: rows[key] for key in _MACHINE_FACTS if key in rows}
    found = {
        "Run": run,
        "Model": _find_card(settings) if model is None else _describe_card(model),
        "Settings": settings,
    }
    return found | {f"File: {what}": _describe_file(*file) for what, file in files.items()}


def read_settings(made: xr.Dataset) -> dict[str, str]:
    """Return the attributes fastds_* of a dataset without their prefix."""
    return {key.removeprefix("fastds_"): str(v) for key, v in made.attrs.items() if key.startswith("fastds_")}


def _find_card(settings: Mapping[str, str]) -> dict[str, str]:
    """Describe the shipped weights that made a file, if the licence in the file matches; else return the name only.

    A user's weights may have the name of shipped weights but have another licence.
    """
    name, licence = settings.get("model", ""), settings.get("model_licence", "")
    card = _describe_card(name)
    return card if card.get("licence") == licence else {"name": name or "not declared"}


def _describe_card(name: str | os.PathLike) -> dict[str, str]:
    if not (Path(name).is_file() or name in available(pretrained=True)):
        return {"name": str(name) or "not declared"}
    card = load_card(name)
    return {_HEADINGS.get(key, key): text for key in _CARD_FIELDS if (text := _format_field(card, key))}


def _format_field(card: ModelCard, key: str) -> str:
    value = getattr(card, key)
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return f"{value[0]:g} to {value[1]:g}" if isinstance(value, tuple) else str(value or "")


def _describe_file(dataset: xr.Dataset, field: xr.DataArray) -> dict[str, str]:
    """Return name, source, variable, shape and times of a file."""
    spacing = grid_spacing_m(field)
    found = {"file": get_file(dataset) or "of several files, or in memory"}
    found |= {key: str(dataset.attrs[key]) for key in _FILE_ATTRIBUTES if key in dataset.attrs}
    found["variable"] = f"{field.name} ({field.attrs.get('units', 'no units')})"
    found["fields"] = " x ".join(map(str, field.shape))
    if spacing is not None and spacing[0] is not None and spacing[1] is not None:
        found["fields"] += f", {np.mean([spacing[0], spacing[1]]) / 1e3:.3g} km"
    times = [values for d in field.dims if d in field.coords and (values := field[d].values).dtype.kind in "MO"]
    if times:
        found["times"] = f"{format_utc(times[0][0])} to {format_utc(times[0][-1])}"
    return found


def get_file(dataset: xr.Dataset) -> str | None:
    """Return the path from which a dataset was opened, or None if it is in memory or of several files."""
    return dataset.encoding.get("source")


def format_utc(time) -> str:
    """Format a time as "2020-06-01 12:00 UTC"."""
    text = np.datetime_as_string(time, unit="s") if isinstance(time, np.datetime64) else time.isoformat()
    return text[:19].replace("T", " ").removesuffix(":00") + " UTC"


def iter_options(values: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and value of each option of a configuration; those of nested sections as "data.path"."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from iter_options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flatten_options(values: Mapping) -> Iterator[tuple[str, str]]:
    """Yield name and text of each option of a configuration, see iter_options."""
    for name, value in iter_options(values):
        yield name, str(value)
