# SPDX-License-Identifier: Apache-2.0
"""Files that do not tell their variable, units or missing value, written again so that a training can read them."""

import os
import pathlib
from typing import Unpack

from fastds.data import save_dataset
from fastds.data.reading import Reading, opened
from fastds.tasks.common.folders import usable_files


def told_files(
    data: str | os.PathLike, folder: pathlib.Path, var: str | None, name: str | None = None, **reading: Unpack[Reading]
) -> pathlib.Path:
    """Write the file or the files of the folder `data` into `folder`, as var and reading tell, and return its path.

    var: the only variable that is kept, called `name` there. reading: see fastds.data.reading.Reading. Raises:
    FileNotFoundError and ValueError as usable_files and opened do.
    """
    data = pathlib.Path(data)

    def written(path: pathlib.Path) -> pathlib.Path:
        with opened(path, var, **reading) as dataset:
            if var is not None and var not in dataset:
                raise ValueError(f"var: {var!r} is not in {path.name}, which has {', '.join(map(str, dataset))}")
            kept = dataset if var is None else dataset[[var]].rename({var: name or var})
            target = folder / f"{path.stem}.nc"
            folder.mkdir(parents=True, exist_ok=True)
            save_dataset(kept, target)
        return target

    if not data.exists():
        raise FileNotFoundError(f"data: no such file or folder: {data}")
    if not data.is_dir():
        return written(data)
    usable_files(data, written)
    return folder
