# SPDX-License-Identifier: Apache-2.0
"""A callable built and called in a process of its own, where glibc returns freed memory as it does by default."""

import multiprocessing
import statistics
import time

_RUN = []


def _build(build, args) -> None:
    _RUN[:] = [build(*args)]


def _call(wants_result: bool):
    start = time.perf_counter()
    result = _RUN[0]()
    return time.perf_counter() - start, result if wants_result else None


class Elsewhere:
    """build(*args) in the process of a pool of one.

    Args:
        pool: multiprocessing pool of one process.
        build: module-level function that gives the callable; args: its arguments.
        patience: seconds for the building and the first call, or None for any.

    Raises:
        TimeoutError: by the first call, after which the pool is of no use.
    """

    def __init__(self, pool, build, args, patience: float | None = None):
        self._pool, self._patience, self._seconds = pool, patience, []
        pool.apply_async(_build, (build, args))

    def __call__(self):
        try:
            return self._pool.apply_async(_call, (True,)).get(self._patience)[1]
        except multiprocessing.TimeoutError:
            raise TimeoutError from None

    def without_result(self) -> None:
        self._seconds.append(self._pool.apply(_call, (False,))[0])

    def median_seconds(self, calls: int) -> float:
        """Of the last calls without result, as that process saw them."""
        return statistics.median(self._seconds[-calls:])
