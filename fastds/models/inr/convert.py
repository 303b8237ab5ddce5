# SPDX-License-Identifier: Apache-2.0
"""Convert published weights of LIIF, LTE and MetaSR with the EDSR-baseline encoder, in both directions.

Keys of the published models are encoder.head.0, encoder.body.<i>.body.{0,2}, encoder.body.<last>, imnet.layers.<2 k>,
and for LTE coef, freq, phase. The first linear layer of LIIF reads [unfolded features (channel, row, column), rho,
cell]. The first linear layer of the MetaSR that LIIF's authors trained reads [rho, 1 / s_y], and its second one outputs
a kernel (channel, row, column, output). The conversion only renames and reshapes tensors.
"""

from typing import Any, cast

import torch
from torch import Tensor

from fastds.models.inr.network import INRDownscaler

_DECODERS = ("liif", "lte", "metasr")


def from_published(state: dict[str, Tensor]) -> INRDownscaler:
    """Build a model with compat="liif" and published weights.

    The input of the model is scaled as in the published code, (x - 0.5) / 0.5.

    The results equal those of the published code, except at queries exactly on the last row or column, as with odd
    integer factors. There the published area weights depend on rounding, see compat of fastds.ops.inr_query.

    Args:
        state: state dict of LIIF, LTE or MetaSR with the EDSR encoder. The unused layers sub_mean and add_mean are
            ignored.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: If keys or shapes belong to another model.
    """
    state = {k: v for k, v in state.items() if ".sub_mean." not in k and ".add_mean." not in k}
    try:
        (width, reads), (channels, inputs) = (
            state[name].shape[:2] for name in ("imnet.layers.0.weight", "encoder.head.0.weight")
        )
    except KeyError as error:
        raise ValueError(f"state lacks {error}: expected LIIF, LTE or MetaSR with the EDSR encoder") from None
    decoder = "lte" if "coef.weight" in state else "metasr" if reads == 3 else "liif"
    blocks = sum(k.endswith(".body.0.weight") for k in state)
    options = {"width": width}
    if decoder != "metasr":
        linear = sum(k.startswith("imnet.layers.") and k.endswith(".weight") for k in state)
        options["hidden"] = linear - (2 if decoder == "liif" else 1)
    model = INRDownscaler(
        inputs, encoder_options={"channels": channels, "blocks": blocks}, decoder=decoder,
        decoder_options=options, dpfa="none", skip=decoder == "lte", compat="liif",
    )  # fmt: skip
    renamed = {"mean": torch.full((inputs,), 0.5), "std": torch.full((inputs,), 0.5)}
    for ours, theirs in map_names(model).items():
        if theirs not in state:
            raise ValueError(f"state lacks {theirs}: expected {decoder} with the EDSR encoder")
        renamed[ours] = state[theirs]
    try:
        model.load_state_dict(renamed | _reshape_decoder(decoder, state, channels, inputs))
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"state does not fit {decoder} with the EDSR encoder: {error}") from None
    return model.eval()


def _reshape_decoder(decoder: str, state: dict[str, Tensor], channels: int, outputs: int) -> dict[str, Tensor]:
    """Reshape the tensors of a decoder that have another shape in the published state dict.

    Args:
        decoder: "liif", "lte" or "metasr".
        state: published state dict.
        channels: channels of the features.
        outputs: number of output channels.

    Returns:
        dict of the reshaped tensors only; their names are those of this package.

    Raises:
        ValueError: If the first layer of LIIF reads another number of values.
    """
    if decoder == "liif":
        first = state["imnet.layers.0.weight"]
        if first.shape[1] != 9 * channels + 4:
            raise ValueError(f"imnet.layers.0.weight reads {first.shape[1]} values, expected 9 * {channels} + 4")
        local = first[:, : 9 * channels].unflatten(1, (channels, 3, 3))
        return {"decoder.local.weight": local, "decoder.offset": first[:, -4:-2], "decoder.cell": first[:, -2:]}
    if decoder == "metasr":
        second, bias = (state[f"imnet.layers.2.{part}"] for part in ("weight", "bias"))
        kernels = second.unflatten(0, (channels, 3, 3, outputs)).permute(3, 4, 0, 1, 2).flatten(0, 1)
        constant = bias.unflatten(0, (channels, 3, 3, outputs)).permute(3, 0, 1, 2)
        return {"decoder.kernels.weight": kernels, "decoder.constant.weight": constant}
    return {}


def to_published(model: INRDownscaler) -> dict[str, Tensor]:
    """Return the weights of a LIIF, LTE or MetaSR model with the EDSR encoder under their published names.

    Raises:
        ValueError: If the model has another decoder or encoder, or DPFA modules.
    """
    if model.config["decoder"] not in _DECODERS or model.config["encoder"] != "edsr" or model.embedding is not None:
        raise ValueError("model must be LIIF, LTE or MetaSR on the EDSR encoder without DPFA")
    state = model.state_dict()
    result = {theirs: state[ours] for ours, theirs in map_names(model).items()}
    if model.config["decoder"] == "liif":
        parts = [state["decoder.local.weight"].flatten(1), state["decoder.offset"], state["decoder.cell"]]
        result["imnet.layers.0.weight"] = torch.cat(parts, 1)
    if model.config["decoder"] == "metasr":
        kernels, constant = (state[f"decoder.{part}.weight"] for part in ("kernels", "constant"))
        kernels = kernels.unflatten(0, (len(constant), -1)).permute(2, 3, 4, 0, 1)
        result["imnet.layers.2.weight"] = kernels.flatten(0, 3)
        result["imnet.layers.2.bias"] = constant.permute(1, 2, 3, 0).flatten()
    return result


def map_names(model: INRDownscaler) -> dict[str, str]:
    """Map the names in INRDownscaler of all tensors with unchanged shape to the published names."""
    pairs = {"encoder.head": "encoder.head.0"}
    last = len(model.encoder.blocks)
    for i in range(last):
        pairs |= {f"encoder.blocks.{i}.conv{k}": f"encoder.body.{i}.body.{2 * k - 2}" for k in (1, 2)}
    pairs["encoder.tail"] = f"encoder.body.{last}"
    decoder = model.config["decoder"]
    if decoder == "metasr":
        pairs["decoder.first"] = "imnet.layers.0"
    else:
        for i in range(len(cast(Any, model.decoder).trunk)):
            pairs[f"decoder.trunk.{i}"] = f"imnet.layers.{2 * (i + 1 if decoder == 'liif' else i)}"
    if decoder == "lte":
        pairs |= {"decoder.amplitude": "coef", "decoder.frequency": "freq"}
    result = {f"{a}.{part}": f"{b}.{part}" for a, b in pairs.items() for part in ("weight", "bias")}
    further = {"liif": {"decoder.local.bias": "imnet.layers.0.bias"}, "lte": {"decoder.phase": "phase.weight"}}
    return result | further.get(decoder, {})
