# SPDX-License-Identifier: Apache-2.0
"""Packages that only some files and commands need."""

import importlib
import importlib.util
import os
import sys
from types import ModuleType


def require(package: str, what: str) -> None:
    """Raise ImportError that names the package and how it is installed, where it is not there.

    what: needs it, in the plural, such as "Zarr stores"."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{what} need the package {package}: python -m pip install {package}")


def import_pyproj() -> ModuleType:
    """The package pyproj with the PROJ library that it brings.

    ecCodes, where it was loaded before (by xarray, for GRIB), has put a PROJ of its own in front of all libraries.
    Where pyproj finds its functions there, it knows no projections, and the process ends with a double free. So its
    libraries are told to look among their own first. Raises: ImportError without pyproj."""
    if "pyproj" in sys.modules or "gribapi" not in sys.modules:
        return importlib.import_module("pyproj")
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        return importlib.import_module("pyproj")
    finally:
        sys.setdlopenflags(flags)
