# SPDX-License-Identifier: Apache-2.0
"""Use nowcasters of fastds as networks in `mlcast train`, and load weights that were trained there."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastds.models.card import Network
from fastds.models.mlcast.network import INPUT_STEPS, LIGHTNING, MLCastConvGRU, build_card
from fastds.models.registry import build, create

_INNER = "network."  # prefix of the nowcaster's keys in the state dict of an MLCastNetwork
_EXTRA = "_extra_state"


class MLCastNetwork(nn.Module):
    """Nowcaster with the interface of MLCast's networks, for cfg.pl_module.network of `mlcast train`.

        y = 2 n((x + 1) / 2) - 1

    Here n is the last `steps` frames of the nowcaster's forward, not clipped. All members of an ensemble are equal, so
    MLCast's default CRPS loss equals the mean absolute error. An MLCastConvGRU is called unchanged instead. Checkpoints
    contain the name of the nowcaster, so that from_mlcast can read them.

    Args:
        name: name of a nowcaster, see fastds.models.available().
        input_channels: must be 1. MLCast compares it with the number of variables in its data.
        options: arguments of fastds.models.create.

    Shapes: forward(x (B, T, 1, H, W) in [-1, 1], steps, ensemble_size=1) -> (B, steps, ensemble_size, H, W).

    Raises:
        ValueError: If the network does not nowcast, or if input_channels is not 1.
    """

    def __init__(self, name: str, input_channels: int = 1, **options: Any):
        super().__init__()
        if input_channels != 1:
            raise ValueError(f"input_channels must be 1, reflectivity, for {name}, got {input_channels}")
        self.network = create(name, **options)
        if not hasattr(self.network, "forecast"):
            raise ValueError(f"name must be a nowcaster's, such as ms-convlstm or nowcast-small, got {name!r}")
        self.name, self.input_channels = name, input_channels

    def forward(self, x: Tensor, steps: int, ensemble_size: int = 1) -> Tensor:
        """Forecast frames on the scale of MLCast.

        Args:
            x: (B, T, 1, H, W) in [-1, 1], input frames.
            steps: number of forecast frames.
            ensemble_size: number of members.

        Returns:
            (B, steps, ensemble_size, H, W).
        """
        if isinstance(self.network, MLCastConvGRU):
            return self.network(x, steps, ensemble_size)
        y = self.network((x + 1) / 2, steps)
        y = (y if isinstance(y, Tensor) else y[-1])[:, -steps:]
        return (2 * y - 1).expand(-1, -1, ensemble_size, -1, -1)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the name, architecture and configuration from which from_mlcast builds the nowcaster."""
        return {"name": self.name, "architecture": type(self.network).__name__, "config": self.network.config}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Do nothing, because the network exists already."""


def from_mlcast(checkpoint: str | os.PathLike | Mapping[str, Any], input_steps: int = INPUT_STEPS) -> nn.Module:
    """Load weights from a checkpoint of `mlcast train`, for fastds.nowcast and fastds.models.save.

    Args:
        checkpoint: path of a checkpoint, which is read without unpickling objects, or its "state_dict". The network is
            an MLCastNetwork or MLCast's own network.
        input_steps: number of input frames in the training; 6 by default in MLCast.

    Returns:
        The nowcaster in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or the weights belong to another network.
    """
    state = checkpoint if isinstance(checkpoint, Mapping) else _read_state(checkpoint)
    inner = {name.removeprefix(LIGHTNING): value for name, value in state.items() if name.startswith(LIGHTNING)}
    stored = inner.pop(_EXTRA, None)
    if stored is None:
        model: Network = MLCastConvGRU.from_mlcast(state)
    else:
        model = build(stored["architecture"], stored["config"])
        try:
            model.load_state_dict({name.removeprefix(_INNER): value for name, value in inner.items()})
        except RuntimeError as error:
            raise ValueError(f"checkpoint does not fit a {stored['name']}: {error}") from None
        model.card = build_card(stored["name"])
    model.card.input_steps = input_steps
    return model.eval()


def _read_state(path: str | os.PathLike) -> Mapping[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except OSError:
        raise
    except Exception as error:  # torch reads unknown files as pickles, which can raise any exception
        kind = type(error).__name__
        raise ValueError(f"checkpoint {path} is no checkpoint of `mlcast train`: it cannot be read ({kind})") from None
