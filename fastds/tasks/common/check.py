# SPDX-License-Identifier: Apache-2.0
"""fastds check: what files are, what each command would do with them, and what stands in the way."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from jsonargparse import Namespace

from fastds._parsers import COMMANDS, parser_of
from fastds._sentences import internal_error, sentence_of, show_traceback, with_options
from fastds.data import ReflectivityInput, grid_spacing_m, opened, to_reflectivity
from fastds.data.formats.opening import Source
from fastds.data.grid.axes import FULL_CIRCLE, time_of
from fastds.data.grid.grids import grid_mappings, latitude_longitude
from fastds.data.grid.times import regular_segments, text_of
from fastds.data.grid.variables import field_names, only_rain
from fastds.data.io.mlcast import check_mlcast
from fastds.models import available, load_card
from fastds.tasks.common.tables import counted
from fastds.tasks.verbs import DOWNSCALING, evaluating_task, task_function

_MOST = 8  # variables that are listed
_OF_RADAR = ("downscale", "nowcast")
_MIDDLES = 2.0  # days between the middles of a long month and of a short one


def check_all(options: Namespace, reading: dict) -> int:
    """Run the command with its options and those of reading files: prints what it finds, returns 0 or 2."""
    good, weights = True, weights_of(options.model)
    for number, path in enumerate(options.inputs):
        print("" if number == 0 else "\n", end="")
        good &= check(path, options.var, weights, **reading)
    return 0 if good else 2


def check(path: Source, var: str | None = None, weights: Sequence[str] = (), **reading) -> bool:
    """Print what the files at a path are and what takes them; whether a command does.

    var and reading: see fastds.data.opened. weights: files and names of weights that are tried beside the shipped
    ones."""
    print(path)
    try:
        with warnings.catch_warnings(record=True) as caught, opened(path, var, **reading) as dataset:
            warnings.simplefilter("always", UserWarning)
            for name, text in _facts(dataset):
                print(f"  {name:10} {text}")
            found = [_tried(name, run) for name, run in _commands(dataset, var, weights)]
    except Exception as error:
        print(f"  cannot be read: {_reason(error, path)}")
        return False
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"  warning    {with_options(text, _options())}")
    alike: dict[tuple[bool, str], list[str]] = {}
    for name, takes, text in found:
        alike.setdefault((takes, text), []).append(name)
    for (takes, text), names in sorted(alike.items(), key=lambda one: not one[0][0]):  # what can be done comes first
        label = ", ".join(names)
        if not takes and set(_OF_RADAR) <= set(names):
            label = f"radar commands ({label})"
        print(f"  {'can' if takes else 'cannot':10} {label}: {text}")
    return any(takes for _, takes, _ in found)


def _tried(name: str, run: Callable[[], str]) -> tuple[str, bool, str]:
    try:
        return name, True, run()
    except Exception as error:
        return name, False, _reason(error).partition("; candidates: ")[0]  # which are listed above


def _reason(error: Exception, *files: Source) -> str:
    """Why a file cannot be read or a command does not take it, in the words of the command line."""
    show_traceback()
    users = isinstance(error, ValueError | OSError | ImportError | MemoryError)
    return with_options(sentence_of(error) if users else internal_error(error, map(str, files)), _options())


@functools.cache
def _options() -> frozenset[str]:
    """The options of all commands, as Python spells them."""
    return frozenset(action.dest for name in COMMANDS for action in parser_of(name)._actions)


def _facts(dataset: xr.Dataset) -> Iterator[tuple[str, str]]:
    """Name and text of what is known of the files."""
    files = dataset.encoding.get("files", 1)
    yield "format", f"{dataset.encoding.get('format')}, {files} file{'s' * (files != 1)}"
    for name in ("title", "institution"):
        if name in dataset.attrs:
            yield name, str(dataset.attrs[name])
    time = time_of(dataset) or "time"
    if time in dataset.variables:
        yield "times", _times(np.atleast_1d(dataset[time].values))
    fields = [dataset[name] for name in field_names(dataset)]
    for variable in fields[:_MOST]:
        sizes = ", ".join(f"{dim} {size}" for dim, size in variable.sizes.items())
        yield "variable", f"{variable.name} [{variable.attrs.get('units', 'no units')}] {sizes}"
    if len(fields) > _MOST:
        yield "", f"and {len(fields) - _MOST} more"
    if fields:
        empty = [dim for dim, size in fields[0].sizes.items() if size == 0]
        yield "grid", f"none, dimension {empty[0]} has length 0" if empty else _grid(dataset, fields[0])


def _times(times: np.ndarray) -> str:
    if not times.size:
        return "none"
    different = np.unique(times)
    ends = f"{len(times)}, {text_of(times[0])} to {text_of(times[-1])}"
    if len(different) < 2:
        return text_of(times[0]) if len(times) == 1 else ends
    if times.dtype.kind not in "MO":
        return f"{ends}, which are no dates"
    ends += f", {len(times) - len(different)} of them repeated" * (len(different) < len(times))
    try:
        segments, cadence, _ = regular_segments(different)
    except ValueError as error:
        return f"{ends}; {error}"
    months = _months(different)
    if months is not None:
        gaps = int((np.diff(months) > 1).sum())
        return f"{ends}, monthly" + f", {counted(gaps, 'gap')}" * (gaps > 0)
    gaps = len(segments) - 1
    days, rest = divmod(cadence, 86400)
    step = f"{cadence / 60:g} min" if rest else counted(int(days), "day")
    return f"{ends}, every {step}" + f", {counted(gaps, 'gap')}" * (gaps > 0)


def _months(times: np.ndarray) -> np.ndarray | None:
    """The months since some month of times that are at the same place of different months, else None."""
    if times.dtype.kind == "M":
        months = times.astype("datetime64[M]")
        begun = (times - months) / np.timedelta64(1, "D")
        months = months.astype(int)
    else:
        months = np.array([12 * time.year + time.month for time in times])
        begun = np.array([time.day + time.hour / 24 for time in times])
    steps = np.diff(months)
    # Means of months may be at their middle, on the 14th to the 16th.
    return months if steps.min() == 1 and np.ptp(begun) <= _MIDDLES else None


def _grid(dataset: xr.Dataset, field: xr.DataArray) -> str:
    spacing = grid_spacing_m(field)
    mappings = grid_mappings(dataset, field)
    kind = str(dataset[mappings[0]].attrs.get("grid_mapping_name", "its own projection")) if mappings else ""
    lat, lon = latitude_longitude(field)
    if lat is not None:
        kind += f"{' ' * bool(kind)}{float(lat.min()):.2f} to {float(lat.max()):.2f} N"
        west, east = _west_and_east(lon.values)
        kind += f", {west:.2f} to {east:.2f} E"
    cells = "" if spacing is None or None in spacing else f", cells of {spacing[0]:.0f} x {spacing[1]:.0f} m"
    return (kind.replace("_", " ") or "no coordinates that tell a place") + cells


def _west_and_east(longitude: np.ndarray) -> tuple[float, float]:
    """The ends of longitudes; where they jump by 360 degrees the western one is the larger number."""
    turned = np.unwrap(longitude, period=FULL_CIRCLE) if longitude.ndim == 1 else longitude
    return float(longitude.flat[np.argmin(turned)]), float(longitude.flat[np.argmax(turned)])


def _commands(dataset: xr.Dataset, var: str | None, weights: Sequence[str]) -> Iterator[tuple[str, Callable[[], str]]]:
    """Every command and what says how it would take the dataset, or raises ValueError with the reason."""
    radar = functools.cache(lambda: _radar(dataset, var))
    yield "downscale", lambda: task_function("radar", "plan")(radar())
    yield "nowcast", lambda: task_function("nowcast", "plan")(_of_several(radar, dataset, var))
    yield "downscale --scale 2", lambda: task_function("fields", "plan")(None, dataset, var)
    for name in available(pretrained=True):
        task = load_card(name).task
        if task in DOWNSCALING and task not in ("radar", "fields"):
            yield (
                f"downscale --model {name}",
                lambda task=task, name=name: _unchosen(task, name, dataset, var),
            )
    for name in weights:
        yield _with_weights(name, dataset, var, radar)
    yield "query", lambda: task_function("fields", "query_plan")(dataset, var)
    yield "evaluate", lambda: _compared(dataset, var, radar)
    yield "convert", lambda: _converted(dataset)
    yield "convert --to mlcast", lambda: _archived(dataset, var)


def weights_of(models: Sequence[str] | None = None) -> list[str]:
    """The weights that are tried: files, shipped names, and of a folder its *.safetensors and the best.safetensors of
    the trainings in it; None: those of the current folder.

    Raises: FileNotFoundError for a name of nothing, and for a folder that was named and has no weights."""
    found = []
    for name in ["."] if models is None else models:
        folder, own = Path(name), [name]
        if folder.is_dir():
            files = [file for one in ("*.safetensors", "*/best.safetensors") for file in sorted(folder.glob(one))]
            own = list(map(str, files))
            if models is not None and not own:
                raise FileNotFoundError(f"there are no weights, *.safetensors, in {name}")
        elif not folder.exists():
            load_card(name)  # raises but for shipped weights
        found += own
    return list(dict.fromkeys(found))


def _with_weights(
    name: str, dataset: xr.Dataset, var: str | None, radar: Callable[[], ReflectivityInput]
) -> tuple[str, Callable[[], str]]:
    """The command that takes weights, and what says how it would take the dataset."""
    try:
        task = load_card(name).task or "radar"  # which says what the card lacks
    except (ValueError, OSError) as error:
        return f"downscale --model {name}", functools.partial(_raise, error)
    if task == "nowcast":
        return f"nowcast --model {name}", lambda: _unchosen(task, _of_several(radar, dataset, var), name)
    if task == "radar":
        return f"downscale --model {name}", lambda: _unchosen(task, radar(), name)
    scale = " --scale 2" if task == "fields" else ""
    return f"downscale --model {name}{scale}", lambda: _unchosen(task, name, dataset, var)


def _raise(error: Exception) -> str:
    raise error


def _unchosen(task: str, *given: object) -> str:
    """The plan of a network that nobody chose: how far the inputs lie off stands in it, and is no warning. given: to
    the task's plan."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* outside the ranges? that ", UserWarning)
        return with_options(task_function(task, "plan")(*given), _options())


def _radar(dataset: xr.Dataset, var: str | None) -> ReflectivityInput:
    """The radar fields, whose values are plausible, which reads them all."""
    source = to_reflectivity(dataset, var, least=1)
    source.check(stacklevel=3)
    return source


def _of_several(radar: Callable[[], ReflectivityInput], dataset: xr.Dataset, var: str | None) -> ReflectivityInput:
    """The radar fields where there are several times."""
    to_reflectivity(dataset, var)  # refuses a single one, and reads no values
    return radar()


def _compared(dataset: xr.Dataset, var: str | None, radar: Callable[[], ReflectivityInput]) -> str:
    """What `evaluate` would take a dataset for."""
    task = evaluating_task(dataset, var)
    if task == "nowcast":
        return "forecasts, as PRED"
    if task == "radar":
        return f"{_of_several(radar, dataset, var).source_name}, as PRED or TRUTH of radar fields"
    names = task_function(task, "evaluate_plan")(dataset, var)
    listed = ", ".join(names[:_MOST]) + f" and {len(names) - _MOST} more" * (len(names) > _MOST)
    return f"{listed}, as PRED or TRUTH of gridded fields"


def _converted(dataset: xr.Dataset) -> str:
    if not field_names(dataset):
        raise ValueError("there is no field")
    return "to CF, OUT.nc, or OUT.zarr with --to cf"


def _archived(dataset: xr.Dataset, var: str | None) -> str:
    chosen = var or only_rain(dataset)
    check_mlcast(dataset, "OUT.zarr", chosen)
    return "to an archive in MLCast's form"
