# SPDX-License-Identifier: Apache-2.0
"""Load weights of the authors' MS-RNN code (MS-ConvLSTM, MS-PredRNN, MS-TrajGRU).

The keys of that code are embed.conv_embed, fc.conv_fc and rnns.lstm.<0 to 5>.<layer of the cell>, with a prefix
"module." from data-parallel training. Its other cells have a different layer structure and are not supported.
"""

from typing import Any

import torch
from torch import Tensor

from fastds.models.card import ModelCard
from fastds.models.db_rnn.module import LAYERS
from fastds.models.db_rnn.network import MSRNN

# For each cell: a module of fastds, and the convolutions of the original code whose sum the module computes.
_CELLS: dict[str, dict[str, Any]] = {
    "convlstm": {"gates": ("_conv_x2h", "_conv_h2h")},
    "predrnn": {
        "gates": ("_conv_x2h", "_conv_h2h"),
        "spatial.memory": ("_conv_x2h_m", "_conv_m2h_m"),
        "spatial.output": ("_conv_c2o", "_conv_m2o"),
        "spatial.mix": ("_conv_c_m",),
    },
    "trajgru": {"input": ("_conv_x2h",), "flow_hidden": ("_conv_x2f", "_conv_h2f"), "flow": ("_conv_flow",)},
}
_PROJECT = "project"  # in trajgru: 1x1 convolution of all links, (3C, L C, 1, 1)


def from_published(
    state: dict[str, Tensor], input_steps: int = 10, floor_dbz: float = -10.0, ceiling_dbz: float = 60.0
) -> MSRNN:
    """Build a model with the weights of MS-ConvLSTM, MS-PredRNN or MS-TrajGRU, and a card for fastds.nowcast.

    ConvLSTM, PredRNN and TrajGRU without multiple scales have the same keys and shapes in that code, so the function
    cannot distinguish them. The caller must not pass their weights.

    Args:
        state: state dict of a training with that code.
        input_steps: number of input frames in the training.
        floor_dbz: reflectivity of pixel value 0 in dBZ. The default is the value of the data set HKO-7.
        ceiling_dbz: reflectivity of pixel value 1 in dBZ. The default is the value of HKO-7.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: If keys or shapes belong to another network.

    Source: Ma, Zhang and Liu, github.com/mazhf/MS-RNN. No code of it is used.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    first = (name for name in state if name.startswith("rnns.lstm.0.") and name.count(".") == 4)
    cell = _identify_cell({name.split(".")[3] for name in first})
    renamed: dict[Any, Any] = {}
    try:
        for ours, theirs in (("embed", "embed.conv_embed"), ("output", "fc.conv_fc")):
            renamed |= {f"{ours}.{part}": state.pop(f"{theirs}.{part}") for part in ("weight", "bias")}
        for layer in range(LAYERS):
            renamed |= {f"cells.{layer}.{k}": v for k, v in _rename_layer(cell, state, f"rnns.lstm.{layer}.").items()}
        hidden, links = len(renamed["embed.bias"]), renamed.get("cells.0.project_weight")
        model = MSRNN(cell, hidden, {} if links is None else {"links": links.shape[2]})
        if state:
            raise ValueError(f"it has further keys, such as {min(state)}")
        model.module.load_state_dict(renamed)
    except (KeyError, RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"state does not fit an MS-RNN with {cell} cells: {message}") from None
    z = {"name": "reflectivity", "standard_name": "equivalent_reflectivity_factor", "units": "dBZ"}
    model.card = ModelCard(
        name=f"ms-{cell}", description="Weights of the authors' MS-RNN code.", input_variables=[z],
        output_variables=[z], input_steps=input_steps, floor_dbz=floor_dbz, ceiling_dbz=ceiling_dbz,
    )  # fmt: skip
    return model.eval()


def _identify_cell(layers: set[str]) -> str:
    for cell, parts in _CELLS.items():
        known = {name for names in parts.values() for name in names}
        if layers == known | ({_PROJECT} if cell == "trajgru" else set()):
            return cell
    raise ValueError(
        "state must be that of MS-ConvLSTM, MS-PredRNN or MS-TrajGRU of MS-RNN, got a cell with the layers "
        f"{sorted(layers)[:8]}"
    )


def _rename_layer(cell: str, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove the tensors of one cell from the state and return them under their names in fastds.

    Args:
        cell: name of the cell.
        state: state dict, modified in place.
        prefix: prefix of the keys of this cell.
    """
    found = {}
    for ours, theirs in _CELLS[cell].items():
        weights, biases = ([state.pop(f"{prefix}{name}.{part}") for name in theirs] for part in ("weight", "bias"))
        found[f"{ours}.weight"] = torch.cat(weights, 1)
        found[f"{ours}.bias"] = torch.stack(biases) if len(biases) > 1 else biases[0]
    if cell == "trajgru":
        weight = state.pop(f"{prefix}{_PROJECT}.weight")
        channels = weight.shape[0] // 3
        found["project_weight"] = weight.reshape(len(weight), -1, channels).transpose(1, 2)
        found["project_bias"] = state.pop(f"{prefix}{_PROJECT}.bias")
    return found
