# SPDX-License-Identifier: Apache-2.0
"""State of `fastds watch` in the output folder, from which a restarted process continues."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from fastds.watch.durable_files import Stamp, get_identity, write_durably

NAME = "fastds-watch.json"
_VERSION = 1
WAITING, COMPUTED, LATE, DUPLICATE = "waiting", "computed", "late", "duplicate"
SKIPPED, REFUSED = "skipped", "refused"


@dataclasses.dataclass
class Input:
    """Complete input file.

    Attributes:
        stamp: Size and modification time of the file.
        digest: SHA-256 of its contents.
        times: Valid times that later outputs may need, in seconds since 1970, ascending; the last is that of the file.
        time: Last valid time as text.
        output: Name of the output file.
        arrival: Time of arrival in seconds since 1970.
        status: WAITING (for its output), COMPUTED, LATE, DUPLICATE, SKIPPED or REFUSED. Nowcasts use files of each
            status as input fields of others.
        gap: Description of the fields that its nowcast lacks, as it was logged; "" if there is no gap.
    """

    stamp: Stamp
    digest: str
    times: list[float]
    time: str
    output: str
    arrival: float
    status: str = WAITING
    gap: str = ""

    @property
    def valid_time(self) -> float:
        """Last valid time in seconds since 1970."""
        return self.times[-1]


@dataclasses.dataclass
class Output:
    """Output file.

    Attributes:
        time: Valid time in seconds since 1970.
        inputs: Names of the input files, the newest last.
        digest: Digest of the newest input file.
    """

    time: float
    inputs: list[str]
    digest: str


class State:
    """Inputs and outputs of a folder, stored as JSON.

    Args:
        folder: Output folder.
        command: "nowcast" or "downscale".

    Attributes:
        inputs: Inputs by name. Those that are no longer in the input folder are dropped.
        outputs: Outputs by name. Those that were removed are dropped.
        newest: Valid time of the newest output that was ever written, in seconds since 1970; None: no output.
        cadence: Time step of the inputs of nowcasts in seconds; None: unknown.
        computing: Output that is being written.

    Raises:
        ValueError: The state file is damaged, or is that of another command or version.
        OSError: The state file cannot be read.
    """

    def __init__(self, folder: Path, command: str):
        self.folder, self.command, self.path = folder, command, folder / NAME
        self.inputs: dict[str, Input] = {}
        self.outputs: dict[str, Output] = {}
        self.newest: float | None = None
        self.cadence: float | None = None
        self.computing: dict[str, Any] | None = None
        self._is_saved = True
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            version, command = found["version"], found["command"]
            if version == _VERSION:
                self.inputs = {name: Input(**values) for name, values in found["inputs"].items()}
                self.outputs = {name: Output(**values) for name, values in found["outputs"].items()}
                self.newest, self.cadence, self.computing = (found[k] for k in ("newest", "cadence", "computing"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path} is not a state file of fastds watch ({type(error).__name__}: {error}); move it away to "
                "compute all inputs again"
            ) from error
        if version != _VERSION:
            raise ValueError(f"{self.path} has version {version}, expected {_VERSION}; move it away to start anew")
        if command != self.command:
            raise ValueError(
                f"{self.folder} has the outputs of fastds watch ... -- {command}; take another OUT_FOLDER for "
                f"{self.command}"
            )

    def mark_changed(self) -> None:
        """Record that the state differs from the file."""
        self._is_saved = False

    def save(self) -> None:
        """Write the state if it has changed.

        Raises:
            OSError: The file cannot be written, and is unchanged.
        """
        if self._is_saved:
            return
        stored = {
            "version": _VERSION,
            "command": self.command,
            "newest": self.newest,
            "cadence": self.cadence,
            "computing": self.computing,
            "inputs": {name: dataclasses.asdict(one) for name, one in self.inputs.items()},
            "outputs": {name: dataclasses.asdict(one) for name, one in self.outputs.items()},
        }
        write_durably(self.path, json.dumps(stored, ensure_ascii=True, separators=(",", ":")))
        self._is_saved = True

    def begin(self, name: str, inputs: list[str]) -> None:
        """Store that the output of an input is being computed, before it is written.

        Args:
            name: Newest input.
            inputs: All input files.

        Raises:
            OSError: The state cannot be written.
        """
        one = self.inputs[name]
        digests = {other: self.inputs[other].digest for other in inputs}
        identity = get_identity(self.folder / one.output)
        self.computing = {"input": name, "output": one.output, "time": one.valid_time, "digests": digests}
        self.computing |= {"replaces": identity}
        self.mark_changed()
        self.save()

    def finish(self, status: str = COMPUTED) -> None:
        """Record that the output that was being computed is written, or has another status.

        Args:
            status: New status of its newest input.
        """
        assert self.computing is not None
        name, output, time = (self.computing[key] for key in ("input", "output", "time"))
        digests = self.computing["digests"]
        one = self.inputs.get(name)
        if one is not None and one.digest == digests[name]:
            one.status = status
        if status == COMPUTED:
            others = [other for other in digests if other != name]
            self.outputs[output] = Output(time, [*others, name], digests[name])
            self.newest = time if self.newest is None else max(self.newest, time)
        self.computing = None
        self.mark_changed()

    def recover(self) -> str | None:
        """Finish the output that a killed process was writing, if it has its final name.

        Returns:
            Name of the output, or None if there is none, so that it must be computed.
        """
        if self.computing is None:
            return None
        output = self.computing["output"]
        identity = get_identity(self.folder / output)
        if identity is not None and identity != self.computing["replaces"]:
            self.finish()
            return output
        self.computing = None
        self.mark_changed()
        return None

    def find_same_contents(self, digest: str, besides: str) -> tuple[str | None, str | None]:
        """Find what has the contents of an input.

        Args:
            digest: SHA-256 of the contents.
            besides: Name of the input.

        Returns:
            Name of another input with these contents, and name of an output that was computed from them; None for none.
        """
        others = (name for name, one in self.inputs.items() if one.digest == digest and name != besides)
        outputs = (name for name, one in self.outputs.items() if one.digest == digest)
        return next(others, None), next(outputs, None)

    def retry_refused(self, late: bool) -> None:
        """Let inputs wait again that were refused, because options or other files may have changed since.

        Args:
            late: Whether those that are older than the newest output wait, too.
        """
        for one in self.inputs.values():
            if one.status == REFUSED and (late or self.newest is None or one.valid_time >= self.newest):
                one.status = WAITING
                self.mark_changed()

    def recompute_users(self, name: str) -> None:
        """Let the outputs be computed again that used an input."""
        for output in self.outputs.values():
            newest = self.inputs.get(output.inputs[-1])
            if name in output.inputs[:-1] and newest is not None:
                newest.status = WAITING
                self.mark_changed()

    def forget_missing(self, present: set[str]) -> None:
        """Drop the inputs that are no longer in the input folder.

        Args:
            present: Names in the input folder.
        """
        for name in self.inputs.keys() - present:
            del self.inputs[name]
            self.mark_changed()

    def forget_removed_outputs(self) -> None:
        """Drop the outputs that another program has removed."""
        present = set(os.listdir(self.folder))
        for name in self.outputs.keys() - present:
            del self.outputs[name]
            self.mark_changed()

    def remove_outputs(self, keep: float) -> list[str]:
        """Remove the files of outputs that are older than the newest output by more than `keep` seconds.

        Returns:
            Names of the removed files. A file that cannot be removed stays in the state.
        """
        limit = -float("inf") if self.newest is None else self.newest - keep
        removed = []
        for name in [name for name, one in self.outputs.items() if one.time < limit]:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError:
                continue
            del self.outputs[name]
            removed.append(name)
            self.mark_changed()
        return removed
