# SPDX-License-Identifier: Apache-2.0
"""Names, metadata and cards of weights files.

This module does not import torch, so that commands that read no weights start fast.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fastds._argument_types import validate_arguments
from fastds._options import spell_name
from fastds._suggestions import resolve_name, suggest
from fastds.models.card import ModelCard

FORMAT = "fastds-1"
WEIGHTS = Path(__file__).parent / "weights"


def list_shipped() -> list[str]:
    """Return the names of the weights in the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


@validate_arguments
def load_card(name_or_path: str | os.PathLike) -> ModelCard:
    """Read the model card of a weights file without reading the weights.

    Args:
        name_or_path: as for `load`.

    Raises:
        FileNotFoundError: If `name_or_path` is neither the name of shipped weights nor a file.
        ValueError: If the file is damaged, is pickled, or was not written by `save`. The weights are not checked.
    """
    path = find_file(name_or_path)
    metadata = read_metadata(path)
    return parse_metadata(path, "card", lambda: ModelCard.from_json(metadata["card"]))


def find_file(name_or_path: str | os.PathLike) -> Path:
    """Return the path of shipped weights or of a file.

    Args:
        name_or_path: one of `list_shipped()`, also in another spelling, or the path of a file.

    Raises:
        FileNotFoundError: If `name_or_path` is neither the name of shipped weights nor a file.
    """
    shipped = WEIGHTS / f"{name_or_path}.safetensors"
    if isinstance(name_or_path, str) and shipped.parent == WEIGHTS and shipped.is_file():
        return shipped
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = list_shipped()
    if isinstance(name_or_path, str) and (name := resolve_name(name_or_path, names)):
        return WEIGHTS / f"{name}.safetensors"
    from fastds.models.registry import PRESETS  # imports torch

    hint = suggest(str(name_or_path), names)
    if resolve_name(str(name_or_path), PRESETS):
        hint = "; it is a preset without shipped weights, which create() builds"
    raise FileNotFoundError(
        f"{spell_name('name_or_path')} {str(name_or_path)!r} is neither a file nor one of the shipped weights "
        f"{', '.join(names)}{hint}"
    )


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a weights file.

    Args:
        path: path of a file that fastds.models.save wrote.

    Raises:
        ValueError: If the file is damaged, is pickled, or was not written by `save`. The weights are not checked.
    """
    with open(path, "rb") as file:
        # A safetensors file starts with a length of eight bytes, and these may look like the start of a pickle.
        start = file.read(9)
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise ValueError(
            f"{path} is a pickled PyTorch file; weights are never unpickled here: expected a safetensors file that "
            "fastds.models.save wrote"
        )
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file, it is damaged or truncated: {error}") from None
    if metadata.get("format") != FORMAT:
        found = metadata.get("format")
        raise ValueError(
            f"{path} has no fastds metadata (format {found!r}, expected {FORMAT!r}): it was not written by "
            "fastds.models.save of this version"
        )
    missing = [key for key in ("architecture", "config", "card", "sha256") if key not in metadata]
    if missing:
        raise ValueError(f"{path} lacks the metadata {missing}: it was not written by fastds.models.save")
    return metadata


def read_digest(name_or_path: str | os.PathLike) -> str:
    """Return the checksum that a weights file states for its weights.

    Args:
        name_or_path: shipped weights or a file, see `find_file`.

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If the file has no fastds metadata, see `read_metadata`.
    """
    return read_metadata(find_file(name_or_path))["sha256"]


def count_values(path: Path) -> int:
    """Return the number of values in a weights file: parameters and constants such as those of a normalisation."""
    with safe_open(path, "np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def parse_metadata(path: Path, what: str, parse: Callable[[], Any]) -> Any:
    """Return parse(), and name the file and the entry of its metadata in errors.

    Args:
        path: path of the weights file.
        what: entry of the metadata.
        parse: function without arguments.

    Raises:
        ValueError: If the entry cannot be read.
    """
    try:
        return parse()
    except RecursionError:
        raise ValueError(f"{path} has an unreadable {what}: it is nested too deeply") from None
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} has an unreadable {what}: {error}") from None
