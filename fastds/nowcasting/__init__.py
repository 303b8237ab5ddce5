# SPDX-License-Identifier: Apache-2.0
"""From the last fields of a radar file to the next ones.

run.py checks and calls (`nowcast`, `nowcast_file`), methods.py makes a network or a baseline a method, starts.py finds
the fields before each start, output.py makes the CF dataset, reading.py reads it, picture.py draws it.
"""

from .methods import BASELINES, Method, pick_method
from .reading import Forecasts, is_forecast_file
from .run import nowcast, nowcast_file

__all__ = ["BASELINES", "Forecasts", "Method", "is_forecast_file", "nowcast", "nowcast_file", "pick_method"]
