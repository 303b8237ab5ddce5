# SPDX-License-Identifier: Apache-2.0
"""The cells by name."""

from fastds.models.db_rnn.cell import Cell
from fastds.models.db_rnn.conv_gru import ConvGRU
from fastds.models.db_rnn.conv_lstm import ConvLSTM
from fastds.models.db_rnn.mim import MIM
from fastds.models.db_rnn.mk_lstm import MKLSTM
from fastds.models.db_rnn.motion_rnn import MotionRNN
from fastds.models.db_rnn.precip_lstm import PrecipLSTM
from fastds.models.db_rnn.pred_rnn import PredRNN
from fastds.models.db_rnn.pred_rnn_pp import PredRNNPP
from fastds.models.db_rnn.pred_rnn_v2 import PredRNNV2
from fastds.models.db_rnn.sa_conv_lstm import SAConvLSTM
from fastds.models.db_rnn.traj_gru import TrajGRU

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


def build_cell(name: str, channels: int, layer: int, layers: int, **options) -> Cell:
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
