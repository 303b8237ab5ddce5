# SPDX-License-Identifier: Apache-2.0
"""Weights files: safetensors with configuration, card and checksum in the metadata. Nothing is ever unpickled."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from fastds._argument_types import validate_arguments
from fastds._outputs import atomic_write
from fastds._suggestions import resolve_name, suggest
from fastds._version import __version__
from fastds.models.card import ModelCard
from fastds.models.registry import ARCHITECTURES, PRESETS, TASKS, build, task_of
from fastds.ops.core.arguments import check_choice

FORMAT = "fastds-1"
WEIGHTS = Path(__file__).parent / "weights"


def available(pretrained: bool = False, task: str | None = None) -> list[str]:
    """Names of the presets (for create), or with pretrained=True of the weights in the package (for load).

    task: "radar", "nowcast", "fields" or "humidity", those for it alone. Raises: ValueError for another."""
    names = sorted(path.stem for path in WEIGHTS.glob("*.safetensors")) if pretrained else sorted(PRESETS)
    if task is None:
        return names
    check_choice("task", task, tuple(TASKS))
    return [name for name in names if (load_card(name).task if pretrained else task_of(name)) == task]


def save(model: nn.Module, path: str | os.PathLike) -> None:
    """Write a model's weights, configuration and card to one safetensors file, by a temporary name.

    Args:
        model: with .config (keyword arguments that re-create it) and .card (ModelCard).
        path: of the file, by habit *.safetensors.

    Raises:
        TypeError: a model that load could not re-create.
    """
    architecture = type(model).__name__
    if ARCHITECTURES.get(architecture) is not type(model):
        raise TypeError(f"model must be one of {sorted(ARCHITECTURES)}, got {architecture}")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    model.card.fastds_version = __version__
    metadata = {
        "format": FORMAT,
        "architecture": architecture,
        "config": json.dumps(model.config, sort_keys=True),
        "card": model.card.to_json(),
        "sha256": _digest(state),
    }
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(_in_order(to_bytes(state, metadata)))
        file.flush()
        os.fsync(file.fileno())


@validate_arguments
def load(name_or_path: str | os.PathLike) -> nn.Module:
    """Read a model from the package or from a file, in evaluation mode.

    Args:
        name_or_path: one of available(pretrained=True), or the path of a file that save wrote.

    Returns:
        The model with .config and .card of the file, on the CPU.

    Raises:
        FileNotFoundError: neither a name nor a file.
        ValueError: a file that is damaged, truncated, pickled, without fastds metadata or of another architecture, or
            that holds weights that are not finite.
        Warns (UserWarning) where the card says that the weights were no better than a simple method.
    """
    path = _find(name_or_path)
    metadata, state = _read(path, with_tensors=True)
    card = _parsed(path, "card", lambda: ModelCard.from_json(metadata["card"]))
    model = _rebuild(path, metadata, state)
    _check_keys(path, model.state_dict(), state)
    if _digest(state) != metadata["sha256"]:
        raise ValueError(f"{path} is damaged: its weights do not match the checksum in its metadata")
    _check_finite(path, state)
    model.load_state_dict(state)
    model.card = card
    if card.lost_to:
        warnings.warn(
            f"{path.name} was no better than {card.lost_to} on the validation samples of its training", stacklevel=2
        )
    return model.eval()


@validate_arguments
def load_card(name_or_path: str | os.PathLike) -> ModelCard:
    """Read the card of a weights file without its weights; name_or_path and errors as in load."""
    path = _find(name_or_path)
    metadata, _ = _read(path, with_tensors=False)
    return _parsed(path, "card", lambda: ModelCard.from_json(metadata["card"]))


def _find(name_or_path: str | os.PathLike) -> Path:
    shipped = WEIGHTS / f"{name_or_path}.safetensors"
    if isinstance(name_or_path, str) and shipped.parent == WEIGHTS and shipped.is_file():
        return shipped
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = available(pretrained=True)
    if isinstance(name_or_path, str) and (name := resolve_name(name_or_path, names)):
        return WEIGHTS / f"{name}.safetensors"
    hint = suggest(str(name_or_path), names)
    if resolve_name(str(name_or_path), PRESETS):
        hint = "; it is a preset without shipped weights, which create() builds"
    raise FileNotFoundError(
        f"name_or_path {str(name_or_path)!r} is neither a file nor one of the shipped weights {', '.join(names)}{hint}"
    )


def _read(path: Path, with_tensors: bool) -> tuple[dict, dict[str, Tensor]]:
    with open(path, "rb") as file:
        start = file.read(9)  # a safetensors file begins with a length of eight bytes, which may look like a pickle's
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise ValueError(
            f"{path} is a pickled PyTorch file; weights are never unpickled here: expected a safetensors file that "
            "fastds.models.save wrote"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = file.keys() if with_tensors else ()
            state = {name: file.get_tensor(name) for name in names}
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
    return metadata, state


def _rebuild(path: Path, metadata: dict, state: dict[str, Tensor]) -> nn.Module:
    architecture = metadata["architecture"]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{path} holds weights of {architecture!r}; this version knows {sorted(ARCHITECTURES)}")
    config = _parsed(path, "config", lambda: json.loads(metadata["config"]))
    if not isinstance(config, dict):
        raise ValueError(f"{path} has an unreadable config: expected a JSON object, got {type(config).__name__}")
    _check_sizes(path, config, state)
    with torch.random.fork_rng(devices=[]):
        return _parsed(path, "config", lambda: build(architecture, config))


def _parsed(path: Path, what: str, parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except RecursionError:
        raise ValueError(f"{path} has an unreadable {what}: it is nested too deeply") from None
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} has an unreadable {what}: {error}") from None


def _check_sizes(path: Path, config: dict, state: dict[str, Tensor]) -> None:
    """Refuses a config with a number far above what the file holds: its network would take hours or all memory."""
    most = max([4096, len(state), *(n for tensor in state.values() for n in tensor.shape)])
    pending: list = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict | list):
            pending += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int) and abs(value) > most:
            raise ValueError(
                f"{path} does not hold the weights of its own configuration: it names {value}, and no size in the file "
                f"is above {most}"
            )


def _check_finite(path: Path, state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise ValueError(
                f"{path} holds weights that are not finite: {bad} of {tensor.numel()} numbers of {name}; it is of a "
                "training that diverged, or damaged"
            )


def _check_keys(path: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [k for k in wanted.keys() & found.keys() if wanted[k].shape != found[k].shape]
    if missing or extra or shapes:
        raise ValueError(
            f"{path} does not hold the weights of its own configuration: missing {missing[:3]} ({len(missing)}), "
            f"unexpected {extra[:3]} ({len(extra)}), of another shape {sorted(shapes)[:3]} ({len(shapes)})"
        )


def _in_order(data: bytes) -> bytes:
    """The same safetensors file with its metadata sorted by name: the library's order changes from run to run."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
