# SPDX-License-Identifier: Apache-2.0
"""Workers of dask that end: those that come back go on, and those that do not end the run in words."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = 60.0  # seconds without a worker that end a run; new ones of this machine take some 4 s
LOOK = 2.0  # seconds from one look at the workers to the next

KILLED = (
    "the workers that computed this were killed again and again, mostly for want of memory; repeat the command with "
    "fewer workers, or with more memory for each"
)
_GONE = (
    "there has been no worker for {:.0f} s; repeat the command when there are some, and if they were killed for want "
    "of memory, with fewer workers or more memory for each"
)
_NO_SCHEDULER = "the connection to the dask scheduler is lost; repeat the command when the scheduler is there again"


@contextlib.contextmanager
def lasting(client: Client, wanted: int = 0) -> Iterator[None]:
    """What waits for workers of a client in the block ends when there are none for long; dask would wait forever.

    wanted: workers of this machine, which are started again. Raises: ChildProcessError, in words."""
    from distributed import KilledWorker

    over, lost = threading.Event(), threading.Event()
    watch = threading.Thread(target=_watch, args=(client, wanted, over, lost), daemon=True)
    watch.start()
    try:
        yield
    except KilledWorker:
        raise ChildProcessError(KILLED) from None
    except (CancelledError, OSError, RuntimeError) as error:  # RuntimeError: its loop is closed
        if lost.is_set():
            raise ChildProcessError(_GONE.format(PATIENCE)) from None
        if isinstance(error, CancelledError):
            raise ChildProcessError(_NO_SCHEDULER) from None
        raise
    finally:
        over.set()
        watch.join(LOOK)


def _watch(client: Client, wanted: int, over: threading.Event, lost: threading.Event) -> None:
    """Close a client that has no workers for long, which ends all that waits for them."""
    seen = time.monotonic()
    while not over.wait(LOOK) and client.status != "closed":
        try:
            count = len(client.nthreads())
        except (CancelledError, OSError, RuntimeError):
            continue  # without its scheduler dask ends what waits
        if count < wanted:
            client.cluster.scale(wanted)  # dask gives one up that is not there 15 s after it was killed
        if count:
            seen = time.monotonic()
        elif time.monotonic() - seen > PATIENCE:
            lost.set()
            client.close()
