# SPDX-License-Identifier: Apache-2.0
"""Packages that only some files and commands need."""

import importlib.util


def require(package: str, what: str) -> None:
    """Raise ImportError that names the package and how it is installed, where it is not there.

    what: needs it, in the plural, such as "Zarr stores"."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{what} need the package {package}: python -m pip install {package}")
