# SPDX-License-Identifier: Apache-2.0
"""The verbs of loaded models. A model offers .downscale or .nowcast but knows no task: the tasks register what does it.

fastds/__init__.py names module and function of every verb here; they are imported at first use.
"""

import importlib
from collections.abc import Callable
from typing import Any

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


class Downscales:
    """A model that makes radar frames, gridded fields or humidity finer."""

    def downscale(self, data: Any, **options: Any) -> Any:
        """Make an xarray Dataset or a file finer with this model, see fastds.downscale."""
        return function("downscale")(self, data, **options)


class Nowcasts:
    """A model that forecasts radar frames."""

    def nowcast(self, data: Any, **options: Any) -> Any:
        """Forecast from an xarray Dataset or a file with this model, see fastds.nowcast."""
        return function("nowcast")(self, data, **options)
