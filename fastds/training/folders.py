# SPDX-License-Identifier: Apache-2.0
"""Selection of the files in a folder that a training can read."""

import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from fastds._options import OptionError, spell_name

Part = TypeVar("Part")
_MAX_NAMED = 8
_SERIES = (".nc", ".npz")  # extensions of files with time series
_COORDINATES = "radar_coords_"  # prefix of the coordinate files of MeteoNet


def scan_folder(
    folder: str | os.PathLike, use: Callable[[pathlib.Path], Part], further: Sequence[str] = ()
) -> dict[pathlib.Path, Part]:
    """Apply a function to each *.nc and *.npz file of a folder and warn once about files that it rejects.

    Args:
        folder: folder with the files.
        use: function of a path. It raises ValueError or OSError with a one-line message for an unusable file.
        further: further extensions of files to use.

    Returns:
        Dict from the path of each usable file to the result of `use`, sorted by path.

    Raises:
        FileNotFoundError: the folder has no *.nc or *.npz file.
        ValueError: no file is usable; the message has the reasons.
    """
    folder = pathlib.Path(folder)
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith((".", _COORDINATES)))
    used, left_out = {}, []
    for file in files:
        try:
            if file.suffix not in (*_SERIES, *further):
                raise ValueError("not NetCDF")
            used[file] = use(file)
        except (ValueError, OSError) as error:
            left_out.append(f"{file.name} ({' '.join(str(error).split())})")
    more = f" and {len(left_out) - _MAX_NAMED} more" if len(left_out) > _MAX_NAMED else ""
    named = "; ".join(left_out[:_MAX_NAMED]) + more
    if not any(file.suffix in (*_SERIES, *further) for file in files):
        raise FileNotFoundError(
            f"{spell_name('data.path')}: no file to train on in {folder}" + (f": {named}" if named else "")
        )
    if not used:
        raise OptionError("data.path", f": no file to train on in {folder}: {named}")
    if left_out:
        warnings.warn(f"{len(left_out)} of {len(files)} files in {folder} are left out: {named}", stacklevel=3)
    return used
