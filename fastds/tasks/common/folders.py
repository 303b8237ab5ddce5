# SPDX-License-Identifier: Apache-2.0
"""The files of a folder that a training can use; the others are named and left out."""

import os
import pathlib
import warnings
from collections.abc import Callable
from typing import TypeVar

Part = TypeVar("Part")
_NAMED = 8
_SERIES = (".nc", ".npz")  # of files that hold a series of times
_COORDINATES = "radar_coords_"  # what MeteoNet's reader finds beside its files


def usable_files(folder: str | os.PathLike, use: Callable[[pathlib.Path], Part]) -> dict[pathlib.Path, Part]:
    """What `use` makes of each *.nc and *.npz of a folder, by name; those that it cannot use are left out with one
    warning.

    use: raises ValueError or OSError, in one sentence, for a file that is damaged or of another kind.

    Raises: FileNotFoundError for a folder without any such file; ValueError, with the reasons, where none can be used.
    """
    folder = pathlib.Path(folder)
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith((".", _COORDINATES)))
    used, left_out = {}, []
    for file in files:
        try:
            if file.suffix not in _SERIES:
                raise ValueError("not NetCDF")
            used[file] = use(file)
        except (ValueError, OSError) as error:
            left_out.append(f"{file.name} ({' '.join(str(error).split())})")
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    named = "; ".join(left_out[:_NAMED]) + more
    if not any(file.suffix in _SERIES for file in files):
        raise FileNotFoundError(f"data.path: no file to train on in {folder}" + (f": {named}" if named else ""))
    if not used:
        raise ValueError(f"data.path: no file to train on in {folder}: {named}")
    if left_out:
        warnings.warn(f"{len(left_out)} of {len(files)} files in {folder} are left out: {named}", stacklevel=3)
    return used
