# SPDX-License-Identifier: Apache-2.0
"""Copies of training files with the variable, units and missing value that the user declares."""

import os
import pathlib
from typing import Unpack

from fastds._options import OptionError, spell_name
from fastds.data import save_dataset
from fastds.data.formats.plain_array import SUFFIXES
from fastds.data.reading import ReadOptions, open_input
from fastds.training.folders import scan_folder


def rewrite_with_metadata(
    data: str | os.PathLike,
    folder: pathlib.Path,
    var: str | None,
    name: str | None = None,
    **reading: Unpack[ReadOptions],
) -> pathlib.Path:
    """Write copies of a file, or of the files of a folder, with the metadata that the user declares.

    Args:
        data: file or folder to read.
        folder: folder to write to.
        var: the only variable to copy; None: all.
        name: name of the variable in the copies; None: unchanged.
        reading: options of fastds.data.reading.ReadOptions, which declare units, missing value and the
            layout of raw binary files, or select times.

    Returns:
        Path of the copy or of the folder of copies.

    Raises:
        FileNotFoundError: data does not exist.
        ValueError: var is not in a file, or a file cannot be read.
    """
    data = pathlib.Path(data)

    def written(path: pathlib.Path) -> pathlib.Path:
        with open_input(path, var, **reading) as dataset:
            if var is not None and var not in dataset:
                raise OptionError("var", f": {var!r} is not in {path.name}, which has {', '.join(map(str, dataset))}")
            selected = dataset if var is None else dataset[[var]].rename({var: name or var})
            target = folder / f"{path.stem}.nc"
            folder.mkdir(parents=True, exist_ok=True)
            save_dataset(selected, target)
        return target

    if not data.exists():
        raise FileNotFoundError(f"{spell_name('data')}: no such file or folder: {data}")
    if not data.is_dir():
        return written(data)
    scan_folder(data, written, SUFFIXES if reading.get("array") else ())
    return folder
