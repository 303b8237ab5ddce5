# SPDX-License-Identifier: Apache-2.0
"""Command `fastds check`: print a file's format and contents, and the commands that accept the file.

The contents are printed before torch is imported, which takes longer than reading them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jsonargparse import Namespace

from fastds._import_hooks import import_for_command
from fastds._messages import format_error, format_internal_error, show_traceback
from fastds._options import use_option_names
from fastds._parsers import COMMANDS, build_command_parser, get_spellings
from fastds.data import grid_spacing_m, open_input
from fastds.data.formats.opening import InputPaths
from fastds.data.grid.axes import FULL_CIRCLE, find_dataset_time
from fastds.data.grid.grids import find_grid_mappings, find_latitude_longitude
from fastds.data.grid.times import find_regular_segments, format_time
from fastds.data.grid.variables import list_fields
from fastds.data.reading import InputData
from fastds.inference.tables import format_count
from fastds.models import load_card

_MAX_LISTED = 8  # maximum number of variables in the list
_RADAR_COMMANDS = ("downscale", "nowcast")
_MAX_MIDDLE_SPREAD = 2.0  # days; largest spread of the positions of monthly time stamps within their months


def check_all(options: Namespace, reading: dict) -> int:
    """Run the command and print its results.

    Args:
        options: parsed command line.
        reading: options of fastds.data.open_input: missing, units, start, stop.

    Returns:
        Exit status: 0 if at least one command accepts each input, else 2.
    """
    good, weights = True, find_weights(options.model)
    with use_option_names(_get_all_spellings()):
        for number, path in enumerate(options.inputs):
            print("" if number == 0 else "\n", end="")
            good &= check(path, options.var, weights, **reading)
    return 0 if good else 2


def check(data: InputData, var: str | None = None, weights: Sequence[str] = (), **reading) -> bool:
    """Print the contents of a file or dataset and the commands that accept it.

    Args:
        data: file, folder or pattern, or a Dataset or DataArray.
        var: name of the variable; None: the only one that fits.
        weights: names or files of weights that are tried in addition to the shipped weights.
        reading: further options of fastds.data.open_input.

    Returns:
        True if at least one command accepts the data.
    """
    in_memory = isinstance(data, xr.Dataset | xr.DataArray)
    label: Any = f"{type(data).__name__} in memory" if in_memory else data
    print(label)
    try:
        with warnings.catch_warnings(record=True) as caught, open_input(data, var, **reading) as dataset:
            warnings.simplefilter("always", UserWarning)
            for name, text in _list_facts(dataset):
                print(f"  {name:10} {text}", flush=True)
            commands = import_for_command("fastds.tasks.check_commands").list_commands(dataset, var, weights)
            found = [_try_command(name, run) for name, run in commands]
    except Exception as error:
        print(f"  cannot be read: {_format_reason(error, label)}")
        return False
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"  warning    {text}")
    alike: dict[tuple[bool, str], list[str]] = {}
    for name, takes, text in found:
        alike.setdefault((takes, text), []).append(name)
    for (takes, text), names in sorted(alike.items(), key=lambda one: not one[0][0]):  # accepting commands first
        label = ", ".join(names)
        if not takes and set(_RADAR_COMMANDS) <= set(names):
            label = f"radar commands ({label})"
        print(f"  {'can' if takes else 'cannot':10} {label}: {text}")
    return any(takes for _, takes, _ in found)


def _try_command(name: str, run: Callable[[], str]) -> tuple[str, bool, str]:
    try:
        return name, True, run()
    except Exception as error:
        return name, False, _format_reason(error).partition("; candidates: ")[0]  # the candidates are listed above


def _format_reason(error: Exception, *files: InputPaths) -> str:
    """Return why a file cannot be read or a command does not accept it, with option names as on the command line."""
    show_traceback()
    users = isinstance(error, ValueError | OSError | ImportError | MemoryError)
    return format_error(error) if users else format_internal_error(error, map(str, files))


@functools.cache
def _get_all_spellings() -> dict[str, str]:
    """Return a dict from argument names in Python to options of the command line, for all commands."""
    parsers = [build_command_parser(name) for name in COMMANDS]
    options = [{k: v for k, v in get_spellings(parser).items() if v.startswith("-")} for parser in parsers]
    return {name: option for one in options for name, option in one.items()}


def _list_facts(dataset: xr.Dataset) -> Iterator[tuple[str, str]]:
    """Yield label and text of each fact about the files: format, times, variables, grid."""
    files = dataset.encoding.get("files", 1)
    if "format" in dataset.encoding:
        yield "format", f"{dataset.encoding['format']}, {files} file{'s' * (files != 1)}"
    for name in ("title", "institution"):
        if name in dataset.attrs:
            yield name, str(dataset.attrs[name])
    time = find_dataset_time(dataset) or "time"
    if time in dataset.variables:
        yield "times", _describe_times(np.atleast_1d(dataset[time].values))
    fields = [dataset[name] for name in list_fields(dataset)]
    for variable in fields[:_MAX_LISTED]:
        sizes = ", ".join(f"{dim} {size}" for dim, size in variable.sizes.items())
        yield "variable", f"{variable.name} [{variable.attrs.get('units', 'no units')}] {sizes}"
    if len(fields) > _MAX_LISTED:
        yield "", f"and {len(fields) - _MAX_LISTED} more"
    if fields:
        empty = [dim for dim, size in fields[0].sizes.items() if size == 0]
        yield "grid", f"none, dimension {empty[0]} has length 0" if empty else _describe_grid(dataset, fields[0])


def _describe_times(times: np.ndarray) -> str:
    if not times.size:
        return "none"
    different = np.unique(times)
    ends = f"{len(times)}, {format_time(times[0])} to {format_time(times[-1])}"
    if len(different) < 2:
        return format_time(times[0]) if len(times) == 1 else ends
    if times.dtype.kind not in "MO":
        return f"{ends}, which are no dates"
    ends += f", {len(times) - len(different)} of them repeated" * (len(different) < len(times))
    try:
        segments, cadence, _ = find_regular_segments(different)
    except ValueError as error:
        return f"{ends}; {error}"
    months = _count_months(different)
    if months is not None:
        gaps = int((np.diff(months) > 1).sum())
        return f"{ends}, monthly" + f", {format_count(gaps, 'gap')}" * (gaps > 0)
    gaps = len(segments) - 1
    days, rest = divmod(cadence, 86400)
    step = f"{cadence / 60:g} min" if rest else format_count(int(days), "day")
    return f"{ends}, every {step}" + f", {format_count(gaps, 'gap')}" * (gaps > 0)


def _count_months(times: np.ndarray) -> np.ndarray | None:
    """Return month numbers if the times are monthly time stamps, else None.

    Monthly means one time per month, at positions within the months that differ by at most _MAX_MIDDLE_SPREAD days.
    """
    if times.dtype.kind == "M":
        months = times.astype("datetime64[M]")
        begun = (times - months) / np.timedelta64(1, "D")
        months = months.astype(int)
    else:
        months = np.array([12 * time.year + time.month for time in times])
        begun = np.array([time.day + time.hour / 24 for time in times])
    steps = np.diff(months)
    # Monthly means may be stamped mid-month, on the 14th to the 16th.
    return months if steps.min() == 1 and np.ptp(begun) <= _MAX_MIDDLE_SPREAD else None


def _describe_grid(dataset: xr.Dataset, field: xr.DataArray) -> str:
    spacing = grid_spacing_m(field)
    mappings = find_grid_mappings(dataset, field)
    kind = str(dataset[mappings[0]].attrs.get("grid_mapping_name", "its own projection")) if mappings else ""
    lat, lon = find_latitude_longitude(field)
    if lat is not None and lon is not None:
        kind += f"{' ' * bool(kind)}{float(lat.min()):.2f} to {float(lat.max()):.2f} N"
        west, east = _find_longitude_ends(lon.values)
        kind += f", {west:.2f} to {east:.2f} E"
    cells = "" if spacing is None or None in spacing else f", cells of {spacing[0]:.0f} x {spacing[1]:.0f} m"
    return (kind.replace("_", " ") or "no geographic coordinates") + cells


def _find_longitude_ends(longitude: np.ndarray) -> tuple[float, float]:
    """Return the western and eastern ends of longitudes in degrees; across the 360 degree jump, west exceeds east."""
    continuous = np.unwrap(longitude, period=FULL_CIRCLE) if longitude.ndim == 1 else longitude
    return float(longitude.flat[np.argmin(continuous)]), float(longitude.flat[np.argmax(continuous)])


def find_weights(models: Sequence[str] | None = None) -> list[str]:
    """Return the weights to try.

    Args:
        models: files, shipped names, or folders. A folder stands for its *.safetensors files and for the
            best.safetensors of the training runs in it. None: the current folder.

    Returns:
        Names and paths without repetition.

    Raises:
        FileNotFoundError: a name that is neither a file nor shipped weights, or a folder without weights.
    """
    found = []
    for name in ["."] if models is None else models:
        folder, files_of_name = Path(name), [name]
        if folder.is_dir():
            files = [file for one in ("*.safetensors", "*/best.safetensors") for file in sorted(folder.glob(one))]
            files_of_name = list(map(str, files))
            if models is not None and not files_of_name:
                raise FileNotFoundError(f"there are no weights, *.safetensors, in {name}")
        elif not folder.exists():
            load_card(name)  # raises an exception unless the name is one of the shipped weights
        found += files_of_name
    return list(dict.fromkeys(found))
