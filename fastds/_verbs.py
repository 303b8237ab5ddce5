# SPDX-License-Identifier: Apache-2.0
"""The verbs of loaded models. A model offers .downscale or .nowcast but knows no task: the tasks register what does it.

fastds/__init__.py names module and function of every verb here; they are imported at first use.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

if TYPE_CHECKING:
    import xarray as xr

_PLACES: dict[str, str] = {}


def register(verb: str, place: str) -> None:
    """Let a verb be carried out by a function, place being "module:function"."""
    _PLACES[verb] = place


def registered(verb: str) -> bool:
    """Whether a function carries out the verb."""
    return verb in _PLACES


def function(verb: str) -> Callable:
    """The function of a registered verb."""
    module, _, name = _PLACES[verb].partition(":")
    return getattr(importlib.import_module(module), name)


class DownscaleOptions(TypedDict, total=False):
    """The keyword arguments of fastds.downscale."""

    var: str | None
    scale: float | None
    grid: float | None
    like: xr.Dataset | str | os.PathLike | None
    time_factor: int | None
    static: xr.Dataset | list[str] | None
    dynamics: Mapping[str, Any] | str | None
    coarsened: str | None
    level: float | None
    members: int | None
    seed: int | None
    smooth: bool
    z_r: tuple[float, float] | None
    tile: int | None
    halo: int | None
    missing: float | None
    units: str | None
    start: str | None
    stop: str | None
    threads: int | None
    precision: str | None
    device: str | None
    progress: bool


class NowcastOptions(TypedDict, total=False):
    """The keyword arguments of fastds.nowcast."""

    steps: int | None
    lead: str | None
    start: str | None
    every: str | None
    stop: str | None
    quantity: str
    var: str | None
    z_r: tuple[float, float] | None
    coarsen: int | None
    interval: str | None
    block: int | None
    smooth: bool
    members: int | None
    seed: int | None
    probability: Sequence[float] | None
    missing: float | None
    units: str | None
    threads: int | None
    precision: str | None
    device: str | None
    progress: bool


class PredictOptions(DownscaleOptions, NowcastOptions, total=False):
    """The keyword arguments of fastds.predict."""


class QueryOptions(TypedDict, total=False):
    """The keyword arguments of fastds.query."""

    outside: str
    var: str | None
    static: xr.Dataset | list[str] | None
    missing: float | None
    units: str | None
    start: str | None
    stop: str | None
    threads: int | None
    precision: str | None
    device: str | None


class EvaluateOptions(TypedDict, total=False):
    """The keyword arguments of fastds.evaluate."""

    input: Any
    var: str | None
    z_r: tuple[float, float] | None
    baselines: Sequence[str] | None
    model: str | os.PathLike | None
    report: str | os.PathLike | None
    missing: float | None
    units: str | None
    start: str | None
    stop: str | None
    progress: bool


Method = TypeVar("Method", bound=Callable)


def show_options(options: type) -> Callable[[Method], Method]:
    """Decorate a function that takes `options`, a TypedDict, as **options so that inspect.signature, help() and tab
    completion show each of them."""

    def decorate(function: Method) -> Method:
        own = inspect.signature(function)
        shown = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        further = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=kind)
            for name, kind in options.__annotations__.items()
        ]
        function.__signature__ = own.replace(parameters=[*shown, *further])
        return function

    return decorate


class Downscales:
    """A model that makes radar frames, gridded fields or humidity finer."""

    @show_options(DownscaleOptions)
    def downscale(self, data: Any, **options: Unpack[DownscaleOptions]) -> xr.Dataset:
        """Downscale an xarray Dataset or DataArray or files with this model, see fastds.downscale."""
        return function("downscale")(self, data, **options)


class Nowcasts:
    """A model that forecasts radar frames."""

    @show_options(NowcastOptions)
    def nowcast(self, data: Any, **options: Unpack[NowcastOptions]) -> xr.Dataset:
        """Forecast from an xarray Dataset or DataArray or files with this model, see fastds.nowcast."""
        return function("nowcast")(self, data, **options)
