# SPDX-License-Identifier: Apache-2.0
"""Downscaling and nowcasting of an archive. A run continues after a kill without computing a finished chunk again."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from fastds._options import spell_argument
from fastds._outputs import commit_output, resolve_target
from fastds.archive.layout import Layout, choose_layout, has_shared_parts, parse_sizes
from fastds.archive.lock import exclusive_lock
from fastds.archive.manifest import Manifest, ManifestKey
from fastds.archive.request import Request, create_pipeline, filter_readable, open_request_dataset
from fastds.archive.store import Store
from fastds.archive.workers import ChunkResult, check_workers, choose_threads, compute_chunks
from fastds.data.formats.opening import InputPaths, list_files
from fastds.data.grid.axes import find_dataset_time
from fastds.data.io.files import is_zarr_path
from fastds.data.io.packing import check_stored_dtype
from fastds.data.packages import require
from fastds.data.reading import ReadOptions, open_input
from fastds.inference.chunking import choose_chunk_steps, compute_chunk
from fastds.inference.execution import resolve_device
from fastds.inference.files import RunSummary, check_target, describe_source
from fastds.inference.progress import progress_bar
from fastds.inference.tables import format_count

_ASSUMED_WORKERS = 16  # number of workers of a scheduler, for the choice of the chunk size
_MAX_MESSAGES = 5  # largest number of warnings or errors that are printed


def compute_archive(
    task: str,
    source: InputPaths,
    target: str | os.PathLike,
    *,
    model: str | None = None,
    options: Mapping | None = None,
    reading: ReadOptions | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    append: bool = False,
    keep_going: bool = False,
    dtype: str = "input",
    threads: int | None = None,
    progress: bool = False,
    chunks: str | Mapping[str, int] | None = None,
    shards: str | Mapping[str, int] | None = None,
) -> RunSummary:
    """Downscale or nowcast many files into one Zarr store.

    The work is divided into chunks along time. Results are written to target.part, which is renamed to `target` at the
    end. A manifest next to the store records finished chunks, so that repeating the call after a kill continues the run
    without computing a chunk again. Every chunk has the same bits as if one process computed the whole; on a GPU up to
    rounding.

    Args:
        task: Name of a task in fastds.tasks.
        source: File, folder, pattern or list, see fastds.data.open_dataset.
        target: Name that ends in .zarr. An existing store is replaced at the end, or extended with `append`.
        model: See the task's `prepare`.
        options: See the task's `prepare`.
        reading: See fastds.data.reading.ReadOptions.
        workers: Number of processes on this machine; None: 1.
        scheduler: Address or file of a dask scheduler whose workers are used instead.
        append: Whether `source` consists of the files of the existing target and later ones. Only the new files are
            computed, into the target itself, whose new fields are missing until then. A missing target is created.
        keep_going: Whether to leave out files that cannot be read or are too early to be appended, and chunks that
            fail, and to report them. Otherwise the first error ends the run.
        dtype: "input", which stores integers if the input is packed, or "float32".
        threads: Threads of torch in each worker; None: the cores of this machine divided by the number of workers.
        progress: Whether to show a progress bar.
        chunks: Lengths of the Zarr chunks, such as "time=365,latitude=100" or a mapping; None: about 8 MiB each.
        shards: Lengths of the shards of Zarr, which are files of several chunks; None: no shards.

    Returns:
        Summary of the run.

    Raises:
        BlockingIOError: Another process works on the target.
        ChildProcessError: The workers are lost.
        ImportError: zarr, dask, or distributed for several workers is not installed.
        OSError: The scheduler cannot be reached, or there are no files.
        ValueError: The target is not a Zarr store or is unfinished from another computation, files do not continue
            those of the target, or an error of open_dataset or of the task.
    """
    require("zarr", "archives")
    require("dask", "archives")
    workers = _check_arguments(source, Path(target), workers, scheduler, dtype)
    requested = parse_sizes("chunks", chunks), parse_sizes("shards", shards)
    target = resolve_target(target)
    if append:
        _check_can_append(target)
    array = (reading or {}).get("array")
    files, left_out = filter_readable(source, array) if keep_going else (tuple(map(str, list_files(source))), [])
    remarks: list[str] = []
    threads = choose_threads(threads, workers, scheduler)
    options = dict(options or {})
    if scheduler is None and "device" in options:  # a continued run has to use the same device
        options["device"] = resolve_device(options["device"])
    request = Request(task, files, model, options, dict(reading or {}), dtype=dtype, threads=threads)
    if append and target.exists():  # checked before many files are opened
        _check_continues(Manifest(target), target, ManifestKey.from_request(request))
    pipeline = create_pipeline(request)
    if not pipeline.dim:
        raise ValueError("an archive has several times or forecasts; leave out workers, scheduler and append for one")
    key = ManifestKey.from_request(request)
    with exclusive_lock(target):
        folder, manifest = _choose_store(target, key, append)
        store = Store(folder, pipeline)
        if folder == target and not append and store.find_other_layout(*requested):
            folder = target.with_name(target.name + ".part")
            store, manifest = Store(folder, pipeline), Manifest(folder)
        if folder == target:
            late = _find_late_files(request, store, manifest, key) if keep_going else []
            if late:
                left_out += [f"{file} holds times before the last of {target}" for file in late]
                request = dataclasses.replace(request, files=tuple(f for f in files if f not in late))
                pipeline, key = create_pipeline(request), ManifestKey.from_request(request)
                store = Store(folder, pipeline)
            _grow(store, manifest, key)
        else:
            steps = choose_chunk_steps(pipeline, _ASSUMED_WORKERS if scheduler else workers)
            _begin(store, manifest, request, key, choose_layout(pipeline, steps, *requested))
        _check_layout(store, *requested)
        work = pipeline.make_chunks(manifest.steps)
        todo = [chunk for chunk in work if chunk not in manifest.done]
        if (workers > 1 or scheduler) and has_shared_parts(todo, store.written_length):
            remarks.append("computed by one process, because series of times end within Zarr chunks of the store")
            workers, scheduler = 1, None
        with contextlib.closing(compute_chunks(pipeline, folder.absolute(), todo, workers, scheduler)) as iterator:
            results = _compute(iterator, len(todo), store, manifest, keep_going, progress)
        failed = [f"{store.format_times(one.chunk)}: {one.error}" for one in results if one.error]
        if folder != target:
            commit_output(folder, target)
            manifest.move(target)
    _warn(results)
    report = pipeline.make_summary()
    report.notes[:0] = describe_source(open_request_dataset(request))
    report.notes += [*_summarize(len(work), results), *remarks, *_truncate([*left_out, *failed]), f"wrote {target}"]
    return report


def _check_arguments(source: InputPaths, target: Path, workers: int | None, scheduler: str | None, dtype: str) -> int:
    """Check the arguments of compute_archive and return the number of workers."""
    check_target(source, target)
    if not is_zarr_path(target):
        raise ValueError(f"the output of an archive is a Zarr store, whose name ends in .zarr, got {target}")
    check_stored_dtype(dtype)
    return check_workers(workers, scheduler)


def _choose_store(target: Path, key: ManifestKey, append: bool) -> tuple[Path, Manifest]:
    """Return the folder that is written and its manifest.

    Args:
        target: Name of the archive.
        key: What is computed from which files.
        append: See `compute_archive`.

    Returns:
        The folder and its manifest. The folder is `target` if that archive is complete or is to be extended, else
        target.part.
    """
    part = target.with_name(target.name + ".part")
    if target.exists() and not part.exists() and Manifest(part).fingerprint:
        Manifest(part).move(target)  # a run was killed after it renamed the store and before it moved the manifest
    manifest = Manifest(target)
    if target.exists() and (append or manifest.matches(key)):
        return target, manifest
    return part, Manifest(part)


def _check_layout(store: Store, chunks: Mapping[str, int], shards: Mapping[str, int]) -> None:
    """Raise ValueError if a store that is continued has other Zarr chunks or shards than requested."""
    other = store.find_other_layout(chunks, shards)
    if other:
        raise ValueError(
            f"{store.path} has {other}: leave out {spell_argument('chunks', 'shards')} to continue it, or remove it"
        )


def _begin(store: Store, manifest: Manifest, request: Request, key: ManifestKey, layout: Layout) -> None:
    """Create an empty store, or continue the store of a killed run.

    Args:
        store: Store.
        manifest: Its manifest.
        request: Request.
        key: Key of the request.
        layout: Zarr chunks of a new store, and number of steps of a chunk of work.

    Raises:
        ValueError: The unfinished store belongs to another computation.
    """
    if store.path.exists() and manifest.fingerprint is not None:
        if not manifest.matches(key):
            raise ValueError(
                f"{store.path} is unfinished and of other files or options: repeat that command to go on with it, or "
                "remove the folder"
            )
        return
    manifest.remove()
    store.create(open_request_dataset(request), request.dtype, layout)
    manifest.begin(key, layout.steps, store.length)


def _check_can_append(target: Path) -> None:
    """Raise ValueError if a store has no manifest, so that its origin is unknown."""
    part = target.with_name(target.name + ".part")
    # True if a run was killed after it renamed the store and before it moved the manifest.
    moved = not part.exists() and Manifest(part).fingerprint is not None
    if target.exists() and Manifest(target).fingerprint is None and not moved:
        options = spell_argument("append", "workers", "scheduler", "keep_going", "chunks", "shards", conjunction="or")
        raise ValueError(
            f"{target} cannot be continued: there is no {target.name}.manifest, which lists its input and is written "
            f"with {options}. Either the store was made without them, or the manifest was not moved with the store: "
            "move it there, or remove the store, or give another name, and run this again"
        )


def _check_continues(manifest: Manifest, target: Path, key: ManifestKey) -> None:
    """Check that a store can be extended to hold the result of a request.

    The request must be the same computation of the same files and possibly more.

    Args:
        manifest: Manifest of the store.
        target: Name of the archive, for the message.
        key: Computation and files of the request.

    Raises:
        ValueError: The store has other options, or one of its files is missing or has changed. The message names them.
    """
    if manifest.fingerprint is None or manifest.can_grow_to(key):
        return
    differ = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for old, new in zip(_split_fingerprint(manifest.fingerprint), _split_fingerprint(key.fingerprint), strict=True)
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    known = [file for file in manifest.files if key.files.get(file) != manifest.files[file]]
    gone = [f"{file} {'has changed' if file in key.files else 'is not among the files'}" for file in known]
    raise ValueError(
        f"{target} cannot be continued: {'; '.join(_truncate([*differ, *gone]))}; "
        f"without {spell_argument('append')} it is made anew"
    )


def _split_fingerprint(fingerprint: dict) -> tuple[dict, dict, dict]:
    """Split a fingerprint into general values, options of the task and options of reading."""
    general = {name: value for name, value in fingerprint.items() if name not in ("options", "reading")}
    return general, fingerprint["options"], fingerprint["reading"]


def _find_late_files(request: Request, store: Store, manifest: Manifest, key: ManifestKey) -> list[str]:
    """Return the new files that prevent a store from growing, since they hold times before its last time.

    Args:
        request: Request.
        store: Store.
        manifest: Its manifest.
        key: Key of the request.
    """
    if manifest.matches(key) or not manifest.can_grow_to(key) or store.has_same_start(manifest.length):
        return []
    first, last = {}, []
    for file in request.files:
        with open_input(file, array=request.reading.get("array")) as dataset:
            times = np.atleast_1d(dataset[find_dataset_time(dataset) or "time"].values)
        if os.path.abspath(file) in manifest.files:
            last.append(times.max())
        else:
            first[file] = times.min()
    return [file for file, time in first.items() if time <= max(last)]


def _grow(store: Store, manifest: Manifest, key: ManifestKey) -> None:
    """Extend a complete store if the key has more files.

    Args:
        store: Store.
        manifest: Its manifest.
        key: What is computed from which files.

    Raises:
        ValueError: The new files do not follow those of the store.
    """
    if manifest.matches(key) and store.length == manifest.length:
        return
    _check_continues(manifest, store.path, key)
    changed = manifest.find_changed_stores(key)
    if changed and not (store.length > manifest.length and _has_same_values(store, manifest)):
        raise ValueError(
            f"{store.path} cannot be continued: {changed[0]} has changed in other ways than that times were appended; "
            f"without {spell_argument('append')} it is made anew"
        )
    if not store.has_same_start(manifest.length):
        raise ValueError(
            f"{store.path} cannot be continued: the new files do not come after those in the store; with "
            f"{spell_argument('keep_going')} these are left out, without {spell_argument('append')} it is made anew"
        )
    store.grow(manifest.length)
    manifest.begin(key, manifest.steps, store.length)


def _has_same_values(store: Store, manifest: Manifest) -> bool:
    """Return whether the first and the last finished chunk, computed again, have the values of the store."""
    if not store.has_same_start(manifest.length):
        return True  # another message is about the times
    done = [chunk for chunk in store.pipeline.make_chunks(manifest.steps) if chunk in manifest.done]
    return all(
        store.has_values(chunk.outputs[0], compute_chunk(store.pipeline, chunk)) for chunk in done[::-1][:1] + done[:1]
    )


def _compute(
    iterator: Iterator[ChunkResult], count: int, store: Store, manifest: Manifest, keep_going: bool, progress: bool
) -> list[ChunkResult]:
    """Collect the results of all chunks and record each finished chunk in the manifest at once.

    Args:
        iterator: Iterator of results.
        count: Number of chunks.
        store: Store.
        manifest: Its manifest.
        keep_going: Whether to continue after a chunk failed.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: A chunk failed, without `keep_going`.
    """
    results = []
    with progress_bar(progress, count, "computing", "chunks") as advance:
        for one in iterator:
            if not one.error:
                manifest.add(one.chunk)
            elif not keep_going:
                raise ValueError(f"{store.format_times(one.chunk)}: {one.error}")
            results.append(one)
            if advance is not None:
                advance()
    return results


def _warn(results: list[ChunkResult]) -> None:
    """Show each warning of the workers once."""
    for message in _truncate(sorted({message for one in results for message in one.warnings})):
        warnings.warn(message, UserWarning, stacklevel=3)


def _summarize(count: int, results: list[ChunkResult]) -> list[str]:
    """Return notes about the chunks, who computed them, their time and memory."""
    counts = collections.Counter(one.worker for one in results)
    if len(counts) == 1:
        workers = f" by {results[0].worker}"
    else:
        workers = f" ({', '.join(f'{number} by {worker}' for worker, number in counts.items())})"
    parts = [f"{len(results)} computed{workers}"] * bool(results)
    parts += [f"{count - len(results)} already done"] * (len(results) < count)
    notes = [f"{format_count(count, 'chunk')}: {', '.join(parts)}"]
    if results:
        seconds, peak = sum(one.seconds for one in results) / len(results), max(one.peak_bytes for one in results)
        notes.append(f"{seconds:.2f} s a chunk; peak memory {peak / 1e9:.1f} GB")
    return notes


def _truncate(messages: list[str]) -> list[str]:
    """Return the first messages of a list, and the number of the others."""
    more = len(messages) - _MAX_MESSAGES
    return messages[:_MAX_MESSAGES] + ([f"... and {more} more"] if more > 0 else [])
