# SPDX-License-Identifier: Apache-2.0
"""Registry of public functions and mixins that add these functions to models as methods.

Models must not import tasks. fastds/__init__.py registers module and name of each function, and the function is
imported at first use.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

if TYPE_CHECKING:
    import xarray as xr

_LOCATIONS: dict[str, str] = {}


def register_function(verb: str, place: str) -> None:
    """Register a public function.

    Args:
        verb: name of the public function.
        place: location of the implementation, "module:function".
    """
    _LOCATIONS[verb] = place


def is_registered(verb: str) -> bool:
    """Return whether a public function of this name is registered."""
    return verb in _LOCATIONS


def get_function(verb: str) -> Callable:
    """Import and return a registered function."""
    module, _, name = _LOCATIONS[verb].partition(":")
    return getattr(importlib.import_module(module), name)


class DownscaleOptions(TypedDict, total=False):
    """Keyword arguments of fastds.downscale."""

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
    """Keyword arguments of fastds.nowcast."""

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
    """Keyword arguments of fastds.predict."""


class QueryOptions(TypedDict, total=False):
    """Keyword arguments of fastds.query."""

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
    """Keyword arguments of fastds.evaluate."""

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
    """Decorate a function with **options so that its signature lists the options.

    inspect.signature, help() and tab completion then show each option.

    Args:
        options: TypedDict of the options.
    """

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


class DownscaleMixin:
    """Mixin for models that downscale radar frames, gridded fields or humidity."""

    @show_options(DownscaleOptions)
    def downscale(self, data: Any, **options: Unpack[DownscaleOptions]) -> xr.Dataset:
        """Downscale data with this model.

        Args:
            data: Dataset, DataArray, file, or several files of one series.
            options: see fastds.downscale.

        Returns:
            A new Dataset.

        Raises:
            ValueError: data or options that do not fit; see fastds.downscale.
        """
        return get_function("downscale")(self, data, **options)


class NowcastMixin:
    """Mixin for models that forecast radar frames."""

    @show_options(NowcastOptions)
    def nowcast(self, data: Any, **options: Unpack[NowcastOptions]) -> xr.Dataset:
        """Forecast with this model.

        Args:
            data: Dataset, DataArray or files with the last radar frames.
            options: see fastds.nowcast.

        Returns:
            A new Dataset.

        Raises:
            ValueError: data or options that do not fit; see fastds.nowcast.
        """
        return get_function("nowcast")(self, data, **options)
