# SPDX-License-Identifier: Apache-2.0
"""Load and save weights as safetensors files with the configuration, the model card and a checksum in the metadata.

Pickled files are rejected, because unpickling can run arbitrary code.
"""

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from fastds._argument_types import validate_arguments
from fastds._options import spell_name
from fastds._outputs import atomic_write
from fastds._suggestions import resolve_name, suggest
from fastds._version import __version__
from fastds.models.card import ModelCard, Network
from fastds.models.registry import ARCHITECTURES, PRESETS, TASKS, build, find_architecture, find_task
from fastds.ops.core.arguments import check_choice

FORMAT = "fastds-1"
WEIGHTS = Path(__file__).parent / "weights"
ModelCache = dict[Path, nn.Module]
_cache: ModelCache | None = None  # see use_model_cache


def available(pretrained: bool = False, task: str | None = None) -> list[str]:
    """List the names of presets or of shipped weights.

    Args:
        pretrained: False lists the presets that `create` builds. True lists the weights in the package that `load`
            reads.
        task: "radar", "nowcast", "fields" or "humidity": list only the names for this task.

    Raises:
        ValueError: If the task is unknown.
    """
    names = sorted(path.stem for path in WEIGHTS.glob("*.safetensors")) if pretrained else sorted(PRESETS)
    if task is None:
        return names
    check_choice("task", task, tuple(TASKS))
    return [name for name in names if (load_card(name).task if pretrained else find_task(name)) == task]


def save(model: nn.Module, path: str | os.PathLike) -> None:
    """Write the weights, configuration and card of a model to a safetensors file.

    The file is written under a temporary name and renamed when it is complete.

    Args:
        model: network with the attributes `config` (keyword arguments of its class) and `card` (ModelCard).
        path: path of the file, usually *.safetensors.

    Raises:
        TypeError: If the class of the model is not one of the architectures that `load` can build.
    """
    architecture = find_architecture(type(model))
    if architecture is None:
        raise TypeError(f"model must be one of {sorted(ARCHITECTURES)}, got {type(model).__name__}")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    network: Network = model
    network.card.fastds_version = __version__
    metadata = {
        "format": FORMAT,
        "architecture": architecture,
        "config": json.dumps(model.config, sort_keys=True),
        "card": network.card.to_json(),
        "sha256": _compute_digest(state),
    }
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(_sort_metadata(to_bytes(state, metadata)))
        file.flush()
        os.fsync(file.fileno())


@validate_arguments
def load(name_or_path: str | os.PathLike) -> nn.Module:
    """Read a model from the package or from a file, in evaluation mode.

    Args:
        name_or_path: one of `available(pretrained=True)`, or the path of a file that `save` wrote.

    Returns:
        The model on the CPU, with `config` and `card` from the file.

    Raises:
        FileNotFoundError: If `name_or_path` is neither the name of shipped weights nor a file.
        ValueError: If the file is damaged, is pickled, was not written by `save`, is of an unknown architecture, or
            holds weights that are not finite.

    Warns:
        UserWarning: If the card says that the weights did not outperform a baseline.
    """
    path = _find(name_or_path)
    if _cache is None:
        return _load_file(path)
    if path not in _cache:
        _cache[path] = _load_file(path)
    return _cache[path]


@contextlib.contextmanager
def use_model_cache(cache: ModelCache) -> Iterator[None]:
    """Context manager in which `load` returns the models in a cache, and adds the models that it reads.

    A process that runs a task for many files thus reads weights once. Its tasks share the models, so that they must not
    be changed.

    Args:
        cache: model by the path of its file; {} for an empty cache.
    """
    global _cache
    before, _cache = _cache, cache
    try:
        yield
    finally:
        _cache = before


def _load_file(path: Path) -> nn.Module:
    metadata, state = _read(path, with_tensors=True)
    card = _parse_metadata(path, "card", lambda: ModelCard.from_json(metadata["card"]))
    model = _rebuild(path, metadata, state)
    _check_keys(path, model.state_dict(), state)
    if _compute_digest(state) != metadata["sha256"]:
        raise ValueError(f"{path} is damaged: its weights do not match the checksum in its metadata")
    _check_finite(path, state)
    model.load_state_dict(state)
    model.card = card
    if card.worse_than:
        warnings.warn(
            f"{path.name} was no better than {card.worse_than} on the validation samples of its training", stacklevel=3
        )
    return model.eval()


@validate_arguments
def load_card(name_or_path: str | os.PathLike) -> ModelCard:
    """Read the model card of a weights file without reading the weights.

    Args:
        name_or_path: as for `load`.

    Raises:
        FileNotFoundError: If `name_or_path` is neither the name of shipped weights nor a file.
        ValueError: If the file is damaged, is pickled, or was not written by `save`. The weights are not checked.
    """
    path = _find(name_or_path)
    metadata, _ = _read(path, with_tensors=False)
    return _parse_metadata(path, "card", lambda: ModelCard.from_json(metadata["card"]))


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
        f"{spell_name('name_or_path')} {str(name_or_path)!r} is neither a file nor one of the shipped weights "
        f"{', '.join(names)}{hint}"
    )


def _read(path: Path, with_tensors: bool) -> tuple[dict, dict[str, Tensor]]:
    with open(path, "rb") as file:
        # A safetensors file starts with a length of eight bytes, and these may look like the start of a pickle.
        start = file.read(9)
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
    config = _parse_metadata(path, "config", lambda: json.loads(metadata["config"]))
    if not isinstance(config, dict):
        raise ValueError(f"{path} has an unreadable config: expected a JSON object, got {type(config).__name__}")
    _check_sizes(path, config, state)
    with torch.random.fork_rng(devices=[]):
        return _parse_metadata(path, "config", lambda: build(architecture, config))


def _parse_metadata(path: Path, what: str, parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except RecursionError:
        raise ValueError(f"{path} has an unreadable {what}: it is nested too deeply") from None
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} has an unreadable {what}: {error}") from None


def _check_sizes(path: Path, config: dict, state: dict[str, Tensor]) -> None:
    """Raise ValueError if an integer of the configuration is above 4096, the number of tensors, and all their sizes.

    Building a network with such a size could take hours or exhaust the memory.
    """
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


def _check_keys(path: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [k for k in expected.keys() & found.keys() if expected[k].shape != found[k].shape]
    if missing or extra or shapes:
        raise ValueError(
            f"{path} does not hold the weights of its own configuration: missing {missing[:3]} ({len(missing)}), "
            f"unexpected {extra[:3]} ({len(extra)}), of another shape {sorted(shapes)[:3]} ({len(shapes)})"
        )


def _sort_metadata(data: bytes) -> bytes:
    """Return a safetensors file with its metadata sorted by key, because safetensors writes them in random order."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _compute_digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}\n".encode())
        digest.update(cast(Any, state[name].reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
