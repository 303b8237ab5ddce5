# SPDX-License-Identifier: Apache-2.0
"""Calls of a callable in a separate process, where glibc returns freed memory to the system, as by default."""

import multiprocessing
import statistics
import time

_RUN = []


def _build(build, args) -> None:
    _RUN[:] = [build(*args)]


def _call(returns_result: bool):
    start = time.perf_counter()
    result = _RUN[0]()
    return time.perf_counter() - start, result if returns_result else None


class SubprocessRunner:
    """The callable build(*args), built and called in the process of a pool.

    Args:
        pool: multiprocessing pool of one process.
        build: module-level function that returns the callable.
        args: arguments of `build`.
        timeout: seconds for building and one call that returns the result, or None for no limit.

    Raises:
        TimeoutError: from calling the runner. The pool cannot be used afterwards.
    """

    def __init__(self, pool, build, args, timeout: float | None = None):
        self._pool, self._timeout, self._seconds = pool, timeout, []
        pool.apply_async(_build, (build, args))

    def __call__(self):
        try:
            return self._pool.apply_async(_call, (True,)).get(self._timeout)[1]
        except multiprocessing.TimeoutError:
            raise TimeoutError from None

    def run_without_result(self) -> None:
        """Call once and record the time, without copying the result to this process."""
        self._seconds.append(self._pool.apply(_call, (False,))[0])

    def get_median_seconds(self, calls: int) -> float:
        """Return the median of the last calls of run_without_result(), as the other process measured them."""
        return statistics.median(self._seconds[-calls:])
