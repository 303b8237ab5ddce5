# SPDX-License-Identifier: Apache-2.0
"""Downscale or nowcast an archive: every piece once, however often the run is killed."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from fastds._outputs import place_of, put_in_place
from fastds.archive.lock import alone
from fastds.archive.manifest import Manifest, Wanted
from fastds.archive.request import Request, dataset_of, job_of, readable
from fastds.archive.store import Store
from fastds.archive.workers import Made, check_workers, made_of, threads_of
from fastds.data.formats.opening import Source, files_of
from fastds.data.grid.axes import time_of
from fastds.data.io.files import names_zarr
from fastds.data.io.packing import check_stored
from fastds.data.packages import require
from fastds.data.reading import Reading, opened
from fastds.inference.chunking import choose_chunk_steps
from fastds.inference.execution import resolve_device
from fastds.inference.files import RunSummary, check_target, describe_source
from fastds.inference.progress import progress_bar
from fastds.inference.tables import format_count

_MANY = 16  # workers that a scheduler may have
_MOST_SAID = 5  # warnings and errors that are printed of each kind


def compute_archive(
    task: str,
    source: Source,
    target: str | os.PathLike,
    *,
    model: str | None = None,
    options: Mapping | None = None,
    reading: Reading | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    append: bool = False,
    keep_going: bool = False,
    dtype: str = "input",
    threads: int | None = None,
    progress: bool = False,
) -> RunSummary:
    """Downscale or nowcast many files into one Zarr store.

    The work is cut into pieces along time. target.part is filled and becomes target at the end; beside it lies a
    manifest of the pieces that are done. The same call goes on where a killed one stopped, and computes nothing again.
    Every piece has the bits that one process computes of the whole, on a GPU to rounding.

    Args:
        task: of fastds.tasks. source: a file, folder, pattern or list, see fastds.data.open_dataset.
        target: a name that ends in .zarr; a store that is there is replaced at the end, but for append.
        model, options: as in the task's `prepare`. reading: see fastds.data.reading.
        workers: processes on this machine; None: 1. scheduler: address or file of a dask scheduler, whose workers are
            taken instead.
        append: the files are those of the target and later ones; only what these bring is computed, in the target
            itself, whose new fields are missing until then. Without a target it is made.
        keep_going: leave out files that cannot be read, or that come too late to be appended, and pieces that fail, and
            say so; else the first ends the run.
        dtype: "input", integers where the input has packed ones, or "float32".
        threads: of torch in each worker; None: the cores of this machine shared by its workers.
        progress: say how far it is.

    Returns: what was done. Raises: what open_dataset and the task raise; ValueError for a target that is no Zarr store,
        or that an unfinished run of another kind left, and for files that do not continue those of the target;
        BlockingIOError where another process works on the target.
    """
    require("zarr", "archives")
    require("dask", "archives")
    workers = _checked(source, Path(target), workers, scheduler, dtype)
    target = place_of(target)
    if append:
        _check_begun(target)
    files, left_out = readable(source) if keep_going else (tuple(map(str, files_of(source))), [])
    threads = threads_of(threads, workers, scheduler)
    options = dict(options or {})
    if scheduler is None and "device" in options:  # a run that goes on elsewhere must not take another one
        options["device"] = resolve_device(options["device"])
    form = {"dtype": dtype, "threads": threads}
    request = Request(task, files, model, options, dict(reading or {}), **form)
    if append and target.exists():  # before the files are opened, which may be many
        _check_continues(Manifest(target), target, Wanted.by(request))
    job = job_of(request)
    if not job.dim:
        raise ValueError("an archive has several times or forecasts; leave out workers, scheduler and append for one")
    wanted = Wanted.by(request)
    with alone(target):
        folder, manifest = _place(target, wanted, append)
        store = Store(folder, job)
        if folder == target:
            late = _late(request, store, manifest, wanted) if keep_going else []
            if late:
                left_out += [f"{file} holds times before the last of {target}" for file in late]
                request = dataclasses.replace(request, files=tuple(f for f in files if f not in late))
                job, wanted = job_of(request), Wanted.by(request)
                store = Store(folder, job)
            _grow(store, manifest, wanted)
        else:
            _begin(store, manifest, request, wanted, choose_chunk_steps(job, _MANY if scheduler else workers))
        pieces = job.make_chunks(manifest.steps)
        todo = [piece for piece in pieces if piece not in manifest.done]
        with contextlib.closing(made_of(job, folder.absolute(), todo, workers, scheduler)) as makes:
            made = _make(makes, len(todo), store, manifest, keep_going, progress)
        failed = [f"{store.times(one.piece)}: {one.error}" for one in made if one.error]
        if folder != target:
            put_in_place(folder, target)
            manifest.move(target)
    _warn(made)
    report = job.make_summary()
    report.notes[:0] = describe_source(dataset_of(request))
    report.notes += [*_told(len(pieces), made), *_some([*left_out, *failed]), f"wrote {target}"]
    return report


def _checked(source: Source, target: Path, workers: int | None, scheduler: str | None, dtype: str) -> int:
    """The number of workers. Raises: ValueError for what cannot be."""
    check_target(source, target)
    if not names_zarr(target):
        raise ValueError(f"the output of an archive is a Zarr store, whose name ends in .zarr, got {target}")
    check_stored(dtype)
    return check_workers(workers, scheduler)


def _place(target: Path, wanted: Wanted, append: bool) -> tuple[Path, Manifest]:
    """The folder that is worked on, target itself where that is complete or grows, and its manifest."""
    part = target.with_name(target.name + ".part")
    if target.exists() and not part.exists() and Manifest(part).told:
        Manifest(part).move(target)  # the run was killed behind its last step but one
    manifest = Manifest(target)
    if target.exists() and (append or manifest.is_of(wanted)):
        return target, manifest
    return part, Manifest(part)


def _begin(store: Store, manifest: Manifest, request: Request, wanted: Wanted, steps: int) -> None:
    """Make an empty store, or find that of a killed run; steps: of a new piece."""
    if store.path.exists() and manifest.told is not None:
        if not manifest.is_of(wanted):
            raise ValueError(
                f"{store.path} is unfinished and of other files or options: repeat that command to go on with it, or "
                "remove the folder"
            )
        return
    manifest.remove()
    store.create(dataset_of(request), request.dtype)
    manifest.begin(wanted, steps, store.length)


def _check_begun(target: Path) -> None:
    """Raise ValueError for a store that nothing can be appended to, as no manifest tells what it was made of."""
    part = target.with_name(target.name + ".part")
    moved = not part.exists() and Manifest(part).told is not None  # the run was killed before it moved the manifest
    if target.exists() and Manifest(target).told is None and not moved:
        raise ValueError(
            f"{target} cannot be continued: there is no {target.name}.manifest, which tells what it was made of and is "
            "written with the arguments workers and append; remove the store, or give another name, and run this again"
        )


def _check_continues(manifest: Manifest, target: Path, wanted: Wanted) -> None:
    """Raise ValueError, with what differs, for a store of other options or of other files than the first of these."""
    if manifest.told is None or manifest.grows_to(wanted):
        return
    differ = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for old, new in zip(_flat(manifest.told), _flat(wanted.told), strict=True)
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    known = [file for file in manifest.files if wanted.files.get(file) != manifest.files[file]]
    gone = [f"{file} {'has changed' if file in wanted.files else 'is not among the files'}" for file in known]
    raise ValueError(
        f"{target} cannot be continued: {'; '.join(_some([*differ, *gone]))}; without the argument append it is made "
        "anew"
    )


def _flat(told: dict) -> tuple[dict, dict, dict]:
    """What a manifest tells: of the whole, the task's options, and of reading."""
    own = {name: value for name, value in told.items() if name not in ("options", "reading")}
    return own, told["options"], told["reading"]


def _late(request: Request, store: Store, manifest: Manifest, wanted: Wanted) -> list[str]:
    """The new files with times before the last one that a store was made of, where it cannot grow by them."""
    if manifest.is_of(wanted) or not manifest.grows_to(wanted) or store.begins_as(manifest.length):
        return []
    first, last = {}, []
    for file in request.files:
        with opened(file) as dataset:
            times = np.atleast_1d(dataset[time_of(dataset) or "time"].values)
        if os.path.abspath(file) in manifest.files:
            last.append(times.max())
        else:
            first[file] = times.min()
    return [file for file, time in first.items() if time <= max(last)]


def _grow(store: Store, manifest: Manifest, wanted: Wanted) -> None:
    """Make a complete store longer where more files are wanted."""
    if manifest.is_of(wanted):
        return
    _check_continues(manifest, store.path, wanted)
    if not store.begins_as(manifest.length):
        raise ValueError(
            f"{store.path} cannot be continued: the files that are new do not come after those it was made of; with "
            "the argument keep_going these are left out, without the argument append it is made anew"
        )
    store.grow(manifest.length)
    manifest.begin(wanted, manifest.steps, store.length)


def _make(
    makes: Iterator[Made], count: int, store: Store, manifest: Manifest, keep_going: bool, progress: bool
) -> list[Made]:
    """What was made of all pieces, in the manifest as soon as it is. Raises: ValueError where a piece fails and others
    are not to go on."""
    made = []
    with progress_bar(progress, count, "computing", "pieces") as advance:
        for one in makes:
            if not one.error:
                manifest.add(one.piece)
            elif not keep_going:
                raise ValueError(f"{store.times(one.piece)}: {one.error}")
            made.append(one)
            if advance is not None:
                advance()
    return made


def _warn(made: list[Made]) -> None:
    """Each warning of the workers once."""
    for sentence in _some(sorted({sentence for one in made for sentence in one.said})):
        warnings.warn(sentence, UserWarning, stacklevel=3)


def _told(count: int, made: list[Made]) -> list[str]:
    """Sentences about the pieces and what they took."""
    by = collections.Counter(one.by for one in made)
    told = f" by {made[0].by}" if len(by) == 1 else f" ({', '.join(f'{some} by {who}' for who, some in by.items())})"
    parts = [f"{len(made)} computed{told}"] * bool(made)
    parts += [f"{count - len(made)} kept from before"] * (len(made) < count)
    notes = [f"{format_count(count, 'piece')}: {', '.join(parts)}"]
    if made:
        seconds, peak = sum(one.seconds for one in made) / len(made), max(one.peak_bytes for one in made)
        notes.append(f"{seconds:.2f} s a piece; peak memory {peak / 1e9:.1f} GB")
    return notes


def _some(sentences: list[str]) -> list[str]:
    """The first few of many."""
    more = len(sentences) - _MOST_SAID
    return sentences[:_MOST_SAID] + ([f"... and {more} more"] if more > 0 else [])
