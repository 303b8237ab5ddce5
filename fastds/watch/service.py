# SPDX-License-Identifier: Apache-2.0
"""Service that computes the new files of a folder in the order of their valid times."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
import warnings
from pathlib import Path
from typing import Any

from fastds._messages import format_error, format_internal_error, show_traceback
from fastds._options import OptionError
from fastds.data.errors import find_system_errno
from fastds.watch.arrivals import Arrivals, read_times
from fastds.watch.command_runner import CommandRunner
from fastds.watch.durable_files import (
    Stamp,
    commit_durably,
    compute_digest,
    get_stamp,
    is_disk_full,
    make_temporary_path,
    remove_leftovers,
)
from fastds.watch.event_log import EventLog
from fastds.watch.heartbeat import Heartbeat
from fastds.watch.input_windows import Window, select_window
from fastds.watch.state import COMPUTED, DUPLICATE, LATE, REFUSED, SKIPPED, WAITING, Input, State
from fastds.watch.wake_up import WakeUp

_RESCAN_S = 0.5  # between two looks at the folder while outputs are computed
_SHORTEST_WAIT_S = 0.02
_ATTEMPTS = 3  # of an output after errors of the operating system other than a full disk
_RETRY_S = 10.0  # before a file that the operating system could not open is opened again


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the service.

    Attributes:
        name: Format of output names with the fields time (datetime) and stem (of the newest input).
        late: "compute" or "skip", for files that are older than the newest output.
        keep: Seconds of valid time for which outputs are kept; None: all are kept.
        deadline: Longest latency in seconds; None: no deadline.
        window: Least number of input times of a nowcast; 0: those that it needs.
    """

    name: str
    late: str
    keep: float | None = None
    deadline: float | None = None
    window: int = 0


class Service:
    """Service that computes the new files of a folder.

    Args:
        arrivals: Input folder.
        state: State in the output folder, which this process has locked.
        runner: Command to run.
        settings: Settings.
        log: Log of events.
        heartbeat: Heartbeat.
        wake_up: Signals and waiting.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        state: State,
        runner: CommandRunner,
        settings: Settings,
        log: EventLog,
        heartbeat: Heartbeat,
        wake_up: WakeUp,
    ):
        self.arrivals, self.state, self.runner, self.settings = arrivals, state, runner, settings
        self.log, self.heartbeat, self.wake_up = log, heartbeat, wake_up
        self._refused: dict[str, tuple[Stamp, float]] = {}  # stamp, monotonic time of the next attempt
        self._attempts: dict[str, int] = {}
        self._replaced: set[str] = set()  # inputs whose present contents have not been accepted
        self._has_scan_error, self._has_changed_input = False, False

    def run(self, once: bool) -> None:
        """Compute new files until a signal asks for the end.

        Args:
            once: Compute the files that are there, and return.
        """
        for name in remove_leftovers(self.state.folder):
            self.log.write("removed", output=name, message="left by a process that was killed")
        recovered = self.state.recover()
        if recovered is not None:
            self.log.write("computed", output=recovered, message="was complete when an earlier process was killed")
        self.state.retry_refused(self.settings.late == "compute")
        while not self.wake_up.stop:
            self.heartbeat.report_progress()
            if self.wake_up.reload:
                self._reload()
            self._has_changed_input = False
            self._accept_files()
            self._compute_ready()
            self._save_state()
            wait = 0.0 if self._has_changed_input else self.arrivals.get_wait()
            if once and (wait is None or self._has_scan_error):
                break
            if not self.wake_up.stop:
                longest = self.wake_up.interval
                self.wake_up.wait(longest if wait is None else min(longest, max(wait, _SHORTEST_WAIT_S)))

    def _reload(self) -> None:
        self.wake_up.reload = False
        try:
            self.log.reopen()
            self.runner.reload()
        except (ValueError, OSError, ImportError, MemoryError) as error:
            self.log.write("reloaded", message=f"failed, nothing has changed: {format_error(error)}")
        else:
            self.log.write("reloaded")

    def _save_state(self) -> bool:
        """Save the state; return False if the disk is full or fails, so that it is saved at the next turn."""
        try:
            self.state.save()
        except OSError as error:
            self.log.write("postponed", output=self.state.path.name, message=format_error(error))
            return False
        return True

    def _accept_files(self) -> None:
        """Find the complete files in the input folder."""
        try:
            found = self.arrivals.scan()
        except OSError as error:
            if not self._has_scan_error:
                self.log.write("postponed", message=f"the input folder cannot be read: {format_error(error)}")
            self._has_scan_error = True
            return
        self._has_scan_error = False
        self.state.forget_missing(set(found))
        for names in (self._refused, self._attempts):
            for name in names.keys() - found.keys():
                del names[name]
        self._replaced = {name for name, one in self.state.inputs.items() if one.stamp != found[name]}
        unknown = {name: stamp for name, stamp in found.items() if not self._is_known(name, stamp)}
        for name in self.arrivals.update(unknown):
            if self.wake_up.stop:
                return
            self.heartbeat.report_progress()
            self._accept_file(name)

    def _is_known(self, name: str, stamp: Stamp) -> bool:
        known = self.state.inputs.get(name)
        if known is not None and known.stamp == stamp:
            return True
        refused = self._refused.get(name)
        return refused is not None and refused[0] == stamp and time.monotonic() < refused[1]

    def _accept_file(self, name: str) -> None:
        """Read a file that has settled, and apply the rules for late and duplicate files."""
        path, candidate = self.arrivals.folder / name, self.arrivals.candidates[name]
        known = self.state.inputs.get(name)
        try:
            digest = compute_digest(path)
            if known is not None and known.digest == digest:
                known.stamp = candidate.stamp
                self._finish_candidate(name)
                self.log.write("duplicate", inputs=[name], message="was written again with the same contents")
                return
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are reported when the file is computed
                times, text = read_times(path, self.runner.var, self.runner.reading)
            output = format_output_name(self.settings.name, text, name)
        except Exception as error:
            self._refuse_file(name, error)
            return
        if self._get_stamp(name) != candidate.stamp:
            return  # it has changed again
        times = times if self.runner.command == "nowcast" else times[-1:]
        one = Input(candidate.stamp, digest, times, text, output, candidate.arrival)
        self._set_status(name, one)
        self.state.inputs[name] = one
        if known is not None and self.settings.late == "compute":
            self.state.recompute_users(name)
        self._finish_candidate(name)

    def _finish_candidate(self, name: str) -> None:
        self.arrivals.candidates.pop(name)
        self._refused.pop(name, None)
        self._replaced.discard(name)
        self.state.mark_changed()

    def _set_status(self, name: str, one: Input) -> None:
        """Give duplicate and late files their status."""
        known, newest, keep = self.state.inputs.get(name), self.state.newest, self.settings.keep
        other, output = self.state.find_same_contents(one.digest, name)
        facts: dict[str, Any] = {"inputs": [name], "valid_time": one.time}
        if other is not None:
            one.status = DUPLICATE
            self.log.write("duplicate", **facts, message=f"has the contents of {other}")
        elif output is not None:
            one.status = COMPUTED
            self.log.write("duplicate", **facts, message=f"has the contents from which {output} was computed")
        elif newest is None or one.valid_time >= newest:
            return
        elif keep is not None and one.valid_time < newest - keep:
            one.status = LATE
            self.log.write("late", **facts, message="is older than the outputs that are kept")
        elif self.settings.late == "skip" and not (known is not None and known.status == COMPUTED):
            one.status = LATE
            self.log.write("late", **facts, message="is older than the newest output, and gets none")

    def _refuse_file(self, name: str, error: Exception) -> None:
        candidate = self.arrivals.candidates[name]
        if self._get_stamp(name) != candidate.stamp:
            return  # still being written
        self.arrivals.candidates.pop(name)
        again = isinstance(error, OSError) and find_system_errno(error) is not None
        if name not in self._refused or self._refused[name][0] != candidate.stamp:
            self.log.write("refused", inputs=[name], message=self._describe(error, [name]))
        self._refused[name] = candidate.stamp, time.monotonic() + _RETRY_S if again else float("inf")

    def _describe(self, error: BaseException, names: list[str]) -> str:
        show_traceback()
        users = isinstance(error, ValueError | OSError | ImportError | MemoryError)
        return format_error(error) if users else format_internal_error(error, names)

    def _get_stamp(self, name: str) -> Stamp | None:
        try:
            return get_stamp(self.arrivals.folder / name)
        except OSError:
            return None

    def _compute_ready(self) -> None:
        """Compute the outputs whose inputs are complete, until the disk is full."""
        scanned, tried = time.monotonic(), set[str]()
        while not self.wake_up.stop:
            name, files = self._find_next(tried)
            if name is None:
                return
            tried.add(name)
            self.heartbeat.report_progress()
            if not self._compute(name, files):
                return
            if time.monotonic() - scanned > _RESCAN_S:
                self._accept_files()
                scanned = time.monotonic()

    def _find_next(self, tried: set[str]) -> tuple[str | None, list[str]]:
        """Return the waiting input with the earliest valid time whose input files are complete, and these files."""
        inputs, left_out = self.state.inputs, tried | self._replaced
        waiting = [name for name, one in inputs.items() if one.status == WAITING and name not in left_out]
        for name in sorted(waiting, key=lambda name: (inputs[name].valid_time, inputs[name].arrival, name)):
            if self.runner.command != "nowcast":
                return name, [name]
            if self._is_superseded(name):
                continue
            try:
                window = self._select_window(name)
            except (ValueError, OSError, ImportError) as error:
                self._finish_without_output(name, REFUSED, "refused", format_error(error))
                continue
            if not window.gap:
                return name, window.files
            if inputs[name].gap != window.gap:
                inputs[name].gap = window.gap
                self.state.mark_changed()
                self.log.write("gap", inputs=[name], valid_time=inputs[name].time, message=window.gap)
        return None, []

    def _select_window(self, name: str) -> Window:
        """Select the input files of a nowcast, and record the time step of the inputs."""
        state, offsets = self.state, self.runner.find_input_offsets
        known: dict[str, Any] = {"unusable": self._replaced, "cadence": state.cadence}
        window = select_window(name, state.inputs, offsets, self.settings.window, **known)
        if window.cadence != state.cadence:
            state.cadence = window.cadence
            state.mark_changed()
        return window

    def _is_superseded(self, name: str) -> bool:
        """Skip a waiting nowcast if a later one is written, or if a file of the same time has arrived since."""
        inputs, newest = self.state.inputs, self.state.newest
        one = inputs[name]
        if one.gap and self.settings.late == "skip" and newest is not None and one.valid_time < newest:
            self._finish_without_output(name, SKIPPED, "skipped", "a later nowcast is written")
            return True
        others = (
            other
            for other, values in inputs.items()
            if other != name
            and values.valid_time == one.valid_time
            and (values.arrival, other) > (one.arrival, name)
            and values.status in (WAITING, COMPUTED)
        )
        other = next(others, None)
        if other is not None:
            self._finish_without_output(name, SKIPPED, "skipped", f"{other} has the same time and arrived later")
        return other is not None

    def _finish_without_output(self, name: str, status: str, event: str, message: str) -> None:
        one = self.state.inputs[name]
        one.status = status
        self.state.mark_changed()
        self.log.write(event, inputs=[name], valid_time=one.time, message=message)

    def _compute(self, name: str, files: list[str]) -> bool:
        """Compute an output and write it; return False if the disk is full or fails, so that it is tried again."""
        one, began = self.state.inputs[name], time.monotonic()
        target = self.state.folder / one.output
        temporary = make_temporary_path(target)
        facts: dict[str, Any] = {"inputs": files, "output": one.output, "valid_time": one.time}
        try:
            self.state.begin(name, files)
            messages = self.runner.run([self.arrivals.folder / file for file in files], temporary)
            replaces = target.exists()
            is_changed = self._is_changed(files)
            if not is_changed:
                commit_durably(temporary, target)
        except Exception as error:
            self._abandon(temporary)
            if self._is_changed(files):
                return True
            return self._handle_failure(name, error, facts, temporary)
        if is_changed:  # the files are read again when they have settled
            self._abandon(temporary)
            return True
        self._attempts.pop(name, None)
        self.state.finish()
        seconds, latency = time.monotonic() - began, time.time() - max(self.state.inputs[f].arrival for f in files)
        facts |= {"seconds": round(seconds, 3), "latency": round(latency, 3)}
        self.log.write("computed", **facts, replaced=replaces or None, warnings=messages or None)
        if self.settings.deadline is not None and latency > self.settings.deadline:
            self.log.write("deadline_missed", **facts, deadline=self.settings.deadline)
        self._remove_old_outputs()
        self._save_state()
        return True

    def _is_changed(self, files: list[str]) -> bool:
        """Return whether a file was written again since it was accepted. Files that were removed are unchanged."""
        stamps = {file: self._get_stamp(file) for file in files}
        changed = any(stamp is not None and stamp != self.state.inputs[file].stamp for file, stamp in stamps.items())
        self._has_changed_input |= changed
        return changed

    def _abandon(self, temporary: Path) -> None:
        self.state.computing = None
        self.state.mark_changed()
        try:
            temporary.unlink(missing_ok=True)
        except OSError as error:
            self.log.write("postponed", output=temporary.name, message=format_error(error))

    def _handle_failure(self, name: str, error: Exception, facts: dict[str, Any], temporary: Path) -> bool:
        """Postpone an output after an error of the operating system, else refuse it; return whether to go on."""
        target = temporary.with_name(facts["output"])
        message = self._describe(error, facts["inputs"]).replace(str(temporary), str(target))
        if is_disk_full(error):
            self.log.write("postponed", **facts, message=message)
            return False
        if any(self._get_stamp(file) is None for file in facts["inputs"]):
            self.log.write("skipped", **facts, message="an input was removed before the output was computed")
            return True
        self._attempts[name] = attempts = self._attempts.get(name, 0) + 1
        if isinstance(error, OSError) and attempts < _ATTEMPTS:
            self.log.write("postponed", **facts, message=message)
            return True
        self._attempts.pop(name)
        self.state.inputs[name].status = REFUSED
        self.log.write("refused", **facts, message=message)
        return True

    def _remove_old_outputs(self) -> None:
        self.state.forget_removed_outputs()
        if self.settings.keep is not None:
            for name in self.state.remove_outputs(self.settings.keep):
                self.log.write("removed", output=name)


def format_output_name(form: str, time: str, name: str) -> str:
    """Return the name of an output.

    Args:
        form: Format with the fields time and stem.
        time: Valid time as format_time writes it.
        name: Name of the newest input.

    Raises:
        ValueError: The format cannot be applied, or its result is not the name of a NetCDF file.
    """
    values: dict[str, Any] = {"stem": Path(name).stem, "time": time}
    with contextlib.suppress(ValueError):  # days that only other calendars have can be written as they are
        values["time"] = datetime.datetime.fromisoformat(time)
    try:
        output = form.format(**values)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        problem = f"unknown field {error}" if isinstance(error, KeyError) else format_error(error)
        raise OptionError("name", f"must be a format with the fields time and stem, got {form!r}: {problem}") from None
    if not output.endswith(".nc") or "/" in output or output.startswith("."):
        raise OptionError("name", f"must give the name of a NetCDF file, such as {{stem}}.nc, got {output!r}")
    return output


def get_exit_status(log: EventLog, once: bool) -> int:
    """Return 1 if a file was refused or an output postponed by a process that runs once, else 0."""
    return int(once and (log.counts["refused"] > 0 or log.counts["postponed"] > 0))
