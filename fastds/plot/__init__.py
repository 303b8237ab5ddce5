# SPDX-License-Identifier: Apache-2.0
"""Figures of fields and scores, such as maps, training curves, spectra and rank histograms.

The figures do not use pyplot. A notebook shows a figure that is the result of a cell.
"""

from fastds.plot.curves import (
    draw_by_factor,
    draw_by_lead,
    draw_daily_series,
    draw_errors_by_intensity,
    draw_panels_by_lead,
    draw_rank_histogram,
    spectra,
    training_curves,
)
from fastds.plot.field_styles import (
    HUMIDITY_LEVELS,
    RAIN_AMOUNT_LEVELS,
    RAIN_RATE_LEVELS,
    FieldStyle,
    choose_style,
    generic_style,
    humidity_style,
    rain_amount_style,
    rain_rate_style,
    temperature_style,
)
from fastds.plot.fields import draw_map
from fastds.plot.location import Location
from fastds.plot.maps import draw_difference, draw_field, field_panel, forecast_strip
from fastds.plot.notebook import show_figures
from fastds.plot.probabilities import (
    draw_probability,
    draw_probability_maps,
    draw_reliability_diagram,
    draw_roc_curves,
)
from fastds.plot.saving import save_figure
from fastds.plot.style import (
    PROBABILITY_LEVELS,
    REFLECTIVITY_LEVELS,
    difference_style,
    probability_style,
    reflectivity_style,
    save_png,
)

show_figures()

__all__ = [
    "HUMIDITY_LEVELS",
    "PROBABILITY_LEVELS",
    "RAIN_AMOUNT_LEVELS",
    "RAIN_RATE_LEVELS",
    "REFLECTIVITY_LEVELS",
    "FieldStyle",
    "Location",
    "choose_style",
    "difference_style",
    "draw_by_factor",
    "draw_by_lead",
    "draw_panels_by_lead",
    "draw_daily_series",
    "draw_difference",
    "draw_errors_by_intensity",
    "draw_field",
    "draw_map",
    "draw_probability",
    "draw_probability_maps",
    "draw_rank_histogram",
    "draw_reliability_diagram",
    "draw_roc_curves",
    "field_panel",
    "forecast_strip",
    "generic_style",
    "humidity_style",
    "probability_style",
    "rain_amount_style",
    "rain_rate_style",
    "reflectivity_style",
    "save_figure",
    "save_png",
    "spectra",
    "temperature_style",
    "training_curves",
]
