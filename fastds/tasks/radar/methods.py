# SPDX-License-Identifier: Apache-2.0
"""Methods that downscale radar fields: networks and baselines."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from fastds._options import OptionError, spell_argument
from fastds.inference.files import describe_model
from fastds.models import ModelCard, available, load, load_card
from fastds.models.baselines.advection import advection
from fastds.models.baselines.interpolation import bicubic, trilinear
from fastds.models.card import Network

# functions of a sequence (B, N, C, h, w) in [0, 1] and the scale factor
BASELINES = {"trilinear": trilinear, "bicubic": bicubic, "advection": advection}
OF_ONE_TIME = {name: method for name, method in BASELINES.items() if name != "advection"}
# default if several shipped weights match
DEFAULT_MODEL = "fczsm-small"
FLOOR_DBZ, CEILING_DBZ = 0.0, 70.0
VARIABLE = {"name": "reflectivity", "standard_name": "equivalent_reflectivity_factor", "units": "dBZ"}


class Baseline(nn.Module):
    """Baseline with the interface of a network, between FLOOR_DBZ and CEILING_DBZ.

    forward maps (B, N, 1, h, w) in [0, 1] to (B, 2N - 1, 1, 2h, 2w). static is ignored; flow is the optical flow of the
    frames, or None.
    """

    def __init__(self, name: str):
        super().__init__()
        moves = {"residual": "advection"} if name == "advection" else {}
        self.name, self.config = name, {"in_channels": 1, "scale": 2, "num_features": 4, **moves}
        self.card = ModelCard(
            name=name, floor_dbz=FLOOR_DBZ, ceiling_dbz=CEILING_DBZ, space_factor=2, time_factor=2,
            input_variables=[VARIABLE], output_variables=[VARIABLE],
        )  # fmt: skip
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # has the device of the module

    def forward(self, x: Tensor, static: Tensor | None = None, flow: Tensor | None = None) -> Tensor:
        """Compute the baseline.

        Args:
            x: (B, N, 1, h, w) in [0, 1].
            static: not used.
            flow: (B, N - 1, 2, 2, h, w), optical flow for "advection"; None computes it. Other baselines do not use it.

        Returns:
            (B, 2N - 1, 1, 2h, 2w).
        """
        return advection(x, 2, flow) if self.name == "advection" else BASELINES[self.name](x, 2)


def needs_flow(model: Network) -> bool:
    """Return whether a model reads the optical flow."""
    return bool(model.config.get("flow_guided")) or model.config.get("residual") == "advection"


def needs_context(model: Network) -> bool:
    """Return whether a model reads the frames before and after those of a pair."""
    return bool(model.config.get("middle_frame"))


def pick_model(model: nn.Module | str | os.PathLike | None = None) -> tuple[Network, str]:
    """Return a model and a note about it.

    Args:
        model: network, shipped name, weights file or baseline; None: the shipped weights for reflectivity in dBZ, or
            "fczsm-small" if several match.

    Raises:
        ValueError: no default can be selected (the message lists the candidates), a network has no card, or the weights
            cannot be read, see fastds.load.
        FileNotFoundError: there are no such weights.
    """
    if isinstance(model, nn.Module):
        if getattr(model, "card", None) is None:
            raise OptionError("model", "must have a card with its normalisation; load it with fastds.load")
        return model, describe_model(model, model)
    if isinstance(model, str) and model in BASELINES:
        return Baseline(model), f"method {model}, which needs no weights"
    if model is not None:
        loaded = load(model)
        return loaded, describe_model(loaded, model)
    names = available(pretrained=True)
    matches = [name for name in names if _takes_reflectivity(load_card(name))]
    if len(matches) == 1:
        return load(matches[0]), f"model {matches[0]}"
    if DEFAULT_MODEL in matches:
        others = ", ".join(name for name in matches if name != DEFAULT_MODEL)
        return load(DEFAULT_MODEL), f"model {DEFAULT_MODEL} (others for reflectivity: {others})"
    found = "no weights are shipped" if not names else f"candidates: {', '.join(matches or names)}"
    how = "several" if matches else "none"
    raise ValueError(
        f"{how} of the shipped weights take reflectivity in dBZ; name one with {spell_argument('model')}; {found}"
    )


def _takes_reflectivity(card: ModelCard) -> bool:
    variables = card.input_variables
    return (
        card.input_steps is None
        and len(variables) == 1
        and str(variables[0].get("standard_name", "")).startswith("equivalent_reflectivity_factor")
        and str(variables[0].get("units", "")).lower() == "dbz"
    )
