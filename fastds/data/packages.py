# SPDX-License-Identifier: Apache-2.0
"""Optional packages that some formats and commands need."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from types import ModuleType

_MODULE_NAMES = {
    "scikit-image": "skimage",
    "imageio-ffmpeg": "imageio_ffmpeg",
}  # package name -> name of the module, where they differ


def require(packages: str, what: str) -> None:
    """Raise ImportError if one of several optional packages is not installed.

    Args:
        packages: One or several package names, separated by spaces.
        what: Feature that needs the packages, in the plural, such as "Zarr stores".

    Raises:
        ImportError: The message names the missing packages and the command that installs them.
    """
    missing = [name for name in packages.split() if importlib.util.find_spec(_MODULE_NAMES.get(name, name)) is None]
    if missing:
        kind = "package" if len(missing) == 1 else "packages"
        raise ImportError(f"{what} need the {kind} {' and '.join(missing)}: {format_install_command(*missing)}")


def format_install_command(*packages: str) -> str:
    """Return the pip command that installs some packages.

    If one extra of fastds contains all of the packages, the result also names the command that installs this extra.
    """
    command = f"python -m pip install {' '.join(packages)}"
    extra = next((extra for extra, names in _read_extras().items() if names.issuperset(packages)), None)
    return command if extra is None else f"{command}, or, in a clone of fastds, python -m pip install '.[{extra}]'"


def _read_extras() -> dict[str, set[str]]:
    """Return the packages of each extra, read from the metadata of the installed distribution."""
    found: dict[str, set[str]] = {}
    try:
        lines = importlib.metadata.requires("fastds-weather") or []
    except importlib.metadata.PackageNotFoundError:
        return found
    for line in lines:
        package, _, extra = line.partition("; extra == ")
        if not extra:  # a mandatory dependency
            continue
        found.setdefault(extra.strip("\"' "), set()).add(re.split(r"[^\w.-]", package)[0])
    return found


def import_pyproj() -> ModuleType:
    """Import pyproj so that it uses the PROJ library of its own wheel.

    ecCodes (loaded by xarray for GRIB) puts another PROJ library first in the symbol table of the process. If pyproj
    binds to that library, it finds no projections and the process ends with a double free. RTLD_DEEPBIND makes pyproj's
    extension modules resolve symbols in their own libraries first.

    Raises:
        ImportError: pyproj is not installed.
    """
    if "pyproj" in sys.modules or "gribapi" not in sys.modules:
        return importlib.import_module("pyproj")
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        return importlib.import_module("pyproj")
    finally:
        sys.setdlopenflags(flags)
