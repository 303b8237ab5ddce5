# SPDX-License-Identifier: Apache-2.0
"""Figures of radar fields and scores, such as maps, training curves, spectra and rank histograms.

The figures do not use pyplot.
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
from fastds.plot.maps import draw_difference, draw_field, field_panel, forecast_strip
from fastds.plot.probabilities import (
    draw_probability,
    draw_probability_maps,
    draw_reliability_diagram,
    draw_roc_curves,
)
from fastds.plot.style import (
    PROBABILITY_LEVELS,
    REFLECTIVITY_LEVELS,
    difference_style,
    probability_style,
    reflectivity_style,
    save_png,
)

__all__ = [
    "PROBABILITY_LEVELS",
    "REFLECTIVITY_LEVELS",
    "difference_style",
    "draw_by_factor",
    "draw_by_lead",
    "draw_panels_by_lead",
    "draw_daily_series",
    "draw_difference",
    "draw_errors_by_intensity",
    "draw_field",
    "draw_probability",
    "draw_probability_maps",
    "draw_rank_histogram",
    "draw_reliability_diagram",
    "draw_roc_curves",
    "field_panel",
    "forecast_strip",
    "probability_style",
    "reflectivity_style",
    "save_png",
    "spectra",
    "training_curves",
]
