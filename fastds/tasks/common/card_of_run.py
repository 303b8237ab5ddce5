# SPDX-License-Identifier: Apache-2.0
"""The card of a network that is trained: its own name and data, whatever configuration it was trained by."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from fastds.models import ModelCard
from fastds.tasks.common.command import configurations
from fastds.tasks.common.config import RunConfig

# What a shipped configuration tells of weights made of its files, and is not so of others.
_OF_ITS_FILES = ("training_data", "licence", "limits", "picture", "training_hours")


def fill_card_of_run(card: ModelCard, config: RunConfig) -> None:
    """Fill the card of a network from the configuration that trains it.

    A shipped configuration with other files than its own keeps nothing that is only so of these. A card without a name
    of its own is called after the network and the folder of the run.
    """
    told = _told(config)
    if "name" not in told:
        told["name"] = _name(card.name, pathlib.Path(config.output).name)
    fill_card(card, told)


def name_files(card: ModelCard, config: RunConfig, files: Iterable[str]) -> None:
    """Add the names of the files that a training reads to a card whose configuration does not tell its training data;
    of weights that are trained further, to those of the weights."""
    if "training_data" not in _told(config):
        further = "trained further on " if config.model.start else ""
        add_data(card, [further + name for name in sorted(set(files))])


def add_data(card: ModelCard, training_data: Iterable[str]) -> None:
    """Add to a card's training data what it does not have."""
    card.training_data = list(dict.fromkeys([*card.training_data, *training_data]))


def fill_card(card: ModelCard, values: dict, argument: str = "model.card") -> None:
    """Set fields of a model's card. Raises: ValueError, naming the argument, for one it has not, and for values that
    weights could not be read back with."""
    for key, value in values.items():
        if key not in {field.name for field in dataclasses.fields(card)}:
            raise ValueError(f"{argument} has no field {key!r}")
        setattr(card, key, value)
    try:
        ModelCard.from_json(card.to_json())
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None


def _told(config: RunConfig) -> dict[str, Any]:
    """The fields of the card that a configuration gives and that are so of its files."""
    told = dict(config.model.card)
    shipped = _shipped(told.get("training_data"))
    if shipped is not None and _files(shipped) != _files(vars(config.data)):
        for key in _OF_ITS_FILES:
            told.pop(key, None)
    return told


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
    """The names of the files that a configuration's data name, or of the path where they name none."""
    named = {*(data.get("blocks") or ()), *(data.get("sources") or ())}
    named |= {entry.partition(":")[0] for entry in data.get("each") or ()}
    return named or {os.path.basename(os.path.abspath(data["path"]))}  # the path may be "."
