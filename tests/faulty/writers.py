# SPDX-License-Identifier: Apache-2.0
"""Registry of the functions that write random files, by format.

A module drawn_*.py of this package registers a writer with the decorator `register_writer`:

    @register_writer("nimrod", share=0.035, added=2)
    def write_nimrod(rng: np.random.Generator, folder: Path) -> Drawn:
"""

import functools
import importlib
import itertools
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import tests.faulty

from .drawn import Drawn

WriteFunction = Callable[[np.random.Generator, Path], Drawn]


class Writer(NamedTuple):
    """A function that writes random files, with the arguments of `register_writer`."""

    format: str
    write: WriteFunction
    share: float
    added: int


_registered: list[Writer] = []


def register_writer(form: str, share: float, added: int) -> Callable[[WriteFunction], WriteFunction]:
    """Return a decorator that registers a function as the writer of the random files of a format.

    Args:
        form: name of the format for the option `--formats` of tests.faulty.
        share: share of this format in all random files. The share of NetCDF-4, which has the number 0, decreases by the
            share of each writer that is added, so that the files of all other formats are drawn as before.
        added: consecutive number of the writer; a new writer takes the next number.
    """

    def register(write: WriteFunction) -> WriteFunction:
        _registered.append(Writer(form, write, share, added))
        return write

    return register


@functools.cache
def load_writers() -> dict[str, Writer]:
    """Import all modules drawn_*.py and return their writers by format, first NetCDF-4, then from new to old.

    Raises:
        ValueError: Two writers have the same format or the same number.
    """
    for module in pkgutil.iter_modules(tests.faulty.__path__):
        if module.name.startswith("drawn_"):
            importlib.import_module(f"tests.faulty.{module.name}")
    first, *others = sorted(_registered, key=lambda writer: writer.added)
    for older, newer in itertools.pairwise([first, *others]):
        if older.added == newer.added:
            raise ValueError(
                f"the writers of {older.format} and {newer.format} have the same number {newer.added}; "
                f"the next number is {others[-1].added + 1}"
            )
    first = first._replace(share=1.0 - sum(writer.share for writer in others))
    writers = {writer.format: writer for writer in (first, *reversed(others))}
    if len(writers) < len(_registered):
        raise ValueError(f"two writers have the same format: {sorted(writer.format for writer in _registered)}")
    return writers
