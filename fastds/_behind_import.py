# SPDX-License-Identifier: Apache-2.0
"""Work for when a module of someone else is imported, which `import fastds` does not wait for."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def behind_import(name: str, work: Callable[[ModuleType], None]) -> None:
    """Do some work with a module: now where it is imported already, else right after it is.

    Args:
        name: of the module, which may not be installed.
        work: what is done with it, once.
    """
    if name in sys.modules:
        work(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, work))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as all other finders do, and lets the work follow its execution."""

    def __init__(self, name: str, work: Callable[[ModuleType], None]):
        self._name, self._work = name, work

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)  # it may be installed later
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._work(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
