# SPDX-License-Identifier: Apache-2.0
"""Packages that only some files and commands need."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from types import ModuleType

_MODULES = {"scikit-image": "skimage"}  # of packages that are imported by another name


def require(packages: str, what: str) -> None:
    """Raise ImportError that names the packages that are not there, and how they are installed.

    packages: one, or several apart by spaces. what: needs them, in the plural, such as "Zarr stores"."""
    missing = [name for name in packages.split() if importlib.util.find_spec(_MODULES.get(name, name)) is None]
    if missing:
        kind = "package" if len(missing) == 1 else "packages"
        raise ImportError(f"{what} need the {kind} {' and '.join(missing)}: {how_to_install(*missing)}")


def how_to_install(*packages: str) -> str:
    """The command that installs packages, and the extra of fastds that brings them all, where one does."""
    command = f"python -m pip install {' '.join(packages)}"
    extra = next((extra for extra, names in _extras().items() if names.issuperset(packages)), None)
    return command if extra is None else f"{command}, or, in a clone of fastds, python -m pip install '.[{extra}]'"


def _extras() -> dict[str, set[str]]:
    """The packages of each extra, as the installed distribution tells."""
    found: dict[str, set[str]] = {}
    try:
        lines = importlib.metadata.requires("fastds-weather") or []
    except importlib.metadata.PackageNotFoundError:
        return found
    for line in lines:
        package, _, extra = line.partition("; extra == ")
        if not extra:  # what fastds cannot do without
            continue
        found.setdefault(extra.strip("\"' "), set()).add(re.split(r"[^\w.-]", package)[0])
    return found


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
