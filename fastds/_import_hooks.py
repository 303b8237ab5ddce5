# SPDX-License-Identifier: Apache-2.0
"""Imports that take long: callbacks that run when another package is imported, and imports of the command `fastds`."""

import gc
import importlib.abc
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def run_after_import(name: str, work: Callable[[ModuleType], None]) -> None:
    """Call a function with a module, either now or right after the import of the module.

    Args:
        name: Name of the module, which may not be installed.
        work: Function that is called once.
    """
    if name in sys.modules:
        work(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, work))


def import_for_command(name: str) -> ModuleType:
    """Import a module; if this process is the command `fastds`, with garbage collection disabled.

    During the import of torch, collections would take 0.3 s and free nothing.

    Args:
        name: Name of the module.
    """
    from fastds._outputs import is_running_as_cli

    if not is_running_as_cli() or name in sys.modules:
        return importlib.import_module(name)
    gc.disable()
    try:
        __import__(name)  # unlike importlib.import_module, it is listed by `python -X importtime`
        return sys.modules[name]
    finally:
        gc.freeze()
        gc.enable()


class _Finder(importlib.abc.MetaPathFinder):
    """Meta path finder for one module, which calls `work` after the module was executed.

    It stays on the meta path until then, because `importlib.util.find_spec`, by which packages test whether another one
    is installed, asks it, too.
    """

    def __init__(self, name: str, work: Callable[[ModuleType], None]):
        self._name, self._work = name, work
        self._search = threading.local()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name or getattr(self._search, "is_running", False):
            return None
        self._search.is_running = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._search.is_running = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._work(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
