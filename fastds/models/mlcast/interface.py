# SPDX-License-Identifier: Apache-2.0
"""The nowcasters of fastds as networks of `mlcast train`, and the weights trained there as models of fastds."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastds.models.mlcast.network import INPUT_STEPS, LIGHTNING, MLCastConvGRU, mlcast_card
from fastds.models.registry import build, create

_INNER = "network."  # before every name of the nowcaster in the state of an MLCastNetwork
_EXTRA = "_extra_state"


class MLCastNetwork(nn.Module):
    """A nowcaster with the interface of MLCast's networks; `mlcast train` takes it as cfg.pl_module.network.

        y = 2 n((x + 1) / 2) - 1, n the last `steps` fields of the nowcaster's forward, not clipped

    Its checkpoints say which nowcaster they hold, and from_mlcast reads them. The members of an ensemble are equal: the
    CRPS of MLCast's default is the mean absolute error then.

    Args:
        name: of a nowcaster, see fastds.models.available().
        input_channels: 1, which MLCast compares with the variables of its data.
        options: arguments of fastds.models.create.

    Shapes: forward(x (B, T, 1, H, W) in [-1, 1], steps, ensemble_size=1) -> (B, steps, ensemble_size, H, W).

    Raises: ValueError for a network that does not nowcast and for other channels.
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
        if isinstance(self.network, MLCastConvGRU):
            return self.network(x, steps, ensemble_size)
        y = self.network((x + 1) / 2, steps)
        y = (y if isinstance(y, Tensor) else y[-1])[:, -steps:]
        return (2 * y - 1).expand(-1, -1, ensemble_size, -1, -1)

    def get_extra_state(self) -> dict[str, Any]:
        """What from_mlcast builds the nowcaster from."""
        return {"name": self.name, "architecture": type(self.network).__name__, "config": self.network.config}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Nothing: the network is there already."""


def from_mlcast(checkpoint: str | os.PathLike | Mapping[str, Any], input_steps: int = INPUT_STEPS) -> nn.Module:
    """A nowcaster with the weights that `mlcast train` gave it, or MLCast's own network, for fastds.nowcast and
    fastds.models.save.

    Args:
        checkpoint: a file that `mlcast train` wrote, which is read without unpickling objects; or its "state_dict".
        input_steps: fields before the start that it was trained with; MLCast's default is 6.

    Raises: FileNotFoundError; ValueError for a file or weights of something else.
    """
    state = checkpoint if isinstance(checkpoint, Mapping) else _state(checkpoint)
    inner = {name.removeprefix(LIGHTNING): value for name, value in state.items() if name.startswith(LIGHTNING)}
    told = inner.pop(_EXTRA, None)
    if told is None:
        model = MLCastConvGRU.from_mlcast(state)
    else:
        model = build(told["architecture"], told["config"])
        try:
            model.load_state_dict({name.removeprefix(_INNER): value for name, value in inner.items()})
        except RuntimeError as error:
            raise ValueError(f"checkpoint does not fit a {told['name']}: {error}") from None
        model.card = mlcast_card(told["name"])
    model.card.input_steps = input_steps
    return model.eval()


def _state(path: str | os.PathLike) -> Mapping[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except OSError:
        raise
    except Exception as error:  # torch reads a foreign file as a pickle, which fails in any way
        kind = type(error).__name__
        raise ValueError(f"checkpoint {path} is no checkpoint of `mlcast train`: it cannot be read ({kind})") from None
