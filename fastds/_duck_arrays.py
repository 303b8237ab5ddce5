# SPDX-License-Identifier: Apache-2.0
"""Type checks of xarray without the imports of dask, pint and similar packages, for the command `fastds`."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

# Packages of arrays. xarray imports those that are installed when it checks a type for the first time.
_PACKAGES = ("dask", "pint", "cupy", "sparse", "cubed")


def skip_unimported_packages(xarray: ModuleType) -> None:
    """Make the type checks of xarray import no package of arrays.

    An array of a package that was not imported cannot exist, so that the checks give the same results. xarray has no
    option for this. With a version of xarray whose internal functions have other names, nothing is changed and the
    imports take their time.

    Args:
        xarray: the module, whose import is complete.
    """
    checks: Any = sys.modules.get("xarray.namedarray.pycompat")
    names: Any = sys.modules.get("xarray.namedarray.utils")
    if not hasattr(checks, "_get_cached_duck_array_module") or not hasattr(names, "module_available"):
        return
    find_package, is_available = checks._get_cached_duck_array_module, names.module_available
    absent = SimpleNamespace(module=None, version=checks.Version("0.0.0"), type=(), available=False)

    def find_imported_package(name: str) -> Any:
        return absent if name in _PACKAGES and name not in sys.modules else find_package(name)

    def is_imported_or_available(module: str, minversion: str | None = None) -> bool:
        return (module != "dask" or module in sys.modules) and is_available(module, minversion)

    checks._get_cached_duck_array_module = find_imported_package
    names.module_available = is_imported_or_available  # read by is_dask_collection of the same module
