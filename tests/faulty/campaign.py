# SPDX-License-Identifier: Apache-2.0
"""Draws random files by seed and compares what fastds reads from them with the expected values."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

with contextlib.suppress(ImportError):
    import pyproj  # noqa: F401  before ecCodes, which brings a PROJ of its own: else the process ends with a double free

from .drawn import Drawn
from .drawn_binary import write_meteonet, write_nimrod, write_radolan
from .drawn_cf import write_cf
from .drawn_grib import write_grib
from .drawn_radar import write_geotiff, write_knmi, write_odim
from .judged import judge

_WRITERS = {
    "grib": write_grib, "odim": write_odim, "knmi": write_knmi, "geotiff": write_geotiff, "radolan": write_radolan,
    "nimrod": write_nimrod, "meteonet": write_meteonet,
}  # fmt: skip
FORMATS = ["netcdf4", "netcdf3", "zarr2", "zarr3", *_WRITERS]
_SHARES = [0.35, 0.08, 0.09, 0.07, 0.17, 0.08, 0.04, 0.04, 0.015, 0.035, 0.03]


def draw(rng: np.random.Generator, folder: Path, formats: list[str] | None = None) -> Drawn:
    """Draw a file and write it into an empty folder.

    Args:
        rng: random generator.
        folder: folder, which is emptied.
        formats: formats to draw from; None for all.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    form = str(rng.choice(FORMATS, p=_SHARES) if formats is None else rng.choice(formats))
    drawn = _WRITERS[form](rng, folder) if form in _WRITERS else write_cf(rng, folder, form)
    drawn.how["format"] = form
    if rng.random() < 0.08:
        _damage(rng, drawn, folder)
    return drawn


def _damage(rng: np.random.Generator, drawn: Drawn, folder: Path) -> None:
    """Truncate one of the drawn files, or flip up to twenty of its bits."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1)
    path = files[int(rng.integers(len(files)))]
    content = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        content = content[: int(rng.integers(1, len(content)))]
    else:
        for at in rng.integers(0, len(content), int(rng.integers(1, 21))):
            content[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(content))
    drawn.damaged = True


def campaign(
    count: int, seed: int, folder: Path, first: int = 0, formats: list[str] | None = None
) -> Iterator[tuple[int, str, str, Drawn]]:
    """Yield (number, outcome, message, drawn file); each file depends only on its number and the seed.

    Args:
        count: number of files.
        seed: seed of the campaign.
        folder: folder for files.
        first: number of the first file.
        formats: formats to draw from; None for all.
    """
    for number in range(first, first + count):
        rng = np.random.default_rng([seed, number])
        drawn = draw(rng, folder / "in", formats)
        yield number, *judge(drawn, rng, folder), drawn
