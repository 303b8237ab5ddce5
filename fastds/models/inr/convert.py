# SPDX-License-Identifier: Apache-2.0
"""Published LIIF and LTE weights (EDSR-baseline encoder) to models here and back; the first layer is only reshaped.

Keys of the published models: encoder.head.0, encoder.body.<i>.body.{0,2}, encoder.body.<last>, imnet.layers.<2 k>, and
for LTE coef, freq, phase. Their first linear layer reads [unfolded features (channel, row, column), rho, cell].
"""

import torch
from torch import Tensor

from fastds.models.inr.network import INRDownscaler


def from_published(state: dict[str, Tensor]) -> INRDownscaler:
    """A model with compat="liif" and the published weights; its input is scaled as theirs, (x - 0.5) / 0.5.

    Numbers are those of the published code but where a place falls on the last row or column exactly, as with odd whole
    factors: there the published weights depend on rounding (compat of fastds.ops.inr_query).

    Args:
        state: of LIIF or LTE with the EDSR encoder; sub_mean and add_mean, which they never use, are ignored.

    Raises:
        ValueError: keys or shapes of another model.
    """
    state = {k: v for k, v in state.items() if ".sub_mean." not in k and ".add_mean." not in k}
    decoder = "lte" if "coef.weight" in state else "liif"
    try:
        width, channels = state["imnet.layers.0.weight"].shape[0], state["encoder.head.0.weight"].shape[0]
        inputs = state["encoder.head.0.weight"].shape[1]
    except KeyError as error:
        raise ValueError(f"state lacks {error}: expected LIIF or LTE with the EDSR encoder") from None
    blocks = sum(k.endswith(".body.0.weight") for k in state)
    hidden = sum(k.startswith("imnet.layers.") and k.endswith(".weight") for k in state) - (
        2 if decoder == "liif" else 1
    )
    model = INRDownscaler(
        inputs, encoder_options={"channels": channels, "blocks": blocks}, decoder=decoder,
        decoder_options={"width": width, "hidden": hidden}, dpfa="none", skip=decoder == "lte", compat="liif",
    )  # fmt: skip
    renamed = {"mean": torch.full((inputs,), 0.5), "std": torch.full((inputs,), 0.5)}
    for ours, theirs in names(model).items():
        if theirs not in state:
            raise ValueError(f"state lacks {theirs}: expected {decoder} with the EDSR encoder")
        renamed[ours] = state[theirs]
    if decoder == "liif":
        first = state["imnet.layers.0.weight"]
        if first.shape[1] != 9 * channels + 4:
            raise ValueError(f"imnet.layers.0.weight reads {first.shape[1]} values, expected 9 * {channels} + 4")
        renamed["decoder.local.weight"] = first[:, : 9 * channels].unflatten(1, (channels, 3, 3))
        renamed["decoder.offset"], renamed["decoder.cell"] = first[:, -4:-2], first[:, -2:]
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise ValueError(f"state does not fit {decoder} with the EDSR encoder: {error}") from None
    return model.eval()


def to_published(model: INRDownscaler) -> dict[str, Tensor]:
    """The weights of a LIIF or LTE model with the EDSR encoder under their published names."""
    if (
        model.config["decoder"] not in ("liif", "lte")
        or model.config["encoder"] != "edsr"
        or model.embedding is not None
    ):
        raise ValueError("model must be LIIF or LTE on the EDSR encoder without DPFA")
    state = model.state_dict()
    result = {theirs: state[ours] for ours, theirs in names(model).items()}
    if model.config["decoder"] == "liif":
        parts = [state["decoder.local.weight"].flatten(1), state["decoder.offset"], state["decoder.cell"]]
        result["imnet.layers.0.weight"] = torch.cat(parts, 1)
    return result


def names(model: INRDownscaler) -> dict[str, str]:
    """Our names of the tensors that keep their shape -> the published ones."""
    pairs = {"encoder.head": "encoder.head.0"}
    last = len(model.encoder.blocks)
    for i in range(last):
        pairs |= {f"encoder.blocks.{i}.conv{k}": f"encoder.body.{i}.body.{2 * k - 2}" for k in (1, 2)}
    pairs["encoder.tail"] = f"encoder.body.{last}"
    liif = model.config["decoder"] == "liif"
    for i in range(len(model.decoder.trunk)):
        pairs[f"decoder.trunk.{i}"] = f"imnet.layers.{2 * (i + 1 if liif else i)}"
    if not liif:
        pairs |= {"decoder.amplitude": "coef", "decoder.frequency": "freq"}
    result = {f"{a}.{part}": f"{b}.{part}" for a, b in pairs.items() for part in ("weight", "bias")}
    if liif:
        return result | {"decoder.local.bias": "imnet.layers.0.bias"}
    return result | {"decoder.phase": "phase.weight"}
