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
from .judged import judge
from .writers import load_writers


def draw_format(rng: np.random.Generator) -> str:
    """Draw the name of a format by the shares of the writers."""
    writers = load_writers()
    return str(rng.choice(list(writers), p=[writer.share for writer in writers.values()]))


def draw(rng: np.random.Generator, folder: Path, formats: list[str] | None = None) -> Drawn:
    """Draw a file and write it into an empty folder.

    Args:
        rng: random generator.
        folder: folder, which is emptied.
        formats: formats to draw from; None for all.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    form = draw_format(rng) if formats is None else str(rng.choice(formats))
    drawn = load_writers()[form].write(rng, folder)
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
