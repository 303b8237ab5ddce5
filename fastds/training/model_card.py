# SPDX-License-Identifier: Apache-2.0
"""Model cards of training runs: metadata that describes the network and the training files."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from fastds._options import OptionError
from fastds.models import ModelCard
from fastds.training.command import find_configurations
from fastds.training.config import RunConfig

# Model-card fields that describe the original training files. They are dropped when a shipped configuration is run on
# other files.
_DATA_FIELDS = ("training_data", "licence", "limits", "picture", "training_hours")


def update_model_card(card: ModelCard, config: RunConfig) -> None:
    """Fill the model card of a network from the configuration of its training.

    Fields that describe the training files of a shipped configuration are dropped if the configuration is run on other
    files. If the configuration has no card name, the name is made of the network's name and the name of the output
    folder.

    Args:
        card: card of the network, changed in place.
        config: configuration of the training.

    Raises:
        ValueError: the configuration sets a field that a card does not have, or a value of the wrong type.
    """
    fields = _select_card_fields(config)
    if "name" not in fields:
        fields["name"] = _make_name(card.name, pathlib.Path(config.output).name)
    set_card_fields(card, fields)


def add_file_names(card: ModelCard, config: RunConfig, files: Iterable[str]) -> None:
    """Add the names of the training files to a card whose configuration does not declare its training data.

    If the training starts from existing weights (config.model.start), the names are added to the training data of these
    weights with the prefix "trained further on".

    Args:
        card: card of the network, changed in place.
        config: configuration of the training.
        files: names of the training files.
    """
    if "training_data" not in _select_card_fields(config):
        further = "trained further on " if config.model.start else ""
        add_training_data(card, [further + name for name in sorted(set(files))])


def add_training_data(card: ModelCard, training_data: Iterable[str]) -> None:
    """Append the entries of `training_data` that the card does not have yet."""
    card.training_data = list(dict.fromkeys([*card.training_data, *training_data]))


def set_card_fields(card: ModelCard, values: dict, argument: str = "model.card") -> None:
    """Set fields of a model card.

    Args:
        card: card of the network, changed in place.
        values: value of each field.
        argument: name of the argument or option that error messages mention.

    Raises:
        ValueError: unknown field, or a value with which the saved weights could not be loaded.
    """
    for key, value in values.items():
        if key not in {field.name for field in dataclasses.fields(card)}:
            raise OptionError(argument, f"has no field {key!r}")
        setattr(card, key, value)
    try:
        ModelCard.from_json(card.to_json())
    except ValueError as error:
        raise OptionError(argument, f": {error}") from None


def _select_card_fields(config: RunConfig) -> dict[str, Any]:
    """Return the card fields of a configuration that hold for its training files."""
    fields = dict(config.model.card)
    shipped = _find_shipped_data(fields.get("training_data"))
    if shipped is not None and _list_files(shipped) != _list_files(vars(config.data)):
        for key in _DATA_FIELDS:
            fields.pop(key, None)
    return fields


def _make_name(network: str, folder: str) -> str:
    is_same = folder == network or network.endswith(f"-{folder}")
    return network if is_same or not folder else f"{network}-{folder}"


def _find_shipped_data(training_data: Any) -> Mapping[str, Any] | None:
    """Return the section `data` of the shipped configuration whose card has this training data, or None."""
    for path in find_configurations().values() if training_data else ():
        values = yaml.safe_load(path.read_text())
        if values.get("model", {}).get("card", {}).get("training_data") == training_data:
            return values["data"]
    return None


def _list_files(data: Mapping[str, Any]) -> set[str]:
    """Return the file names in the section `data` of a configuration.

    If the section names no files, the result is the last part of its path.
    """
    named = {*(data.get("blocks") or ()), *(data.get("sources") or ())}
    named |= {entry.partition(":")[0] for entry in data.get("each") or ()}
    return named or {os.path.basename(os.path.abspath(data["path"]))}  # the path may be "."
