# SPDX-License-Identifier: Apache-2.0
"""HTML reports: one self-contained page with the description of the run, scores, maps over time, and charts.

This package does not depend on a task; the tasks fill the pages.
"""

from fastds.report.charts import Chart, make_lead_chart
from fastds.report.grid import MapGrid
from fastds.report.maps import (
    MAX_FRAMES,
    MAX_PIXELS,
    Maps,
    MapStyle,
    choose_field_style,
    field_style,
    make_probability_style,
    radar_style,
    select_evenly,
)
from fastds.report.page import Page, check_report

__all__ = [
    "MAX_FRAMES",
    "MAX_PIXELS",
    "Chart",
    "MapGrid",
    "MapStyle",
    "Maps",
    "Page",
    "check_report",
    "choose_field_style",
    "select_evenly",
    "field_style",
    "make_lead_chart",
    "make_probability_style",
    "radar_style",
]
