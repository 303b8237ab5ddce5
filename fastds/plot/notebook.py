# SPDX-License-Identifier: Apache-2.0
"""Display of figures in notebooks."""

import io
import sys
from typing import Any

from matplotlib.figure import Figure


def show_figures() -> None:
    """Make IPython show figures that are the result of a cell, as it does after an import of pyplot.

    Figures of fastds do not use pyplot, without which IPython shows only their size. Outside IPython, or if figures are
    shown already, nothing is changed.
    """
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None:
        return
    formatter = shell.display_formatter.formatters["image/png"]
    try:
        formatter.lookup_by_type(Figure)
    except KeyError:
        formatter.for_type(Figure, _make_png)


def _make_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
