# SPDX-License-Identifier: Apache-2.0
"""The pieces of a request, computed in this process or by workers of dask.distributed."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import resource
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fastds.archive.request import Request, job_of
from fastds.archive.store import Store
from fastds.data.packages import require
from fastds.tasks.common.pieces import Piece, computed
from fastds.tasks.common.settings import check_count

if TYPE_CHECKING:
    from distributed import Client

AHEAD = 3  # pieces that wait at the scheduler for each worker, so that none is idle


@dataclasses.dataclass(frozen=True)
class Made:
    """A piece that was computed and written, or failed.

    Attributes: error: a sentence, where it failed. said: warnings. seconds; peak_bytes of the worker's memory; worker.
    """

    piece: Piece
    error: str = ""
    said: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_bytes: int = 0
    worker: str = ""


def make(request: Request, store: Path, piece: Piece) -> Made:
    """Compute a piece and write it to the store; what a user can mend is no exception but an error in words."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        began, error = time.monotonic(), ""
        try:
            job = job_of(request)
            Store(store, job).write(piece.outputs[0], computed(job, piece))
        except (ValueError, OSError, ImportError, MemoryError) as failure:
            error = " ".join(str(failure).split()) or type(failure).__name__
    words = tuple(sorted({" ".join(str(w.message).split()) for w in said if issubclass(w.category, UserWarning)}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Made(piece, error, words, time.monotonic() - began, peak, str(os.getpid()))


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


@contextlib.contextmanager
def makers(workers: int, scheduler: str | None) -> Iterator[tuple[Callable[..., Iterator[Made]], str]]:
    """A function (request, store, pieces) -> Made after Made, in any order, and a sentence about who computes.

    workers: processes on this machine, 1: this one. scheduler: address or file of a dask scheduler instead.

    Raises: OSError where no scheduler answers."""
    if scheduler is None and workers == 1:
        yield _here, "1 process"
        return
    with cluster(workers, scheduler) as (client, count, who):
        yield _Far(client, count), who


@contextlib.contextmanager
def cluster(workers: int, scheduler: str | None) -> Iterator[tuple[Client, int, str]]:
    """A dask client, how many workers it has, and a sentence about them; arguments and errors as in makers."""
    require("distributed", "several workers")
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    if scheduler is not None:
        with Client(**{"scheduler_file" if os.path.exists(scheduler) else "address": scheduler}) as client:
            count = len(client.scheduler_info(n_workers=-1)["workers"])
            yield client, max(count, 1), f"{count} workers of {scheduler}"
        return
    limit = MEMORY_LIMIT // workers
    form = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": limit}
    # No dashboard; the port of the scheduler's own pages is any that is free, so that two archives go side by side.
    form |= {"dashboard_address": None, "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"}}
    form |= {"silence_logs": logging.ERROR}
    with LocalCluster(processes=True, **form) as local, Client(local) as client:
        yield client, workers, f"{workers} workers of at most {limit / 1e9:.1f} GB each"


def _here(request: Request, store: Path, pieces: Iterable[Piece]) -> Iterator[Made]:
    return (make(request, store, piece) for piece in pieces)


class _Far:
    """Pieces handed to a dask client, a few ahead for every worker."""

    def __init__(self, client, workers: int):
        self.client, self.ahead = client, AHEAD * workers

    def __call__(self, request: Request, store: Path, pieces: Iterable[Piece]) -> Iterator[Made]:
        from distributed import as_completed

        waiting = iter(pieces)
        held = self.client.scatter(request, broadcast=True, hash=False)

        def submit(piece: Piece):
            return self.client.submit(make, held, store, piece, pure=False)

        running = as_completed([submit(piece) for piece in itertools.islice(waiting, self.ahead)])
        for future in running:
            yield future.result()
            for piece in itertools.islice(waiting, 1):
                running.add(submit(piece))
