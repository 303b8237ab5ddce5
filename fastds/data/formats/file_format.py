# SPDX-License-Identifier: Apache-2.0
"""Description of a file format, which the module of each format gives as a module-level constant."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import xarray as xr

from fastds.data.formats.file_probe import FileProbe


class Format(NamedTuple):
    """A file format.

    `list_formats` finds the module-level objects of this class in the modules of `fastds.data.formats`.

    Attributes:
        name: Unique name in messages, in `encoding["format"]` and in the table of docs/formats.md.
        files: Sources or kinds of the files, for the table of docs/formats.md.
        matches: Function that returns True if a file has this format.
        read: Function that reads a file of this format.
        order: Unique number. Formats are tried in ascending order, and the first that matches a file reads it. A format
            that matches few files needs a lower number than a format that matches the same files and others.
        read_files: Function that reads and joins all files of an input; None: `read` is called for each file.
        lead_is_data: If True, the coordinate `lead` of a dataset is data of the user. If False, `read` sets this scalar
            coordinate to the lead time, so that forecasts can be distinguished from observations.
    """

    name: str
    files: str
    matches: Callable[[FileProbe], bool]
    read: Callable[[FileProbe], xr.Dataset]
    order: int
    read_files: Callable[[Sequence[pathlib.Path]], xr.Dataset] | None = None
    lead_is_data: bool = False
