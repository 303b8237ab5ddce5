# SPDX-License-Identifier: Apache-2.0
"""Settings of the whole process that a block sets and takes back."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class _Block:
    """One open block; blocks are told apart by identity."""

    def __init__(self, value):
        self.value = value


class ProcessSetting:
    """A setting that blocks set for all threads: autograd's device threads must see it, too.

    Of several open blocks the one that was entered last is in force. Blocks may overlap in any order, in threads and in
    generators: leaving one takes back that one alone.
    """

    def __init__(self, default):
        self._default = default
        self._open: tuple[_Block, ...] = ()
        self._lock = threading.Lock()

    @property
    def value(self):
        """What is in force now."""
        open_ = self._open  # replaced as a whole, so a reader needs no lock
        return open_[-1].value if open_ else self._default

    @contextmanager
    def set(self, value) -> Iterator[None]:
        """A block in which `value` is in force."""
        block = _Block(value)
        self._replace(lambda open_: (*open_, block))
        try:
            yield
        finally:
            self._replace(lambda open_: tuple(other for other in open_ if other is not block))

    def _replace(self, change: Callable[[tuple], tuple]) -> None:
        if torch.compiler.is_compiling():  # Dynamo traces on one thread and follows no lock
            self._open = change(self._open)
            return
        with self._lock:
            self._open = change(self._open)
