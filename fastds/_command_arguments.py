# SPDX-License-Identifier: Apache-2.0
"""Conversion of parsed command lines to arguments of the functions of tasks. Imports are delayed, as in fastds.cli."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from fastds._options import OptionError

READ_OPTIONS = ("missing", "units", "array", "start", "stop")
DOWNSCALE_OPTIONS = (
    "var", "tile", "halo", "threads", "precision", "device", "graph", "time_factor", "scale", "grid", "like", "members",
    "seed", "level", "static", "dynamics", "dtype", "coarsened", "smooth", *READ_OPTIONS,
)  # fmt: skip


ARCHIVE_OPTIONS = ("workers", "scheduler", "append", "keep_going", "chunks", "shards")
WHOLE_RESULT_OPTIONS = ("truth", "report", "picture")  # options that need the whole result in one file


def is_archive_requested(options) -> bool:
    """Return whether an option of archives was given."""
    return any(options[name] is not None and options[name] is not False for name in ARCHIVE_OPTIONS)


def collect_options(options, names: Sequence[str]) -> dict:
    """Return the values of the given options that are not None."""
    return {name: options[name] for name in names if options[name] is not None}


def set_memory_retention(enabled: bool = True) -> None:
    """Set whether this process retains freed memory, if the C library supports it.

    Retained memory saves page faults for large tensors.
    """
    from fastds import memory

    if memory.get_unsupported_reason() is None:
        with contextlib.suppress(RuntimeError):
            # raised for a preloaded allocator or a heap that cannot grow; both work without the setting
            memory.set_malloc_retention(enabled)


def parse_z_r(options) -> dict:
    """Return the option --z-r as an argument, if it was given."""
    if options.z_r is None:
        return {}
    a, b = options.z_r
    if not min(a, b) > 0:
        raise OptionError("z_r", f"must be two positive numbers A B, got {a:g} {b:g}")
    return {"z_r": (float(a), float(b))}


def parse_probability(options) -> dict:
    """Return the option --probability as an argument, if it was given."""
    if options.probability is None:
        return {}
    try:
        return {"probability": [float(rate) for rate in options.probability.split(",")]}
    except ValueError:
        text = "--probability must be growing rain rates in mm/h such as 1,5,10"
        raise ValueError(f"{text}, got {options.probability!r}") from None


def parse_mlcast_origin(options, task: str) -> dict:
    """Return the metadata of an MLCast archive as the argument `origin`, if an archive was requested."""
    from fastds.tasks.convert import make_origin

    origin = make_origin(options)
    if origin is None:
        return {}
    if task not in ("radar", "nowcast"):
        raise ValueError(f"--to mlcast is for radar fields, and the model is for {task}")
    if task == "nowcast" and (options.truth or options.report):
        raise ValueError("--to mlcast leaves the starts of forecasts out, which --truth and --report need")
    if is_archive_requested(options):
        raise ValueError("--to mlcast is for results that are made at once; fastds convert makes it of an archive")
    return {"origin": origin}


def collect_read_options(options) -> dict:
    """Return the options for reading files with observations: --var, --z-r and those in READ_OPTIONS."""
    return collect_options(options, ("var", *READ_OPTIONS)) | parse_z_r(options)


def collect_downscale_arguments(options) -> tuple[str, dict]:
    """Return the task of `fastds downscale` and the arguments of its function, without model and files.

    Args:
        options: parsed command line.

    Raises:
        ValueError: options that the task does not have, or invalid values.
    """
    from fastds.tasks.api import check_options, get_task_function, select_downscaling_task

    chosen = collect_options(options, DOWNSCALE_OPTIONS) | parse_z_r(options)
    task = select_downscaling_task(options.model, chosen)
    check_options(get_task_function(task, "downscale_file"), task, chosen, set(READ_OPTIONS))
    return task, chosen


_NOWCAST_OPTIONS = (
    "steps", "lead", "start", "every", "interval", "coarsen", "block", "smooth", "quantity", "members", "seed",
    "threads", "precision", "device", "graph", "picture", "truth", "dtype", "stop",
)  # fmt: skip


def collect_nowcast_arguments(options) -> dict:
    """Return the arguments of nowcast_file for `fastds nowcast`, without model and files.

    Args:
        options: parsed command line.

    Raises:
        ValueError: invalid values.
    """
    return collect_options(options, _NOWCAST_OPTIONS) | collect_nowcast_reading(options) | parse_probability(options)


def collect_nowcast_reading(options) -> dict:
    """Return the options of `fastds nowcast` for reading files: --var, --missing, --units, --array and --z-r."""
    return collect_options(options, ("var", "missing", "units", "array")) | parse_z_r(options)
