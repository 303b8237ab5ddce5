# SPDX-License-Identifier: Apache-2.0
"""Execution settings of inference: CPU threads, device, precision."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from fastds._argument_types import is_whole_number
from fastds._options import OptionError
from fastds.models.graph_cache import GraphCache, use_graphs

DEVICES = ("auto", "cpu", "cuda")
GRAPHS = ("auto", "never")
PRECISIONS = ("fp32", "bf16")
MAX_COUNT = 10_000  # Largest number of members or steps. A larger number is a mistake that would exhaust memory.


class ExecutionConfig(NamedTuple):
    """Execution settings.

    Attributes:
        threads: number of CPU threads; None: torch's setting.
        device: device of the network; None: there is no network.
        precision: precision inside the network, "fp32" or "bf16".
        graphs: graphs of the network, by shapes; None: the network runs without graphs.
    """

    threads: int | None
    device: torch.device | None
    precision: str
    graphs: GraphCache | None = None

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the network."""
        return torch.autocast(getattr(self.device, "type", "cpu"), torch.bfloat16, enabled=self.precision == "bf16")

    def attributes(self) -> dict[str, str]:
        """Return the attributes that describe these settings in an output file."""
        return {"fastds_precision": self.precision, "fastds_device": getattr(self.device, "type", "cpu")}

    def make_notes(self) -> list[str]:
        """Return notes for the user about the graphs."""
        return [] if self.graphs is None else self.graphs.make_notes()


def check_execution(
    threads: int | None, precision: str | None = None, device: str | None = None, graph: str | None = None
) -> None:
    """Check execution settings.

    Args:
        threads: number of CPU threads, or None.
        precision: "fp32", "bf16" or None.
        device: "auto", "cpu", "cuda" or None.
        graph: "auto", "never" or None.

    Raises:
        ValueError: a value that is not allowed, or a GPU that does not exist.
    """
    if precision not in (None, *PRECISIONS):
        raise OptionError("precision", f"must be fp32 or bf16, got {precision!r}")
    if graph not in (None, *GRAPHS):
        raise OptionError("graph", f"must be auto or never, got {graph!r}")
    if threads is not None:
        check_count("threads", threads)
    if device not in (None, *DEVICES):
        raise OptionError("device", f"must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError("device", "must be cpu or auto on this machine, where torch finds no GPU, got 'cuda'")


def check_whole(name: str, value: float | None, least: int, most: int | None = None) -> None:
    """Raise ValueError if a number is not an integer from `least` to `most`.

    Args:
        name: name of the argument for the message.
        value: number; None is allowed.
        least: smallest allowed value.
        most: largest allowed value; None: no limit.
    """
    if value is not None and not (is_whole_number(value) and least <= value <= (most or value)):
        allowed = f">= {least}" if most is None else f"from {least} to {most}"
        raise OptionError(name, f"must be a whole number {allowed}, got {value!r}")


def check_count(name: str, value: int) -> None:
    """Raise ValueError if a number of threads or processes is below 1 or far above the number of CPUs."""
    most = max(64, 4 * (os.cpu_count() or 1))
    if not is_whole_number(value) or not 1 <= value <= most:
        raise OptionError(name, f"must be a whole number from 1 to {most} on this machine, got {value!r}")


def resolve_execution(
    model: nn.Module | None,
    threads: int | None,
    precision: str | None = None,
    device: str | None = None,
    graph: str | None = None,
) -> ExecutionConfig:
    """Return the execution settings for a network.

    Args:
        model: network; None: a method without a network.
        threads: number of CPU threads; None: torch's setting.
        precision: "fp32" or "bf16"; None: bf16 on a GPU, else fp32.
        device: "cuda", "cpu" or "auto" (a GPU if there is one); None: the device of the model.
        graph: "never", or "auto" (or None): graphs of repeated shapes, see fastds.models.graph_cache.

    Raises:
        ValueError: a value that is not allowed, or a GPU that does not exist.
    """
    check_execution(threads, precision, device, graph)
    if model is None:
        return ExecutionConfig(threads, None, precision or "fp32")
    place = get_device(model) if device is None else torch.device(resolve_device(device))
    graphs = None if graph == "never" else GraphCache()
    return ExecutionConfig(threads, place, precision or ("bf16" if place.type == "cuda" else "fp32"), graphs)


def resolve_device(device: str) -> str:
    """Replace "auto" by "cuda" or "cpu", depending on this machine."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def get_device(model: nn.Module) -> torch.device:
    """Return the device of a model's weights; the CPU for a model without weights."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def inference_context(model: nn.Module | None, settings: ExecutionConfig) -> Iterator[None]:
    """Context manager that prepares a network for inference and restores its state on exit.

    Within the block, the model is on its device and in evaluation mode, gradients are disabled, torch has
    settings.threads threads, and forwards of repeated shapes are replayed from settings.graphs.

    Args:
        model: network, or None.
        settings: execution settings.
    """
    before, training = torch.get_num_threads(), model is not None and model.training
    home = None if model is None else get_device(model)
    if settings.threads is not None:
        torch.set_num_threads(int(settings.threads))
    if model is not None:
        model.eval().to(settings.device)
    if settings.graphs is not None:
        settings.graphs.drop_outdated()
    try:
        with torch.inference_mode(), use_graphs(settings.graphs):
            yield
    finally:
        torch.set_num_threads(before)
        if model is not None:
            model.train(training).to(home)
