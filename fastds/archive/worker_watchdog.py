# SPDX-License-Identifier: Apache-2.0
"""Watchdog for dask workers: tolerate restarts, and abort with a clear error if all workers are lost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client

TIMEOUT_S = 60.0  # time without any worker after which a run ends; a restart of local workers takes about 4 s
CHECK_INTERVAL_S = 2.0

KILLED_MESSAGE = (
    "the workers that computed this were killed again and again, mostly for want of memory; repeat the command with "
    "fewer workers, or with more memory for each"
)
_LOST_MESSAGE = (
    "there has been no worker for {:.0f} s; repeat the command when there are some, and if they were killed for want "
    "of memory, with fewer workers or more memory for each"
)
_NO_SCHEDULER_MESSAGE = (
    "the connection to the dask scheduler is lost; repeat the command when the scheduler is there again"
)


@contextlib.contextmanager
def watch_workers(client: Client, expected: int = 0) -> Iterator[None]:
    """Context manager: abort if the client has no workers for TIMEOUT_S. dask itself would wait forever.

    Args:
        client: dask client.
        expected: Number of local workers, which are restarted if some are missing; 0: none.

    Raises:
        ChildProcessError: Workers were killed repeatedly, are lost, or the connection to the scheduler is lost.
    """
    from distributed import KilledWorker

    over, lost = threading.Event(), threading.Event()
    watch = threading.Thread(target=_watch, args=(client, expected, over, lost), daemon=True)
    watch.start()
    try:
        yield
    except KilledWorker:
        raise ChildProcessError(KILLED_MESSAGE) from None
    except (CancelledError, OSError, RuntimeError) as error:  # RuntimeError: the client's event loop is closed
        if lost.is_set():
            raise ChildProcessError(_LOST_MESSAGE.format(TIMEOUT_S)) from None
        if isinstance(error, CancelledError):
            raise ChildProcessError(_NO_SCHEDULER_MESSAGE) from None
        raise
    finally:
        over.set()
        watch.join(CHECK_INTERVAL_S)


def _watch(client: Client, expected: int, over: threading.Event, lost: threading.Event) -> None:
    """Restart missing workers, and close a client without workers, which ends all calls that wait for them.

    Args:
        client: dask client.
        expected: Number of local workers.
        over: Event that ends the watch.
        lost: Event that is set when the client is closed.
    """
    seen = time.monotonic()
    while not over.wait(CHECK_INTERVAL_S) and client.status != "closed":
        try:
            count = len(client.nthreads())
        except (CancelledError, OSError, RuntimeError):
            continue  # the scheduler is lost; dask then cancels all pending calls itself
        if count < expected:
            assert client.cluster is not None
            client.cluster.scale(expected)  # dask does not restart a worker that is missing 15 s after it was killed
        if count:
            seen = time.monotonic()
        elif time.monotonic() - seen > TIMEOUT_S:
            lost.set()
            client.close()
