# SPDX-License-Identifier: Apache-2.0
"""The weights that a training exports, with their card."""

from __future__ import annotations

import dataclasses
import pathlib

from fastds import models
from fastds.models import ModelCard
from fastds.tasks.common.lightning_extra import L, callbacks


def fill_card(card: ModelCard, values: dict, argument: str = "model.card") -> None:
    """Set fields of a model's card. Raises: ValueError, naming the argument, for one it has not."""
    for key, value in values.items():
        if key not in {field.name for field in dataclasses.fields(card)}:
            raise ValueError(f"{argument} has no field {key!r}")
        setattr(card, key, value)


class ExportBest(callbacks.Callback):
    """Writes last.safetensors at every validation and best.safetensors at the lowest error so far.

    First in the list of callbacks, so that it sees the averaged weights. Subclasses give validated(trainer, module):
    the network to save, the metrics for its card, and its error.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.best = folder, float("inf")

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        network, network.card.metrics, error = self.validated(trainer, module)
        models.save(network, self.folder / "last.safetensors")
        if error < self.best:
            self.best = error
            models.save(network, self.folder / "best.safetensors")

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]
