# SPDX-License-Identifier: Apache-2.0
"""DB-RNN (Ma, Zhang and Liu 2024): nowcasting with a recurrent forecasting and a recurrent deblurring network."""

from fastds.models.db_rnn.cells import CELLS
from fastds.models.db_rnn.discriminator import Discriminator
from fastds.models.db_rnn.lagrangian import LagrangianRNN
from fastds.models.db_rnn.network import DBRNN, MSRNN, StagedRNN

_SMALL_OPTIONS = {"hidden": 16, "residual": True}  # for machines without a GPU
_PRESET_KINDS = {
    "ms-{}": ("MSRNN", {}, "MS-RNN: one module, with {} cells."),
    "db-{}": ("DBRNN", {}, "DB-RNN: a forecasting and a deblurring module end to end, with {} cells."),
    "ms-{}-s": ("StagedRNN", {}, "A forecaster and a deblurrer trained one after the other, with {} cells."),
    "ms-{}-small": ("MSRNN", _SMALL_OPTIONS, "Small MS-RNN with {} cells that forecasts the change of the last frame."),
    "db-{}-small": ("DBRNN", _SMALL_OPTIONS, "Small DB-RNN with {} cells that forecasts the change of the last frame."),
}
PRESETS = {
    name.format(cell): (architecture, {"cell": cell, **options}, text.format(kind.__name__))
    for cell, kind in CELLS.items()
    for name, (architecture, options, text) in _PRESET_KINDS.items()
}
PRESETS["ms-lstm"] = ("MSRNN", {"cell": "mk-lstm"}, "MS-LSTM, a peer of DB-RNN.")
PRESETS["nowcast-small"] = (
    "LagrangianRNN",
    {"network": "MSRNN", "hidden": 16},
    "Small MS-RNN on Lagrangian coordinates (frames advected along optical flow).",
)

__all__ = ["CELLS", "DBRNN", "MSRNN", "PRESETS", "Discriminator", "LagrangianRNN", "StagedRNN"]
