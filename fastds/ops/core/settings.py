# SPDX-License-Identifier: Apache-2.0
"""Settings of the whole process that context managers change and restore."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from fastds.ops.core import plans


class _Block:
    """One active block. Blocks are compared by identity."""

    def __init__(self, value):
        self.value = value


class ProcessSetting:
    """Setting that context managers change for all threads, including the device threads of autograd.

    Of several active blocks the one entered last determines the value. Blocks may overlap in any order, in threads and
    in generators; leaving a block removes only that block.
    """

    def __init__(self, default, suspends_plans: bool = True):
        """Create a setting.

        Args:
            default: the value outside of blocks.
            suspends_plans: bool, whether ops compute differently inside blocks, so that no plan may run there.
        """
        self._default, self._suspends = default, plans.suspended if suspends_plans else nullcontext
        self._open: tuple[_Block, ...] = ()
        self._lock = threading.Lock()

    @property
    def value(self):
        """Current value."""
        open_ = self._open  # the tuple is replaced as a whole, so a reader needs no lock
        return open_[-1].value if open_ else self._default

    @contextmanager
    def set(self, value) -> Iterator[None]:
        """Set the value inside the block."""
        block = _Block(value)
        self._replace(lambda open_: (*open_, block))
        try:
            with self._suspends():
                yield
        finally:
            self._replace(lambda open_: tuple(other for other in open_ if other is not block))

    def _replace(self, change: Callable[[tuple], tuple]) -> None:
        if torch.compiler.is_compiling():  # Dynamo traces on one thread and cannot trace a lock
            self._open = change(self._open)
            return
        with self._lock:
            self._open = change(self._open)
