# SPDX-License-Identifier: Apache-2.0
"""Figures to files."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.figure import Figure


def save_png(figure: Figure, path: str | os.PathLike, dpi: int = 110) -> None:
    """Write a figure as PNG by a temporary name, so that nothing appears under `path` until it is complete; dpi: pixels
    an inch."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(temporary, format="png", dpi=dpi)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
