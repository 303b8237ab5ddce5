# SPDX-License-Identifier: Apache-2.0
"""The command `fastds watch`: check of its options, and its parts put together."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any

from fastds._options import OptionError
from fastds._version import __version__
from fastds.archive.lock import exclusive_lock
from fastds.data.grid.variables import parse_duration
from fastds.watch import state
from fastds.watch.arrivals import Arrivals
from fastds.watch.command_runner import CommandRunner
from fastds.watch.event_log import EventLog
from fastds.watch.heartbeat import Heartbeat
from fastds.watch.service import Service, Settings, format_output_name, get_exit_status
from fastds.watch.wake_up import WakeUp

_SETTLE_S, _HANG_S = 2.0, 300.0  # defaults of --settle and --hang
_LATE = {"downscale": "compute", "nowcast": "skip"}  # default of --late


def run_watch(options: Any, words: list[str]) -> int:
    """Run `fastds watch`.

    Args:
        options: Parsed options.
        words: Command line after "--".

    Returns:
        Exit status: 1 if a file was refused or an output postponed with --once, else 0.

    Raises:
        ValueError: Invalid options.
        OSError: A folder or file does not exist or cannot be written, or another process works on the output folder.
    """
    folder, target = _check_folders(options)
    log_file, heartbeat_file = (_check_file(options, name, folder) for name in ("log", "heartbeat"))
    numbers = {name: _check_number(options, name) for name in ("poll", "settle", "deadline", "hang", "window")}
    option_file = None if options.options is None else Path(options.options)
    runner = CommandRunner(words, option_file)
    if options.window is not None and runner.command != "nowcast":
        raise OptionError("window", f"is for nowcast, the command is {runner.command}")
    settings = Settings(
        name=options.name,
        late=options.late or _LATE[runner.command],
        keep=None if options.keep is None else parse_duration(options.keep, "keep"),
        deadline=numbers["deadline"],
        window=options.window or 0,
    )
    format_output_name(settings.name, "2024-06-01T12:00:00", "input.nc")
    target.mkdir(exist_ok=True)
    settle = _SETTLE_S if numbers["settle"] is None else numbers["settle"]
    with (
        exclusive_lock(target / state.NAME),
        contextlib.closing(EventLog(log_file)) as log,
        Heartbeat(heartbeat_file, numbers["hang"] or _HANG_S) as heartbeat,
        WakeUp(folder, numbers["poll"]) as wake_up,
    ):
        stored = state.State(target, runner.command)
        service = Service(Arrivals(folder, options.pattern, settle), stored, runner, settings, log, heartbeat, wake_up)
        log.write("started", message=f"fastds {__version__}, {wake_up.method}", command=words, pid=os.getpid())
        service.run(options.once)
        counts = {event: log.counts[event] for event in sorted(log.counts) if event not in ("started", "reloaded")}
        log.write("stopped", signal=wake_up.stop or None, counts=counts)
        return get_exit_status(log, options.once)


def _check_folders(options: Any) -> tuple[Path, Path]:
    folder, target = Path(options.input), Path(options.output)
    for path in (folder, target.absolute().parent):
        if not path.is_dir():
            raise FileNotFoundError(f"no such folder: {path}")
    if target.exists():
        if not target.is_dir():
            raise NotADirectoryError(f"OUT_FOLDER must be a folder, {target} is a file")
        if os.path.samefile(folder, target):
            raise ValueError(f"OUT_FOLDER must be another folder than IN_FOLDER, got {target} twice")
        if not os.access(target, os.W_OK):
            raise PermissionError(f"the folder of the output is read-only: {target}")
    return folder, target


def _check_file(options: Any, name: str, folder: Path) -> Path | None:
    """Return the path of a file to write, which must not lie in the input folder."""
    if options[name] is None:
        return None
    path = Path(options[name])
    if not path.absolute().parent.is_dir():
        raise OptionError(name, f": no such folder: {path.absolute().parent}")
    if os.path.samefile(path.absolute().parent, folder):
        raise OptionError(name, f"must not be in IN_FOLDER, got {path}")
    if path.is_dir():
        raise OptionError(name, f"must be a file, {path} is a folder")
    return path


def _check_number(options: Any, name: str) -> float | None:
    """Return the value of an option in seconds, or a number of times."""
    value = options[name]
    if value is None:
        return None
    if not math.isfinite(value) or value < 0 or (value == 0 and name != "settle"):
        raise OptionError(name, f"must be {'0 or more' if name == 'settle' else 'positive'}, got {value:g}")
    return value
