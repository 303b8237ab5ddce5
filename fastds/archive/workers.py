# SPDX-License-Identifier: Apache-2.0
"""Computation of the chunks of a pipeline, in this process or by dask.distributed workers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import pickle
import resource
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastds._options import get_option_names, spell_argument, use_option_names
from fastds.archive.store import Store
from fastds.archive.worker_watchdog import CHECK_INTERVAL_S, KILLED_MESSAGE, watch_workers
from fastds.data.packages import require
from fastds.inference.chunking import Chunk, Pipeline, compute_chunk
from fastds.inference.execution import check_count
from fastds.memory import RETENTION_ENVIRONMENT

if TYPE_CHECKING:
    from distributed import Client, Future

CHUNKS_AHEAD = 3  # chunks per worker that are queued at the scheduler, so that no worker is idle
MIN_WORK_S = 12.0  # workers start only if more work remains; their start takes about a third of this time


@dataclasses.dataclass(frozen=True)
class ChunkResult:
    """Result of a chunk that was computed and written, or failed.

    Attributes:
        chunk: The chunk.
        error: Error message; "" if it succeeded.
        warnings: Messages of warnings.
        seconds: Duration.
        peak_bytes: Peak memory of the process.
        worker: Description of the process or processes.
    """

    chunk: Chunk
    error: str = ""
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_bytes: int = 0
    worker: str = "1 process"


def process_chunk(pipeline: Pipeline, store: Path, chunk: Chunk) -> ChunkResult:
    """Compute a chunk and write it to the store.

    Errors that a user can resolve are returned as a message and not raised.

    Args:
        pipeline: Pipeline.
        store: Folder of the store.
        chunk: Chunk.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        began, error = time.monotonic(), ""
        try:
            Store(store, pipeline).write(chunk.outputs[0], compute_chunk(pipeline, chunk))
        except (ValueError, OSError, ImportError, MemoryError) as failure:
            error = " ".join(str(failure).split()) or type(failure).__name__
    messages = {" ".join(str(w.message).split()) for w in caught if issubclass(w.category, UserWarning)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return ChunkResult(chunk, error, tuple(sorted(messages)), time.monotonic() - began, peak)


def check_workers(workers: int | None, scheduler: str | None) -> int:
    """Return the number of processes on this machine, 1 by default.

    Raises:
        ValueError: Both arguments are given, or `workers` is not a positive integer.
    """
    if workers is not None and scheduler is not None:
        raise ValueError(f"give one of {spell_argument('workers', 'scheduler')}, got {workers} and {scheduler}")
    if workers is not None:
        check_count("workers", workers)
    return workers or 1


def choose_threads(threads: int | None, workers: int | None, scheduler: str | None) -> int | None:
    """Return the number of torch threads of each worker.

    Args:
        threads: Number from the user; None: the cores of this machine divided by the number of workers.
        workers: Number of processes on this machine.
        scheduler: Scheduler of dask. Its workers use torch's default if `threads` is None; the result is then None.
    """
    if threads is not None or scheduler is not None:
        return threads
    return max(1, (os.cpu_count() or 1) // (workers or 1))


def compute_chunks(
    pipeline: Pipeline, store: Path, chunks: Sequence[Chunk], workers: int = 1, scheduler: str | None = None
) -> Generator[ChunkResult]:
    """Compute chunks of a pipeline and write them to the store, in any order.

    Args:
        pipeline: Pipeline.
        store: Folder of the store.
        chunks: Chunks.
        workers: Number of processes on this machine; 1: this process. Several start only if enough work remains.
        scheduler: Address or file of a dask scheduler whose workers are used instead.

    Yields:
        ChunkResult of each chunk.

    Raises:
        ChildProcessError: The workers are lost.
        ImportError: distributed is not installed, which several workers need.
        OSError: The scheduler cannot be reached.
    """
    if scheduler is not None and chunks:
        with open_cluster(workers, scheduler) as found:
            yield from compute_on_cluster(found, PickledPipeline(pipeline), store, chunks)
    elif workers == 1 or not chunks:
        yield from (process_chunk(pipeline, store, chunk) for chunk in chunks)
    else:
        require("distributed", "several workers")
        yield from _compute_adaptively(pipeline, store, chunks, workers)


def _compute_adaptively(
    pipeline: Pipeline, store: Path, chunks: Sequence[Chunk], workers: int
) -> Iterator[ChunkResult]:
    """Compute chunks, and start workers only if the first chunk indicates enough remaining work.

    While the workers start, this process computes one chunk.
    """
    packed, (first, *others) = PickledPipeline(pipeline), chunks
    with concurrent.futures.ThreadPoolExecutor(1) as background:
        future = background.submit(process_chunk, pipeline, store, first)
        ended, _ = concurrent.futures.wait([future], MIN_WORK_S if others else None)
        if ended:
            yield future.result()
            if len(others) < 2 or future.result().seconds * len(others) <= MIN_WORK_S:
                yield from (process_chunk(pipeline, store, chunk) for chunk in others)
                return
            future = background.submit(process_chunk, pipeline, store, others.pop(0))
        with open_cluster(workers, None) as found:
            yield from compute_on_cluster(found, packed, store, others)
        yield future.result()


@contextlib.contextmanager
def open_cluster(workers: int, scheduler: str | None) -> Iterator[tuple[Client, int, str]]:
    """Context manager: yield a dask client, its number of workers, and a description of them.

    Args:
        workers: Number of processes on this machine.
        scheduler: Address or file of a dask scheduler, or None.

    Raises:
        ImportError: distributed is not installed.
        ChildProcessError: The workers are lost.
        OSError: The scheduler cannot be reached.
    """
    require("distributed", "several workers")
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    if scheduler is not None:
        address = {"scheduler_file" if os.path.exists(scheduler) else "address": scheduler}
        with Client(**address, set_as_default=False) as client:  # dask arrays of this process stay local
            count = len(client.scheduler_info(n_workers=-1)["workers"])
            with watch_workers(client):
                yield client, max(count, 1), f"{count} workers of {scheduler}"
        return
    limit = MEMORY_LIMIT // workers
    form: dict[str, Any] = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": limit}
    # No dashboard, and any free port for the scheduler's HTTP server, so that two archives can run at the same time.
    form |= {"dashboard_address": None, "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"}}
    form |= {"silence_logs": logging.CRITICAL}
    with (
        _retain_freed_memory(),  # entered first: also applies to workers that are restarted
        LocalCluster(processes=True, **form) as local,
        Client(local, set_as_default=False) as client,
        watch_workers(client, workers),
    ):
        yield client, workers, f"{workers} workers of at most {limit / 1e9:.1f} GB each"


@contextlib.contextmanager
def _retain_freed_memory() -> Iterator[None]:
    """Context manager: make workers that start in the block keep freed memory, as the commands do.

    dask's default returns every tensor to the system at once. dask also changes the environment of this process, which
    is restored.
    """
    import dask

    key = "distributed.nanny.pre-spawn-environ"
    variables, before = dask.config.get(key) | RETENTION_ENVIRONMENT, dict(os.environ)
    try:
        with dask.config.set({key: variables}):
            yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


class PickledPipeline:
    """A pipeline that is pickled at creation and unpickled once in each process that uses it."""

    def __init__(self, pipeline: Pipeline):
        import cloudpickle  # a dependency of dask

        self.packed = cloudpickle.dumps(pipeline)
        self.option_names = get_option_names()  # for error messages of other processes

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline, unpickled once in each process."""
        return pickle.loads(self.packed)

    def __getstate__(self) -> dict:
        return {
            "packed": self.packed,
            "option_names": self.option_names,
        }  # the cached pipeline is in use and must not be pickled


def _return_unchanged(packed: PickledPipeline) -> PickledPipeline:
    return packed


def _compute_on_worker(packed: PickledPipeline, store: Path, chunk: Chunk) -> ChunkResult:
    """Process a chunk on a worker of dask."""
    with _select_gpu(), use_option_names(packed.option_names):
        return process_chunk(packed.pipeline, store, chunk)


def _select_gpu() -> contextlib.AbstractContextManager:
    """Return a context that selects GPU k modulo the number of GPUs for worker k of this machine.

    Workers of a scheduler whose names are not numbers use the GPUs that the scheduler assigns.
    """
    from distributed import get_worker

    number, count = get_worker().name, torch.cuda.device_count()
    if count < 2 or not isinstance(number, int):
        return contextlib.nullcontext()
    return torch.cuda.device(number % count)


def wait_for_result(client: Client, future: Future) -> ChunkResult:
    """Return the result of a future, also where dask would wait forever.

    If a worker is lost after its task is done and the client is closed before the result is fetched, dask waits for
    data that never arrive.

    Raises:
        CancelledError: The client is closed.
        KilledWorker: The workers that computed the chunk were killed repeatedly.
    """
    while True:
        try:
            return future.result(timeout=CHECK_INTERVAL_S)
        except TimeoutError:
            if client.status in ("closing", "closed"):
                raise CancelledError(future.key) from None


def compute_on_cluster(
    found: tuple[Client, int, str], pipeline: PickledPipeline, store: Path, chunks: Iterable[Chunk]
) -> Iterator[ChunkResult]:
    """Compute chunks on the workers of a cluster, with a limited number queued for each.

    Args:
        found: Client, number of workers and their description, from `open_cluster`.
        pipeline: Pipeline.
        store: Folder of the store.
        chunks: Chunks.

    Yields:
        ChunkResult of each chunk.
    """
    import dask
    from distributed import KilledWorker, as_completed

    (client, count, who), waiting, submitted = found, iter(chunks), {}
    # The scheduler can recompute a submitted value, whereas data from client.scatter are lost with the last worker.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
        remote = client.submit(_return_unchanged, pipeline, pure=False)

    def submit(chunk: Chunk):
        future = client.submit(_compute_on_worker, remote, store, chunk, pure=False)
        submitted[future.key] = chunk
        return future

    first = [submit(chunk) for chunk in itertools.islice(waiting, CHUNKS_AHEAD * count)]
    running = as_completed(first, loop=client.loop)
    for future in running:
        chunk = submitted.pop(future.key)
        try:
            result = wait_for_result(client, future)
        except KilledWorker:
            result = ChunkResult(chunk, KILLED_MESSAGE)
        yield dataclasses.replace(result, worker=who)
        for chunk in itertools.islice(waiting, 1):
            running.add(submit(chunk))
