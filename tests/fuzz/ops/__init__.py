# SPDX-License-Identifier: Apache-2.0
"""Random and recorded calls, with a module for each folder of fastds/ops/impl.

The dictionary STRATEGIES of a module maps a public op to a function of a Draw that returns the arguments of a random
call. examples() yields calls of the public ops with all optional arguments. recorded_elsewhere() yields names and
arguments of ops that run on a GPU only.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def modules() -> list[ModuleType]:
    return [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
