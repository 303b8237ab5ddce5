# SPDX-License-Identifier: Apache-2.0
"""The card of a network that is trained: its own name and data, whatever configuration it was trained by."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import yaml

from fastds.models import ModelCard
from fastds.tasks.common.command import configurations
from fastds.tasks.common.config import RunConfig
from fastds.tasks.common.run_folder import fill_card

# What a shipped configuration tells of weights made of its files, and is not so of others.
_OF_ITS_FILES = ("training_data", "licence", "limits", "picture", "training_hours")


def fill_card_of_run(card: ModelCard, config: RunConfig) -> None:
    """Fill the card of a network from the configuration that trains it.

    A shipped configuration with other files than its own, or weights that are trained further, keep no training data
    that are not theirs. A card without a name of its own is called after the network and the folder of the run.
    """
    told, files = dict(config.model.card), _files(vars(config.data))
    shipped = _shipped(told.get("training_data"))
    if shipped is not None and _files(shipped) != files:
        for key in _OF_ITS_FILES:
            told.pop(key, None)
    if "training_data" not in told:
        names = ", ".join(sorted(files))
        before = card.training_data
        told["training_data"] = [*before, f"trained further on {names}"] if config.model.start else [names]
    if "name" not in told:
        told["name"] = _name(card.name, pathlib.Path(config.output).name)
    fill_card(card, told)


def _name(network: str, folder: str) -> str:
    ours = folder == network or network.endswith(f"-{folder}")
    return network if ours or not folder else f"{network}-{folder}"


def _shipped(training_data: Any) -> Mapping[str, Any] | None:
    """The data of the shipped configuration whose card tells these."""
    for path in configurations().values() if training_data else ():
        values = yaml.safe_load(path.read_text())
        if values.get("model", {}).get("card", {}).get("training_data") == training_data:
            return values["data"]
    return None


def _files(data: Mapping[str, Any]) -> set[str]:
    """The names of the files that data name, or of the path where they name none."""
    named = {*(data.get("blocks") or ()), *(data.get("sources") or ())}
    named |= {entry.partition(":")[0] for entry in data.get("each") or ()}
    return named or {os.path.basename(os.path.abspath(data["path"]))}  # the path may be "."
