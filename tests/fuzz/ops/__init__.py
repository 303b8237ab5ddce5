# SPDX-License-Identifier: Apache-2.0
"""Random and recorded calls, a module for each folder of fastds/ops/impl.

A module has STRATEGIES, by public op a function of a Draw that gives the arguments of a call, and examples(), which
yields calls of its public ops, each with as many arguments as there are; where ops run on a GPU alone, too,
recorded_elsewhere(), which yields their names and arguments.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def modules() -> list[ModuleType]:
    return [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
