# SPDX-License-Identifier: Apache-2.0
"""The pieces of a job, computed in this process or by workers of dask.distributed."""

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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastds.archive.lost_workers import KILLED, lasting
from fastds.archive.store import Store
from fastds.data.packages import require
from fastds.inference.chunking import Chunk, Pipeline, compute_chunk
from fastds.inference.execution import check_count
from fastds.memory import KEEPING_ENVIRONMENT

if TYPE_CHECKING:
    from distributed import Client

AHEAD = 3  # pieces that wait at the scheduler for each worker, so that none is idle
WORTH = 12.0  # seconds of work that are worth the start of workers, which takes about a third of it


@dataclasses.dataclass(frozen=True)
class Made:
    """A piece that was computed and written, or failed.

    Attributes: error: a sentence, where it failed. said: warnings. seconds; peak_bytes of the process's memory. by: who
        made it, in words.
    """

    piece: Chunk
    error: str = ""
    said: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_bytes: int = 0
    by: str = "1 process"


def make(job: Pipeline, store: Path, piece: Chunk) -> Made:
    """Compute a piece and write it to the store; what a user can mend is no exception but an error in words."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        began, error = time.monotonic(), ""
        try:
            Store(store, job).write(piece.outputs[0], compute_chunk(job, piece))
        except (ValueError, OSError, ImportError, MemoryError) as failure:
            error = " ".join(str(failure).split()) or type(failure).__name__
    words = tuple(sorted({" ".join(str(w.message).split()) for w in said if issubclass(w.category, UserWarning)}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Made(piece, error, words, time.monotonic() - began, peak)


def check_workers(workers: int | None, scheduler: str | None) -> int:
    """The number of processes on this machine, 1 unless it is given. Raises: ValueError for what cannot be."""
    if workers is not None and scheduler is not None:
        raise ValueError(f"give one of the arguments workers and scheduler, got {workers} and {scheduler}")
    if workers is not None:
        check_count("workers", workers)
    return workers or 1


def threads_of(threads: int | None, workers: int | None, scheduler: str | None) -> int | None:
    """Threads of torch in each worker; None given: the cores of this machine shared by its workers, and torch's own in
    those of a scheduler."""
    if threads is not None or scheduler is not None:
        return threads
    return max(1, (os.cpu_count() or 1) // (workers or 1))


def made_of(
    job: Pipeline, store: Path, pieces: Sequence[Chunk], workers: int = 1, scheduler: str | None = None
) -> Iterator[Made]:
    """Compute pieces of a job, and write them to the store, in any order.

    workers: processes on this machine, 1: this one; several start where there is work enough that this is worth it.
    scheduler: address or file of a dask scheduler instead.

    Raises: OSError where no scheduler answers, and where the workers end for good."""
    if scheduler is not None and pieces:
        with cluster(workers, scheduler) as found:
            yield from by_workers(found, Packed(job), store, pieces)
    elif workers == 1 or not pieces:
        yield from (make(job, store, piece) for piece in pieces)
    else:
        require("distributed", "several workers")
        yield from _by_workers_if_worth(job, store, pieces, workers)


def _by_workers_if_worth(job: Pipeline, store: Path, pieces: Sequence[Chunk], workers: int) -> Iterator[Made]:
    """The first piece, by this process, tells how long the others take. Another, or the first one where it takes long,
    is made here while the workers start."""
    packed, (first, *others) = Packed(job), pieces
    with concurrent.futures.ThreadPoolExecutor(1) as aside:
        begun = aside.submit(make, job, store, first)
        ended, _ = concurrent.futures.wait([begun], WORTH if others else None)
        if ended:
            yield begun.result()
            if len(others) < 2 or begun.result().seconds * len(others) <= WORTH:
                yield from (make(job, store, piece) for piece in others)
                return
            begun = aside.submit(make, job, store, others.pop(0))
        with cluster(workers, None) as found:
            yield from by_workers(found, packed, store, others)
        yield begun.result()


@contextlib.contextmanager
def cluster(workers: int, scheduler: str | None) -> Iterator[tuple[Client, int, str]]:
    """A dask client, how many workers it has, and a sentence about them; arguments and errors as in made_of. Workers
    that end are waited for, but not for long."""
    require("distributed", "several workers")
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    if scheduler is not None:
        place = {"scheduler_file" if os.path.exists(scheduler) else "address": scheduler}
        with Client(**place, set_as_default=False) as client:  # this process reads what it reads by itself
            count = len(client.scheduler_info(n_workers=-1)["workers"])
            with lasting(client):
                yield client, max(count, 1), f"{count} workers of {scheduler}"
        return
    limit = MEMORY_LIMIT // workers
    form = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": limit}
    # No dashboard; the port of the scheduler's own pages is any that is free, so that two archives go side by side.
    form |= {"dashboard_address": None, "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"}}
    form |= {"silence_logs": logging.CRITICAL}
    with (
        _keeping_freed_memory(),  # of workers that are started again, too
        LocalCluster(processes=True, **form) as local,
        Client(local, set_as_default=False) as client,
        lasting(client, workers),
    ):
        yield client, workers, f"{workers} workers of at most {limit / 1e9:.1f} GB each"


@contextlib.contextmanager
def _keeping_freed_memory() -> Iterator[None]:
    """Workers that are started in the block keep freed memory, as the commands do; dask's own setting returns every
    tensor to the system at once. The environment, which dask changes in this process, too, is as before afterwards."""
    import dask

    key = "distributed.nanny.pre-spawn-environ"
    variables, before = dask.config.get(key) | KEEPING_ENVIRONMENT, dict(os.environ)
    try:
        with dask.config.set({key: variables}):
            yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


class Packed:
    """A job as it is when this is made; what another process gets of it is packed, and unpacked where it is used."""

    def __init__(self, job: Pipeline):
        import cloudpickle  # of dask

        self.packed = cloudpickle.dumps(job)

    @functools.cached_property
    def job(self) -> Pipeline:
        """The job, unpacked once in a process."""
        return pickle.loads(self.packed)

    def __getstate__(self) -> dict:
        return {"packed": self.packed}  # never the job that computes at the moment


def _itself(packed: Packed) -> Packed:
    return packed


def _make(packed: Packed, store: Path, piece: Chunk) -> Made:
    with _own_gpu():
        return make(packed.job, store, piece)


def _own_gpu() -> contextlib.AbstractContextManager:
    """In the block "cuda" is GPU k, modulo how many there are, for worker k of this machine. Workers of a scheduler
    with other names than numbers see what it gives them."""
    from distributed import get_worker

    number, count = get_worker().name, torch.cuda.device_count()
    if count < 2 or not isinstance(number, int):
        return contextlib.nullcontext()
    return torch.cuda.device(number % count)


def by_workers(found: tuple[Client, int, str], job: Packed, store: Path, pieces: Iterable[Chunk]) -> Iterator[Made]:
    """Pieces handed to the workers of a cluster, a few ahead for each."""
    import dask
    from distributed import KilledWorker, as_completed

    (client, count, who), waiting, handed = found, iter(pieces), {}
    # The scheduler keeps what makes it; what client.scatter brings to the workers is lost with the last of them.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
        held = client.submit(_itself, job, pure=False)

    def submit(piece: Chunk):
        future = client.submit(_make, held, store, piece, pure=False)
        handed[future.key] = piece
        return future

    first = [submit(piece) for piece in itertools.islice(waiting, AHEAD * count)]
    running = as_completed(first, loop=client.loop)
    for future in running:
        piece = handed.pop(future.key)
        try:
            made = future.result()
        except KilledWorker:
            made = Made(piece, KILLED)
        yield dataclasses.replace(made, by=who)
        for piece in itertools.islice(waiting, 1):
            running.add(submit(piece))
