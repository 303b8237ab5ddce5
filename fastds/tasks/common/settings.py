# SPDX-License-Identifier: Apache-2.0
"""How a network is computed: CPU threads, device and precision, asked for by the options of every task and command."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from fastds._argument_types import is_whole

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16")
MOST = 10_000  # members or steps: who asks for more has made a slip, which would fill the memory


class Settings(NamedTuple):
    """CPU threads, None: torch's; device, None: there is no network; precision inside the network."""

    threads: int | None
    device: torch.device | None
    precision: str

    def autocast(self) -> torch.autocast:
        """What a network runs in."""
        return torch.autocast(getattr(self.device, "type", "cpu"), torch.bfloat16, enabled=self.precision == "bf16")

    def attributes(self) -> dict[str, str]:
        """What a file tells of them."""
        return {"fastds_precision": self.precision, "fastds_device": getattr(self.device, "type", "cpu")}


def check_settings(threads: int | None, precision: str | None = None, device: str | None = None) -> None:
    """ValueError for a precision or a device that is not there or a number of threads that is none."""
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
    if threads is not None:
        check_count("threads", threads)
    if device not in (None, *DEVICES):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be cpu or auto on this machine, where torch finds no GPU, got 'cuda'")


def check_whole(name: str, value: float | None, least: int, most: int | None = None) -> None:
    """ValueError for a number, where one is given, that is not whole, less than the least or more than the most."""
    if value is not None and not (is_whole(value) and least <= value <= (most or value)):
        allowed = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}")


def check_count(name: str, value: int) -> None:
    """ValueError for a number of threads or processes that is none, or more than this machine can want."""
    most = max(64, 4 * (os.cpu_count() or 1))
    if not is_whole(value) or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most} on this machine, got {value!r}")


def settle(
    model: nn.Module | None, threads: int | None, precision: str | None = None, device: str | None = None
) -> Settings:
    """The settings of a network (None: a method without one).

    device: "cuda", "cpu", or "auto", a GPU where there is one; None: where the model is. precision: "fp32" or "bf16";
    None: bf16 on a GPU, else fp32. Raises: see check_settings.
    """
    check_settings(threads, precision, device)
    if model is None:
        return Settings(threads, None, precision or "fp32")
    place = device_of(model) if device is None else torch.device(resolved(device))
    return Settings(threads, place, precision or ("bf16" if place.type == "cuda" else "fp32"))


def resolved(device: str) -> str:
    """The device that "auto" is on this machine; others as they are."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of a model are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def computing(model: nn.Module | None, settings: Settings) -> Iterator[None]:
    """Inside the block the model is on its device and in evaluation mode, without gradients, with so many torch
    threads; afterwards all is as it was."""
    before, training = torch.get_num_threads(), model is not None and model.training
    home = None if model is None else device_of(model)
    if settings.threads is not None:
        torch.set_num_threads(int(settings.threads))
    if model is not None:
        model.eval().to(settings.device)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
        if model is not None:
            model.train(training).to(home)
