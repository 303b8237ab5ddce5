# SPDX-License-Identifier: Apache-2.0
"""The verbs of loaded models. A model offers .downscale or .nowcast but knows no task: the tasks register what does it.

fastds/__init__.py names module and function of every verb here; they are imported at first use.
"""

import importlib

_PLACES: dict[str, str] = {}


def register(verb: str, place: str) -> None:
    """Let a verb be carried out by a function, place being "module:function"."""
    _PLACES[verb] = place


def function(verb: str):
    """The function of a registered verb."""
    module, _, name = _PLACES[verb].partition(":")
    return getattr(importlib.import_module(module), name)


class Downscales:
    """A model of fields or radar frames that can be made finer."""

    def downscale(self, dataset, **options):
        """Make an xarray Dataset finer with this model, see fastds.downscale."""
        return function("downscale")(self, dataset, **options)


class Nowcasts:
    """A model that forecasts radar frames."""

    def nowcast(self, dataset, **options):
        """Forecast from an xarray Dataset with this model, see fastds.nowcast."""
        return function("nowcast")(self, dataset, **options)
