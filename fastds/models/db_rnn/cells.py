# SPDX-License-Identifier: Apache-2.0
"""The cells by name."""

from typing import Any

from fastds.models.db_rnn.cell import Cell
from fastds.models.db_rnn.gru_cells import ConvGRU, TrajGRU
from fastds.models.db_rnn.lstm_cells import MKLSTM, ConvLSTM, SAConvLSTM
from fastds.models.db_rnn.mim import MIM, MotionRNN
from fastds.models.db_rnn.precip_lstm import PrecipLSTM
from fastds.models.db_rnn.pred_rnn import PredRNN, PredRNNPP
from fastds.models.db_rnn.pred_rnn_v2 import PredRNNV2

CELLS: dict[str, type[Cell]] = {
    "convlstm": ConvLSTM,
    "convgru": ConvGRU,
    "trajgru": TrajGRU,
    "predrnn": PredRNN,
    "predrnn++": PredRNNPP,
    "mim": MIM,
    "motionrnn": MotionRNN,
    "preciplstm": PrecipLSTM,
    "predrnn-v2": PredRNNV2,
    "sa-convlstm": SAConvLSTM,
    "mk-lstm": MKLSTM,
}


def build_cell(name: str, channels: int, layer: int, layers: int, **options: Any) -> Cell:
    """One cell of a module.

    Raises:
        ValueError: unknown name, or an option the cell does not take.
    """
    if name not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {name!r}")
    try:
        return CELLS[name](channels, layer, layers, **options)
    except TypeError as error:
        raise ValueError(f"cell {name!r} does not take the options {options}: {error}") from None
